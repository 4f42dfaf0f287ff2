"""Several backbones at once: every image is read and decoded once, and every cache is as if it was made alone."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import jpeg, tiny_backbone, write_images

import featcache
from featcache.backbones.program import Program
from featcache.cache.locks import lock_cache
from featcache.cache.reader import FeatureCache
from featcache.errors import CacheBusy, InvalidOption
from featcache.extraction import pipeline
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract, extract_each


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "pictures")


@pytest.fixture
def requests(images: Path, tmp_path: Path) -> list[Request]:
    backbones = [tiny_backbone(), tiny_backbone(seed=1, image_size=20, name="other"), tiny_backbone(name="third")]
    base = Request(dataset=images, precision="fp32", data_dir=tmp_path / "data")
    return [replace(base, backbone=backbone) for backbone in backbones]


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image was decoded."""
    counts: Counter[str] = Counter()
    original, lock = vars(pipeline)["decode"], threading.Lock()

    def counting(payload: bytes, name: str) -> np.ndarray:
        with lock:
            counts[name] += 1
        decoded: np.ndarray = original(payload, name)
        return decoded

    monkeypatch.setattr(pipeline, "decode", counting)
    return counts


def rows(path: Path) -> dict[str, bytes]:
    with FeatureCache.open(path) as cache:
        return {split: cache[split].features[:].tobytes() for split in cache.splits}


@pytest.mark.parametrize("batch_size", [8, 32])
def test_each_cache_is_as_if_made_alone_and_every_image_is_decoded_once(
    requests: list[Request], decodings: Counter[str], tmp_path: Path, batch_size: int
) -> None:
    done = extract_each(requests, Execution(batch_size=batch_size))
    assert (len(decodings), set(decodings.values())) == (42, {1})
    assert [one.computed for one in done] == [42, 42, 42]
    for request, one in zip(requests, done, strict=True):
        alone = extract(replace(request, data_dir=tmp_path / "alone"))
        assert (one.fingerprint, one.cache.name) == (alone.fingerprint, alone.cache.name)
        assert rows(one.cache) == rows(alone.cache)


def test_each_computes_only_what_it_lacks(
    requests: list[Request], images: Path, decodings: Counter[str], tmp_path: Path
) -> None:
    extract(requests[0])
    extract(replace(requests[1], limit=6))
    (images / "train/cat/zz.jpg").write_bytes(jpeg(901))
    decodings.clear()
    done = extract_each(requests, Execution(batch_size=8))
    assert [(one.computed, one.reused) for one in done] == [(1, 42), (43 - 12, 12), (43, 0)]
    assert (len(decodings), set(decodings.values())) == (43, {1})
    assert [one.computed for one in extract_each(requests)] == [0, 0, 0]


def test_a_bad_image_is_skipped_in_all_of_them(requests: list[Request], images: Path) -> None:
    (images / "train/dog/05.jpg").write_bytes(b"no image at all")
    done = extract_each(requests, Execution(batch_size=8, on_error="skip"))
    assert [[skipped.id for skipped in one.skipped] for one in done] == [["train/dog/05.jpg"]] * 3


def test_after_an_interruption_all_continue(
    requests: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = Program.features, 0

    def interrupt(program: Program, batch: np.ndarray) -> object:
        nonlocal seen
        seen += program.spec.name == "other"
        if seen == 3:
            raise KeyboardInterrupt
        return original(program, batch)

    execution = Execution(batch_size=8, segment_rows=8)
    with monkeypatch.context() as patched:
        patched.setattr(Program, "features", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract_each(requests, execution)
    assert not list(requests[0].features_dir.glob("*.h5"))
    after = extract_each(requests, execution)
    # A batch is computed by all of them before the next one is.
    assert [one.reused for one in after] == [16, 16, 16]
    alone = extract(replace(requests[1], data_dir=tmp_path / "alone"))
    assert rows(after[1].cache) == rows(alone.cache)


def test_two_processes_take_the_locks_in_the_same_order(requests: list[Request]) -> None:
    done = extract_each(requests)
    first = min(one.cache.stem for one in done)
    for one in done:
        one.cache.unlink()
    for order in (requests, requests[::-1]):
        with lock_cache(requests[0].features_dir, first), pytest.raises(CacheBusy):
            extract_each(order, Execution(wait=False))
        assert not [path for path in requests[0].features_dir.glob("*.lock") if first not in path.name]


def test_different_images_or_equal_backbones_are_refused(requests: list[Request]) -> None:
    with pytest.raises(InvalidOption, match="the same images"):
        extract_each([requests[0], replace(requests[1], limit=3)])
    with pytest.raises(InvalidOption, match="different backbones, got tiny, tiny"):
        extract_each([requests[0], requests[0]])


def test_from_python_a_list_of_backbones_gives_a_list_of_caches(images: Path, tmp_path: Path) -> None:
    backbones = ["squeezenet1_1", "pixels"]
    caches = featcache.extract(
        images, backbones, weights={"squeezenet1_1": "random:0"}, layers={"squeezenet1_1": "features.5"},
        image_size=32, limit=3, data_dir=tmp_path / "data",
    )  # fmt: skip
    assert [(cache.spec.backbone, cache.layers) for cache in caches] == [
        ("squeezenet1_1", ("features.5",)),
        ("pixels", ("pixels",)),
    ]
    with pytest.raises(InvalidOption, match="layers of several backbones: expected a mapping"):
        featcache.extract(images, backbones, layers="features.5", data_dir=tmp_path / "data")
    with pytest.raises(InvalidOption, match="expected names among squeezenet1_1, pixels, got vgg16"):
        featcache.extract(images, backbones, weights={"vgg16": "random:0"}, data_dir=tmp_path / "data")
