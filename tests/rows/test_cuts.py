"""The choice of train, val and test rows, for every kind of target and with groups."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_caches import Blobs, blobs, write_cache
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from featcache.cache.reader import FeatureCache
from featcache.cache.targets import Column
from featcache.errors import FeatcacheError, HeadError, InvalidOption, UnknownName
from featcache.rows.cuts import cut_cache, cut_rows, few_names, random_cut
from featcache.rows.stratifying import Rows
from featcache.rows.target import HeadTarget, class_target, head_target

CLASSES = ("ant", "bee", "cow")


def test_the_random_cut_is_the_permutation_of_torch() -> None:
    order = torch.randperm(50, generator=torch.Generator().manual_seed(42)).tolist()
    train, val = random_cut(50, val_fraction=0.2, val_seed=42)
    assert train.tolist() == sorted(order[:40])
    assert val.tolist() == sorted(order[40:])


def test_the_random_val_never_changes() -> None:
    # torch.randperm(10) under seed 42 is 2 6 1 8 4 5 0 9 3 7.
    train, val = random_cut(10, val_fraction=0.2, val_seed=42)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 4, 5, 6, 8, 9], [3, 7])


def test_cifar_is_cut_as_in_the_notebook() -> None:
    train, val = random_cut(50_000, val_fraction=0.2, val_seed=42)
    assert (len(train), len(val)) == (40_000, 10_000)


@given(images=st.integers(2, 500), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_random_sides_are_disjoint_and_complete(images: int, fraction: float, seed: int) -> None:
    try:
        train, val = random_cut(images, val_fraction=fraction, val_seed=seed)
    except HeadError:
        assert round(images * (1 - fraction)) in (0, images)
        return
    assert sorted([*train, *val]) == list(range(images))
    assert 0 < len(train) == round(images * (1 - fraction)) < images


@pytest.mark.parametrize(("fraction", "train", "val"), [(0.1, 4, 0), (0.9, 0, 4)])
def test_a_random_cut_with_an_empty_side_is_refused(fraction: float, train: int, val: int) -> None:
    with pytest.raises(HeadError, match=f"4 labelled .* leave {train} for train and {val} for val"):
        random_cut(4, val_fraction=fraction, val_seed=0)


# --- stratified -------------------------------------------------------------------------------------------


def classes_of(labels: ArrayLike, classes: int | None = None) -> tuple[NDArray[np.int64], HeadTarget]:
    codes = np.asarray(labels, np.int64)
    return codes, class_target(map(str, range(classes or int(codes.max()) + 1)))


def cut_labels(labels: ArrayLike, *, fraction: float = 0.2, seed: int = 42, **more: Any) -> tuple[Rows, Rows]:
    codes, target = classes_of(labels)
    return cut_rows(codes, target, val_fraction=fraction, val_seed=seed, **more)


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_class_of_two_images_is_on_both_sides(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    if max(counts) < 2:
        return
    train, val = cut_labels(labels, fraction=fraction, seed=seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert np.all(np.diff(train) > 0) and np.all(np.diff(val) > 0)
    there = np.bincount(labels, minlength=len(counts))
    inside = [np.bincount(labels[rows], minlength=len(counts)) for rows in (train, val)]
    assert (inside[0][there > 0] > 0).all()
    assert (inside[1][there >= 2] > 0).all()
    # Val has about its share of each class.
    large = there * min(fraction, 1 - fraction) >= 1
    assert (np.abs(inside[1] - there * fraction)[large] <= 1).all()


@pytest.mark.parametrize(("classes", "images"), [(3, 20), (10, 10), (102, 10), (7, 15)])
@pytest.mark.parametrize("seed", range(5))
def test_small_sets_have_every_class_in_val_in_its_share(classes: int, images: int, seed: int) -> None:
    _, val = cut_labels(np.arange(classes * images) % classes, seed=seed)
    assert len(val) == round(classes * images * 0.2)
    assert np.bincount(val % classes, minlength=classes).tolist() == [images // 5] * classes


def test_a_stratified_cut_depends_on_the_seed_only() -> None:
    labels = np.arange(400) % 4
    first, again, other = (cut_labels(labels, seed=seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other
    # Images are not taken at equal distances, because neighbouring images are often near copies.
    assert len({b - a for a, b in pairwise(first)}) > 5


def test_numbers_are_spread_evenly_also_where_many_are_equal() -> None:
    target = HeadTarget(kind="numbers", columns=("x",), names=("x",))
    values = np.random.default_rng(0).exponential(size=(200, 1))
    _, val = cut_rows(values, target, val_fraction=0.2, val_seed=1)
    assert len(val) == 40
    edges = np.quantile(values, np.linspace(0, 1, 11)[1:-1])
    assert np.bincount(np.searchsorted(edges, values[val, 0]), minlength=10).tolist() == [4] * 10
    # Without bins the val of 10 numbers could be the two smallest.
    for seed in range(10):
        side = cut_rows(values[:10], target, val_fraction=0.2, val_seed=seed)[1]
        assert np.sort(values[side, 0] > np.median(values[:10])).tolist() == [False, True]
    for flat in (np.zeros((30, 1)), np.repeat([[0.0], [1.0]], 15, axis=0)):
        assert len(cut_rows(flat, target, val_fraction=0.2, val_seed=1)[1]) == 6
    assert len(cut_rows(values[:2], target, val_fraction=0.2, val_seed=1)[1]) == 1


def test_several_columns_of_numbers_are_each_spread() -> None:
    target = HeadTarget(kind="numbers", columns=("x", "y"), names=("x", "y"))
    values = np.random.default_rng(0).standard_normal((500, 2))
    train, val = cut_rows(values, target, val_fraction=0.2, val_seed=1)
    assert sorted([*train, *val]) == list(range(500)) and 80 <= len(val) <= 120
    for column in values.T:
        edges = np.quantile(column, np.linspace(0, 1, 11)[1:-1])
        assert min(np.bincount(np.searchsorted(edges, column[val]), minlength=10)) >= 4
    for seed in range(20):
        # Of ten images, val has some of the lower and of the upper half of each column; two are not always enough.
        few = np.random.default_rng(seed).standard_normal((10, 2))
        val = cut_rows(few, target, val_fraction=0.2, val_seed=seed)[1]
        above = (few[val] > np.median(few, axis=0)).sum(axis=0)
        assert len(val) in (2, 3) and (above > 0).all() and (above < len(val)).all()
    assert len(cut_rows(values[:4], target, val_fraction=0.25, val_seed=1)[1]) == 1


def of_lists(classes: int) -> HeadTarget:
    return HeadTarget(kind="lists", columns=("what",), names=tuple(map(str, range(classes))))


@settings(max_examples=60)
@given(rows=st.integers(12, 120), classes=st.integers(1, 8), rate=st.floats(0.02, 0.9), seed=st.integers(0, 2**32 - 1))
def test_several_classes_are_on_both_sides(rows: int, classes: int, rate: float, seed: int) -> None:
    marks = (np.random.default_rng(seed).random((rows, classes)) < rate).astype(np.int8)
    train, val = cut_rows(marks, of_lists(classes), val_fraction=0.25, val_seed=seed)
    assert sorted([*train, *val]) == list(range(rows)) and 0 < len(val) < rows
    several = marks.sum(axis=0) >= 2
    assert (marks[train].sum(axis=0)[several] > 0).all()
    # In val as far as single images allow it; train has priority.
    if (marks.sum(axis=0) >= 6).all():
        assert (marks[val].sum(axis=0) > 0).all()


def test_val_is_not_empty_where_every_image_has_a_class_of_its_own() -> None:
    marks = np.concatenate([np.ones((20, 1), np.int8), np.eye(20, dtype=np.int8)], axis=1)
    train, val = cut_rows(marks, of_lists(21), val_fraction=0.2, val_seed=0)
    assert (len(train), len(val)) == (16, 4)


@pytest.mark.parametrize(("alone", "kept"), [(12, True), (14, False)])
def test_images_with_a_class_of_their_own_are_in_train_if_enough_others_are_left(alone: int, kept: bool) -> None:
    # All 20 images have the last class, some have one of their own too; a val of 20 % has four at most.
    marks = np.concatenate([np.eye(20, dtype=np.int8)[:, :alone], np.ones((20, 1), np.int8)], axis=1)
    vals = [cut_rows(marks, of_lists(alone + 1), val_fraction=0.2, val_seed=seed)[1] for seed in range(10)]
    assert all(0 < len(val) <= 4 for val in vals)
    assert all((val >= alone).all() for val in vals) == kept


def test_images_without_any_class_are_in_val_in_their_share() -> None:
    marks = np.repeat(np.array([[1, 0], [0, 1], [0, 0]], np.int8), 10, axis=0)
    for seed in range(10):
        _, val = cut_rows(marks, of_lists(2), val_fraction=0.2, val_seed=seed)
        assert np.bincount(val // 10, minlength=3).tolist() == [2, 2, 2]


def assert_no_image_should_be_moved(classes: list[set[int]], train: set[int], val: set[int]) -> None:
    """Each class of two images or more is on both sides, unless each of its images is the only one of another class."""
    count = Counter(one for each in classes for one in each)
    for lacking, other in ((train, val), (val, train)):
        here = {one for image in lacking for one in classes[image]}
        there = Counter(one for image in other for one in classes[image])
        for one in {one for one, images in count.items() if images >= 2} - here:
            with_it = [image for image in other if one in classes[image]]
            assert all(min(there[each] for each in classes[image]) == 1 for image in with_it), (one, with_it)
            # To train an image is moved all the same.
            assert lacking is val


@settings(max_examples=200)
@given(
    rows=st.integers(4, 14),
    number=st.integers(1, 6),
    rate=st.floats(0.05, 0.6),
    fraction=st.sampled_from([0.1, 0.25, 0.5, 0.75]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_class_of_few_images_is_on_one_side_if_moving_an_image_helps(
    rows: int, number: int, rate: float, fraction: float, seed: int
) -> None:
    marks = (np.random.default_rng(seed).random((rows, number)) < rate).astype(np.int8)
    try:
        train, val = cut_rows(marks, of_lists(number), val_fraction=fraction, val_seed=seed)
    except HeadError:
        # A few sets leave val empty; hypothesis fails the test if it were many.
        assume(False)
    assert_no_image_should_be_moved(
        [set(np.flatnonzero(row).tolist()) for row in marks], set(train.tolist()), set(val.tolist())
    )


@pytest.mark.parametrize(
    ("classes", "fraction", "seed"),
    [
        # Without moving an image, val would have all images of a class.
        (["ac", "b", "a", "cd", "adb"], 0.9, 4007),
        (["", "bc", "bd", "ac", "", "", "a"], 0.5, 4014),
        (["a", "", "bc", "ac", "b"], 0.25, 5579),
    ],
)
def test_train_has_a_class_even_if_val_then_lacks_another(classes: list[str], fraction: float, seed: int) -> None:
    marks = np.array([[one in each for one in "abcd"] for each in classes], np.int8)
    train, _ = cut_rows(marks, of_lists(4), val_fraction=fraction, val_seed=seed)
    assert (marks[train].sum(axis=0)[marks.sum(axis=0) >= 2] > 0).all()


# --- groups -----------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    groups=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=8, max_size=60),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_group_is_on_both_sides(groups: list[tuple[int, int]], seed: int) -> None:
    labels = np.concatenate([np.full(size, label) for label, size in groups])
    unit = np.concatenate([np.full(size, number) for number, (_, size) in enumerate(groups)])
    order = np.random.default_rng(seed).permutation(len(labels))
    labels, unit = labels[order], unit[order]
    of_class = np.bincount([label for label, _ in groups], minlength=4)
    if of_class.max() < 2:
        return
    train, val = cut_labels(labels, unit=unit, seed=seed, fraction=0.25)
    assert not set(unit[train]) & set(unit[val])
    assert sorted([*train, *val]) == list(range(len(labels)))
    inside = [set(labels[rows].tolist()) for rows in (train, val)]
    assert inside[0] == set(labels.tolist())
    assert inside[1] >= set(np.flatnonzero(of_class >= 2).tolist())


def test_groups_of_mixed_classes_are_kept_whole() -> None:
    # Every group has two classes; class 3 is in a single group, which must be in train.
    unit = np.repeat(np.arange(30), 4)
    labels = np.stack([np.arange(30) % 3, (np.arange(30) + 1) % 3] * 2, axis=1).ravel()
    labels[5] = 3
    for seed in range(10):
        train, val = cut_labels(labels, unit=unit, seed=seed)
        assert not set(unit[train]) & set(unit[val]) and len(val) == 24
        assert unit[5] in unit[train]
        assert set(labels[val].tolist()) == {0, 1, 2}


def test_val_has_its_share_of_the_images_where_groups_are_small_and_large() -> None:
    unit = np.repeat(np.arange(30), [1] * 20 + [50] * 10)
    for seed in range(20):
        assert len(cut_labels(unit % 2, unit=unit, seed=seed)[1]) == 104


def test_numbers_of_groups_are_spread_also_where_each_group_has_its_own_number() -> None:
    # Ten patients with five images each: age is a number of the patient.
    unit = np.repeat(np.arange(10), 5)
    target = HeadTarget(kind="numbers", columns=("age",), names=("age",))
    for seed in range(10):
        train, val = cut_rows(unit[:, None] * 7.0, target, val_fraction=0.2, val_seed=seed, unit=unit)
        assert (len(train), len(val)) == (40, 10)
        assert sorted(set((unit[val] >= 5).tolist())) == [False, True]


def test_of_the_groups_that_could_bring_a_class_to_val_the_smallest_is_moved() -> None:
    # Class 4 is in one of the three groups of each other class; val has one group of each, often none with class 4.
    classes = [((other, 4) if first else (other,)) for other in range(4) for first in (True, False, False)]
    sizes = [2, 1, 1, *([10, 1, 1] * 3)]
    unit = np.repeat(np.arange(12), sizes)
    labels = np.concatenate([np.resize(each, size) for each, size in zip(classes, sizes, strict=True)])
    alone = Counter[int]()
    for seed in range(100):
        _, val = cut_labels(labels, unit=unit, seed=seed, fraction=0.25)
        groups = set(unit[val][labels[val] == 4].tolist())
        assert groups
        alone.update(groups if len(groups) == 1 else ())
    # Each is as often in val by chance; the smallest is there also in all cases where it was moved.
    assert alone[0] > 1.5 * max(alone[3], alone[6], alone[9]) and min(alone[3], alone[6], alone[9]) > 0


def test_near_copies_of_an_image_are_never_on_both_sides(tmp_path: Path) -> None:
    copies = np.repeat(np.arange(30), 20)
    train = Blobs(
        features=blobs(600).features, labels=copies % 3, targets={"scene": np.where(copies == 29, -1, copies)}
    )
    column = Column(name="scene", kind="groups", names=tuple(f"s{number}" for number in range(29)))
    cache = write_cache(tmp_path, {"train": train}, columns=(column,))
    for seed in range(5):
        cut = cut_cache(cache, val_fraction=0.2, val_seed=seed, group="scene")
        scenes = [set(copies[rows.rows]) - {29} for rows in (cut.train, cut.val)]
        assert not scenes[0] & scenes[1]
        assert set(cut.val.targets.tolist()) == {0, 1, 2}
        assert "20 of 600 train images have no scene: each is a group of its own" in cut.notes
        assert not any("are in both" in note for note in cut.notes)
    # Without --group they are, and a note reports it.
    note = cut_cache(cache, val_fraction=0.2, val_seed=0).notes[-1]
    assert "29 groups of scene are in both train and val" in note and "--group scene" in note
    with pytest.raises(InvalidOption, match="--val-cut random is a permutation"):
        cut_cache(cache, val_fraction=0.2, val_seed=0, group="scene", val_cut="random")


def test_groups_that_the_splits_of_the_dataset_divide_are_a_note(tmp_path: Path) -> None:
    column = Column(name="patient", kind="groups", names=("p0", "p1", "p2"))
    splits = {
        "train": replace(blobs(30), targets={"patient": np.arange(30) % 2}),
        "val": replace(blobs(9, seed=1), targets={"patient": np.full(9, 2)}),
        "test": replace(blobs(9, seed=2), targets={"patient": np.arange(9) % 3}),
    }
    cache = write_cache(tmp_path, splits, columns=(column,))
    notes = cut_cache(cache, val_fraction=0.2, val_seed=0, group="patient").notes
    assert [note.split(":")[0] for note in notes[1:]] == [
        "2 groups of patient are in both train and test (p0, p1)",
        "1 groups of patient are in both val and test (p2)",
    ]
    assert not any("--group" in note for note in notes)


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [("pateint", UnknownName, "unknown group 'pateint'"), ("age", HeadError, "age holds numbers")],
)
def test_a_target_that_holds_no_groups_is_refused_as_a_group(
    tmp_path: Path, group: str, error: type[FeatcacheError], message: str
) -> None:
    columns = (Column(name="patient", kind="groups", names=("p",)), Column(name="age", kind="numbers"))
    train = replace(blobs(30), targets={"patient": np.zeros(30, np.int64), "age": np.arange(30.0)})
    cache = write_cache(tmp_path, {"train": train}, columns=columns)
    with pytest.raises(error, match=message) as raised:
        cut_cache(cache, val_fraction=0.2, val_seed=0, group=group)
    assert raised.value.hint


# --- caches -----------------------------------------------------------------------------------------------


def test_own_val_split_is_used(tmp_path: Path) -> None:
    cache = write_cache(
        tmp_path, {"train": blobs(30), "val": blobs(12, seed=1), "test": blobs(9, seed=2)}, classes=CLASSES
    )
    cut = cut_cache(cache, val_fraction=0.2, val_seed=42)
    assert cut.images() == {"train": 30, "val": 12, "test": 9}
    assert (cut.train.source, cut.val.source) == ("train", "val")
    assert "own split of 12" in cut.notes[0]


def test_unlabelled_rows_are_left_out_with_a_note(tmp_path: Path) -> None:
    train = blobs(40)
    labels = train.labels.copy()
    labels[::4] = -1
    cache = write_cache(tmp_path, {"train": Blobs(features=train.features, labels=labels)}, classes=CLASSES)
    cut = cut_cache(cache, val_fraction=0.2, val_seed=42)
    assert cut.images() == {"train": 24, "val": 6}
    used = np.concatenate([cut.train.rows, cut.val.rows])
    assert sorted(used.tolist()) == np.flatnonzero(labels >= 0).tolist()
    assert cut.notes == ("10 of 40 train images are unlabelled and left out",)


def test_an_unlabelled_test_split_is_not_used(tmp_path: Path) -> None:
    nothing = Blobs(features=blobs(6).features, labels=np.full(6, -1))
    cut = cut_cache(
        write_cache(tmp_path, {"train": blobs(40), "test": nothing}, classes=CLASSES),
        val_fraction=0.2,
        val_seed=42,
    )
    assert cut.test is None and "6 of 6 test images" in cut.notes[0]


def test_a_cache_with_views_is_cut_as_one_without(tmp_path: Path) -> None:
    cuts = [
        cut_cache(write_cache(tmp_path / str(views), {"train": blobs(40, views=views)}), val_fraction=0.2, val_seed=42)
        for views in (1, 3)
    ]
    assert [cut.images() for cut in cuts] == [{"train": 32, "val": 8}] * 2
    plain, viewed = ([cut.train.rows.tolist(), cut.val.rows.tolist()] for cut in cuts)
    assert plain == viewed
    notebook = cut_cache(write_cache(tmp_path, {"train": blobs(40)}), val_fraction=0.2, val_seed=42, val_cut="random")
    assert [notebook.train.rows.tolist(), notebook.val.rows.tolist()] == [
        side.tolist() for side in random_cut(40, val_fraction=0.2, val_seed=42)
    ]


def test_of_a_cache_without_classes_the_other_targets_are_named(tmp_path: Path) -> None:
    columns = (Column(name="patient", kind="groups", names=("p",)), Column(name="age", kind="numbers"))
    targets = {"patient": np.zeros(30, np.int64), "age": np.arange(30.0)}
    unlabelled = replace(blobs(30), labels=np.full(30, -1), targets=targets)
    cache = write_cache(tmp_path, {"train": unlabelled}, classes=(), columns=columns)
    with pytest.raises(HeadError, match="at least 2 classes, got 0") as raised:
        cut_cache(cache, val_fraction=0.2, val_seed=42)
    assert raised.value.hint == "the cache has other targets, and --target names one: age"


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([-1] * 20, CLASSES, "none of the 20 train rows"),
        ([0] * 20, ("ant",), "at least 2 classes, got 1"),
        ([0] * 20, ("ant", "bee"), "all 20 labelled train images of toy are ant"),
        ([0, 1], ("ant", "bee"), "leave 2 for train and 0 for val: no class has two images"),
        ([0, 1, 2], CLASSES, "3 labelled train images leave 3 for train and 0 for val"),
        ([0], ("ant", "bee"), "1 labelled train images leave"),
    ],
)
def test_labels_no_head_could_learn_are_refused(
    tmp_path: Path, labels: list[int], classes: tuple[str, ...], message: str
) -> None:
    train = Blobs(features=blobs(len(labels)).features, labels=np.array(labels))
    cache = write_cache(tmp_path, {"train": train}, classes=classes)
    with pytest.raises(HeadError, match=message) as raised:
        cut_cache(cache, val_fraction=0.2, val_seed=42)
    assert raised.value.hint and "--val-seed" not in raised.value.hint


def with_labels(labels: ArrayLike, seed: int = 0) -> Blobs:
    codes = np.asarray(labels, np.int64)
    return Blobs(features=blobs(len(codes), seed=seed).features, labels=codes)


@pytest.mark.parametrize(
    ("splits", "notes"),
    [
        # A class with a single image, one without any, a val without one, a class only in test, and in val alone.
        ({"train": [0] * 19 + [1] * 20 + [2]}, ["val has no image of cow: they are not evaluated on val"]),
        ({"train": [0, 1] * 10}, ["train has no image of cow: the head cannot learn them"]),
        (
            {"train": [0, 1, 2] * 9, "val": [0, 1] * 3},
            ["val is the dataset's own split of 6 images", "val has no image of cow: they are not evaluated on val"],
        ),
        (
            {"train": [0, 1] * 10, "test": [0, 1, 2, 2]},
            [
                "train has no image of cow: the head cannot learn them; "
                "2 images of val and test have them and can be right by chance only"
            ],
        ),
        (
            {"train": [0, 1] * 10, "val": [0, 2], "test": [1, 1]},
            [
                "val is the dataset's own split of 2 images",
                "train has no image of cow: the head cannot learn them; "
                "1 images of val and test have them and can be right by chance only",
                "val has no image of bee: they are not evaluated on val",
                "test has no image of ant: they are not evaluated on test",
            ],
        ),
    ],
)
def test_classes_that_a_part_lacks_are_a_note(tmp_path: Path, splits: dict[str, list[int]], notes: list[str]) -> None:
    cache = write_cache(tmp_path, {name: with_labels(labels) for name, labels in splits.items()}, classes=CLASSES)
    assert list(cut_cache(cache, val_fraction=0.2, val_seed=42).notes) == notes


@pytest.mark.parametrize(
    ("pairs", "fraction", "shares"), [(3, 0.2, "43 % instead of 20 %"), (5, 0.125, "45 % instead of 12 %")]
)
def test_a_val_with_another_share_than_requested_is_a_note(
    tmp_path: Path, pairs: int, fraction: float, shares: str
) -> None:
    # Classes of two images, and one of a single image.
    labels = [*np.repeat(np.arange(pairs), 2).tolist(), pairs]
    cache = write_cache(tmp_path, {"train": with_labels(labels)}, classes=tuple(map(str, range(pairs + 1))))
    cut = cut_cache(cache, val_fraction=fraction, val_seed=42)
    assert cut.images() == {"train": pairs + 1, "val": pairs}
    (note,) = (note for note in cut.notes if "instead of" in note)
    assert note.replace(" of the train images", "").startswith(f"val has {shares}")


# --- other targets ----------------------------------------------------------------------------------------

OTHERS = (
    Column(name="what", kind="lists", names=("fur", "wings", "fins")),
    Column(name="age", kind="numbers"),
    Column(name="size", kind="numbers"),
    Column(name="remark", kind="text"),
    Column(name="patient", kind="groups", names=("p",)),
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """60 images with a target of each kind; some values are missing."""
    random = np.random.default_rng(0)
    what = (random.random((60, 3)) < 0.4).astype(np.int8)
    what[:5] = -1
    age, size = random.standard_normal(60), random.standard_normal(60)
    age[:3], size[2:4] = np.nan, np.nan
    targets: dict[str, NDArray[Any]] = {
        "what": what,
        "age": age,
        "size": size,
        "remark": np.array([b"x"] * 60),
        "patient": np.zeros(60, np.int64),
    }
    return write_cache(tmp_path_factory.mktemp("known"), {"train": replace(blobs(60), targets=targets)}, columns=OTHERS)


@pytest.mark.parametrize(
    ("names", "kind", "outputs", "images"),
    [
        (("label",), "classes", ("ant", "bee", "cow"), 60),
        (("what",), "lists", ("fur", "wings", "fins"), 55),
        (("age",), "numbers", ("age",), 57),
        (("size", "age"), "numbers", ("size", "age"), 56),
    ],
)
def test_a_target_is_read_by_its_kind(
    known: FeatureCache, names: tuple[str, ...], kind: str, outputs: tuple[str, ...], images: int
) -> None:
    target = head_target(known, names)
    assert (target.kind, target.columns, target.names) == (kind, names, outputs)
    assert HeadTarget.from_json(json.loads(json.dumps(target.to_json()))) == target
    cut = cut_cache(known, val_fraction=0.2, val_seed=0, target=target)
    assert sum(cut.images().values()) == images and cut.target == target
    assert [f"{60 - images} of 60 train images are without a value of {', '.join(names)} and left out"] * (
        images < 60
    ) == [note for note in cut.notes if "left out" in note]
    for part in (cut.train, cut.val):
        assert part.targets.shape == (len(part), len(outputs))[: 1 if kind == "classes" else 2]
        assert str(part.targets.dtype) == {"classes": "int64", "lists": "int8", "numbers": "float64"}[kind]
        whole = [known["train"].target(name).values[part.rows] for name in names]
        assert np.array_equal(part.targets, np.stack(whole, axis=1) if kind == "numbers" else whole[0])


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (("labels",), UnknownName, "unknown target 'labels'"),
        (("remark",), HeadError, "cannot learn remark: it holds text"),
        (("patient",), HeadError, "cannot learn patient: it holds groups"),
        (("age", "label"), InvalidOption, r"several of numbers, each once, got age \(numbers\), label \(classes\)"),
        (("age", "age"), InvalidOption, "each once"),
        ((), InvalidOption, "expected one target"),
    ],
)
def test_a_target_that_no_head_can_learn_is_refused(
    known: FeatureCache, names: tuple[str, ...], error: type[FeatcacheError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        head_target(known, names)
    assert raised.value.hint


def test_a_target_without_any_class_is_refused(tmp_path: Path) -> None:
    train = replace(blobs(12), targets={"what": np.zeros((12, 0), np.int8)})
    cache = write_cache(tmp_path, {"train": train}, columns=(Column(name="what", kind="lists", names=()),))
    with pytest.raises(HeadError, match="the target what has no class"):
        cut_cache(cache, val_fraction=0.2, val_seed=42, target=head_target(cache, ("what",)))


@pytest.mark.parametrize(
    ("names", "text"), [("", ""), ("abcde", "a, b, c, d, e"), ("abcdefg", "a, b, c, d, e and 2 more")]
)
def test_many_names_are_cut_off_and_counted(names: str, text: str) -> None:
    assert few_names(names) == text


def test_cache_without_train_split_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"test": blobs(20)}, classes=CLASSES)
    with pytest.raises(HeadError, match="no train split, only test"):
        cut_cache(cache, val_fraction=0.2, val_seed=42)
