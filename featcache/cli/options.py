"""The options that every command has. Those of images, backbones, heads, ... stand with what they describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from featcache.config import Option, check


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options that belong to the root, `featcache`, and are accepted anywhere on the line."""

    PANEL: ClassVar[str] = "Options of every command"

    json: Annotated[bool, Option(help="Print exactly one JSON object on stdout, errors included.")] = False
    data_dir: Annotated[
        Path,
        Option(
            help="Holds datasets/, weights/ and features/; also FEATCACHE_DATA_DIR.",
            metavar="<folder>",
            variable="FEATCACHE_DATA_DIR",
        ),
    ] = Path("data")
    runs_dir: Annotated[
        Path,
        Option(
            help="Holds the runs of train-head and sweep; also FEATCACHE_RUNS_DIR.",
            metavar="<folder>",
            variable="FEATCACHE_RUNS_DIR",
        ),
    ] = Path("runs")
    quiet: Annotated[bool, Option(help="No progress and no remarks; warnings stay.", flags=("--quiet", "-q"))] = False
    debug: Annotated[bool, Option(help="Show where in the code an error was raised.")] = False

    def __post_init__(self) -> None:
        check(self)

    @property
    def features_dir(self) -> Path:
        """Where the caches lie."""
        return self.data_dir / "features"
