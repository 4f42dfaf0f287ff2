"""The options of a report: what is on the page, and where it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from featcache.config import Option, check

_WHAT = "What is shown"
_WHERE = "Where it goes"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What stands on the page, and where it is written."""

    map: Annotated[
        Literal["pca", "tsne", "umap", "none"],
        Option(help="How features are laid on a plane: pca at once, tsne and umap in minutes.", panel=_WHAT),
    ] = "pca"
    benchmark: Annotated[
        Path | None,
        Option(help="The JSON of `featcache benchmark`, as a chart.", metavar="<file>", panel=_WHAT),
    ] = None
    audit: Annotated[
        bool,
        Option(help="Audit the cache of the best run too, as featcache audit does.", panel=_WHAT),
    ] = False
    output: Annotated[
        Path,
        Option(
            help="The page.",
            flags=(
                "--output",
                "-o",
            ),
            metavar="<file>",
            panel=_WHERE,
        ),
    ] = Path("report.html")
    figures: Annotated[
        Path | None,
        Option(help="The figures as SVG, PDF and PNG too, as wide as a column.", metavar="<folder>", panel=_WHERE),
    ] = None
    open: Annotated[bool, Option(help="Open the page in the browser.", panel=_WHERE)] = False

    def __post_init__(self) -> None:
        check(self)

    @property
    def contents(self) -> Mapping[str, Any]:
        """The arguments of `write_report` that choose what is shown, by name."""
        return {name: getattr(self, name) for name in ("map", "benchmark", "audit", "figures")}
