"""Shards of one extraction, in any order, at once or twice, give the cache that one process gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_backbone, write_images

from featcache.cache import FeatureCache
from featcache.cache.verification import verify
from featcache.errors import CacheIncomplete, ImageError, InvalidOption
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, assemble, extract
from featcache.extraction.shares import Shard, Units, rows_in, rows_of

PART_ROWS = 8


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=11, test=5)


def request(images: Path, data_dir: Path) -> Request:
    return Request(dataset=images, backbone=tiny_backbone(), data_dir=data_dir, precision="fp32")


def shard(text: str, on_error: Literal["fail", "skip"] = "fail") -> Execution:
    return Execution(shard=Shard.parse(text), part_rows=PART_ROWS, on_error=on_error)


def arrays(path: Path) -> dict[str, bytes]:
    """Everything of a cache but its provenance."""
    with FeatureCache.open(path) as cache:
        return {name: cache.file.read(name, np.arange(place.shape[0])).tobytes()
                for name, place in cache.file.contents.arrays.items()}  # fmt: skip


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = extract(request(images, tmp_path_factory.mktemp("alone")), Execution(part_rows=PART_ROWS))
    return done.cache


@pytest.mark.parametrize("order", [("0/3", "1/3", "2/3"), ("2/3", "0/3", "2/3", "1/3", "0/3"), ("0/1",)])
def test_shards_in_any_order_and_twice_give_the_same_arrays(
    order: tuple[str, ...], images: Path, alone: Path, tmp_path: Path
) -> None:
    asked = request(images, tmp_path)
    done = [extract(asked, shard(text)) for text in order]
    assert not any(one.complete for one in done)
    assert sum(one.computed for one in done) == 48
    whole = assemble(asked, Execution(part_rows=PART_ROWS))
    assert whole.complete and (whole.computed, whole.reused) == (0, 48)
    assert arrays(whole.cache) == arrays(alone)
    assert not list(tmp_path.glob("features/*.parts"))
    assert extract(asked).computed == 0


def test_a_shard_done_twice_computes_nothing_the_second_time(images: Path, tmp_path: Path) -> None:
    asked = request(images, tmp_path)
    first = extract(asked, shard("1/2"))
    second = extract(asked, shard("1/2"))
    assert first.computed > 0
    assert (second.computed, second.reused) == (0, first.computed)


def test_a_missing_shard_is_an_error_that_says_how_much_is_missing(images: Path, tmp_path: Path) -> None:
    asked = request(images, tmp_path)
    extract(asked, shard("0/2"))
    with pytest.raises(CacheIncomplete, match=r"24 of 48 rows are missing, in 3 of 6 parts") as raised:
        assemble(asked, Execution(part_rows=PART_ROWS))
    assert "featcache extract" in str(raised.value.hint)
    assert extract(asked).computed == 24


def test_shards_skip_what_cannot_be_decoded_and_assembly_lists_it(images: Path, tmp_path: Path) -> None:
    spoilt = write_images(tmp_path / "images", train=11, test=5)
    (spoilt / "train" / "dog" / "03.jpg").write_bytes(b"no image")
    asked = request(spoilt, tmp_path / "data")
    for text in ("0/2", "1/2"):
        extract(asked, shard(text, on_error="skip"))
    with pytest.raises(ImageError, match=r"dog/03\.jpg"):
        assemble(asked, Execution(part_rows=PART_ROWS))
    whole = assemble(asked, Execution(part_rows=PART_ROWS, on_error="skip"))
    assert [one.id for one in whole.skipped] == ["train/dog/03.jpg"]
    assert whole.rows == {"train": 32, "test": 15}


@pytest.mark.parametrize("rows", [5, 17, 1000])
def test_a_cache_in_several_files_is_a_hit_and_gives_its_rows(
    rows: int, images: Path, alone: Path, tmp_path: Path
) -> None:
    asked = request(images, tmp_path)
    done = extract(asked, Execution(shard_rows=rows, part_rows=PART_ROWS))
    assert done.cache.suffix == ".sharded" and verify(done.cache, full=True).sound
    assert arrays(done.cache) == arrays(alone)
    assert extract(asked, Execution(shard_rows=rows)).computed == 0
    # Asked for one file, the shards are the same cache still.
    assert extract(asked).cache == done.cache


def test_an_increment_of_a_sharded_cache_computes_what_changed(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=11, test=5)
    asked = request(images, tmp_path / "data")
    extract(asked, Execution(shard_rows=10))
    (images / "train" / "cat" / "00.jpg").write_bytes((images / "test" / "eel" / "00.jpg").read_bytes() + b"\0")
    again = extract(asked, Execution(shard_rows=10, rehash=True))
    assert (again.computed, again.reused) == (1, 47)
    assert verify(again.cache, full=True).sound


@given(total=st.integers(1, 400), of=st.integers(1, 9))
def test_every_unit_is_exactly_one_shards(total: int, of: int) -> None:
    owned = np.concatenate([Shard(number=number, of=of).units(total) for number in range(of)])
    assert sorted(owned.tolist()) == list(range(total))
    assert Units(numbers=[total - 1, 0, total]).units(total).tolist() == sorted({0, total - 1})


@given(total=st.integers(1, 400), part_rows=st.integers(1, 50), of=st.integers(1, 9), kept=st.integers(0, 2**32 - 1))
def test_the_rows_of_units_are_those_that_lie_in_them(total: int, part_rows: int, of: int, kept: int) -> None:
    rows = np.flatnonzero(np.random.default_rng(kept).random(total) < 0.7)
    for number in range(of):
        units = Shard(number=number, of=of).units(-(-total // part_rows))
        assert rows_in(units, rows, part_rows).tolist() == [row for row in rows if row // part_rows % of == number]
        assert rows_of(units, total, part_rows) == sum(row // part_rows % of == number for row in range(total))


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/3", "0/0", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="--shard i/n"):
        Shard.parse(text)


def test_three_shards_at_once_and_twice_and_the_command_that_assembles(images: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "featcache"]
    options = ["-b", "pixels", "-d", str(images), "--image-size", "16", "--part-rows", "8", "--data-dir", str(tmp_path)]
    running = [
        subprocess.Popen([*words, "extract", *options, "--shard", f"{number}/3", "--json"], stdout=subprocess.PIPE)
        for number in (0, 1, 2, 0, 1, 2)
    ]
    assert [process.wait(timeout=100) for process in running] == [0] * 6
    done = subprocess.run([*words, "assemble", *options, "--json"], capture_output=True, text=True, check=True)
    (cache,) = tmp_path.glob("features/*.h5")
    assert str(cache.name) in done.stdout and '"computed": 0' in done.stdout
    plain = Request(dataset=images, backbone="pixels", image_size=16, data_dir=tmp_path / "alone")
    assert arrays(cache) == arrays(extract(plain).cache)
    for process in running:
        assert process.stdout is not None
        process.stdout.close()
