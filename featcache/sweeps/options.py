"""The options of a sweep: how many heads it trains for each combination, and on which rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from featcache.config import Option, check
from featcache.errors import InvalidOption

#: Seeds, or draws, of one combination. A larger number is a typing error, and would fill the memory.
MOST_REPEATS = 10_000


def _whole_numbers(text: str) -> tuple[int, ...]:
    """`1,5,10` -> (1, 5, 10). Raises InvalidOption for anything else."""
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        raise InvalidOption(f"expected --shots with whole numbers such as 1,5,10, got {text!r}")
    return tuple(map(int, numbers))


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Which rows the heads of a sweep are trained on, and how often. Raises InvalidOption for options that conflict."""

    PANEL: ClassVar[str] = "The sweep"

    seeds: Annotated[
        int,
        Option(
            help="Repeat with N seeds, and rank by the mean. The seeds are --seed and those that follow it.",
            metavar="<n>",
            least=1,
            greatest=MOST_REPEATS,
        ),
    ] = 1
    folds: Annotated[
        int | None,
        Option(
            help="Cross-validate in N folds of train. Each is held out once, and heads are ranked by the score there.",
            metavar="<n>",
            default="none",
            least=2,
        ),
    ] = None
    shots: Annotated[
        tuple[int, ...] | None,
        Option(
            help="Train on N images a class, as in 1,5,10. They are drawn from train after val is cut off.",
            metavar="<images>",
            default="all images",
            read=_whole_numbers,
            least=1,
        ),
    ] = None
    draws: Annotated[
        int | None,
        Option(
            help="Random draws for each of --shots.",
            metavar="<n>",
            default="5",
            least=1,
            greatest=MOST_REPEATS,
            advanced=True,
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)
        if self.folds is not None and self.shots:
            raise InvalidOption("--folds and --shots are two ways to choose train images", hint="take one of them")
        if self.shots and self.seeds > 1:
            raise InvalidOption(
                "with --shots every draw has a seed of its own, and --seeds would do nothing", hint="more --draws"
            )
        if self.draws is not None and not self.shots:
            raise InvalidOption("--draws belongs to --shots, and there are none", hint="--shots 1,5,10")
