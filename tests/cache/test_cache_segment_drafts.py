"""A segment is written row by row, in any order, and gets its final name only when it is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_samples import a_spec, a_table, an_info, assert_whole, digests_of, no_tmp_under, rows_for
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.cache.reader import FeatureCache
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.spec import LayerSpec
from featcache.cache.tables import Skipped, SplitTable
from featcache.cache.verification import verify
from featcache.errors import CacheDamaged, InvalidOption

TABLE = a_table("train", 12)


def begun(folder: Path, table: SplitTable = TABLE, **info: Any) -> SegmentDraft:
    return SegmentDraft(folder / "train-000000000.h5", an_info(**info), split="train", ids=table.ids)


def put(draft: SegmentDraft, places: list[int], table: SplitTable = TABLE) -> None:
    rows = np.array(places, np.int64)
    draft.put(rows, rows_for(a_spec(), table.digests[rows]))


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(12)), sizes=st.lists(st.integers(1, 5), min_size=12))
def test_rows_may_be_written_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    draft, rest = begun(folder), list(order)
    for size in sizes:
        put(draft, sorted(rest[:size]))
        rest = rest[size:]
    path = draft.publish(TABLE.digests)
    assert_whole(path, a_spec(), {"train": TABLE})
    assert verify(path, full=True).sound
    in_order = begun(folder / "in-order")
    put(in_order, list(range(12)))
    assert in_order.publish(TABLE.digests).read_bytes() == path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(kept=st.sets(st.integers(0, 11)))
def test_rows_that_were_not_written_are_left_out(tmp_path_factory: pytest.TempPathFactory, kept: set[int]) -> None:
    draft = begun(tmp_path_factory.mktemp("some"))
    put(draft, sorted(kept))
    lost = [
        Skipped(id=TABLE.ids[row], split="train", reason="truncated", digest=TABLE.digests[row].tobytes().hex())
        for row in sorted({*range(12)} - kept)
    ]
    path = draft.publish(TABLE.digests, lost)
    assert_whole(path, a_spec(), {"train": TABLE.take(np.array(sorted(kept), np.int64))})
    assert verify(path, full=True).sound
    with FeatureCache.open(path) as cache:
        assert list(cache.skipped) == lost
    assert no_tmp_under(path.parent)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 5),
    length=st.integers(1, 7),
    dtype=st.sampled_from(["float16", "float32", "uint8"]),
    seed=st.integers(0, 99),
)
def test_any_rows_are_read_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: int, length: int, dtype: str, seed: int
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (rows, length * np.dtype(dtype).itemsize), np.uint8)
    ids = [str(row) for row in range(rows)]
    table = SplitTable(ids=ids, digests=digests_of(ids))
    layer = LayerSpec(name="any.layer ü", weights=None, shape=(length,))
    draft = begun(tmp_path_factory.mktemp("bits"), table, spec=a_spec(layers=[layer], dtype=dtype))
    draft.put(np.arange(rows), {layer.name: noise.view(dtype)})
    with FeatureCache.open(draft.publish(table.digests)) as cache:
        np.testing.assert_array_equal(cache["train"].features[:].view(np.uint8), noise)


def test_until_it_is_published_only_a_temporary_file_is_there(tmp_path: Path) -> None:
    draft = begun(tmp_path)
    put(draft, [0, 1])
    (only,) = tmp_path.iterdir()
    assert ".tmp-" in only.name and only.stat().st_size > 0
    draft.discard()
    assert not list(tmp_path.iterdir())


def test_its_disk_space_is_reserved_before_the_first_row(tmp_path: Path) -> None:
    begun(tmp_path)
    (only,) = tmp_path.iterdir()
    assert only.stat().st_blocks * 512 >= only.stat().st_size


def test_written_rows_can_be_read_before_it_is_published(tmp_path: Path) -> None:
    draft = begun(tmp_path)
    put(draft, [3, 4, 5])
    for layer, rows in draft.read(np.array([5, 3])).items():
        np.testing.assert_array_equal(rows, rows_for(a_spec(), TABLE.digests[[5, 3]])[layer])
    draft.discard()


def test_a_row_that_the_disk_lost_is_not_moved(tmp_path: Path) -> None:
    draft = begun(tmp_path)
    put(draft, list(range(10)))
    (only,) = tmp_path.iterdir()
    data = bytearray(only.read_bytes())
    row = rows_for(a_spec(), TABLE.digests)["features.30"][4].tobytes()
    data[data.index(row)] ^= 1
    only.write_bytes(data)
    with pytest.raises(CacheDamaged, match="not those that were written"):
        draft.publish(TABLE.digests)
    draft.discard()
    assert no_tmp_under(tmp_path)


@pytest.mark.parametrize(
    "features",
    [
        {"avgpool": np.zeros((2, 16), np.float32), "features.30": np.zeros((2, 6), np.float16)},
        {"avgpool": np.zeros((2, 15), np.float16), "features.30": np.zeros((2, 6), np.float16)},
        {"avgpool": np.zeros((2, 4, 4), np.float16), "features.30": np.zeros((2, 6), np.float16)},
    ],
)
def test_rows_of_another_type_or_shape_are_refused(tmp_path: Path, features: dict[str, Any]) -> None:
    draft = begun(tmp_path)
    with pytest.raises(InvalidOption, match="expected rows of"):
        draft.put(np.array([0, 1]), features)
    draft.discard()
    assert not list(tmp_path.iterdir())


def test_a_segment_alone_is_not_mistaken_for_the_whole_cache(tmp_path: Path) -> None:
    draft = begun(tmp_path)
    put(draft, list(range(12)))
    with FeatureCache.open(draft.publish(TABLE.digests)) as cache:
        assert cache.selection != an_info().selection
        assert cache.selection.source == "cifar10#train-000000000"


def test_a_row_is_kept_where_every_view_of_it_was_written(tmp_path: Path) -> None:
    spec = a_spec(views=3, view_seed=0)
    draft = begun(tmp_path, spec=spec)
    for view, places in enumerate(([0, 1, 2, 5], [1, 2, 5, 7], [0, 1, 5])):
        rows = np.array(places, np.int64)
        draft.put(rows, rows_for(spec, TABLE.digests[rows], view), view)
    assert np.flatnonzero(draft.written).tolist() == [1, 5]
    path = draft.publish(TABLE.digests)
    assert_whole(path, spec, {"train": TABLE.take(np.array([1, 5]))})
    assert verify(path, full=True).sound


def test_no_row_is_kept_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    wide = LayerSpec(name="l", weights=None, shape=(1 << 16,))
    ids = [str(row) for row in range(300)]
    table = SplitTable(ids=ids, digests=digests_of(ids))
    rows = np.zeros((10, 1 << 16), np.float16)
    tracemalloc.start()
    try:
        draft = begun(tmp_path, table, spec=a_spec(layers=[wide]))
        for first in range(0, 300, 10):
            draft.put(np.arange(first, first + 10), {"l": rows})
        path = draft.publish(table.digests)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 39_000_000
    assert peak < 8_000_000
