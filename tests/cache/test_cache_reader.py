"""Any rows can be read, checked, from many threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_samples import a_spec, a_table, assert_whole, flip, make_cache, rows_for, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import files
from featcache.cache.reader import CachedSplit, FeatureCache
from featcache.errors import CacheDamaged, CacheNotFound, CacheUnreadable, InvalidOption, UnknownName

COUNT = 40


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("reader") / "c.h5", scaling={"features.30": (2.0, 1.0)})


@pytest.fixture
def cache(path: Path) -> Iterator[FeatureCache]:
    with FeatureCache.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected() -> np.ndarray[Any, Any]:
    return rows_for(a_spec(), tables()["train"].digests)["avgpool"]


def test_a_cache_has_its_metadata(cache: FeatureCache, path: Path) -> None:
    assert cache.path == path
    assert cache.name == "c"
    assert cache.spec == a_spec()
    assert cache.splits == ("train", "test")
    assert cache.layers == ("avgpool", "features.30")
    assert cache.set_name == "cifar10"
    assert cache.classes == ("cat", "dog", "frog")
    assert cache.provenance == {"created": "2026-11-24T06:00:00+00:00"}
    assert cache.skipped == ()
    assert list(cache) == ["train", "test"]
    assert "train" in cache
    assert "val" not in cache
    assert repr(cache) == "<FeatureCache c: train 40, test 12; avgpool [4, 2, 2], features.30 [6] float16>"
    features = cache["train"].features
    assert features.dtype == np.float16
    assert (features.shape, features.feature_shape) == ((40, 16), (4, 2, 2))
    assert (features.scale, features.offset) == (1.0, 0.0)
    other = cache["train"].layer("features.30")
    assert (other.feature_shape, other.scale, other.offset) == ((6,), 2.0, 1.0)


def test_the_ids_of_some_rows_can_be_read_alone(cache: FeatureCache) -> None:
    train = cache["train"]
    assert train.ids_at([3, 0, 3, -1]) == (train.ids[3], train.ids[0], train.ids[3], train.ids[COUNT - 1])
    assert train.ids_at(slice(None)) == train.ids
    assert train.ids_at([]) == ()
    with pytest.raises(IndexError):
        train.ids_at([COUNT])


def test_an_unknown_split_or_layer_is_an_error_with_the_known_ones(cache: FeatureCache) -> None:
    with pytest.raises(UnknownName) as caught:
        cache["trian"]
    assert "train" in str(caught.value.hint)
    with pytest.raises(UnknownName):
        cache["train"].layer("avgpol")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-COUNT, COUNT - 1), max_size=60))
def test_any_rows_can_be_read_in_any_order(path: Path, expected: np.ndarray[Any, Any], rows: list[int]) -> None:
    with FeatureCache.open(path) as cache:
        features = cache["train"].features
        want = expected[np.array(rows, np.int64)]
        np.testing.assert_array_equal(features.gather(rows), want)
        np.testing.assert_array_equal(features[np.array(rows, np.int64)], want)
        np.testing.assert_array_equal(features.gather(rows, verify=False), want)


@settings(max_examples=100, deadline=None)
@given(st.slices(COUNT))
def test_slices_are_those_of_numpy(path: Path, expected: np.ndarray[Any, Any], rows: slice) -> None:
    with FeatureCache.open(path) as cache:
        np.testing.assert_array_equal(cache["train"].features[rows], expected[rows])


def test_single_rows_masks_iteration_and_asarray(cache: FeatureCache, expected: np.ndarray[Any, Any]) -> None:
    features = cache["train"].features
    np.testing.assert_array_equal(features[-1], expected[-1])
    np.testing.assert_array_equal(features[np.int64(3)], expected[3])
    mask = np.arange(COUNT) % 7 == 0
    np.testing.assert_array_equal(features[mask], expected[mask])
    np.testing.assert_array_equal(np.asarray(features), expected)
    np.testing.assert_array_equal(np.asarray(features, np.float32), expected.astype(np.float32))
    np.testing.assert_array_equal(list(features), expected)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(features, copy=False)


@pytest.mark.parametrize(
    "rows", [[COUNT], [-COUNT - 1], [0, 1000], [[0]], [0.5], np.ones(COUNT + 1, bool), "text", 2**70, [2**70]]
)
def test_rows_that_are_not_there_are_an_index_error(cache: FeatureCache, rows: Any) -> None:
    with pytest.raises(IndexError):
        cache["train"].features[rows]


def test_out_is_filled_and_checked(cache: FeatureCache, expected: np.ndarray[Any, Any]) -> None:
    out = np.empty((3, 16), np.float16)
    assert cache["train"].features.gather([5, 0, 5], out) is out
    np.testing.assert_array_equal(out, expected[[5, 0, 5]])
    for wrong in (np.empty((2, 16), np.float16), np.empty((3, 16), np.float32), np.empty((16, 3), np.float16).T):
        with pytest.raises(InvalidOption, match="out"):
            cache["train"].features.gather([5, 0, 5], wrong)


@pytest.mark.parametrize("rows_per_block", [1, 7, 40, 1000])
def test_blocks_cover_every_row_once(cache: FeatureCache, expected: np.ndarray[Any, Any], rows_per_block: int) -> None:
    blocks = list(cache["train"].features.blocks(rows_per_block))
    assert [start for start, _ in blocks] == list(range(0, COUNT, rows_per_block))
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), expected)


def test_tables_cannot_be_written_to(cache: FeatureCache) -> None:
    with pytest.raises(ValueError, match="read-only"):
        cache["train"].labels[0] = 2


def test_a_damaged_row_is_named_with_the_command_that_repairs_it(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5")
    with FeatureCache.open(path) as cache:
        place = cache.file.place("test/features/features.30")
        flip(path, place.offset + 7 * 12 + 3)
        layer = cache["test"].layer("features.30")
        with pytest.raises(CacheDamaged, match=r"test/features/features\.30: row 7 ") as caught:
            layer[[1, 7, 3]]
        assert f"featcache verify {path} --full" in str(caught.value.hint)
        layer[:7]
        layer.gather([7], verify=False)
        assert cache["test"].intact("features.30", [6, 7, 8]).tolist() == [True, False, True]


@pytest.mark.parametrize("table", ["targets/label", "ids", "digests", "checksums/avgpool"])
def test_a_damaged_table_is_found_when_it_is_read(tmp_path: Path, table: str) -> None:
    path = make_cache(tmp_path / "c.h5")
    with FeatureCache.open(path) as cache:
        flip(path, cache.file.place(f"train/{table}").offset + 5)
        with pytest.raises(CacheDamaged, match=f"train/{table}"):
            _ = cache["train"].labels if "label" in table else cache["train"].features[:], cache["train"].digests
            _ = cache["train"].ids
        assert len(cache["test"].ids) == 12


# Checksums are read row by row, or all of them, and are then checked as a table.
@pytest.mark.parametrize(("array", "scattered"), [("features", 0), ("checksums", 0), ("features", 256)])
def test_rows_of_a_very_large_cache_are_checked_without_its_checksums_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: str, scattered: int
) -> None:
    monkeypatch.setattr("featcache.cache.splits._LARGEST_KEPT_BYTES", 0)
    monkeypatch.setattr("featcache.cache.splits._SCATTERED", scattered)
    path = make_cache(tmp_path / "c.h5")
    with FeatureCache.open(path) as cache:
        place = cache.file.place(f"train/{array}/avgpool")
        before = cache["train"].features[:]
        flip(path, place.offset + 7 * place.nbytes // len(before) + 3)
        layer = cache["train"].features
        with pytest.raises(CacheDamaged, match=r"train/features/avgpool: row 7 does not match its checksum"):
            layer[[1, 7, 3]]
        assert np.array_equal(layer[[8, 0, 8]], before[[8, 0, 8]])
        assert cache["train"].intact("avgpool", [6, 7, 8]).tolist() == [True, False, True]
        assert "checksums/avgpool" not in cache["train"]._loaded


def test_opening_takes_milliseconds(path: Path) -> None:
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        FeatureCache.open(path).close()
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.02


def test_reading_after_close_opens_the_file_again(path: Path, expected: np.ndarray[Any, Any]) -> None:
    cache = FeatureCache.open(path)
    cache.close()
    cache.close()
    np.testing.assert_array_equal(cache["train"].features[:], expected)
    cache.close()


def test_no_descriptor_is_left_behind(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(30):
        FeatureCache.open(path)["train"].features[0]
        with FeatureCache.open(path) as cache:
            assert len(cache["train"].labels) == 40
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_everything_pickles_and_opens_where_it_is_unpickled(path: Path, expected: np.ndarray[Any, Any]) -> None:
    cache = FeatureCache.open(path)
    for thing in (cache["train"].features, cache["train"], cache):
        again: Any = pickle.loads(pickle.dumps(thing))
        if isinstance(again, FeatureCache):
            again = again["train"]
        if isinstance(again, CachedSplit):
            again = again.features
        np.testing.assert_array_equal(again[:], expected)


def test_a_replaced_file_is_not_taken_for_the_one_that_was_opened(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5")
    cache = FeatureCache.open(path)
    pickled = pickle.dumps(cache)
    old = cache["train"].features[:]
    make_cache(path, split_tables={"train": a_table("train", 9)})
    # A reader that has it open keeps reading the old file.
    np.testing.assert_array_equal(cache["train"].features[:], old)
    with pytest.raises(CacheNotFound, match="replaced"):
        pickle.loads(pickled)["train"].features[0]
    path.unlink()
    with pytest.raises(CacheNotFound):
        pickle.loads(pickled)["train"].features[0]


def test_many_threads_read_at_once(path: Path, expected: np.ndarray[Any, Any]) -> None:
    cache = pickle.loads(pickle.dumps(FeatureCache.open(path)))
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            rows = rng.integers(0, COUNT, 20)
            if not np.array_equal(cache["train"].features[rows], expected[rows]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_reads_what_its_parent_opened(path: Path, expected: np.ndarray[Any, Any]) -> None:
    cache = FeatureCache.open(path)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(cache["train"].features.__getitem__, [slice(i, i + 10) for i in range(0, 40, 10)])
    np.testing.assert_array_equal(np.concatenate(found), expected)
    pid = os.fork()
    if pid == 0:
        status = 0 if np.array_equal(cache["train"].features[:], expected) else 1
        cache.close()
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(cache["train"].features[:], expected)


def test_a_spawned_worker_reads_without_libhdf5(path: Path) -> None:
    pickled = pickle.dumps(FeatureCache.open(path).dataset("train"))
    code = (
        "import pickle, sys\n"
        "dataset = pickle.loads(sys.stdin.buffer.read())\n"
        "print(len(dataset), dataset[3][1], dataset[3][0].dtype)\n"
        "assert not {'torch', 'h5py'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=False)
    assert done.stdout.decode().split() == ["40", "0", "float32"], done.stderr


def test_a_dataset_gives_float32_with_scale_and_offset(cache: FeatureCache) -> None:
    dataset = cache.dataset("train", "features.30")
    values, label = dataset[5]
    stored = cache["train"].layer("features.30")[5].astype(np.float32)
    assert len(dataset) == 40
    assert values.dtype == np.float32
    assert (values.shape, type(label)) == ((6,), int)
    np.testing.assert_array_equal(values, stored * 2 + 1)
    assert [label for _, label in dataset.__getitems__([0, 1, 2, -1])] == [0, 1, 2, 0]
    with pytest.raises(IndexError):
        dataset[40]


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_torch_reads_batches_in_workers(path: Path, expected: np.ndarray[Any, Any], start: str, workers: int) -> None:
    data = pytest.importorskip("torch.utils.data")
    loader = data.DataLoader(
        FeatureCache.open(path).dataset("train"), batch_size=16, num_workers=workers, multiprocessing_context=start
    )
    batches = list(loader)
    np.testing.assert_array_equal(
        np.concatenate([features.numpy() for features, _ in batches]), expected.astype(np.float32)
    )
    assert np.concatenate([labels.numpy() for _, labels in batches]).tolist() == [row % 3 for row in range(40)]


@pytest.mark.parametrize("value", ["FALSE", "TRUE", "BEST_EFFORT"])
def test_libhdf5s_own_file_locking_makes_no_difference(path: Path, value: str) -> None:
    code = f"from featcache.cache import FeatureCache; print(len(FeatureCache.open({str(path)!r})['train'].labels))"
    environment = {**os.environ, "HDF5_USE_FILE_LOCKING": value}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert done.stdout.split() == [b"40"], done.stderr


def test_without_preadv_rows_come_through_a_memory_map(
    path: Path, expected: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.system, "preadv", None)
    rows = np.random.default_rng(0).integers(-COUNT, COUNT, 100)
    with FeatureCache.open(path) as cache:
        np.testing.assert_array_equal(cache["train"].features[rows], expected[rows])
    assert_whole(path, a_spec(), tables())


@pytest.mark.parametrize("most", [1, 7, 100])
def test_reads_that_return_less_or_are_interrupted_are_continued(
    path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    calls = iter(range(10**9))

    def short(fd: int, buffers: Any, offset: int) -> int:
        if next(calls) % 3 == 0:
            raise InterruptedError
        return os.preadv(fd, [buffers[0][:most]], offset)

    monkeypatch.setattr(files.system, "preadv", short)
    assert_whole(path, a_spec(), tables())


def test_a_disk_that_cannot_read_now_is_not_called_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int, buffers: Any, offset: int) -> int:
        raise OSError(5, "Input/output error")

    cache = FeatureCache.open(path)
    monkeypatch.setattr(files.system, "preadv", failing)
    with pytest.raises(CacheUnreadable, match="Input/output"):
        cache["train"].features[0]


def test_a_file_cut_short_while_open_is_damage(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5")
    with FeatureCache.open(path) as cache:
        os.truncate(path, cache.file.place("train/features/avgpool").offset + 10)
        with pytest.raises(CacheDamaged, match="ends at"):
            cache["train"].features[:]
