"""Rows are reused only if the network still computes the same: equal names and weights do not suffice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Forward, every_forward, write_images
from torch import nn
from torch.nn import functional
from torchvision.models.squeezenet import Fire

from featcache.backbones import devices
from featcache.backbones.network import Network
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos.modules import from_module
from featcache.cache.reader import FeatureCache
from featcache.errors import WeightsError
from featcache.extraction.recomputation import recompute
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract


class Leaky(nn.Module):
    """Slope and stride are not weights: they belong to the code of `forward`."""

    def __init__(self, slope: float = 0.1, stride: int = 1) -> None:
        super().__init__()
        self.slope, self.stride = slope, stride
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 20, 3)
            self.second = nn.Conv2d(20, 12, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = functional.leaky_relu(self.first(images), self.slope)
        return functional.conv2d(hidden, self.second.weight, self.second.bias, self.stride).mean(dim=(2, 3))


def leaky(**changes: Any) -> Network:
    return from_module(Leaky(**changes), name="leaky", transform=Transform(image_size=16))


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    images = write_images(tmp_path / "pictures")
    return Request(dataset=images, backbone=leaky(), precision="fp32", data_dir=tmp_path / "data")


def rows(cache: Path) -> np.ndarray:
    with FeatureCache.open(cache) as opened:
        return opened["train"].features[:]


@pytest.mark.parametrize("change", [{"slope": 0.3}, {"stride": 2}], ids=str)
def test_a_changed_forward_under_the_same_name_and_weights_is_a_miss(
    change: dict[str, Any], request_: Request, caplog: pytest.LogCaptureFixture
) -> None:
    changed = replace(request_, backbone=leaky(**change))
    assert leaky(**change).spec.layers == leaky().spec.layers
    first, other = extract(request_), extract(changed)
    assert (first.computed, other.computed) == (42, 42)
    assert "no longer computes what it computed for the stored rows" in caplog.text
    # Both caches exist, each with its own rows.
    assert first.cache != other.cache and first.cache.exists() and other.cache.exists()
    assert not np.array_equal(rows(first.cache), rows(other.cache))
    for request, done in ((replace(request_, backbone=leaky()), first), (changed, other)):
        again = extract(request)
        assert (again.computed, again.cache) == (0, done.cache)


def test_segments_of_another_function_are_not_used(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0

    def interrupt(forward: Forward, images: np.ndarray | torch.Tensor) -> object:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise KeyboardInterrupt
        return forward(images)

    execution = Execution(batch_size=8, segment_rows=8)
    with monkeypatch.context() as patched:
        every_forward(patched, interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(request_, execution)
    other = extract(replace(request_, backbone=leaky(slope=0.3)), execution)
    assert (other.computed, other.reused) == (42, 0)
    mine = extract(replace(request_, backbone=leaky()), execution)
    assert (mine.computed, mine.reused) == (42 - 16, 16)


def test_fewer_images_take_rows_only_from_the_cache_of_the_same_function(request_: Request) -> None:
    extract(request_)
    assert extract(replace(request_, backbone=leaky(), limit=6)).computed == 0
    assert extract(replace(request_, backbone=leaky(slope=0.3), limit=6)).computed == 12


# --- another machine, other versions ----------------------------------------------------------------------------


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that pretends that another version of torch was installed."""
    here = devices.environment()

    def install() -> None:
        monkeypatch.setattr(devices, "environment", lambda: {**here, "torch": "99.1"})

    return install


def test_equal_outputs_of_another_version_are_reused(
    request_: Request, upgrade: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    first = extract(request_)
    upgrade()
    again = extract(replace(request_, backbone=leaky()))
    assert (again.computed, again.cache) == (0, first.cache)
    assert "probe images" not in caplog.text


def test_nearly_equal_outputs_of_another_version_are_reused_with_a_warning(
    request_: Request, upgrade: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    first = extract(request_)
    upgrade()
    again = extract(replace(request_, backbone=leaky(slope=0.1001)))
    assert (again.computed, again.cache) == (0, first.cache)
    (warning,) = [record.message for record in caplog.records if "probe images" in record.message]
    assert first.cache.stem in warning
    assert "(now 99.1); the rows are used" in warning


def test_nearly_equal_outputs_of_the_same_version_are_another_function(request_: Request) -> None:
    extract(request_)
    assert extract(replace(request_, backbone=leaky(slope=0.1001))).computed == 42


def test_outputs_of_another_version_beyond_the_bound_are_a_miss_with_a_warning(
    request_: Request, upgrade: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    first = extract(request_)
    upgrade()
    again = extract(replace(request_, backbone=leaky(slope=0.9)))
    assert again.computed == 42 and again.cache != first.cache
    (warning,) = [record.message for record in caplog.records if "probe images" in record.message]
    assert "(now 99.1); the rows are computed again" in warning


# --- a network of a zoo whose code changed ------------------------------------------------------------------------


@pytest.fixture
def squeezenet(request_: Request) -> Request:
    return replace(request_, backbone="squeezenet1_1", weights="random:0", image_size=64, precision="bf16")


def _other_forward(fire: Fire, images: torch.Tensor) -> torch.Tensor:
    """Another activation, with the same weights."""
    hidden = functional.leaky_relu(fire.squeeze(images), 0.5)
    return torch.cat([functional.gelu(fire.expand1x1(hidden)), functional.gelu(fire.expand3x3(hidden))], 1)


def test_recomputing_refuses_a_network_that_computes_something_else(
    squeezenet: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FeatureCache.open(extract(squeezenet).cache) as cache:
        assert recompute(cache, 4, seed=0, data_dir=squeezenet.data_dir, device="cpu").equal == 4
        monkeypatch.setattr(Fire, "forward", _other_forward)
        with pytest.raises(WeightsError, match="squeezenet1_1 does not compute what it computed") as caught:
            recompute(cache, 4, seed=0, data_dir=squeezenet.data_dir, device="cpu")
    assert "bring back the code" in str(caught.value.hint)


def test_a_zoos_network_that_computes_something_else_is_a_miss_and_both_caches_are_kept(
    squeezenet: Request, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = extract(squeezenet)
    with monkeypatch.context() as patched:
        patched.setattr(Fire, "forward", _other_forward)
        # Another installation, so that its description is made anew.
        patched.setattr("featcache.backbones.describe.versions", lambda: {"torchvision": "99.1"})
        other = extract(squeezenet)
        assert (other.computed, extract(squeezenet).computed) == (42, 0)
    assert "the rows are computed again" in caplog.text
    assert first.cache.exists() and other.cache != first.cache
    again = extract(squeezenet)
    assert (again.computed, again.cache) == (0, first.cache)
