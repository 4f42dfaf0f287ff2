"""A backbone must be a function of one image: what depends on the company or on chance is refused, and named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featcache.backbones import checks
from featcache.backbones.spec import ProbeOutputs
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos.modules import from_module
from featcache.errors import ExtractionError


class _Body(nn.Module):
    """A convolution, something that goes wrong, and a mean."""

    def __init__(self, wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3)
        self.wrong = _Calls(wrong)
        self.last = nn.Conv2d(8, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.wrong(torch.relu(self.first(images)))).mean(dim=(2, 3))  # type: ignore[no-any-return]


class _Calls(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.function(maps)


def opened(wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
    from_module(_Body(wrong), name="mine", transform=Transform(image_size=24))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda maps: F.dropout(maps, 0.5),
        lambda maps: maps + 0.01 * torch.randn_like(maps),
        lambda maps: maps * torch.rand(()),
        lambda maps: maps[:, torch.randperm(maps.shape[1])],
    ],
    ids=["dropout", "noise", "scale", "shuffle"],
)
def test_chance_is_refused_with_the_layer_where_it_begins(wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ExtractionError, match=r"the second time \(layer output; it begins in wrong\)"):
        opened(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda maps: F.batch_norm(maps, None, None, training=True),
        lambda maps: maps - maps.mean(dim=0, keepdim=True),
        lambda maps: maps.flip(0),
        lambda maps: maps / maps.abs().max(),
    ],
    ids=["batch statistics", "mean of the batch", "other image", "greatest of the batch"],
)
def test_company_is_refused_with_the_layer_where_it_begins(wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ExtractionError, match=r"alone than beside another one \(layer output; it begins in wrong\)"):
        opened(wrong)


def test_dropout_and_batch_norms_in_eval_mode_are_fine() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten())
    spec = from_module(network, name="mine", transform=Transform(image_size=8)).spec
    assert spec.probe is not None


def test_the_two_probe_images_are_the_same_for_ever() -> None:
    images = checks.probe_images(5)
    assert images.shape == (2, 5, 5, 3)
    assert not np.array_equal(images[0], images[1])
    # Stored outputs would mean nothing if these numbers changed.
    assert images[0, 0].tolist() == PROBE_ROW


PROBE_ROW = [[41, 85, 75], [73, 88, 73], [87, 60, 72], [61, 54, 86], [70, 70, 57]]


def outputs(rows: list[list[float]], **environment: object) -> ProbeOutputs:
    return ProbeOutputs(sketches={"output": rows}, environment=environment)


def test_equal_outputs_are_the_same_function() -> None:
    now = outputs([[1.0, 2.0], [3.0, 4.0]], torch="2")
    assert checks.same_function(now, outputs([[1.0, 2.0], [3.0, 4.0 + 1e-7]], torch="2"), ["output"]) == (True, None)


def test_with_the_same_versions_a_small_difference_is_another_function() -> None:
    now = outputs([[1.0, 2.0], [3.0, 4.0]], torch="2")
    same, sentence = checks.same_function(now, outputs([[1.0, 2.0], [3.0, 4.001]], torch="2"), ["output"])
    assert not same
    assert sentence is not None
    assert "same versions" in sentence


def test_with_other_versions_a_small_difference_is_reported_and_a_large_one_is_another_function() -> None:
    now = outputs([[1.0, 2.0], [3.0, 4.0]], torch="2", threads=2)
    same, sentence = checks.same_function(now, outputs([[1.0, 2.0], [3.0, 4.001]], torch="1", threads=2), ["output"])
    assert same
    assert sentence is not None
    assert "torch 1 (now 2)" in sentence
    same, sentence = checks.same_function(now, outputs([[1.0, 2.0], [3.0, -4.0]], torch="1", threads=2), ["output"])
    assert not same


@pytest.mark.parametrize("before", [{}, {"other": [[1.0, 2.0], [3.0, 4.0]]}, {"output": [[1.0], [3.0]]}])
def test_outputs_that_cannot_be_compared_are_another_function(before: dict[str, list[list[float]]]) -> None:
    now = outputs([[1.0, 2.0], [3.0, 4.0]])
    assert not checks.same_function(now, ProbeOutputs(sketches=before, environment={}), ["output"])[0]


@pytest.mark.parametrize("width", [3, 64, 65, 1_000, 25_088])
def test_a_sketch_keeps_lengths_and_differences(width: int) -> None:
    random = np.random.default_rng(width)
    row = random.normal(size=width)
    other = row + 1e-3 * random.normal(size=width)
    sketches = np.array([checks.sketch(row), checks.sketch(other)])
    assert sketches.shape[1] == min(width, 64)
    true = np.linalg.norm(row - other) / np.linalg.norm(row)
    assert checks.relative_difference([sketches[1]], [sketches[0]]) == pytest.approx(true, rel=0.5)
    assert checks.least_cosine([sketches[1]], [sketches[0]]) > 0.999


def test_rows_without_numbers_differ_unless_they_are_in_the_same_places() -> None:
    nan = float("nan")
    assert checks.relative_difference([[nan, 1.0]], [[nan, 1.0]]) == 0
    assert checks.relative_difference([[nan, 1.0]], [[1.0, 1.0]]) == float("inf")
