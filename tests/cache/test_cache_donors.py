"""Rows are found by the digest of their image, in any donor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_samples import a_spec, digests_of, flip, make_cache, rows_for, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.cache.donors import Donors, MemoryDonor
from featcache.cache.reader import FeatureCache
from featcache.cache.tables import SplitTable
from featcache.errors import CacheDamaged, CacheIncomplete, InvalidOption


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": ("a",)},
        {"targets": {"label": np.zeros(3, np.int64)}},
        {"targets": {"label": np.zeros(2), "age": np.float64(3)}},
        {"digests": np.zeros((2, 16), np.uint8)},
    ],
)
def test_a_split_table_checks_itself(changes: dict[str, Any]) -> None:
    columns: dict[str, Any] = {
        "ids": ("a", "b"),
        "targets": {"label": np.zeros(2, np.int32)},
        "digests": np.zeros((2, 32), np.uint8),
    }
    assert len(SplitTable(**columns).take(slice(1)).targets["label"]) == 1
    with pytest.raises(InvalidOption):
        SplitTable(**{**columns, **changes})


def test_rows_of_a_cache_with_a_damaged_table_are_not_reused(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5")
    digests = tables()["train"].digests
    with FeatureCache.open(path) as cache:
        digest_place = cache.file.place("train/digests")
        sums_place = cache.file.place("train/checksums/avgpool")
    flip(path, sums_place.offset)
    with FeatureCache.open(path) as cache:
        donors = Donors([cache["train"]])
        assert (donors.locate(digests).donor == 0).all()
        assert (donors.locate(digests, ["features.30"]).donor == 0).all()
        assert (donors.locate(digests, ["avgpool"]).donor == -1).all()
    flip(path, digest_place.offset)
    with FeatureCache.open(path) as cache:
        messages: list[str] = []
        assert (Donors([cache["train"]], messages.append).locate(digests).donor == -1).all()
        assert "train/digests" in messages[0]
        with pytest.raises(CacheDamaged):
            Donors([cache["train"]])


def test_the_first_donor_is_used_and_an_intact_one_replaces_a_damaged_one(tmp_path: Path) -> None:
    one, other = make_cache(tmp_path / "a.h5"), make_cache(tmp_path / "b.h5")
    digests = tables()["train"].digests
    with FeatureCache.open(one) as cache:
        place = cache.file.place("train/features/features.30")
    flip(one, place.offset + place.nbytes - 1)
    with FeatureCache.open(one) as damaged, FeatureCache.open(other) as sound:
        donors = Donors([damaged["train"], sound["train"]])
        assert donors.locate(digests).donor.tolist() == [0] * 40
        located = donors.locate(digests, ["avgpool", "features.30"])
        assert located.donor.tolist() == [0] * 39 + [1]
        expected = rows_for(a_spec(), digests)["features.30"]
        np.testing.assert_array_equal(donors.gather("features.30", located), expected)
        alone = Donors([damaged["train"]]).locate(digests, ["features.30"])
        assert alone.donor.tolist() == [0] * 39 + [-1]
        with pytest.raises(CacheIncomplete, match="1 of 40"):
            Donors([damaged["train"]]).gather("avgpool", alone)


def test_digests_are_compared_in_all_their_bytes() -> None:
    digests = np.zeros((4, 32), np.uint8)
    digests[:, 31] = [3, 1, 2, 1]
    features = {"l": np.arange(4, dtype=np.uint8)[:, None]}
    rows = MemoryDonor(fingerprint="f", digests=digests, features=features)
    wanted = np.zeros((5, 32), np.uint8)
    wanted[:, 31] = [1, 2, 3, 0, 4]
    donor, row = Donors([rows]).locate(wanted)
    assert row.tolist() == [1, 2, 0, -1, -1]
    assert donor.tolist() == [0, 0, 0, -1, -1]
    assert donor.dtype == np.int32
    assert row.dtype == np.int64


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=4), st.lists(st.integers(0, 9), max_size=8))
def test_locating_agrees_with_a_plain_search(have: list[list[int]], want: list[int]) -> None:
    class Rows:
        fingerprint = "f"
        views = 1

        def __init__(self, images: list[int]) -> None:
            self.images = images
            self.digests = digests_of([str(image) for image in images]) if images else np.zeros((0, 32), np.uint8)

        def gather(self, layer: str, rows: np.ndarray[Any, Any], view: int = 0) -> np.ndarray[Any, Any]:
            return np.array(self.images).take(rows)[:, None]

        def checksums(self, layer: str, rows: np.ndarray[Any, Any], view: int = 0) -> np.ndarray[Any, Any]:
            return np.array(self.images, np.uint64).take(rows)

        def intact(self, layer: str, rows: np.ndarray[Any, Any], view: int = 0) -> np.ndarray[Any, Any]:
            return np.ones(len(rows), np.bool_)

    donors = Donors([Rows(images) for images in have])
    wanted = digests_of([str(image) for image in want]) if want else np.zeros((0, 32), np.uint8)
    located = donors.locate(wanted)
    expected = [next((number for number, images in enumerate(have) if image in images), -1) for image in want]
    assert located.donor.tolist() == expected
    found = located.donor >= 0
    if found.any():
        assert donors.gather("l", located.take(found))[:, 0].tolist() == np.array(want)[found].tolist()
        assert donors.checksums("l", located.take(found)).tolist() == np.array(want)[found].tolist()


def test_a_million_rows_are_found_in_about_a_second() -> None:
    import time

    rng = np.random.default_rng(0)
    digests = rng.integers(0, 256, (1_000_000, 32), np.uint8)

    class Rows:
        fingerprint = "f"
        views = 1

        def __init__(self, digests: np.ndarray[Any, Any]) -> None:
            self.digests = digests

        def gather(self, layer: str, rows: np.ndarray[Any, Any], view: int = 0) -> np.ndarray[Any, Any]:
            raise AssertionError

        checksums = intact = gather

    donors = Donors([Rows(some) for some in np.array_split(digests, 500)])
    order = rng.permutation(1_000_000)
    begun = time.perf_counter()
    donor, row = donors.locate(digests[order])
    # Measured about 0.8 s; the bound is for a busy machine.
    assert time.perf_counter() - begun < 8
    np.testing.assert_array_equal(donor * 2000 + row, order)
