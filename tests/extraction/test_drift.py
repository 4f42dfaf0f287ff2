"""The error of a precision below fp32 is measured, recorded, and refused where it is too large."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny import jpeg, tiny_backbone, write_images
from torch import nn

from featcache.backbones.network import Network
from featcache.backbones.program import Program
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos.modules import from_module
from featcache.cache.reader import FeatureCache
from featcache.errors import ExtractionError
from featcache.extraction import drift
from featcache.extraction.execution import LEAST_COSINE
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    images = write_images(tmp_path / "pictures", train=10, test=4)
    return Request(dataset=images, backbone=tiny_backbone(), precision="bf16", data_dir=tmp_path / "data")


class Cancelling(nn.Module):
    """The small difference of two large numbers: what survives in fp32 is rounding noise in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 40, 3, bias=False)
        self.second = nn.Conv2d(40, 6, 1, bias=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nn.init.normal_(self.first.weight)
            nn.init.normal_(self.second.weight)
        with torch.no_grad():
            self.second.weight -= self.second.weight.mean(dim=1, keepdim=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.second(torch.relu(self.first(images)) + 1000.0).amax(dim=(2, 3))
        return hidden


def drifting() -> Network:
    return from_module(Cancelling(), name="cancelling", transform=Transform(image_size=16))


def provenance(cache: Path) -> Any:
    with FeatureCache.open(cache) as opened:
        return opened.provenance["drift"]


def test_drift_is_measured_and_recorded_in_provenance_and_result(request_: Request) -> None:
    done = extract(request_)
    assert done.drift == provenance(done.cache)
    found = cast("dict[str, Any]", done.to_json()["drift"])
    layer = found["layers"]["output"]
    assert found["images"] == 8
    assert 0 < layer["median_relative_error"] <= layer["greatest_relative_error"] < 0.02
    assert LEAST_COSINE <= layer["least_cosine"] < 1


@pytest.fixture
def computed_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precision of every forward pass."""
    precisions: list[str] = []
    original = Program.features

    def record_precision(program: Program, images: np.ndarray) -> dict[str, torch.Tensor]:
        precisions.append(program.precision)
        return original(program, images)

    monkeypatch.setattr(Program, "features", record_precision)
    return precisions


def test_in_fp32_nothing_drifts_and_nothing_is_measured(request_: Request, computed_in: list[str]) -> None:
    done = extract(replace(request_, precision="fp32"), Execution(batch_size=32))
    assert (done.drift, provenance(done.cache), computed_in) == (None, None, ["fp32", "fp32"])


def test_fp32_is_computed_for_the_comparison_alone(request_: Request, computed_in: list[str]) -> None:
    extract(request_, Execution(batch_size=32))
    assert computed_in == ["bf16", "fp32", "bf16", "bf16"]


def test_an_own_module_is_not_changed(request_: Request) -> None:
    network = request_.backbone
    assert isinstance(network, Network)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    before = network.on().features(images)["output"]
    extract(request_)
    assert torch.equal(network.on().features(images)["output"], before)


def test_on_a_hit_it_is_not_measured_but_still_reported(request_: Request, computed_in: list[str]) -> None:
    first = extract(request_)
    computed_in.clear()
    again = extract(request_)
    assert (again.computed, again.drift, computed_in) == (0, first.drift, [])


def test_it_is_kept_where_all_rows_come_from_another_cache(request_: Request) -> None:
    first = extract(request_)
    fewer = extract(replace(request_, limit=3))
    assert (fewer.computed, provenance(fewer.cache)) == (0, first.drift)


def test_segments_record_it(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("featcache.extraction.complete.publish", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(request_, Execution(segment_rows=16))
    again = extract(request_)
    assert again.computed == 0
    assert cast("dict[str, Any]", provenance(again.cache))["images"] == 8


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_network_that_drifts_too_far_is_stopped_before_anything_is_kept(request_: Request) -> None:
    request = replace(request_, backbone=drifting())
    with pytest.raises(
        ExtractionError, match=r"layer output drifts too far in bf16: .* expected at least 0\.999"
    ) as caught:
        extract(request)
    assert caught.value.hint == "extract with --precision fp32"
    assert not list(request.features_dir.glob("*.h5")) + list(request.features_dir.glob("*/manifest.json"))
    assert extract(replace(request, precision="fp32")).computed == 42


def test_images_that_cannot_be_decoded_are_no_part_of_the_sample(request_: Request) -> None:
    assert isinstance(request_.dataset, Path)
    (request_.dataset / "train/cat/00.jpg").write_bytes(b"no image")
    done = extract(request_, Execution(on_error="skip"))
    assert cast("dict[str, Any]", done.drift)["images"] == 7


def test_few_images_are_all_measured_and_many_are_sampled_evenly() -> None:
    assert drift.sample_of(3).tolist() == [0, 1, 2]
    assert len(drift.sample_of(100)) == 8
    many = drift.sample_of(60_000)
    assert len(many) == 16
    assert (many[0], many[-1]) == (0, 59_999)
    assert np.ptp(np.diff(many)) <= 1


def test_the_errors_are_those_of_rows() -> None:
    exact = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]], np.float32)
    moved = np.array([[3.0, 4.5], [0.0, 2.0], [0.0, 0.0]], np.float32)
    found = drift.compare("bf16", {"a": exact}, {"a": moved})
    layer = found.layers["a"]
    assert layer.greatest == pytest.approx(0.1)
    assert layer.median == 0
    assert layer.cosine == pytest.approx(27 / (5 * np.hypot(3, 4.5)))


def test_one_image_is_enough(tmp_path: Path) -> None:
    folder = tmp_path / "one" / "cat"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(jpeg(1))
    done = extract(
        Request(dataset=tmp_path / "one", backbone=tiny_backbone(), precision="bf16", data_dir=tmp_path / "data")
    )
    assert cast("dict[str, Any]", done.drift)["images"] == 1
