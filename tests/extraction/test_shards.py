"""Shards of one extraction, in any order, at once or twice, give the cache that one process gives."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import jpeg, tiny_backbone, write_images
from typer.testing import CliRunner

from featcache.cache import FeatureCache
from featcache.cache.manifest import MANIFEST_NAME
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.verification import verify
from featcache.cli.app import app
from featcache.errors import CacheIncomplete, ImageError, InvalidOption
from featcache.extraction import complete
from featcache.extraction.cut import Cut
from featcache.extraction.request import Request
from featcache.extraction.result import Computed
from featcache.extraction.run import Execution, assemble, extract
from featcache.extraction.units import Shard, segment_rows_for, units_of

SEGMENT_ROWS = 8


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=11, test=5)


def request(images: Path, data_dir: Path) -> Request:
    return Request(dataset=images, backbone=tiny_backbone(), data_dir=data_dir, precision="fp32")


def shard(text: str, on_error: Literal["fail", "skip"] = "fail") -> Execution:
    return Execution(shard=Shard.parse(text), segment_rows=SEGMENT_ROWS, on_error=on_error)


def arrays(path: Path) -> dict[str, bytes]:
    """All data of a cache except its provenance."""
    with FeatureCache.open(path) as cache:
        arrays = {name: cache.file.read(name, np.arange(place.shape[0])).tobytes()
                  for name, place in cache.file.contents.arrays.items()}  # fmt: skip
        return arrays | {name: cache.file.read_table(name).tobytes() for name in cache.file.table_names}


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = extract(request(images, tmp_path_factory.mktemp("alone")), Execution(segment_rows=SEGMENT_ROWS))
    return done.cache


@pytest.mark.parametrize("order", [("0/3", "1/3", "2/3"), ("2/3", "0/3", "2/3", "1/3", "0/3"), ("0/1",)])
def test_shards_in_any_order_and_twice_give_the_same_arrays(
    order: tuple[str, ...], images: Path, alone: Path, tmp_path: Path
) -> None:
    request_ = request(images, tmp_path)
    done = [extract(request_, shard(text)) for text in order]
    last = order.index(max(order, key=lambda text: order.index(text)))
    # The shard that writes the last segment publishes the cache.
    assert [one.complete for one in done] == [number >= last for number in range(len(order))]
    assert sum(one.computed for one in done) == 48
    assert arrays(done[-1].cache) == arrays(alone)
    assert not list(tmp_path.glob("features/*/"))
    whole = assemble(request_, Execution(segment_rows=SEGMENT_ROWS))
    assert whole.complete and (whole.computed, whole.reused) == (0, 48)
    assert extract(request_).computed == 0


def test_a_shard_done_twice_computes_nothing_the_second_time(images: Path, tmp_path: Path) -> None:
    request_ = request(images, tmp_path)
    first = extract(request_, shard("1/2"))
    second = extract(request_, shard("1/2"))
    assert first.computed > 0
    assert (second.computed, second.reused) == (0, first.computed)


def test_segments_that_are_written_again_after_the_cache_was_packed_are_no_error(
    images: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_ = request(images, tmp_path)
    extract(request_, shard("0/2"))
    compute = vars(complete)["compute"]

    def compute_while_others_pack(cuts: Sequence[Cut]) -> list[Computed]:
        done: list[Computed] = compute(cuts)
        # The same shards, run twice: the first ones have packed the cache and removed its manifest with their segments.
        shutil.copy(alone, tmp_path / "features")
        (cuts[0].inventory.folder / MANIFEST_NAME).unlink()
        return done

    monkeypatch.setattr(complete, "compute", compute_while_others_pack)
    done = extract(request_, shard("1/2"))
    assert done.complete and done.cache.parent == tmp_path / "features"
    assert arrays(done.cache) == arrays(alone)
    assert extract(request_).computed == 0
    assert not list(tmp_path.glob("features/*/"))


def test_a_missing_shard_is_an_error_with_the_number_of_missing_rows(images: Path, tmp_path: Path) -> None:
    request_ = request(images, tmp_path)
    extract(request_, shard("0/2"))
    with pytest.raises(CacheIncomplete, match=r"24 of 48 rows are missing, in 3 of 7 segments") as raised:
        assemble(request_, Execution(segment_rows=SEGMENT_ROWS))
    assert "featcache extract" in str(raised.value.hint)
    assert extract(request_).computed == 24


def test_assembling_without_an_extraction_writes_nothing(images: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheIncomplete, match="48 of 48 rows are missing"):
        assemble(request(images, tmp_path), Execution(segment_rows=SEGMENT_ROWS))
    assert not list(tmp_path.glob("features/*"))


def test_assembling_after_images_changed_leaves_the_cache_in_segments_as_it_is(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=11, test=5)
    request_ = request(images, tmp_path / "data")
    done = extract(request_, Execution(pack=False, segment_rows=10))
    (images / "train" / "cat" / "new.jpg").write_bytes(jpeg(500))
    with pytest.raises(CacheIncomplete):
        assemble(request_, Execution(pack=True))
    with FeatureCache.open(done.cache) as cache:
        assert len(cache["train"]) == 33


def test_shards_skip_what_cannot_be_decoded_and_the_cache_lists_it(images: Path, tmp_path: Path) -> None:
    spoilt = write_images(tmp_path / "images", train=11, test=5)
    (spoilt / "train" / "dog" / "03.jpg").write_bytes(b"no image")
    request_ = request(spoilt, tmp_path / "data")
    extract(request_, shard("0/2", on_error="skip"))
    with pytest.raises(ImageError, match=r"dog/03\.jpg"):
        extract(request_, Execution(segment_rows=SEGMENT_ROWS))
    extract(request_, shard("1/2", on_error="skip"))
    whole = assemble(request_, Execution(segment_rows=SEGMENT_ROWS, on_error="skip"))
    assert [one.id for one in whole.skipped] == ["train/dog/03.jpg"]
    assert whole.rows == {"train": 32, "test": 15}


@pytest.mark.parametrize("rows", [5, 17, 1000])
def test_a_cache_in_segments_is_a_hit_and_gives_its_rows(rows: int, images: Path, alone: Path, tmp_path: Path) -> None:
    request_ = request(images, tmp_path)
    done = extract(request_, Execution(pack=False, segment_rows=rows))
    assert done.cache.is_dir() and verify(done.cache, full=True).sound
    assert arrays(done.cache) == arrays(alone)
    assert extract(request_, Execution(pack=False, segment_rows=rows)).computed == 0
    # Even if one file is requested, the segments are a hit.
    assert extract(request_).cache == done.cache


def test_a_cache_in_segments_can_be_packed_afterwards(images: Path, alone: Path, tmp_path: Path) -> None:
    request_ = request(images, tmp_path)
    extract(request_, Execution(pack=False, segment_rows=10))
    packed = assemble(request_, Execution(pack=True))
    assert packed.cache.suffix == ".h5" and arrays(packed.cache) == arrays(alone)
    assert [path.suffix for path in packed.cache.parent.iterdir()] == [".h5"]
    assert verify(packed.cache, full=True).sound


def test_an_increment_of_a_cache_in_segments_computes_what_changed(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=11, test=5)
    request_ = request(images, tmp_path / "data")
    first = extract(request_, Execution(pack=False, segment_rows=10))
    before = {path.name: path.stat().st_mtime_ns for path in first.cache.glob("t*-?????????.h5")}
    (images / "train" / "cat" / "00.jpg").write_bytes((images / "test" / "eel" / "00.jpg").read_bytes() + b"\0")
    again = extract(request_, Execution(pack=False, segment_rows=10, rehash=True))
    assert (again.computed, again.reused) == (1, 47)
    assert verify(again.cache, full=True).sound
    now = {path.name: path.stat().st_mtime_ns for path in again.cache.glob("t*-?????????.h5")}
    written = [name for name, written_at in now.items() if before[name] != written_at]
    assert written == ["train-000000000.h5"]


def test_an_increment_of_a_packed_cache_writes_only_new_rows_into_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path / "images", train=11, test=5)
    request_ = request(images, tmp_path / "data")
    extract(request_)
    for number in range(3):
        (images / "train" / "cat" / f"new{number}.jpg").write_bytes(jpeg(500 + number))
    segments: list[tuple[str, int]] = []
    begin = SegmentDraft.__init__

    def record_segment(draft: SegmentDraft, path: Path, *args: object, **options: Any) -> None:
        segments.append((path.name, len(options["ids"])))
        begin(draft, path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentDraft, "__init__", record_segment)
    again = extract(request_)
    assert (again.computed, again.reused) == (3, 48)
    assert segments == [("train-000000000.h5", 3)]
    fresh = extract(request(images, tmp_path / "fresh"))
    assert arrays(again.cache) == arrays(fresh.cache)


def test_all_processes_use_the_segment_rows_of_the_first(images: Path, tmp_path: Path) -> None:
    request_ = request(images, tmp_path)
    extract(request_, shard("0/2"))
    done = extract(request_, Execution(pack=False))
    assert {path.name for path in done.cache.glob("train-*.h5")} == {
        f"train-{first:09d}.h5" for first in range(0, 33, SEGMENT_ROWS)
    }


@pytest.mark.parametrize("twice", ["0/2", "1/2"])
def test_a_repeated_image_is_computed_once_in_a_share(twice: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=8, test=2)
    for name in ("cat/zz.jpg", "eel/zz.jpg"):
        (images / "train" / name).write_bytes((images / "train" / "cat" / "00.jpg").read_bytes())
    request_ = request(images, tmp_path / "data")
    other = "1/2" if twice == "0/2" else "0/2"
    extract(request_, shard(twice))
    done = extract(request_, shard(other))
    plain = extract(request(images, tmp_path / "plain"))
    assert arrays(done.cache) == arrays(plain.cache)


@given(total=st.integers(1, 400), of=st.integers(1, 9))
def test_every_unit_belongs_to_exactly_one_shard(total: int, of: int) -> None:
    owned = np.concatenate([Shard(number=number, of=of).units(total) for number in range(of)])
    assert sorted(owned.tolist()) == list(range(total))


@given(
    train=st.integers(0, 60),
    test=st.integers(0, 60),
    segment_rows=st.integers(1, 50),
)
def test_units_contain_every_image_once_in_order(train: int, test: int, segment_rows: int) -> None:
    rows_of_splits = {"train": train, "test": test}
    images = np.arange(sum(rows_of_splits.values()))
    units = units_of(images, rows_of_splits, segment_rows=segment_rows)
    assert [number for unit in units for number in unit.images.tolist()] == images.tolist()
    assert all(len(unit) <= segment_rows for unit in units)
    assert len({unit.segment.file for unit in units}) == len(units)
    for unit in units:
        bound = rows_of_splits["train"]
        assert (unit.images < bound).all() if unit.segment.split == "train" else (unit.images >= bound).all()


@given(speed=st.floats(1e-3, 1e6), rows=st.integers(1, 10_000_000))
def test_segments_are_sized_by_time_and_never_too_many(speed: float, rows: int) -> None:
    size = segment_rows_for(speed, rows)
    assert len(units_of(np.arange(rows), {"train": rows}, segment_rows=size)) <= 512
    if 64 <= 30 * speed <= 65_536 and rows <= 500 * 32:
        assert size <= 30 * speed < 2 * size


def test_too_many_segments_are_refused_with_what_would_fit() -> None:
    with pytest.raises(InvalidOption, match="at most 512") as raised:
        units_of(np.arange(2000), {"train": 2000}, segment_rows=1)
    assert "--segment-rows 4 or more" in str(raised.value.hint)


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/3", "0/0", "1/2/3"])
def test_an_invalid_shard_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="--shard i/n"):
        Shard.parse(text)


def test_shards_at_once_and_twice_and_the_command_that_assembles(images: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "featcache"]
    where = ["--data-dir", str(tmp_path)]
    options = ["-b", "pixels", "-d", str(images), "--image-size", "16", "--segment-rows", "8", *where]
    running = [
        subprocess.Popen([*words, "extract", *options, "--shard", f"{number}/2", "--json"], stdout=subprocess.PIPE)
        for number in (0, 1, 0)
    ]
    assert [process.wait(timeout=100) for process in running] == [0] * 3
    done = CliRunner().invoke(app, ["assemble", "-b", "pixels", *where, "--json"])
    (cache,) = tmp_path.glob("features/*.h5")
    assert str(cache.name) in done.stdout and '"computed": 0' in done.stdout
    plain = Request(dataset=images, backbone="pixels", image_size=16, data_dir=tmp_path / "alone")
    assert arrays(cache) == arrays(extract(plain).cache)
    for process in running:
        assert process.stdout is not None
        process.stdout.close()
