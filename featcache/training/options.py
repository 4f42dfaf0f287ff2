"""How a head is trained, beside what it is: options that change no more than the last bits of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from featcache.config import Option, check, given_values, options_of
from featcache.errors import InvalidOption
from featcache.heads.config import HeadConfig

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

LoggerName = Literal["tensorboard", "csv", "mlflow", "wandb"]
_MEGABYTE = 10**6
#: What a head that is solved has no use for.
_OF_STEPS = ("threads", "resident_bytes", "logger", "trainer")


def _megabytes(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise InvalidOption(f"expected --feature-memory a whole number of megabytes, got {text!r}")
    return int(text) * _MEGABYTE


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Where and with what a head is trained. None stands for what is best here. Raises InvalidOption."""

    PANEL: ClassVar[str] = "How it runs"

    device: Annotated[str, Option(help="auto, cpu, mps, cuda or cuda:N.", metavar="<device>")] = "auto"
    threads: Annotated[
        int | None,
        Option(
            help="Threads of a head trained by steps on the CPU. auto: one or all, whichever is measured to be faster.",
            metavar="<n>",
            unset="auto",
            least=1,
        ),
    ] = None
    resident_bytes: Annotated[
        int | None,
        Option(
            help="Memory that features may take, a GPU's where the head is trained there; what is more is streamed, in "
            "the same order. Megabytes on the command line, bytes in Python. For heads that are trained by steps.",
            flags=("--feature-memory",),
            metavar="<mb>",
            default="a share of what is free",
            read=_megabytes,
            least=0,
        ),
    ] = None
    logger: Annotated[
        LoggerName | None,
        Option(help="Also write every epoch as one of Lightning's loggers does, into the run.", default="none"),
    ] = None
    trainer: Annotated[
        Literal["featcache", "lightning"] | Trainer,
        Option(
            help="featcache's own loop, or Lightning's Trainer, to the same head but without checkpoints; from Python "
            "also a Trainer."
        ),
    ] = "featcache"

    def __post_init__(self) -> None:
        check(self)

    def require_steps(self, config: HeadConfig) -> None:
        """Raises InvalidOption where an option of training by steps is given for a head that is solved."""
        if not config.architecture.solved:
            return
        given = given_values(self)
        idle = [one.flag for one in options_of(TrainingOptions) if one.name in _OF_STEPS and one.name in given]
        if idle:
            raise InvalidOption(
                f"expected {', '.join(idle)} for a head that is trained by steps, got the head {config.head}",
                hint=f"leave out {', '.join(idle)}, or take linear or mlp:128,64",
            )
