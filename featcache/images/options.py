"""The options of every command that reads images: the set, its splits, and a limit."""

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
"""All possible splits, in the order that is used everywhere."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images of which set. Raises InvalidOption, and UnknownName for an unknown split."""

    PANEL: ClassVar[str] = "Images"

    dataset: Annotated[
        str | Path | ImageSource | Location,
        Option(
            help="A name of `featcache datasets`, or a path. A folder, zip or tar of class/image; a CSV or "
            "Parquet table of paths, URLs or images; a folder of WebDataset tars, or wds:PATTERN; hf:NAME.",
            flags=("--dataset", "-d"),
            metavar="<name or path>",
            completion="datasets",
        ),
    ] = "cifar10"
    split_by_folder: Annotated[
        tuple[str, ...],
        Option(
            help="FOLDER=SPLIT: the folder with the images of a split; may be repeated; other folders are left out. "
            "none: no folder is a split.",
            metavar="<folder=split>",
            default="by the names of folders",
            advanced=True,
        ),
    ] = ()
    splits: Annotated[
        tuple[str, ...] | None,
        Option(
            help="train, val or test; may be repeated.",
            flags=("--split",),
            metavar="<split>",
            default="all",
            advanced=True,
        ),
    ] = None
    limit: Annotated[
        int | None,
        Option(
            help="At most so many images per split, balanced over the classes.",
            metavar="<images>",
            default="all",
            least=1,
        ),
    ] = None
    select_seed: Annotated[int, Option(help="Which images --limit takes.", metavar="<seed>", advanced=True)] = 0

    def __post_init__(self) -> None:
        check(self)
        for split in self.splits or ():
            if split not in SPLITS:
                raise UnknownName("split", split, SPLITS)
        # Order and repetition have no meaning: options with the same splits must be equal.
        ordered = tuple(split for split in SPLITS if split in self.splits) if self.splits else None
        object.__setattr__(self, "splits", ordered)
