"""Options that several commands share and that describe neither images, backbones nor an extraction.

Those stand with what they describe, as config records (`featcache.config`, `cli.groups`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from featcache.backbones.options import BackboneOptions
from featcache.columns import ColumnOptions
from featcache.config import merged
from featcache.extraction.request import Request, StorageOptions
from featcache.images.options import ImageOptions

_COMMON = "Common"


@dataclass(frozen=True, kw_only=True)
class Common:
    """Accepted after any command."""

    json: Annotated[
        bool, typer.Option("--json", help="Print exactly one JSON object on stdout.", rich_help_panel=_COMMON)
    ] = False
    data_dir: Annotated[
        Path,
        typer.Option(
            envvar="FEATCACHE_DATA_DIR",
            help="Holds datasets/, weights/ and features/.",
            metavar="<folder>",
            rich_help_panel=_COMMON,
        ),
    ] = Path("data")
    runs_dir: Annotated[
        Path, typer.Option(help="Holds the runs of train-head.", metavar="<folder>", rich_help_panel=_COMMON)
    ] = Path("runs")
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no remarks; warnings stay.", rich_help_panel=_COMMON)
    ] = False
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the code an error was raised.", rich_help_panel=_COMMON)
    ] = False

    @property
    def features_dir(self) -> Path:
        """Where the caches lie."""
        return self.data_dir / "features"


def number_or_auto(text: str, option: str) -> int | None:
    """`auto` -> None, else a whole number of at least 1; a usage error for anything else."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"expected auto or a whole number of at least 1, got {text!r}", param_hint=option)
    return int(text)


def requested(
    what: BackboneOptions,
    storage: StorageOptions,
    images: ImageOptions,
    common: Common,
    columns: ColumnOptions | None = None,
) -> Request:
    """The request that a command's groups of options make."""
    return Request(**merged(images, what, storage, columns or ColumnOptions()), data_dir=common.data_dir)
