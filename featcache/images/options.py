"""Which images of which set: the options of every command that reads images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from featcache.config import Option, check
from featcache.errors import UnknownName

if TYPE_CHECKING:
    from featcache.images.location import Location
    from featcache.images.source import ImageSource

SPLITS = ("train", "val", "test")
"""The splits there can be, in the order in which they stand everywhere."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images of which set. Raises InvalidOption, and UnknownName for a split that is none."""

    PANEL: ClassVar[str] = "Of which images"

    dataset: Annotated[
        str | Path | ImageSource | Location,
        Option(
            help="A set of `featcache datasets`; a folder, zip or tar of class/image; a CSV or Parquet table of paths "
            "or URLs, or of images; a folder of WebDataset tars, or wds:PATTERN; hf:NAME.",
            flags=("--dataset", "-d"),
            metavar="<name or path>",
            completion="datasets",
        ),
    ] = "cifar10"
    split_by_folder: Annotated[
        tuple[str, ...],
        Option(
            help="FOLDER=SPLIT: a folder that holds the images of a split; may be repeated, and other folders are left "
            "out. none: no folder is a split.",
            metavar="<folder=split>",
            default="by the folders' names",
        ),
    ] = ()
    splits: Annotated[
        tuple[str, ...] | None,
        Option(
            help="train, val or test; may be repeated.",
            flags=("--split",),
            metavar="<split>",
            default="all",
        ),
    ] = None
    limit: Annotated[
        int | None,
        Option(help="So many images per split, balanced over the classes.", metavar="<images>", default="all", least=1),
    ] = None
    select_seed: Annotated[int, Option(help="Which images --limit takes.", metavar="<seed>")] = 0

    def __post_init__(self) -> None:
        check(self)
        for split in self.splits or ():
            if split not in SPLITS:
                raise UnknownName("split", split, SPLITS)
        # An order or a repetition means nothing here: equal options are equal.
        ordered = tuple(split for split in SPLITS if split in self.splits) if self.splits else None
        object.__setattr__(self, "splits", ordered)
