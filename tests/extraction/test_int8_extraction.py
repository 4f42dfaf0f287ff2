"""int8: scaled by what the very images show, once for a cache, and only where somebody accepts what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import TinyNetwork, jpeg, write_images
from torch import nn

from featcache.backbones.backbone import Backbone
from featcache.backbones.network import from_module
from featcache.backbones.transforms import Transform
from featcache.cache.reader import FeatureCache
from featcache.errors import ExtractionError, ImageError, InvalidOption, SourceError
from featcache.extraction import devices
from featcache.extraction.rebuild import recompute
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.extraction.why import why

needs_vnni = pytest.mark.skipif(not devices.supported_precisions("cpu")["int8"], reason="this CPU has no VNNI")

ACCEPTING = Execution(min_cosine=0.9)


def backbone() -> Backbone:
    return from_module(TinyNetwork(), name="tiny", transform=Transform(image_size=16))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "pictures")


@pytest.fixture
def request_(images: Path, tmp_path: Path) -> Request:
    return Request(dataset=images, backbone=backbone(), precision="int8", data_dir=tmp_path / "data")


def rows(path: Path) -> dict[str, bytes]:
    with FeatureCache.open(path) as cache:
        return {split: cache[split].features[:].tobytes() for split in cache.splits}


@needs_vnni
def test_ranges_are_observed_once_and_every_later_call_computes_with_them(
    request_: Request, images: Path, tmp_path: Path
) -> None:
    first = extract(request_, ACCEPTING)
    with FeatureCache.open(first.cache) as cache:
        assert cache.spec.precision == "int8"
        ranges = cache.spec.ranges
    assert list(ranges) == ["inner.second"]
    least, greatest = ranges["inner.second"]
    assert least == 0 < greatest
    # Another image would have changed them, had they been observed again.
    (images / "train/cat/new.jpg").write_bytes(jpeg(77, side=200))
    grown = extract(replace(request_, backbone=backbone()), ACCEPTING)
    assert (grown.computed, grown.fingerprint) == (1, first.fingerprint)
    fewer = extract(replace(request_, limit=3), ACCEPTING)
    assert (fewer.computed, fewer.fingerprint) == (0, first.fingerprint)
    # From the same images come the same ranges, and the same rows.
    again = extract(replace(request_, data_dir=tmp_path / "other", limit=6), ACCEPTING)
    once_more = extract(replace(request_, data_dir=tmp_path / "third", limit=6), ACCEPTING)
    assert (again.fingerprint, rows(again.cache)) == (once_more.fingerprint, rows(once_more.cache))


@needs_vnni
def test_a_resume_obeys_the_ranges_it_was_begun_with(request_: Request, images: Path) -> None:
    assert isinstance(request_.backbone, Backbone)
    original, seen = request_.backbone.features, [0]

    def interrupted(batch: np.ndarray) -> object:
        seen[0] += 1
        # Four batches are observed, two measure the drift.
        if seen[0] == 4 + 2 + 2:
            raise KeyboardInterrupt
        return original(batch)

    request_.backbone.features = interrupted  # type: ignore[method-assign, assignment]
    execution = Execution(min_cosine=0.9, batch_size=8, part_rows=8)
    with pytest.raises(KeyboardInterrupt):
        extract(request_, execution)
    (plan,) = request_.features_dir.glob("*.parts/plan.json")
    begun = json.loads(plan.read_text())["spec"]["ranges"]
    (images / "train/cat/new.jpg").write_bytes(jpeg(77, side=200))
    after = extract(replace(request_, backbone=backbone()), execution)
    assert after.reused == 8
    with FeatureCache.open(after.cache) as cache:
        assert {name: list(pair) for name, pair in cache.spec.ranges.items()} == begun


@needs_vnni
def test_what_it_costs_must_be_accepted(request_: Request) -> None:
    strict = Execution(min_cosine=1.0)
    with pytest.raises(ExtractionError, match=r"output drifts too far in int8: .* expected at least 1\.0") as told:
        extract(request_, strict)
    assert told.value.hint == "extract with --precision fp32, or accept it: --min-cosine 0.99"
    assert not list(request_.features_dir.glob("*.h5")) + list(request_.features_dir.glob("*.parts"))
    done = extract(request_, Execution(min_cosine=0.99))
    assert isinstance(done.drift, dict)
    assert 0.99 < done.drift["layers"]["output"]["least_cosine"] < 1


@needs_vnni
def test_why_and_recomputation_know_the_ranges(tmp_path: Path, images: Path) -> None:
    request = Request(
        dataset=images, backbone="squeezenet1_1", weights="random:0", image_size=64, precision="int8",
        data_dir=tmp_path / "data",
    )  # fmt: skip
    done = extract(request, ACCEPTING)
    assert why(request, reporter=LogReporter()).state == "hit"
    assert why(replace(request, precision="auto"), reporter=LogReporter()).state == "hit"
    with FeatureCache.open(done.cache) as cache:
        again = recompute(cache, 12, seed=0, data_dir=request.data_dir, device="cpu")
    assert (again.rows, again.equal) == (12, 12)


@needs_vnni
def test_a_bad_image_is_skipped_when_ranges_are_observed(request_: Request, images: Path) -> None:
    for path in sorted(images.rglob("*.jpg"))[::2]:
        path.write_bytes(b"no image at all")
    with pytest.raises(ImageError):
        extract(request_, ACCEPTING)
    skipping = replace(ACCEPTING, on_error="skip")
    assert len(extract(request_, skipping).skipped) == 21
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"no image at all")
    with pytest.raises(SourceError, match="none of the images"):
        extract(replace(request_, data_dir=request_.data_dir / "new"), skipping)


@needs_vnni
def test_a_network_without_convolutions_is_refused(request_: Request) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(InvalidOption, match="flat has none but its first"):
        extract(replace(request_, backbone=from_module(flat, name="flat", transform=Transform(image_size=16))))


def test_without_vnni_it_is_refused_before_anything_is_read(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    with pytest.raises(InvalidOption, match="int8 is computed on CPUs with VNNI alone"):
        extract(request_)


@pytest.mark.parametrize("cosine", [1.5, float("nan")])
def test_a_bound_that_no_cosine_has_is_refused(cosine: float) -> None:
    with pytest.raises(InvalidOption, match="--min-cosine between -1 and 1"):
        Execution(min_cosine=cosine)
