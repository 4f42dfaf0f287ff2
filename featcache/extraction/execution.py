"""How an extraction runs: options that change no feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from featcache.config import Option, check

if TYPE_CHECKING:
    from featcache.extraction.units import Shard

# bf16 has 8 bits of mantissa: VGG16 keeps a cosine of 0.9999, Inception v3 one above 0.999, and with either a head's
# accuracy moves by no more than its own seeds do. Whatever falls below is no longer the same feature.
LEAST_COSINE = 0.999
#: As a device: every GPU of this machine, a share of the images on each.
ALL_GPUS = "cuda:all"
_TOGETHER = "Several machines"


def _shard(text: str) -> Shard:
    from featcache.extraction.units import Shard

    return Shard.parse(text)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How an extraction runs: nothing here changes a feature. None stands for auto. Raises InvalidOption."""

    PANEL: ClassVar[str] = "How it runs"

    device: Annotated[
        str,
        Option(
            help="auto, cpu, mps, cuda, cuda:N, or cuda:all: a share of the images on every GPU.", metavar="<device>"
        ),
    ] = "auto"
    batch_size: Annotated[
        int | None, Option(help="Images per forward pass, or auto.", metavar="<images>", unset="auto", least=1)
    ] = None
    workers: Annotated[
        int | None, Option(help="Threads that decode images, or auto.", metavar="<threads>", unset="auto", least=1)
    ] = None
    segment_rows: Annotated[
        int | None,
        Option(
            help="Rows of one file while an extraction runs, and in a cache that is not packed; a file that was "
            "written is never computed again.",
            metavar="<rows>",
            default="half a minute's work",
            least=1,
        ),
    ] = None
    pack: Annotated[
        bool | None,
        Option(
            help="Whether the cache becomes one file, or stays in several.",
            flags=("--pack/--no-pack",),
            default="up to 4 GiB",
        ),
    ] = None
    resize_on: Annotated[
        Literal["auto", "host", "device"],
        Option(help="Where images are resized, to the same bytes. auto: on a GPU, where there is one."),
    ] = "auto"
    on_error: Annotated[
        Literal["fail", "skip"], Option(help="At an image that cannot be read: fail, or skip it and list it.")
    ] = "fail"
    min_cosine: Annotated[
        float,
        Option(
            help="Below fp32, features are first compared with fp32's on some of the images; a smaller cosine stops "
            "the extraction.",
            metavar="<cosine>",
            least=-1,
            greatest=1,
        ),
    ] = LEAST_COSINE
    rehash: Annotated[bool, Option(help="Read every image, also those that look unchanged.")] = False
    wait: Annotated[
        bool,
        Option(
            help="Whether to wait for another process that is writing this cache, or to stop.", flags=("--no-wait",)
        ),
    ] = True
    shard: Annotated[
        Shard | None,
        Option(
            help="Compute only the i-th of n shares of the rows, 0/n to n-1/n; the last to end publishes the cache.",
            metavar="<i/n>",
            read=_shard,
            panel=_TOGETHER,
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)

    @property
    def threads(self) -> int:
        """Threads that read images before anything is computed: they wait for the disk as much as they hash."""
        return self.workers or 2


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What computes: this process, or tasks of a Ray cluster, where and how wide. Raises InvalidOption."""

    PANEL: ClassVar[str] = _TOGETHER

    engine: Annotated[
        Literal["local", "ray"], Option(help="local, or ray: tasks on a cluster that shares the data folder.")
    ] = "local"
    address: Annotated[
        str | None,
        Option(help="Of a running Ray cluster, or auto.", metavar="<address>", default="one on this machine"),
    ] = None
    gpus_per_task: Annotated[float, Option(help="GPUs of a task.", metavar="<gpus>", least=0)] = 0
    cpus_per_task: Annotated[int, Option(help="Cores, and threads, of a task.", metavar="<cores>", least=1)] = 1
    max_parallel: Annotated[
        int | None, Option(help="Tasks at once.", metavar="<tasks>", default="as many as fit", least=1)
    ] = None
    deadline_s: Annotated[
        float,
        Option(
            help="Seconds after which a task counts as hung, and is done again.",
            flags=("--task-deadline",),
            metavar="<seconds>",
            least=1,
        ),
    ] = 1800

    def __post_init__(self) -> None:
        check(self)
