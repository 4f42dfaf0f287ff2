"""Options of how training runs: device, threads, memory. They change a head by rounding errors at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from featcache.config import Option, check, non_default_options, options_of
from featcache.errors import InvalidOption
from featcache.heads.config import HeadConfig

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

LoggerName = Literal["tensorboard", "csv", "mlflow", "wandb"]
_MEGABYTE = 10**6
#: Options that apply to heads trained by steps only.
_OF_STEPS = ("threads", "resident_bytes", "logger", "trainer")


def _megabytes(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise InvalidOption(f"expected --feature-memory a whole number of megabytes, got {text!r}")
    return int(text) * _MEGABYTE


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The device, threads and memory of a training; None chooses the best value. Raises InvalidOption."""

    PANEL: ClassVar[str] = HeadConfig.PANEL

    device: Annotated[str, Option(help="auto, cpu, mps, cuda or cuda:N.", metavar="<device>")] = "auto"
    threads: Annotated[
        int | None,
        Option(
            help="Threads of a head trained by steps on the CPU. auto: one or all, whichever is measured to be faster.",
            metavar="<n>",
            unset="auto",
            least=1,
            python_only=True,
        ),
    ] = None
    resident_bytes: Annotated[
        int | None,
        Option(
            help="Memory for features, on the GPU if the head is trained there; larger features are streamed, in the "
            "same order. Megabytes on the command line, bytes in Python. For heads that are trained by steps.",
            flags=("--feature-memory",),
            metavar="<mb>",
            default="a share of the free memory",
            read=_megabytes,
            least=0,
            advanced=True,
        ),
    ] = None
    logger: Annotated[
        LoggerName | None,
        Option(
            help="Also log every epoch with one of Lightning's loggers, into the run.", default="none", advanced=True
        ),
    ] = None
    trainer: Annotated[
        Literal["featcache", "lightning"] | Trainer,
        Option(
            help="featcache's own loop, or Lightning's Trainer, which trains the same head but without checkpoints; in "
            "Python also a Trainer object.",
            advanced=True,
        ),
    ] = "featcache"

    def __post_init__(self) -> None:
        check(self)

    def require_steps(self, config: HeadConfig) -> None:
        """Raise InvalidOption if an option of training by steps is given for a solved head."""
        if not config.architecture.solved:
            return
        given = non_default_options(self)
        idle = [one.flag for one in options_of(TrainingOptions) if one.name in _OF_STEPS and one.name in given]
        if idle:
            raise InvalidOption(
                f"expected {', '.join(idle)} for a head that is trained by steps, got the head {config.head}",
                hint=f"leave out {', '.join(idle)}, or choose linear or mlp:128,64",
            )
