"""A backbone must be a function of one image: dependence on the batch or on chance is refused with its place."""

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
from featcache.extraction import drift


class _Body(nn.Module):
    """A convolution, a faulty module, a convolution and a mean."""

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


def load(wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
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
def test_randomness_is_refused_with_the_module_where_it_begins(wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ExtractionError, match=r"at the second run \(layer output; it begins in wrong\)"):
        load(wrong)


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
def test_dependence_on_the_batch_is_refused_with_the_module_where_it_begins(
    wrong: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(ExtractionError, match=r"alone than together with .* \(layer output; it begins in wrong\)"):
        load(wrong)


def test_dropout_and_batch_norms_in_eval_mode_are_accepted() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten())
    spec = from_module(network, name="mine", transform=Transform(image_size=8)).spec
    assert spec.probe is not None


def test_the_two_probe_images_never_change() -> None:
    images = checks.probe_images(5)
    assert images.shape == (2, 5, 5, 3)
    assert not np.array_equal(images[0], images[1])
    # If these values changed, stored outputs would be useless.
    assert images[0, 0].tolist() == PROBE_ROW


PROBE_ROW = [[41, 85, 75], [73, 88, 73], [87, 60, 72], [61, 54, 86], [70, 70, 57]]


def outputs(rows: list[list[float]], **environment: object) -> ProbeOutputs:
    return ProbeOutputs(sketches={"output": rows}, environment=environment)


def test_equal_outputs_are_the_same_function() -> None:
    now = outputs([[1.0, 2.0], [3.0, 4.0]], torch="2")
    assert checks.same_function(now, outputs([[1.0, 2.0], [3.0, 4.0 + 1e-7]], torch="2"), ["output"]) == (True, None)


def test_with_the_same_versions_a_small_difference_is_another_function() -> None:
    now = outputs([[1.0, 2.0], [3.0, 4.0]], torch="2")
    same, message = checks.same_function(now, outputs([[1.0, 2.0], [3.0, 4.001]], torch="2"), ["output"])
    assert not same
    assert message is not None
    assert "same versions" in message


def test_with_other_versions_a_small_difference_is_reported_and_a_large_one_is_another_function() -> None:
    now = outputs([[1.0, 2.0], [3.0, 4.0]], torch="2", threads=2)
    same, message = checks.same_function(now, outputs([[1.0, 2.0], [3.0, 4.001]], torch="1", threads=2), ["output"])
    assert same
    assert message is not None
    assert "torch 1 (now 2)" in message
    same, message = checks.same_function(now, outputs([[1.0, 2.0], [3.0, -4.0]], torch="1", threads=2), ["output"])
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


def test_rows_with_nan_differ_unless_nan_is_at_the_same_positions() -> None:
    nan = float("nan")
    assert checks.relative_difference([[nan, 1.0]], [[nan, 1.0]]) == 0
    assert checks.relative_difference([[nan, 1.0]], [[1.0, 1.0]]) == float("inf")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("these", "those"),
    [
        ([[NAN, 1.0]], [[1.0, 1.0]]),
        ([[1.0, 1.0]], [[1.0, NAN]]),
        ([[NAN, 1.0]], [[NAN, 1.0]]),
        ([[NAN, 1.0]], [[0.0, 0.0]]),
        ([[1.0, 1.0], [NAN, NAN]], [[1.0, 1.0], [1.0, 1.0]]),
        ([[INF, 1.0]], [[1.0, 1.0]]),
        ([[1.0, 1.0]], [[1.0, -INF]]),
        ([[INF, 1.0]], [[INF, 1.0]]),
        ([[0.0, 0.0]], [[INF, 1.0]]),
        ([[1.0, 1.0]], [[1.0, 1.0, 1.0]]),
        ([[1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]),
        ([[1.0, 1.0]], ()),
    ],
)
def test_rows_that_cannot_be_compared_have_the_cosine_of_opposite_rows(these: object, those: object) -> None:
    assert checks.least_cosine(these, those) == -1  # type: ignore[arg-type]


def test_rows_of_zeros_are_equal_to_each_other_and_to_no_other_row() -> None:
    assert checks.least_cosine([[0.0, 0.0]], [[0.0, 0.0]]) == 1
    assert checks.least_cosine([[0.0, 0.0]], [[3.0, 4.0]]) == 0
    assert checks.least_cosine([[3.0, 4.0]], [[0.0, 0.0]]) == 0
    assert checks.least_cosine([[3.0, 4.0], [1.0, 0.0]], [[6.0, 8.0], [1.0, 1.0]]) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("wrong", [NAN, INF])
def test_with_other_versions_a_row_that_is_not_finite_is_another_function(wrong: float) -> None:
    now, before = outputs([[wrong, 2.0]], torch="2"), outputs([[1.0, 2.0]], torch="1")
    assert not checks.same_function(now, before, ["output"])[0]
    assert not checks.same_function(before, now, ["output"])[0]


def test_infinities_differ_from_nan_and_from_the_other_sign() -> None:
    assert checks.relative_difference([[INF, 1.0]], [[INF, 1.0]]) == 0
    assert checks.relative_difference([[INF, 1.0]], [[-INF, 1.0]]) == INF
    assert checks.relative_difference([[INF, 1.0]], [[NAN, 1.0]]) == INF


@pytest.mark.parametrize("wrong", [NAN, INF])
def test_a_row_that_is_not_finite_drifts_too_far_from_fp32(wrong: float) -> None:
    sound, odd = np.ones((2, 3)), np.array([[1.0, 1.0, 1.0], [1.0, wrong, 1.0]])
    for exact, rounded in ((sound, odd), (odd, sound), (odd, odd)):
        found = drift.compare("bf16", {"a": sound, "output": exact}, {"a": sound, "output": rounded})
        with pytest.raises(ExtractionError, match="layer output drifts too far"):
            found.require(0.9)
