"""How commands find the cache that they work on: a name, or filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from featcache.cli import completion
from featcache.config import Option, check

if TYPE_CHECKING:
    from featcache.cache.catalog import CacheEntry

_PANEL = "Which cache"
#: A cache that filters may choose.
CACHE = typer.Argument(
    autocompletion=completion.caches,
    help="A name (see featcache ls) or a path. How a name begins is enough. [default: the only one that fits]",
    metavar="CACHE",
    rich_help_panel=_PANEL,
)


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Filters for the cache that a command works on, where its name is not given."""

    PANEL: ClassVar[str] = _PANEL

    backbone: Annotated[
        str | None,
        Option(
            help="Of this backbone.",
            flags=("--backbone", "-b"),
            metavar="<name>",
            default="any",
            completion="backbones",
        ),
    ] = None
    dataset: Annotated[
        str | None,
        Option(
            help="Of this data set.",
            flags=("--dataset", "-d"),
            metavar="<name or path>",
            default="any",
            completion="datasets",
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)

    def find(
        self,
        features_dir: Path,
        name: str | None,
        *,
        layers: Sequence[str] = (),
        targets: Sequence[str] = (),
        backbone: str | None = None,
        image_size: int | None = None,
        unfinished_first: bool = False,
    ) -> CacheEntry:
        """The one cache that fits.

        Args:
            features_dir: The folder of caches.
            name: Its path, its name, or how that begins; None where the filters choose.
            layers: Layers that it must hold.
            targets: Targets that choose among several.
            backbone: The backbone that it must have where no option names one.
            image_size: Pixels a side that choose among several.
            unfinished_first: Whether unfinished caches are preferred.

        Raises:
            CacheNotFound: None fits, or several do.
        """
        from featcache.cache.query import CacheQuery, find_cache

        query = CacheQuery(
            name=name,
            backbone=self.backbone or backbone,
            dataset=self.dataset,
            origin=None if self.dataset is None else _origin(self.dataset),
            layers=layers,
            targets=targets,
            image_size=image_size,
            unfinished_first=unfinished_first,
        )
        return find_cache(features_dir, query)


def _origin(dataset: str) -> str | None:
    """The full name under which caches record a data set; None where its images are not here any more."""
    from featcache.errors import FeatcacheError
    from featcache.images.location import locate

    try:
        return locate(dataset).origin
    except FeatcacheError:
        return None
