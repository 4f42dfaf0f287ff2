"""Which cache is meant: told from what was said, without images, weights or backbone where they are gone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny import jpeg, random_squeezenet

from featcache.errors import CacheIncomplete, CacheNotFound
from featcache.extraction import matching
from featcache.extraction.named import only_cache
from featcache.extraction.request import Precision, Request
from featcache.extraction.run import Execution, extract


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a weights file, and a cache of two layers in bf16."""
    root = tmp_path_factory.mktemp("shelf")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}.jpg").write_bytes(jpeg(hash((split, name, number)) % 1000))
    save_file(random_squeezenet(), root / "w.safetensors")
    extract(_request(root, layers=("features.5", "features"), precision="bf16"))
    return root


def _request(root: Path, **options: object) -> Request:
    said: dict[str, object] = {
        "dataset": root / "pets",
        "backbone": "squeezenet1_1",
        "weights": str(root / "w.safetensors"),
        "image_size": 64,
        "data_dir": root / "data",
    }
    return Request(**(said | options))  # type: ignore[arg-type]


def test_some_of_a_caches_layers_are_a_hit(shelf: Path) -> None:
    found = matching.by_request(_request(shelf, layers=("features",)))
    assert found.layers == ("features",)
    assert matching.by_request(_request(shelf, layers=("features.5", "features"))).path == found.path


def test_extracting_some_of_a_caches_layers_is_a_hit_too(shelf: Path) -> None:
    wide = matching.by_request(_request(shelf, layers=("features.5", "features"), precision="bf16")).path
    narrow = extract(_request(shelf, layers=("features",), precision="bf16"))
    assert (narrow.cache, narrow.computed) == (wide, 0)
    assert narrow.feature_dim.keys() == {"features"}


def test_a_wider_cache_gives_rows_to_a_narrower_selection(shelf: Path) -> None:
    narrow = extract(_request(shelf, layers=("features.5",), precision="bf16", limit=2))
    assert (narrow.computed, narrow.reused) == (0, 4)
    narrow.cache.unlink()


def test_auto_precision_matches_any(shelf: Path) -> None:
    assert matching.by_request(_request(shelf, layers=("features",), precision="auto"))
    with pytest.raises(CacheNotFound):
        matching.by_request(_request(shelf, layers=("features",), precision="fp32"))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": ("features.3",)},
        {"layers": ("features",), "pool": "avg"},
        {"image_size": 65},
        {"image_size": None},
        {"resize": "crop"},
        {"normalize": "half"},
        {"dtype": "float32"},
        {"limit": 2},
        {"select_seed": 1},
        {"splits": ("train",)},
        {"weights": "default"},
        {"weights": "random:0"},
        {"backbone": "resnet18"},
        {"dataset": "cifar10"},
    ],
)
def test_everything_else_that_was_said_must_agree(change: dict[str, object], shelf: Path) -> None:
    said = {"layers": ("features",)} | change
    with pytest.raises(CacheNotFound) as caught:
        matching.by_request(_request(shelf, **said))
    assert "featcache extract" in str(caught.value.hint)


def test_the_same_weights_under_another_path_are_a_hit_and_one_bit_is_not(shelf: Path, tmp_path: Path) -> None:
    copied = shutil.copy(shelf / "w.safetensors", tmp_path / "elsewhere.safetensors")
    assert matching.by_request(_request(shelf, layers=("features",), weights=str(copied)))
    data = bytearray(Path(copied).read_bytes())
    data[-1] ^= 1
    Path(copied).write_bytes(data)
    with pytest.raises(CacheNotFound):
        matching.by_request(_request(shelf, weights=str(copied)))


def test_neither_weights_nor_images_need_to_be_there(shelf: Path, tmp_path: Path) -> None:
    desk = tmp_path / "laptop"
    shutil.copytree(shelf / "data", desk)
    hidden = shelf / "hidden"
    (shelf / "w.safetensors").rename(hidden)
    (shelf / "pets").rename(shelf / "gone")
    try:
        assert matching.by_request(_request(shelf, layers=("features",), data_dir=desk))
    finally:
        hidden.rename(shelf / "w.safetensors")
        (shelf / "gone").rename(shelf / "pets")


def test_an_extraction_that_has_not_ended_is_refused_with_what_to_do(shelf: Path, tmp_path: Path) -> None:
    request = _request(shelf, layers=("features",), data_dir=tmp_path)
    (shelf / "pets/test/dog/9.jpg").write_bytes(b"no image")
    try:
        with pytest.raises(Exception, match=r"9\.jpg"):
            extract(request, Execution(segment_rows=4, batch_size=8))
    finally:
        (shelf / "pets/test/dog/9.jpg").unlink()
    with pytest.raises(CacheIncomplete, match="is not finished"):
        matching.by_request(request)


def test_the_only_cache_is_taken_when_nothing_is_said(shelf: Path, tmp_path: Path) -> None:
    found = only_cache(shelf / "data" / "features")
    assert found is not None
    assert found.layers is None
    assert only_cache(tmp_path) is None


def test_the_command_offered_makes_the_cache(shelf: Path) -> None:
    request = _request(shelf, layers=("features",), limit=2, splits=("train",), dtype="float32")
    words = matching.as_command(request)
    for piece in ("--layer features", "--limit 2", "--split train", "--dtype float32", "--image-size 64"):
        assert piece in words
    assert "--resize" not in words


@pytest.mark.parametrize("order", [("fp32", "bf16"), ("bf16", "fp32")])
def test_of_several_the_newest_is_taken(
    order: tuple[Precision, Precision], shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = _request(shelf, layers=("features.2",), data_dir=tmp_path)
    for day, precision in enumerate(order, start=1):
        monkeypatch.setattr("featcache.extraction.publish.now", lambda day=day: f"2026-01-0{day}T00:00:00+00:00")
        newest = extract(replace(base, precision=precision)).cache
    assert matching.by_request(base).path == newest
    assert extract(base).cache == newest
