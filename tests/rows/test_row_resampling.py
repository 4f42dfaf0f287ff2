from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from head_caches import Blobs, blobs, write_cache
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.rows.cuts import SplitRows, cut_cache
from featcache.rows.resampling import draw_cuts, fold_cuts, mean_interval


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """90 train images, 30 of each class, and 12 in test."""
    return write_cache(tmp_path_factory.mktemp("resampled"), {"train": blobs(90), "test": blobs(12, seed=1)})


def images(rows: SplitRows) -> set[int]:
    """The row numbers of these images in the train split; each occurs once."""
    assert rows.source == "train" and len(set(rows.rows.tolist())) == len(rows)
    return set(rows.rows.tolist())


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
def test_every_image_is_held_out_by_exactly_one_fold(cache: FeatureCache, count: int, seed: int) -> None:
    folds = fold_cuts(cache, count, seed=seed, val_fraction=0.25, val_seed=1)
    assert [fold.number for fold in folds] == list(range(1, count + 1))
    held = [image for fold in folds for image in images(fold.held)]
    assert sorted(held) == list(range(90))
    for fold in folds:
        train, val, out = images(fold.cut.train), images(fold.cut.val), images(fold.held)
        assert not train & val and not train & out and not val & out
        assert train | val | out == set(range(90))


def test_classes_are_spread_evenly_over_the_folds(cache: FeatureCache) -> None:
    for fold in fold_cuts(cache, 5, seed=0, val_fraction=0.2, val_seed=42):
        assert np.bincount(fold.held.targets).tolist() == [6, 6, 6]


def test_folds_are_the_same_for_a_seed_and_others_for_another(cache: FeatureCache) -> None:
    first, again, other = (
        [images(fold.held) for fold in fold_cuts(cache, 3, seed=seed, val_fraction=0.2, val_seed=42)]
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_the_val_split_of_a_dataset_is_used_in_every_fold(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": blobs(30), "val": blobs(9, seed=1)})
    for fold in fold_cuts(cache, 3, seed=0, val_fraction=0.2, val_seed=42):
        assert (fold.cut.val.source, len(fold.cut.val), len(fold.cut.train)) == ("val", 9, 20)


def test_a_class_with_fewer_images_than_folds_is_named(tmp_path: Path) -> None:
    labels = np.array([0] * 20 + [1] * 3 + [2] * 20)
    cache = write_cache(tmp_path, {"train": Blobs(features=blobs(43).features, labels=labels)})
    with pytest.raises(HeadError, match=r"at least 4 train images of every class for 4 folds, got fewer of bee \(3\)"):
        fold_cuts(cache, 4, seed=0, val_fraction=0.2, val_seed=42)


def test_a_class_with_too_few_images_for_train_val_and_a_fold_is_named(tmp_path: Path) -> None:
    labels = np.array([0] * 40 + [1] * 2 + [2] * 40)
    cache = write_cache(tmp_path, {"train": Blobs(features=blobs(82).features, labels=labels)})
    # With val_seed 5 one of the two is in val, so that a head can be trained at all.
    with pytest.raises(HeadError, match=r"at least 3 .* 2 folds, got fewer of bee \(2\)"):
        fold_cuts(cache, 2, seed=0, val_fraction=0.5, val_seed=5)


@pytest.mark.parametrize("val_seed", range(5))
def test_val_has_every_class_in_every_fold(tmp_path: Path, val_seed: int) -> None:
    cache = write_cache(tmp_path, {"train": blobs(30)})
    try:
        folds = fold_cuts(cache, 10, seed=0, val_fraction=0.1, val_seed=val_seed)
    except HeadError as error:
        # The plain cut, which the selected head is trained on, is not stratified.
        assert "found none of" in error.message
        return
    for fold in folds:
        assert np.bincount(fold.cut.val.targets).tolist() == [1, 1, 1]
        assert np.bincount(fold.cut.train.targets).tolist() == [8, 8, 8]


def test_a_draw_has_the_requested_images_of_each_class_and_none_of_val(cache: FeatureCache) -> None:
    cut = cut_cache(cache, val_fraction=0.2, val_seed=42)
    for shots in (1, 5):
        for drawn in draw_cuts(cut, shots, 4, seed=3):
            assert drawn.val is cut.val and drawn.test is cut.test
            assert images(drawn.train) < images(cut.train)
            assert not images(drawn.train) & images(cut.val)
            assert np.bincount(drawn.train.targets).tolist() == [shots] * 3


def test_more_shots_contain_fewer_and_draws_differ(cache: FeatureCache) -> None:
    cut = cut_cache(cache, val_fraction=0.2, val_seed=42)
    few, many = ([images(one.train) for one in draw_cuts(cut, shots, 5, seed=0)] for shots in (2, 9))
    assert all(small < large for small, large in zip(few, many, strict=True))
    assert len(set(map(frozenset, few))) == 5
    assert few == [images(one.train) for one in draw_cuts(cut, 2, 5, seed=0)]
    assert few != [images(one.train) for one in draw_cuts(cut, 2, 5, seed=1)]


def test_a_class_with_fewer_images_than_shots_is_named(cache: FeatureCache) -> None:
    cut = cut_cache(cache, val_fraction=0.2, val_seed=42)
    left = np.bincount(cut.train.targets).tolist()
    with pytest.raises(HeadError, match=rf"at least 29 train images .*29 shots.*ant \({left[0]}\)") as raised:
        draw_cuts(cut, 29, 1, seed=0)
    assert "--shots" in str(raised.value.hint)


def test_the_interval_of_a_mean_is_by_students_t() -> None:
    # t(0.975, 3) = 3.182; the deviation of 1 2 3 4 is 1.291.
    half = 3.182446 * 0.1290994 / math.sqrt(4)
    assert mean_interval([0.1, 0.2, 0.3, 0.4]) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-6)
    assert mean_interval([0.5]) is None
    assert mean_interval([0.0, 1.0]) == (0.0, 1.0)
