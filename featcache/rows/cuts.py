"""Which rows train a head, which choose its best epoch, which test it.

A row is one image, so every cut is by image, or by groups of images. Nothing here knows of augmented views: they lie
beside the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, InvalidOption
from featcache.rows.groups import group_codes, straddling_notes, units_of
from featcache.rows.stratifying import Rows, marked, stratified_share
from featcache.rows.target import HeadTarget, Values, head_target, read_targets

MOST_NAMED = 5
# A val that misses the share that was asked for by more than this is worth a note.
_NOTED_MISS = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitRows:
    """Labelled rows of one split of a cache, in ascending order.

    Attributes:
        source: The split of the cache that holds them (val rows may lie in its train split).
        rows: int64 (n,) row numbers there, one an image.
        targets: What a head is to learn, (n,) or (n, C); see rows/target.py.
    """

    source: str
    rows: Rows
    targets: Values

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, positions: Rows) -> SplitRows:
        """Some of these rows: int64 positions among them, ascending."""
        return replace(self, rows=self.rows[positions], targets=self.targets[positions])


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """The rows of train, val and test (None where the cache has no labelled test images).

    Attributes:
        target: What a head is to say of them.
        notes: In sentences what was left out, what is missing, and where val came from.
    """

    train: SplitRows
    val: SplitRows
    test: SplitRows | None
    target: HeadTarget
    notes: tuple[str, ...] = field(default=())

    def images(self) -> dict[str, int]:
        """How many images each part has."""
        return {part: len(rows) for part, rows in self.parts().items()}

    def parts(self) -> dict[str, SplitRows]:
        """The rows of each part that there is."""
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
    """Cut a cache into train, val and test.

    Val is the cache's own val split if it has labelled images, else cut from train by `cut_rows`. Only train needs
    what a head is to learn; what val or test lacks is a note.

    Args:
        cache: Its targets and splits are read, not its features.
        val_fraction: The share of train that val has.
        val_seed: For whatever order is random.
        target: What a head is to say; None for the class in `label`.
        group: The target that says which images must not be separated; None for none.
        val_cut: "stratified" or "random".

    Raises:
        HeadError: No head could be trained or chosen: no train split, no value, a single class, too few images.
        InvalidOption, UnknownName: The group cannot be used.
    """
    target = target or head_target(cache, ("label",))
    _require_learnable(cache, target)
    notes: list[str] = []
    parts = {split: _labelled(cache, split, target, notes) for split in cache.splits}
    _require_something_to_tell(cache, parts["train"], target)
    test = parts["test"] if len(parts.get("test", ())) else None
    if len(parts.get("val", ())):
        val = parts["val"]
        notes.append(f"val is the set's own split of {len(val)} images")
        cut = Cut(train=parts["train"], val=val, test=test, target=target)
    else:
        pool = parts.pop("train")
        unit = None if group is None else _units(cache, pool, group, notes)
        train, positions = cut_rows(
            pool.targets, target, val_fraction=val_fraction, val_seed=val_seed, val_cut=val_cut, unit=unit
        )
        notes += _share_notes(len(positions) / len(pool), val_fraction)
        cut = Cut(train=pool.at(train), val=pool.at(positions), test=test, target=target)
    notes += lacking_notes(cut)
    notes += straddling_notes(cache, cut.parts(), group)
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
    """Positions of train and val among some rows, each ascending, int64.

    Args:
        targets: (n,) or (n, C) what a head is to learn.
        target: What that is.
        val_fraction: The share of val.
        val_seed: For whatever order is random.
        val_cut: "stratified": every class with two images is on both sides, numbers are spread evenly; "random": the
            permutation of `random_cut`.
        unit: int64 (n,) rows with the same number stay together; None where all may be separated.

    Raises:
        HeadError: Either side would be empty.
        InvalidOption: Groups were asked to stay together by a random cut.
    """
    if val_cut == "random":
        if unit is not None:
            raise InvalidOption(
                "--val-cut random is a permutation of single images, and --group keeps images together",
                hint="leave out one of them",
            )
        return random_cut(len(targets), val_fraction=val_fraction, val_seed=val_seed)
    rows = marked(targets, target.kind, target.outputs, unit)
    in_val = rows.of_rows(stratified_share(rows, val_fraction, seed=val_seed))
    train, val = np.flatnonzero(~in_val), np.flatnonzero(in_val)
    if not len(train) or not len(val):
        what = "each class lies in one group" if unit is not None else "no class has two images"
        raise HeadError(
            f"{len(targets)} labelled train images leave {len(train)} for train and {len(val)} for val"
            + (f": {what}" if target.kind == "classes" else ""),
            hint="more images, or a val split of the set's own (val/<class>/...)",
        )
    return train, val


def random_cut(images: int, *, val_fraction: float, val_seed: int) -> tuple[Rows, Rows]:
    """Positions of train and val among `images`, each ascending, int64.

    `torch.randperm(images)` from a generator seeded with `val_seed`; the first `images * (1 - val_fraction)` of
    it, rounded, are train.
    Raises HeadError if either side would be empty.
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
    """All labelled train images. Raises HeadError where no head could be trained on them."""
    _require_learnable(cache, target)
    rows = _labelled(cache, "train", target, [])
    _require_something_to_tell(cache, rows, target)
    return rows


def few_names(names: Sequence[str]) -> str:
    """Some of them, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


# --- what is there -----------------------------------------------------------------------------------------


def _require_learnable(cache: FeatureCache, target: HeadTarget) -> None:
    if "train" not in cache.splits:
        raise HeadError(
            f"{cache.name} has no train split, only {', '.join(cache.splits) or 'no rows at all'}",
            hint="extract with --split train, or arrange the images as train/<class>/...",
        )
    if target.kind == "classes" and target.outputs < 2:
        raise HeadError(
            f"expected at least 2 classes, got {target.outputs} ({', '.join(target.names) or 'none'})",
            hint="one folder a class; a head tells classes apart",
        )
    if not target.outputs:
        raise HeadError(f"the target {target.columns[0]} has no class", hint="`featcache label` adds another")


def _labelled(cache: FeatureCache, split: str, target: HeadTarget, notes: list[str]) -> SplitRows:
    """The rows that have a value."""
    values, known = read_targets(cache[split], target)
    rows: Rows = np.flatnonzero(known)
    what = "unlabelled" if target.columns == ("label",) else f"without a value of {', '.join(target.columns)}"
    if split == "train" and not len(rows):
        raise HeadError(
            f"none of the {len(values)} train rows of {cache.name} has a value of {', '.join(target.columns)}",
            hint="labels come from folders, one a class, or from a table: `featcache label CACHE table.csv`",
        )
    if len(rows) < len(values):
        notes.append(f"{len(values) - len(rows)} of {len(values)} {split} images are {what} and left out")
    # A copy: torch warns of arrays that must not be written to.
    return SplitRows(source=split, rows=rows, targets=values[rows])


def _require_something_to_tell(cache: FeatureCache, train: SplitRows, target: HeadTarget) -> None:
    """Raise HeadError where all train images ask for the same answer."""
    first = train.targets[:1]
    if len(train) > 1 and (train.targets == first).all():
        answer = target.names[int(first[0])] if target.kind == "classes" else "the same"
        raise HeadError(
            f"all {len(train)} labelled train images of {cache.name} are {answer}: there is nothing to tell apart",
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
    return [f"val has {100 * share:.0f} % of the train images instead of {100 * wanted:.0f} %: there are few to cut"]


# --- what is missing ---------------------------------------------------------------------------------------


def lacking_notes(cut: Cut) -> list[str]:
    """Which classes some part has no image of, in sentences."""
    if cut.target.kind == "numbers":
        return []
    counts = {part: images_of_each(rows.targets, cut.target) for part, rows in cut.parts().items()}
    unknown = counts["train"] == 0
    notes = []
    if unknown.any():
        elsewhere = sum(int(count[unknown].sum()) for part, count in counts.items() if part != "train")
        them = f"; {elsewhere} images of val and test have them: right by chance only" if elsewhere else ""
        notes.append(f"train has no image of {_named(cut.target, unknown)}: never learned{them}")
    for part, count in counts.items():
        if part != "train" and (missing := (count == 0) & ~unknown).any():
            notes.append(f"{part} has no image of {_named(cut.target, missing)}: it says nothing of them")
    return notes


def images_of_each(targets: Values, target: HeadTarget) -> Rows:
    """How many images have each class: (C,)."""
    if target.kind == "lists":
        return np.asarray(targets.sum(axis=0, dtype=np.int64))
    return np.bincount(targets, minlength=target.outputs)


def _named(target: HeadTarget, chosen: NDArray[np.bool_]) -> str:
    return few_names([target.names[number] for number in np.flatnonzero(chosen).tolist()])
