"""A packed cache is written from the rows of donors, or not at all."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cache_samples import (
    a_spec,
    a_table,
    an_info,
    assert_whole,
    digests_of,
    donors_of,
    flip,
    make_cache,
    make_segments,
    no_tmp_under,
    tables,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import files
from featcache.cache.donors import Donors
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import LayerSpec
from featcache.cache.tables import SplitTable
from featcache.cache.targets import Column, label_column
from featcache.cache.verification import verify
from featcache.cache.writer import write_packed
from featcache.errors import (
    CacheDamaged,
    CacheForeign,
    CacheIncomplete,
    CacheNotFound,
    InvalidOption,
    UnknownName,
)


def write_cache(path: Path, donors: Donors, **changes: Any) -> Path:
    arguments: dict[str, Any] = {"tables": tables(), **changes}
    of_info = {name: arguments.pop(name) for name in ("spec", "classes", "columns", "provenance") if name in arguments}
    return write_packed(path, an_info(**of_info), donors=donors, **arguments)


def test_a_cache_is_written_from_donors(tmp_path: Path) -> None:
    assert_whole(write_cache(tmp_path / "c.h5", donors_of(a_spec(), tables())), a_spec(), tables())


def test_a_cache_is_written_from_segments(tmp_path: Path) -> None:
    with FeatureCache.open(make_segments(tmp_path / "c", segment_rows=7)) as cache:
        path = write_cache(tmp_path / "c.h5", Donors([cache[split] for split in cache.splits]))
    assert_whole(path, a_spec(), tables())
    assert path.read_bytes() == make_cache(tmp_path / "other.h5").read_bytes()


def test_rows_are_in_the_order_of_the_table_for_any_order_of_the_donors(tmp_path: Path) -> None:
    table = tables()["train"]
    order = np.random.default_rng(0).permutation(len(table))
    turned = table.take(order)
    path = write_cache(tmp_path / "c.h5", donors_of(a_spec(), tables()), tables={"train": turned})
    assert_whole(path, a_spec(), {"train": turned})


def test_an_increment_copies_from_the_old_cache_and_takes_the_rest_from_others(tmp_path: Path) -> None:
    old = make_cache(tmp_path / "old.h5", split_tables={"train": a_table("train", 20)})
    new = donors_of(a_spec(), {"train": a_table("more", 7)}).donors
    grown = SplitTable(
        ids=(*a_table("train", 20).ids, *a_table("more", 7).ids),
        targets={"label": np.zeros(27, np.int64)},
        digests=np.concatenate([a_table("train", 20).digests, a_table("more", 7).digests]),
    )
    with FeatureCache.open(old) as cache:
        # At the path of the cache that it reads from.
        path = write_cache(old, Donors([cache["train"], *new]), tables={"train": grown})
    assert_whole(path, a_spec(), {"train": grown})


def test_a_cache_of_more_layers_is_reused_for_one_of_fewer(tmp_path: Path) -> None:
    source = make_cache(tmp_path / "both.h5")
    one = a_spec().with_layers(["features.30"])
    with FeatureCache.open(source) as cache:
        path = write_cache(tmp_path / "one.h5", Donors([cache["train"], cache["test"]]), spec=one)
    assert_whole(path, one, tables())


def test_where_open_files_cannot_be_replaced_the_donor_is_closed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_cache(tmp_path / "c.h5")
    monkeypatch.setattr(files.system, "replaces_open_files", False)
    cache = FeatureCache.open(path)
    replace = files.system.replace

    def refusing(old: str | Path, new: str | Path) -> None:
        assert not _is_open(path)
        replace(old, new)

    monkeypatch.setattr(files.system, "replace", refusing)
    write_cache(path, Donors([cache["train"], cache["test"]]), provenance={"created": "later"})
    with pytest.raises(CacheNotFound, match="replaced"):
        cache["train"].features[0]
    assert_whole(path, a_spec(), tables())


def _is_open(path: Path) -> bool:
    return any(link.exists() and link.samefile(path) for link in Path("/proc/self/fd").iterdir())


def test_views_are_further_arrays_over_the_same_rows(tmp_path: Path) -> None:
    spec = a_spec(views=3, view_seed=0)
    path = make_cache(tmp_path / "c.h5", spec)
    assert_whole(path, spec, tables())
    assert verify(path, full=True).sound
    with FeatureCache.open(path) as cache, h5py.File(path) as file:
        train = cache["train"]
        assert (len(train), train.views, cache["test"].views) == (40, 3, 1)
        for view in (1, 2):
            stored = file[f"train/views/{view}/features/avgpool"][()]
            np.testing.assert_array_equal(stored, train.layer("avgpool", view)[:])
            assert (stored != train.layer("avgpool")[:]).any(axis=1).all()
        with pytest.raises(UnknownName, match="view"):
            train.layer("avgpool", 3)


def test_a_view_is_taken_from_a_cache_that_has_it(tmp_path: Path) -> None:
    spec = a_spec(views=3, view_seed=0)
    plain = FeatureCache.open(make_cache(tmp_path / "plain.h5", a_spec()))
    whole = FeatureCache.open(make_cache(tmp_path / "whole.h5", spec))
    donors = Donors([plain["train"], plain["test"], whole["train"]])
    assert donors.locate(a_table("train", 3).digests).donor.tolist() == [0, 0, 0]
    assert donors.locate(a_table("train", 3).digests, view=2).donor.tolist() == [2, 2, 2]
    assert_whole(write_cache(tmp_path / "c.h5", donors, spec=spec), spec, tables())
    with pytest.raises(CacheIncomplete, match=r"train \(view 1\)"):
        write_cache(tmp_path / "d.h5", Donors([plain["train"], plain["test"]]), spec=spec)


def test_the_same_image_twice_is_two_equal_rows(tmp_path: Path) -> None:
    twice = SplitTable(
        ids=("a", "b", "c"), targets={"label": np.zeros(3, np.int64)}, digests=digests_of(["x", "y", "x"])
    )
    path = make_cache(tmp_path / "c.h5", split_tables={"train": twice})
    assert_whole(path, a_spec(), {"train": twice})
    with FeatureCache.open(path) as cache:
        np.testing.assert_array_equal(cache["train"].features[0], cache["train"].features[2])


def test_splits_are_in_the_order_train_val_test_and_may_be_empty(tmp_path: Path) -> None:
    made = {"test": a_table("test", 3), "val": a_table("val", 0), "train": a_table("train", 2)}
    path = make_cache(tmp_path / "c.h5", split_tables=made)
    with FeatureCache.open(path) as cache:
        assert cache.splits == ("train", "val", "test")
        assert len(cache["val"]) == 0
        assert cache["val"].features[:].shape == (0, 16)
        assert cache["val"].ids == ()


def test_a_missing_row_is_counted_and_nothing_is_written(tmp_path: Path) -> None:
    donors = donors_of(a_spec(), {"train": a_table("train", 30), "test": a_table("test", 12)})
    with pytest.raises(CacheIncomplete, match="10 of train"):
        write_cache(tmp_path / "c.h5", donors)
    assert not (tmp_path / "c.h5").exists()


def test_a_damaged_row_stops_it_and_the_old_cache_stays(tmp_path: Path) -> None:
    path, other = make_cache(tmp_path / "c.h5"), make_cache(tmp_path / "other.h5")
    before = path.read_bytes()
    with FeatureCache.open(other) as cache:
        flip(other, cache.file.place("train/features/avgpool").offset)
        with pytest.raises(CacheDamaged, match=r"other\.h5"):
            write_cache(path, Donors([cache["train"], cache["test"]]))
    assert path.read_bytes() == before
    assert no_tmp_under(tmp_path)


def test_rows_of_another_spec_are_refused(tmp_path: Path) -> None:
    donors = donors_of(a_spec(precision="bf16"), tables())
    with pytest.raises(CacheForeign, match="fingerprint"):
        write_cache(tmp_path / "c.h5", donors)


@pytest.mark.parametrize(
    "changes",
    [
        {"tables": {"valid": a_table("train", 2)}},
        {"tables": {}},
        {"tables": {"train": a_table("train", 0)}},
        {"classes": ("cat", "dog")},
        {"columns": ()},
        {"columns": (label_column(("cat", "dog", "frog")), Column(name="age", kind="numbers"))},
        {"scaling": {"fc": (1.0, 0.0)}},
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, changes: Mapping[str, Any]) -> None:
    donors = donors_of(a_spec(), tables())
    with pytest.raises(InvalidOption):
        write_cache(tmp_path / "c.h5", donors, **changes)


@pytest.mark.parametrize("bad", ["", "ends\0", "\0", "\ud800", "\udcc3\udca9"])
def test_an_id_that_cannot_be_stored_unchanged_is_refused(tmp_path: Path, bad: str) -> None:
    table = SplitTable(ids=("ok", bad), targets={"label": np.zeros(2, np.int64)}, digests=digests_of(["a", "b"]))
    donors = donors_of(a_spec(), {"train": table})
    with pytest.raises(InvalidOption):
        write_cache(tmp_path / "c.h5", donors, tables={"train": table})


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.text(min_size=1, max_size=12).filter(lambda one: not one.endswith("\0")) | st.just("caf\udce9.jpg"),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
def test_any_ids_and_labels_are_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.integers(-1, 2), min_size=len(ids), max_size=len(ids)))
    table = SplitTable(
        ids=tuple(ids), targets={"label": np.array(labels)}, digests=digests_of([repr(one) for one in ids])
    )
    path = make_cache(tmp_path_factory.mktemp("ids") / "c.h5", split_tables={"test": table})
    assert_whole(path, a_spec(), {"test": table})


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    donors = donors_of(a_spec(), tables())
    calls: list[tuple[int, int]] = []
    write_cache(tmp_path / "c.h5", donors, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (52 * 22 * 2, 52 * 22 * 2)
    assert calls == sorted(calls)


def test_memory_use_does_not_depend_on_the_size_of_the_cache(tmp_path: Path) -> None:
    spec = a_spec(layers=[LayerSpec(name="l", weights=None, shape=(16384,))])
    ids = [str(row) for row in range(2000)]
    digests = digests_of(ids)
    table = SplitTable(ids=tuple(ids), targets={"label": np.zeros(2000, np.int64)}, digests=digests)
    folder = make_segments(tmp_path / "c", spec, {"train": table}, segment_rows=100)
    tracemalloc.start()
    try:
        with FeatureCache.open(folder) as segments:
            path = write_cache(tmp_path / "c.h5", Donors([segments["train"]]), spec=spec, tables={"train": table})
        with FeatureCache.open(path) as cache:
            for _, block in cache["train"].features.blocks(256):
                assert block.shape[1] == 16384
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 65_000_000
    assert peak < 30_000_000
