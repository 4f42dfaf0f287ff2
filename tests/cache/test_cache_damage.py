"""Flipped bits and truncated files are found and named, and never cause a crash."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from cache_samples import (
    a_spec,
    assert_whole,
    flip,
    future_version,
    make_cache,
    tables,
    trailer_of,
)

from featcache.cache.checksums import table_digest
from featcache.cache.inspection import read_header
from featcache.cache.reader import FeatureCache
from featcache.cache.verification import verify
from featcache.errors import CacheDamaged, CacheForeign, CacheNotFound

FEW = {"train": 3, "test": 2}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("sound") / "c.h5", split_tables=tables(FEW))


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "c.h5"
    shutil.copy(sound, copied)
    return copied


def test_a_sound_cache_verifies(path: Path) -> None:
    calls: list[tuple[int, int]] = []
    quick, full = verify(path), verify(path, full=True, progress=lambda done, total: calls.append((done, total)))
    assert quick.sound
    assert (quick.tables, quick.rows) == (10, 0)
    assert full.sound
    assert (full.tables, full.rows, full.bytes_read) == (10, 10, 5 * 22 * 2)
    assert calls[-1] == (5 * 22 * 2, 5 * 22 * 2)


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_flipped_header_bit_is_found_before_libhdf5_sees_it(path: Path, bits: int) -> None:
    for position in range(trailer_of(path).header_bytes):
        for bit in range(bits):
            mask = 1 << (bit if bits == 8 else position % 8)
            flip(path, position, mask)
            with pytest.raises(CacheDamaged):
                FeatureCache.open(path)
            flip(path, position, mask)


def test_every_flipped_bit_of_the_trailer_is_found(path: Path) -> None:
    size = path.stat().st_size
    for position in range(size - len(trailer_of(path).to_bytes()), size):
        flip(path, position, 1 << position % 8)
        with pytest.raises(CacheDamaged):
            FeatureCache.open(path)
        flip(path, position, 1 << position % 8)


def test_every_flipped_byte_of_tables_data_and_padding_is_found(path: Path) -> None:
    with FeatureCache.open(path) as cache:
        places = list(cache.file.contents.arrays.values())
        padding = [(start, len(data)) for start, data in cache.file.padding()]
    for place in places:
        for position in range(place.offset, place.offset + place.nbytes):
            flip(path, position, 1 << position % 8)
            found = verify(path, full=True).findings
            assert place.name in {finding.where for finding in found}
            flip(path, position, 1 << position % 8)
    for start, length in padding:
        for position in {start, start + length // 2, start + length - 1} if length else ():
            flip(path, position)
            assert [finding.where for finding in verify(path, full=True).findings] == ["padding"]
            flip(path, position)
    assert verify(path, full=True).sound


@pytest.mark.parametrize("flips", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_data_bits_are_found_with_their_row(tmp_path: Path, flips: int) -> None:
    path = make_cache(tmp_path / "c.h5")
    rng = np.random.default_rng(7)
    with FeatureCache.open(path) as cache:
        features = cache["train"].features
        place = cache.file.place(features.path)
        rows = np.arange(len(features))
        for number in range(flips):
            position, mask = int(rng.integers(place.nbytes)), 1 << int(rng.integers(8))
            row = position // (place.nbytes // len(features))
            flip(path, place.offset + position, mask)
            assert np.flatnonzero(~cache["train"].intact(features.name, rows)).tolist() == [row]
            if number % 100 == 0:
                (finding,) = verify(path, full=True).findings
                assert (finding.where, finding.rows, finding.count) == (place.name, (row,), 1)
                with pytest.raises(CacheDamaged, match=f"row {row} "):
                    features[row]
            flip(path, place.offset + position, mask)


def test_many_damaged_rows_are_counted_and_the_first_named(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5")
    with FeatureCache.open(path) as cache:
        place = cache.file.place("train/features/avgpool")
    for row in range(3, 33):
        flip(path, place.offset + row * 32)
    (finding,) = verify(path, full=True).findings
    assert finding.rows == tuple(range(3, 23))
    assert finding.count == 30
    assert verify(path).sound


def test_a_header_that_was_changed_and_sealed_again_is_refused_or_means_the_same(path: Path) -> None:
    _read_flipped_headers(path, every=97)


@pytest.mark.slow
def test_no_flipped_header_bit_makes_libhdf5_crash_or_return_wrong_values(path: Path) -> None:
    _read_flipped_headers(path, every=1)


def _read_flipped_headers(path: Path, every: int) -> None:
    trailer = trailer_of(path)
    header = path.read_bytes()[: trailer.header_bytes]
    with FeatureCache.open(path) as cache:
        contents = cache.file.contents
    # In a child: a crash of libhdf5 would take this process with it.
    pid = os.fork()
    if pid == 0:
        lies = 0
        for number in range(0, len(header) * 8, every):
            data = bytearray(header)
            data[number // 8] ^= 1 << number % 8
            try:
                lies += read_header(bytes(data), trailer.file_bytes) != contents
            except CacheForeign:
                continue
        os._exit(min(lies, 100))
    status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0


def test_truncation_at_any_length_is_found_at_once(path: Path) -> None:
    trailer = trailer_of(path)
    with FeatureCache.open(path) as cache:
        offsets = [place.offset for place in cache.file.contents.arrays.values()]
    size = trailer.file_bytes
    lengths = {0, 1, 4, 7, 8, 9, 27, 47, 48, 100, 512, 4096, size - len(trailer.to_bytes()), size - 41, size - 40}
    lengths |= {offset + extra for offset in offsets for extra in (-1, 0, 1)} | set(range(size - 39, size))
    lengths |= {int(length) for length in np.random.default_rng(0).integers(0, size, 200)}
    slowest = 0.0
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        begun = time.perf_counter()
        with pytest.raises(CacheDamaged) as caught:
            FeatureCache.open(path)
        slowest = max(slowest, time.perf_counter() - begun)
        assert "damaged" in caught.value.message
    # Measured under 1 ms; the bound is for a busy machine.
    assert slowest < 0.1


def test_a_file_with_something_appended_is_damaged(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(CacheDamaged):
        FeatureCache.open(path)


def test_a_truncated_cache_with_a_long_header_is_still_recognised(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5", classes=[f"class {number}" for number in range(30_000)])
    for length in (path.stat().st_size - 1, trailer_of(path).header_bytes, 1000):
        os.truncate(path, length)
        with pytest.raises(CacheDamaged):
            FeatureCache.open(path)


def test_a_cache_of_a_later_version_is_refused_with_the_hint_to_update(path: Path) -> None:
    future_version(path)
    with pytest.raises(CacheForeign, match="version 2") as caught:
        FeatureCache.open(path)
    assert "newer featcache" in str(caught.value.hint)


def _plain_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["train/features/avgpool"] = np.zeros((3, 4))


def _latest_hdf5(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file["train/features/avgpool"] = np.zeros((3, 4))


@pytest.mark.parametrize(
    "make",
    [
        _plain_hdf5,
        _latest_hdf5,
        lambda path: path.write_text("no cache"),
        lambda path: path.write_bytes(bytes(100_000)),
        lambda path: path.mkdir(),
        os.mkfifo,
    ],
)
def test_another_file_is_foreign(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "c.h5"
    make(path)
    with pytest.raises(CacheForeign):
        FeatureCache.open(path)
    assert not verify(path).sound


@pytest.mark.parametrize("name", ["absent.h5", "absent/c.h5", "file/c.h5", "dangling.h5"])
def test_a_missing_file_is_not_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling.h5").symlink_to("nowhere")
    with pytest.raises(CacheNotFound):
        FeatureCache.open(tmp_path / name)
    with pytest.raises(CacheNotFound):
        verify(tmp_path / name)


def test_a_good_link_is_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to(path)
    assert_whole(tmp_path / "link.h5", a_spec(), tables(FEW))


def test_damage_in_one_table_hides_nothing_else(path: Path) -> None:
    with FeatureCache.open(path) as cache:
        for name in ("train/ids", "test/checksums/avgpool", "train/features/features.30"):
            flip(path, cache.file.place(name).offset)
    found = {finding.where for finding in verify(path, full=True).findings}
    assert found == {"train/ids", "test/checksums/avgpool", "train/features/features.30"}
    assert {finding.where for finding in verify(path).findings} == {"train/ids", "test/checksums/avgpool"}


def test_the_digest_of_a_table_is_xxh3_of_its_bytes(path: Path) -> None:
    with h5py.File(path) as file:
        assert trailer_of(path).tables["train/targets/label"] == table_digest(file["train/targets/label"][:])
