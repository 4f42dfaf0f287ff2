"""Choose the rows of a cache for train, val and test.

A row is one image, so images, or groups of images, are assigned as a whole. Augmented views are not considered here:
they belong to the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.columns import TARGET_KINDS
from featcache.errors import HeadError, InvalidOption
from featcache.rows.groups import group_codes, group_overlap_notes, units_of
from featcache.rows.stratifying import Rows, label_units, stratify_share
from featcache.rows.target import HeadTarget, Values, head_target, read_targets

MOST_NAMED = 5
# A val whose share differs from the requested one by more than this gets a note.
_NOTED_MISS = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitRows:
    """Labelled rows of one split of a cache, in ascending order.

    Attributes:
        source: The split of the cache that holds them (val rows may lie in its train split).
        rows: int64 (n,) row numbers in that split, one per image.
        targets: Targets to learn, (n,) or (n, C); see rows/target.py.
    """

    source: str
    rows: Rows
    targets: Values

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, positions: Rows) -> SplitRows:
        """The rows at some positions among these: int64, ascending."""
        return replace(self, rows=self.rows[positions], targets=self.targets[positions])


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """The rows of train, val and test (None where the cache has no labelled test images).

    Attributes:
        train, val, test: The rows of each part.
        target: What a head predicts for them.
        notes: Sentences on what was left out, what is missing, and where val came from.
    """

    train: SplitRows
    val: SplitRows
    test: SplitRows | None
    target: HeadTarget
    notes: tuple[str, ...] = field(default=())

    def images(self) -> dict[str, int]:
        """Number of images of each part."""
        return {part: len(rows) for part, rows in self.parts().items()}

    def parts(self) -> dict[str, SplitRows]:
        """The rows of each existing part, by its name."""
        parts = {"train": self.train, "val": self.val}
        return parts if self.test is None else parts | {"test": self.test}


def cut_cache(
    cache: FeatureCache,
    *,
    val_fraction: float,
    val_seed: int,
    target: HeadTarget | None = None,
    group: str | None = None,
    val_cut: str = "stratified",
) -> Cut:
    """Split the images of a cache into train, val and test.

    Val is the cache's own val split if it has labelled images, else it is taken from train by `cut_rows`. Only train
    needs all that a head learns; classes missing in val or test are reported in the notes.

    Args:
        cache: The cache; its targets and splits are read, not its features.
        val_fraction: Share of the train images that become val.
        val_seed: Seed of the random order.
        target: What a head predicts; None for the class in `label`.
        group: The target whose groups must not be separated; None for none.
        val_cut: "stratified" or "random".

    Returns:
        The rows of each part, with their targets.

    Raises:
        HeadError: No head can be trained or selected: no train split, no value, a single class, too few images.
        InvalidOption, UnknownName: The group cannot be used.
    """
    target = target or head_target(cache, ("label",))
    _require_learnable(cache, target)
    notes: list[str] = []
    parts = {split: _rows_with_value(cache, split, target, notes) for split in cache.splits}
    _require_different_targets(cache, parts["train"], target)
    test = parts["test"] if len(parts.get("test", ())) else None
    if len(parts.get("val", ())):
        val = parts["val"]
        notes.append(f"val is the dataset's own split of {len(val)} images")
        cut = Cut(train=parts["train"], val=val, test=test, target=target)
    else:
        pool = parts.pop("train")
        unit = None if group is None else _units(cache, pool, group, notes)
        train, positions = cut_rows(
            pool.targets, target, val_fraction=val_fraction, val_seed=val_seed, val_cut=val_cut, unit=unit
        )
        notes += _share_notes(len(positions) / len(pool), val_fraction)
        cut = Cut(train=pool.at(train), val=pool.at(positions), test=test, target=target)
    notes += missing_class_notes(cut)
    notes += group_overlap_notes(cache, cut.parts(), group)
    return replace(cut, notes=tuple(notes))


def cut_rows(
    targets: Values,
    target: HeadTarget,
    *,
    val_fraction: float,
    val_seed: int,
    val_cut: str = "stratified",
    unit: Rows | None = None,
) -> tuple[Rows, Rows]:
    """Split some rows into train and val.

    Args:
        targets: Targets of the rows, (n,) or (n, C).
        target: What they are.
        val_fraction: Share of val.
        val_seed: Seed of the random order.
        val_cut: "stratified": every class with two images is on both sides, numbers are spread evenly; "random": the
            permutation of `random_cut`.
        unit: int64 (n,); rows with the same number stay together; None where all may be separated.

    Returns:
        The positions of train and of val among the rows, each int64 and ascending.

    Raises:
        HeadError: Train or val would be empty.
        InvalidOption: `unit` is given with val_cut="random".
    """
    if val_cut == "random":
        if unit is not None:
            raise InvalidOption(
                "--val-cut random is a permutation of single images, and --group keeps images together",
                hint="leave out one of them",
            )
        return random_cut(len(targets), val_fraction=val_fraction, val_seed=val_seed)
    rows = label_units(targets, target.kind, target.outputs, unit)
    in_val = rows.spread_to_rows(stratify_share(rows, val_fraction, seed=val_seed))
    train, val = np.flatnonzero(~in_val), np.flatnonzero(in_val)
    if not len(train) or not len(val):
        what = "each class is in a single group" if unit is not None else "no class has two images"
        raise HeadError(
            f"{len(targets)} labelled train images leave {len(train)} for train and {len(val)} for val"
            + (f": {what}" if target.kind == "classes" else ""),
            hint="more images, or a separate val split (val/<class>/...)",
        )
    return train, val


def random_cut(images: int, *, val_fraction: float, val_seed: int) -> tuple[Rows, Rows]:
    """Split `images` images into train and val at random: the positions of each, int64, ascending.

    The order is `torch.randperm(images)` from a generator seeded with `val_seed`; the first
    `images * (1 - val_fraction)`, rounded, are train.
    Raises HeadError if train or val would be empty.
    """
    import torch

    train = round(images * (1 - val_fraction))
    if not 0 < train < images:
        raise HeadError(
            f"{images} labelled train images leave {train} for train and {images - train} for val",
            hint="more images, or another --val-fraction",
        )
    order = torch.randperm(images, generator=torch.Generator().manual_seed(val_seed)).numpy()
    in_val = np.zeros(images, np.bool_)
    in_val[order[train:]] = True
    del order
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def train_images(cache: FeatureCache, target: HeadTarget) -> SplitRows:
    """All labelled train images of a cache that `cut_cache` can split."""
    return _rows_with_value(cache, "train", target, [])


def few_names(names: Sequence[str]) -> str:
    """The first names as text, and the number of further ones."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


# --- labelled rows -----------------------------------------------------------------------------------------


def _require_learnable(cache: FeatureCache, target: HeadTarget) -> None:
    if "train" not in cache.splits:
        raise HeadError(
            f"{cache.name} has no train split, only {', '.join(cache.splits) or 'no rows at all'}",
            hint="extract with --split train, or arrange the images as train/<class>/...",
        )
    if target.kind == "classes" and target.outputs < 2:
        raise HeadError(
            f"expected at least 2 classes, got {target.outputs} ({', '.join(target.names) or 'none'})",
            hint=_other_targets(cache, target)
            or "put the images of each class in a folder of its own; a head needs at least two classes",
        )
    if not target.outputs:
        raise HeadError(f"the target {target.columns[0]} has no class", hint="`featcache label` adds another")


def _other_targets(cache: FeatureCache, target: HeadTarget) -> str:
    """The other targets of the cache that a head can predict, as a hint; empty if there are none."""
    names = [name for name, one in cache.targets.items() if one.kind in TARGET_KINDS and name not in target.columns]
    return f"the cache has other targets, and --target names one: {few_names(names)}" if names else ""


def _rows_with_value(cache: FeatureCache, split: str, target: HeadTarget, notes: list[str]) -> SplitRows:
    """The rows of a split that have a value; `notes` gets a sentence on the others."""
    values, known = read_targets(cache[split], target)
    rows: Rows = np.flatnonzero(known)
    what = "unlabelled" if target.columns == ("label",) else f"without a value of {', '.join(target.columns)}"
    if split == "train" and not len(rows):
        raise HeadError(
            f"none of the {len(values)} train rows of {cache.name} has a value of {', '.join(target.columns)}",
            hint="labels come from folders, one per class, or from a table: `featcache label CACHE table.csv`",
        )
    if len(rows) < len(values):
        notes.append(f"{len(values) - len(rows)} of {len(values)} {split} images are {what} and left out")
    # Indexing copies: torch warns about read-only arrays.
    return SplitRows(source=split, rows=rows, targets=values[rows])


def _require_different_targets(cache: FeatureCache, train: SplitRows, target: HeadTarget) -> None:
    """Raise HeadError if all train images have the same target."""
    first = train.targets[:1]
    if len(train) > 1 and (train.targets == first).all():
        answer = target.names[int(first[0])] if target.kind == "classes" else "the same"
        raise HeadError(
            f"all {len(train)} labelled train images of {cache.name} are {answer}: there is nothing to learn",
            hint="images of another class (a higher --limit), or another --target",
        )


def _units(cache: FeatureCache, pool: SplitRows, group: str, notes: list[str]) -> Rows:
    codes = group_codes(cache, "train", group)[pool.rows]
    alone = int(np.count_nonzero(codes < 0))
    if alone:
        notes.append(f"{alone} of {len(codes)} train images have no {group}: each is a group of its own")
    return units_of(codes)


def _share_notes(share: float, wanted: float) -> list[str]:
    if abs(share - wanted) <= _NOTED_MISS:
        return []
    return [f"val has {100 * share:.0f} % of the train images instead of {100 * wanted:.0f} %: there are too few units"]


# --- missing classes ---------------------------------------------------------------------------------------


def missing_class_notes(cut: Cut) -> list[str]:
    """Sentences on the classes of which a part has no image."""
    if cut.target.kind == "numbers":
        return []
    counts = {part: images_of_each(rows.targets, cut.target) for part, rows in cut.parts().items()}
    unknown = counts["train"] == 0
    notes = []
    if unknown.any():
        elsewhere = sum(int(count[unknown].sum()) for count in counts.values())
        them = f"; {elsewhere} images of val and test have them and can be right by chance only" if elsewhere else ""
        notes.append(f"train has no image of {_names_of(cut.target, unknown)}: the head cannot learn them{them}")
    for part, count in counts.items():
        if (missing := (count == 0) & ~unknown).any():
            notes.append(f"{part} has no image of {_names_of(cut.target, missing)}: they are not evaluated on {part}")
    return notes


def images_of_each(targets: Values, target: HeadTarget) -> Rows:
    """Number of images with each class: int64 (C,)."""
    if target.kind == "lists":
        return np.asarray(targets.sum(axis=0, dtype=np.int64))
    return np.bincount(targets, minlength=target.outputs)


def _names_of(target: HeadTarget, chosen: NDArray[np.bool_]) -> str:
    return few_names([target.names[number] for number in np.flatnonzero(chosen).tolist()])
