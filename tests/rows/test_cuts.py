from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from head_caches import Blobs, blobs, write_cache
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.reader import CachedSplit
from featcache.errors import HeadError
from featcache.rows.cuts import cut_cache, cut_images

CLASSES = ("ant", "bee", "cow")


def test_val_is_cut_by_the_designs_formula() -> None:
    order = torch.randperm(50, generator=torch.Generator().manual_seed(42)).tolist()
    train, val = cut_images(50, val_fraction=0.2, val_seed=42)
    assert train.tolist() == sorted(order[:40])
    assert val.tolist() == sorted(order[40:])


def test_val_is_the_same_for_ever() -> None:
    # torch.randperm(10) under seed 42 is 2 6 1 8 4 5 0 9 3 7.
    train, val = cut_images(10, val_fraction=0.2, val_seed=42)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 4, 5, 6, 8, 9], [3, 7])


def test_cifar_is_cut_as_in_the_notebook() -> None:
    train, val = cut_images(50_000, val_fraction=0.2, val_seed=42)
    assert (len(train), len(val)) == (40_000, 10_000)


@given(images=st.integers(2, 500), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_cut_sides_are_disjoint_and_complete(images: int, fraction: float, seed: int) -> None:
    try:
        train, val = cut_images(images, val_fraction=fraction, val_seed=seed)
    except HeadError:
        assert round(images * (1 - fraction)) in (0, images)
        return
    assert sorted([*train, *val]) == list(range(images))
    assert len(train) == round(images * (1 - fraction))


def test_own_val_split_is_used(tmp_path: Path) -> None:
    cache = write_cache(
        tmp_path, {"train": blobs(30), "val": blobs(12, seed=1), "test": blobs(9, seed=2)}, classes=CLASSES
    )
    cut = cut_cache(cache, val_fraction=0.2, val_seed=42)
    assert cut.images() == {"train": 30, "val": 12, "test": 9}
    assert (cut.train.source, cut.val.source) == ("train", "val")
    assert "own split of 12" in cut.notes[0]


def test_unlabelled_rows_are_left_out_and_said(tmp_path: Path) -> None:
    train = blobs(40)
    labels = train.labels.copy()
    labels[::4] = -1
    cache = write_cache(tmp_path, {"train": Blobs(features=train.features, labels=labels)}, classes=CLASSES)
    cut = cut_cache(cache, val_fraction=0.2, val_seed=42)
    assert cut.images() == {"train": 24, "val": 6}
    used = np.concatenate([cut.train.rows, cut.val.rows])
    assert sorted(used.tolist()) == np.flatnonzero(labels >= 0).tolist()
    assert cut.notes == ("10 of 40 train images are unlabelled and left out",)


def test_unlabelled_test_split_is_no_test(tmp_path: Path) -> None:
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
    assert plain == viewed == [side.tolist() for side in cut_images(40, val_fraction=0.2, val_seed=42)]


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([-1] * 20, CLASSES, "none of the 20 train rows"),
        ([0] * 20, ("ant",), "at least 2 classes, got 1"),
        ([0, 1] * 10, CLASSES, "found none of cow there"),
        ([0] * 19 + [1], ("ant", "bee"), "found none of bee there"),
        ([0, 1], ("ant", "bee"), "leave 2 for train and 0 for val"),
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
    assert raised.value.hint


def test_label_of_no_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path, {"train": blobs(20)}, classes=CLASSES)
    monkeypatch.setattr(CachedSplit, "read_labels", lambda split: np.array([0, 1, 2, 3, 0] * 4))
    with pytest.raises(HeadError, match="labels from -1 to 2, got 3 in train row 3"):
        cut_cache(cache, val_fraction=0.2, val_seed=42)


def test_cache_without_train_split_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"test": blobs(20)}, classes=CLASSES)
    with pytest.raises(HeadError, match="no train split, only test"):
        cut_cache(cache, val_fraction=0.2, val_seed=42)
