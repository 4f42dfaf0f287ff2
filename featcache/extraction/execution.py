"""How an extraction runs: options that change no feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from featcache.config import Option, check

if TYPE_CHECKING:
    from featcache.extraction.units import Shard

# bf16 has 8 bits of mantissa: VGG16 keeps a cosine of 0.9999, Inception v3 one above 0.999, and with either a head's
# accuracy changes by no more than between its own seeds. Below this bound it is no longer the same feature.
LEAST_COSINE = 0.999
#: As a device: every GPU of this machine, a share of the images on each.
ALL_GPUS = "cuda:all"
_TOGETHER = "Several machines"


def _shard(text: str) -> Shard:
    from featcache.extraction.units import Shard

    return Shard.parse(text)


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """How images are decoded and run through a backbone. None means auto. Raises InvalidOption."""

    PANEL: ClassVar[str] = "How it runs"

    device: Annotated[str, Option(help="auto, cpu, mps, cuda or cuda:N.", metavar="<device>")] = "auto"
    batch_size: Annotated[
        int | None, Option(help="Images per forward pass, or auto.", metavar="<images>", unset="auto", least=1)
    ] = None
    workers: Annotated[
        int | None,
        Option(help="Threads that decode images, or auto.", metavar="<threads>", unset="auto", least=1, advanced=True),
    ] = None
    on_error: Annotated[
        Literal["fail", "skip"],
        Option(help="At unreadable images. fail stops with an error; skip leaves them out and lists them."),
    ] = "fail"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Execution(ComputeOptions):
    """How an extraction runs: no option here changes a feature. None means auto. Raises InvalidOption."""

    device: Annotated[
        str,
        Option(
            help="auto, cpu, mps, cuda, cuda:N or cuda:all. With cuda:all every GPU computes a share of the images.",
            metavar="<device>",
        ),
    ] = "auto"
    segment_rows: Annotated[
        int | None,
        Option(
            help="Rows of one file while an extraction runs, and in a cache that is not packed; a file that was "
            "written is never computed again.",
            metavar="<rows>",
            default="half a minute's work",
            least=1,
            advanced=True,
        ),
    ] = None
    pack: Annotated[
        bool | None,
        Option(
            help="Whether the cache becomes one file, or stays in several.",
            flags=("--pack/--no-pack",),
            default="up to 4 GiB",
            advanced=True,
        ),
    ] = None
    resize_on: Annotated[
        Literal["auto", "host", "device"],
        Option(help="Where images are resized, to the same bytes. auto: on a GPU, where there is one.", advanced=True),
    ] = "auto"
    min_cosine: Annotated[
        float,
        Option(
            help="Below fp32, features are first compared with fp32's on some of the images; a smaller cosine stops "
            "the extraction.",
            metavar="<cosine>",
            least=-1,
            greatest=1,
            advanced=True,
        ),
    ] = LEAST_COSINE
    rehash: Annotated[bool, Option(help="Read every image, also those that look unchanged.", advanced=True)] = False
    wait: Annotated[
        bool,
        Option(
            help="Whether to wait for another process that is writing this cache, or to stop.",
            flags=("--no-wait",),
            advanced=True,
        ),
    ] = True
    shard: Annotated[
        Shard | None,
        Option(
            help="Compute only shard i of n, counted from 0. The second of four is 1/4. The shard that ends last "
            "publishes the cache.",
            metavar="<i/n>",
            read=_shard,
            panel=_TOGETHER,
        ),
    ] = None

    @property
    def threads(self) -> int:
        """Threads that read and hash images before anything is computed; they often wait for the disk."""
        return self.workers or 2


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What computes: this process, or tasks of a Ray cluster, and with which resources. Raises InvalidOption."""

    PANEL: ClassVar[str] = _TOGETHER

    engine: Annotated[
        Literal["local", "ray"],
        Option(help="local, or ray: tasks on a cluster that shares the data folder.", advanced=True),
    ] = "local"
    address: Annotated[
        str | None,
        Option(
            help="Of a running Ray cluster, or auto.", metavar="<address>", default="one on this machine", advanced=True
        ),
    ] = None
    gpus_per_task: Annotated[float, Option(help="GPUs of a task.", metavar="<gpus>", least=0, advanced=True)] = 0
    cpus_per_task: Annotated[
        int, Option(help="Cores, and threads, of a task.", metavar="<cores>", least=1, advanced=True)
    ] = 1
    max_parallel: Annotated[
        int | None, Option(help="Tasks at once.", metavar="<tasks>", default="as many as fit", least=1, advanced=True)
    ] = None
    deadline_s: Annotated[
        float,
        Option(
            help="Seconds after which a task counts as hung, and is done again.",
            flags=("--task-deadline",),
            metavar="<seconds>",
            least=1,
            advanced=True,
        ),
    ] = 1800

    def __post_init__(self) -> None:
        check(self)
