"""Metrics, compared with scikit-learn and with their definitions; comparisons of two runs."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_caches import Blobs, blobs, write_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
    root_mean_squared_error,
    top_k_accuracy_score,
)
from torch.nn import functional as F

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.heads.bootstrap import draw_counts, number_of_draws
from featcache.heads.calibration import confidence_bins
from featcache.heads.class_metrics import wilson_interval
from featcache.heads.list_metrics import map_draws
from featcache.heads.metric_records import (
    ClassMetrics,
    ListMetrics,
    NumberMetrics,
    metrics_from_json,
    metrics_to_json,
)
from featcache.heads.metrics import Outcome, Tuning, measure, to_predictions, tune_on_val
from featcache.heads.number_metrics import r2_draws
from featcache.heads.records import Predictions
from featcache.rows.target import HeadTarget, class_target
from featcache.runs.comparison import compare_predictions, compare_runs, mcnemar
from featcache.runs.fit import train_head
from featcache.runs.run import Run


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Three clouds that overlap."""
    splits = {"train": blobs(150, distance=0.3), "test": blobs(90, seed=1, distance=0.3)}
    return write_cache(tmp_path_factory.mktemp("cache"), splits)


@pytest.fixture(scope="module")
def run(cache: FeatureCache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_head(cache, "ridge", runs_dir=tmp_path_factory.mktemp("runs"))


def outcome(classes: int, *, images: int = 400, seed: int = 0, absent: int = 0) -> Outcome:
    """Logits that are right more often than not; the last `absent` classes have no image."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes - absent, images)
    logits = random.standard_normal((images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += 1.5
    return of_classes(logits, labels)


def of_classes(logits: ArrayLike, labels: ArrayLike) -> Outcome:
    outputs = np.asarray(logits, np.float32)
    target = class_target(map(str, range(outputs.shape[1])))
    return Outcome(outputs=outputs, targets=np.asarray(labels, np.int64), target=target)


def class_metrics(result: Outcome, temperature: float = 1.0) -> ClassMetrics:
    found = measure(result, Tuning(temperature=temperature), seed=0)
    assert isinstance(found, ClassMetrics)
    return found


def of_lists(logits: ArrayLike, targets: ArrayLike) -> Outcome:
    outputs = np.asarray(logits, np.float32)
    names = tuple(map(str, range(outputs.shape[1])))
    target = HeadTarget(kind="lists", columns=("what",), names=names)
    return Outcome(outputs=outputs, targets=np.asarray(targets, np.int8), target=target)


def list_metrics(result: Outcome, thresholds: Sequence[float] | None = None) -> ListMetrics:
    tuning = tune_on_val(result) if thresholds is None else Tuning(thresholds=tuple(thresholds))
    found = measure(result, tuning, seed=0)
    assert isinstance(found, ListMetrics)
    return found


def of_numbers(values: ArrayLike, targets: ArrayLike, **more: Any) -> Outcome:
    outputs = np.asarray(values, np.float32)
    names = tuple(map(str, range(outputs.shape[1])))
    target = HeadTarget(kind="numbers", columns=names, names=names)
    return Outcome(outputs=outputs, targets=np.asarray(targets, np.float64), target=target, **more)


def number_metrics(result: Outcome) -> NumberMetrics:
    found = measure(result, tune_on_val(result), seed=0)
    assert isinstance(found, NumberMetrics)
    return found


def calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """By its definition: the gap between confidence and accuracy, weighted by the images of each bin."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.ceil(confidence * 15).astype(int)
    gaps = [abs(confidence[bins == bin].mean() - right[bins == bin].mean()) * (bins == bin).sum() for bin in set(bins)]
    return float(sum(gaps) / len(labels))


def plain(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if each is None else each for each in values])


# --- classes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "absent"), [(2, 0), (3, 0), (5, 0), (7, 0), (7, 2)])
def test_metrics_are_those_of_scikit_learn(classes: int, absent: int) -> None:
    result = outcome(classes, absent=absent)
    found = class_metrics(result, 2.0)
    labels, logits = result.targets, result.outputs
    guess = logits.argmax(axis=1)
    assert found.accuracy == result.score().accuracy == (guess == labels).mean()
    assert result.score().loss == pytest.approx(
        log_loss(labels, softmax(logits.astype(np.float64), axis=1), labels=range(classes)), rel=1e-6
    )
    with warnings.catch_warnings():
        # scikit-learn warns about classes that were predicted but have no images.
        warnings.simplefilter("ignore")
        assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, guess))
    assert found.macro_f1 == pytest.approx(f1_score(labels, guess, average="macro"), abs=1e-12)
    precision, recall, _, images = precision_recall_fscore_support(
        labels, guess, labels=range(classes), zero_division=np.nan
    )
    assert found.images == tuple(images)
    assert plain(found.recall) == pytest.approx(recall, nan_ok=True)
    assert plain(found.precision) == pytest.approx(precision, nan_ok=True)
    assert found.confusion is not None
    assert np.array_equal(found.confusion, confusion_matrix(labels, guess, labels=range(classes)))
    if classes > 5:
        assert found.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(classes)))
    else:
        assert found.top5 is None
    for temperature, error in ((1, found.calibration_error), (2, found.scaled_calibration_error)):
        probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
        assert error == pytest.approx(calibration_error(probabilities, labels), abs=1e-5)


def test_confusion_of_very_many_classes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.heads.class_metrics.LARGEST_CONFUSION", 6)
    assert class_metrics(outcome(7)).confusion is None
    assert class_metrics(outcome(6)).confusion is not None


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    result = outcome(7)
    whole = (result.score(), class_metrics(result, 3.0), tune_on_val(result))
    monkeypatch.setattr("featcache.heads.calibration.BLOCK_BYTES", 8 * 7 * 13)
    score, found, tuning = result.score(), class_metrics(result, 3.0), tune_on_val(result)
    assert score.loss == pytest.approx(whole[0].loss, rel=1e-12)
    assert found == whole[1]
    assert tuning.temperature == pytest.approx(whole[2].temperature)


def test_confidence_of_exactly_1_lies_in_the_last_bin() -> None:
    # Four images with a confidence of 1, three of them right; torchmetrics 1.9 has a 16th bin for them.
    sure = class_metrics(of_classes([[200, 0]] * 4, [0, 0, 0, 1]))
    assert sure.calibration_error == pytest.approx(0.25)
    (last,) = sure.bins
    assert (last.low, last.high, last.images) == pytest.approx((14 / 15, 1.0, 4))
    # Together with images of a confidence close to 1: one bin, one mean.
    nearly = class_metrics(of_classes([[200, 0]] * 2 + [[np.log(19), 0]] * 2, [0, 0, 1, 1]))
    assert nearly.calibration_error == pytest.approx(0.975 - 0.5)
    # A confidence on an edge belongs to the bin below it, and one of 1/C with C > 15 to the first bin.
    assert [one.high for one in confidence_bins(np.array([3 / 15, 0.2000001]), np.array([True, True]))] == [
        pytest.approx(3 / 15),
        pytest.approx(4 / 15),
    ]
    assert [one.low for one in confidence_bins(np.array([0.0, 1 / 20]), np.array([False, False]))] == [0.0]


def test_a_tie_is_not_among_the_top_5() -> None:
    # Seven classes: those without a vote share the last place, so their order has no meaning.
    votes = [[9, 8, 0, 0, 0, 0, 0]] * 7
    assert class_metrics(of_classes(votes, range(7))).top5 == pytest.approx(2 / 7)
    assert class_metrics(of_classes([row[::-1] for row in votes], range(7))).top5 == pytest.approx(2 / 7)
    assert class_metrics(of_classes([[1, 1, 1, 1, 1, 0, 0]], [4])).top5 == 1.0
    assert class_metrics(of_classes([[1, 1, 1, 1, 1, 1, 0]], [4])).top5 == 0.0


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_the_temperature_makes_val_as_likely_as_it_can_be(factor: float) -> None:
    result = outcome(5)
    scaled = replace(result, outputs=result.outputs * np.float32(factor))
    temperature = tune_on_val(scaled).temperature
    assert temperature == pytest.approx(factor * tune_on_val(result).temperature, rel=0.01)
    losses = [
        replace(scaled, outputs=scaled.outputs / np.float32(temperature * other)).score().loss
        for other in (0.9, 1, 1.1)
    ]
    assert losses[1] == min(losses)


def test_one_image_and_an_absent_class_are_measured() -> None:
    one = class_metrics(of_classes([[0, 3, 0]], [1]))
    assert (one.accuracy, one.balanced_accuracy, one.macro_f1) == (1.0, 1.0, 1.0)
    assert one.recall == (None, 1.0, None) and one.images == (0, 1, 0)
    assert one.accuracy_interval == pytest.approx((0.2065, 1.0), abs=1e-4)


@pytest.mark.parametrize(("right", "images"), [(10, 10), (0, 10), (1, 1), (0, 1), (90, 90), (7, 11), (8_123, 10_000)])
def test_interval_is_wilsons(right: int, images: int) -> None:
    expected = binomtest(right, images).proportion_ci(method="wilson")
    assert wilson_interval(right, images) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson_interval(right, images)
    assert 0 <= low < high <= 1


@pytest.mark.parametrize("images", range(1, 60))
def test_interval_of_all_or_none_ends_at_the_bound_exactly(images: int) -> None:
    assert wilson_interval(0, images)[0] == 0.0
    assert wilson_interval(images, images)[1] == 1.0


def test_interval_without_images_is_0_to_1() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


# --- several classes --------------------------------------------------------------------------------------


def several(
    images: int = 300, classes: int = 5, *, steps: int | None = None, absent: int = 0, seed: int = 0
) -> Outcome:
    """Logits that are correlated with the targets; with `steps` they are rounded, so that many are equal."""
    random = np.random.default_rng(seed)
    targets = (random.random((images, classes)) < np.linspace(0.05, 0.6, classes)).astype(np.int8)
    targets[:, classes - absent :] = 0
    logits = random.standard_normal((images, classes)) + 1.5 * targets
    return of_lists(logits if steps is None else np.round(logits * steps / 6), targets)


@pytest.mark.parametrize("result", [several(), several(steps=4), several(absent=2), several(1, seed=3), several(40, 2)])
def test_metrics_of_several_classes_are_those_of_scikit_learn(result: Outcome) -> None:
    found = list_metrics(result)
    targets = result.targets
    present = targets.any(axis=0)
    each = [average_precision_score(targets[:, c], result.outputs[:, c]) for c in np.flatnonzero(present)]
    assert plain(found.average_precision)[present] == pytest.approx(each)
    assert all(found.average_precision[c] is None for c in np.flatnonzero(~present))
    assert found.map == result.score().value == pytest.approx(np.mean(each) if len(each) else 0.0)
    assert result.score().metric == "map"
    guess = (expit(result.outputs.astype(np.float64)) >= np.array(found.thresholds)).astype(int)
    assert found.micro_f1 == pytest.approx(f1_score(targets, guess, average="micro", zero_division=0))
    known = present | guess.any(axis=0)
    if known.any():
        expected = f1_score(targets[:, known], guess[:, known], average="macro", zero_division=0)
        assert found.macro_f1 == pytest.approx(expected)
    assert found.exact_match == pytest.approx(accuracy_score(targets, guess))
    precision, recall, _, images = precision_recall_fscore_support(targets, guess, zero_division=np.nan)
    assert plain(found.recall) == pytest.approx(recall, nan_ok=True)
    assert plain(found.precision) == pytest.approx(precision, nan_ok=True)
    assert found.images == tuple(images)
    shares = expit(result.outputs.astype(np.float64))
    losses = -(targets * np.log(shares) + (1 - targets) * np.log1p(-shares))
    assert result.score().loss == pytest.approx(losses.mean(), rel=1e-5)


def test_thresholds_have_the_best_f1_and_are_used_on_other_images() -> None:
    val, test = several(80), several(seed=1)
    thresholds = tune_on_val(val).thresholds
    for c, threshold in enumerate(thresholds):
        marks, shares = val.targets[:, c], expit(val.outputs[:, c].astype(np.float64))
        best = max(f1_score(marks, shares >= one) for one in shares)
        assert f1_score(marks, shares >= threshold) == pytest.approx(best)
    found = list_metrics(test, thresholds)
    guess = expit(test.outputs.astype(np.float64)) >= np.array(thresholds)
    assert found.thresholds == thresholds
    assert found.micro_f1 == pytest.approx(f1_score(test.targets, guess, average="micro"))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=8))
def test_no_other_threshold_has_a_better_f1(images: list[tuple[int, bool]]) -> None:
    logits, marks = (np.array(column) for column in zip(*images, strict=True))
    (threshold,) = tune_on_val(of_lists(logits[:, None], marks[:, None])).thresholds
    shares = expit(logits)

    def f1(limit: float) -> float:
        return float(2 * (marks & (shares >= limit)).sum() / max(1, marks.sum() + (shares >= limit).sum()))

    # By the number of images that are predicted; of equally good thresholds the highest is chosen.
    scores = {int((shares >= one).sum()): f1(one) for one in shares}
    best = min(count for count, score in scores.items() if score > max(scores.values()) - 1e-9)
    assert int((shares >= threshold).sum()) == (best if marks.any() else int((shares >= 0.5).sum()))


def test_the_threshold_of_a_class_without_val_images_is_a_half() -> None:
    assert tune_on_val(of_lists([[1.0, 2.0], [2.0, 3.0]], [[0, 0], [0, 1]])).thresholds[0] == 0.5
    # All images have it: it is predicted for all.
    assert tune_on_val(of_lists([[1.0], [2.0]], [[1], [1]])).thresholds[0] == pytest.approx(expit(1.0) / 2)


def test_a_probability_equal_to_the_threshold_is_predicted() -> None:
    assert list_metrics(of_lists([[0.0], [-1.0]], [[1], [0]]), [0.5]).recall == (1.0,)


def test_without_any_class_and_prediction_scores_are_zero() -> None:
    found = list_metrics(of_lists(np.zeros((4, 2)), np.zeros((4, 2))), [0.9, 0.9])
    assert (found.map, found.micro_f1, found.macro_f1, found.exact_match) == (0.0, 0.0, 0.0, 1.0)
    assert found.map_interval == (0.0, 0.0)
    assert found.average_precision == found.recall == found.precision == (None, None)


def test_each_draw_of_map_is_that_of_the_images_that_are_drawn() -> None:
    # The last class has a single image, which many draws do not have.
    result = several(40, 3, steps=6)
    result.targets[:, 2] = np.arange(40) == 7
    drawn = map_draws(result.outputs, result.targets, seed=5)
    counts = np.concatenate(list(draw_counts(40, number_of_draws(40, 3), seed=5)))
    assert len(drawn) == len(counts)
    for value, count in zip(drawn[:60].tolist(), counts[:60].astype(int), strict=True):
        rows = np.repeat(np.arange(40), count)
        targets, outputs = result.targets[rows], result.outputs[rows]
        each = [average_precision_score(targets[:, c], outputs[:, c]) for c in np.flatnonzero(targets.any(axis=0))]
        assert value == pytest.approx(np.mean(each))
    # A draw without any class is 0, as all scores without a class are.
    single = np.arange(10)[:, None] == 3
    assert set(map_draws(np.arange(10.0)[:, None], single.astype(np.int8), seed=5)) >= {0.0}


def test_average_precision_of_equal_outputs_is_the_share_of_the_class() -> None:
    found = list_metrics(of_lists(np.zeros((10, 1)), [[1]] * 3 + [[0]] * 7))
    assert plain(found.average_precision) == pytest.approx([0.3])


def test_interval_of_map_is_that_of_a_bootstrap() -> None:
    result = several(200, 4, steps=6)
    random = np.random.default_rng(3)
    drawn = []
    for _ in range(600):
        rows = random.integers(0, 200, 200)
        drawn.append(average_precision_score(result.targets[rows], result.outputs[rows], average="macro"))
    found = list_metrics(result)
    assert found.map_interval == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.015)
    assert list_metrics(result) == found


# --- numbers ----------------------------------------------------------------------------------------------


def numbers(images: int = 300, columns: int = 2, *, steps: int | None = None, seed: int = 0) -> Outcome:
    random = np.random.default_rng(seed)
    targets = random.standard_normal((images, columns)) * 10.0 ** np.arange(columns) + 1000
    values = targets + random.standard_normal((images, columns)) * 10.0 ** np.arange(columns) / 2
    return of_numbers(values, targets) if steps is None else of_numbers(np.round(values), np.round(targets))


@pytest.mark.parametrize("result", [numbers(), numbers(steps=3), numbers(2), numbers(50, 1), numbers(1000, 1)])
def test_metrics_of_numbers_are_those_of_scikit_learn(result: Outcome) -> None:
    found = number_metrics(result)
    targets, values = result.targets, result.outputs
    for name, function in (("mae", mean_absolute_error), ("rmse", root_mean_squared_error), ("r2", r2_score)):
        each = [getattr(one, name).value for one in found.columns]
        assert each == pytest.approx(function(targets, values, multioutput="raw_values"), rel=1e-6)
        assert getattr(found.overall, name).value == pytest.approx(function(targets, values), rel=1e-6)
    for one, predicted, right in zip(found.columns, values.T, targets.T, strict=True):
        assert one.spearman is not None
        assert one.spearman.value == pytest.approx(spearmanr(predicted, right).statistic)
    assert (result.score().value, result.score().metric) == (found.overall.r2.value, "r2")
    assert found.images == len(targets)


@pytest.mark.parametrize("images", range(2, 40))
def test_a_rank_correlation_is_never_above_one(images: int) -> None:
    values = np.random.default_rng(images).standard_normal((images, 1))
    for sign in (1, -1):
        (found,) = number_metrics(of_numbers(sign * values**3, values)).columns
        assert found.spearman is not None
        assert found.spearman.value == pytest.approx(sign) and abs(found.spearman.value) <= 1
        assert -1 <= found.spearman.interval[0] <= found.spearman.interval[1] <= 1


def test_numbers_need_no_tuning_on_val() -> None:
    assert tune_on_val(numbers()) == Tuning()


def test_each_draw_of_r2_is_that_of_the_images_that_are_drawn() -> None:
    result = numbers(1000, 2)
    drawn = r2_draws(result.outputs, result.targets, seed=5)
    counts = np.concatenate(list(draw_counts(1000, number_of_draws(1000, 2), seed=5)))
    for value, count in zip(drawn.tolist()[::50], counts.astype(int)[::50], strict=True):
        rows = np.repeat(np.arange(1000), count)
        assert value == pytest.approx(r2_score(result.targets[rows], result.outputs[rows]), rel=1e-6)


def test_constant_numbers_and_one_image_are_measured() -> None:
    for targets in ([[5.0], [5.0], [5.0]], [[0.1], [0.1], [0.1]], [[1e9]]):
        right, wrong = (
            number_metrics(of_numbers(targets, np.array(targets, np.float32))),
            number_metrics(of_numbers(np.array(targets) + 1e3, targets)),
        )
        assert (right.overall.r2.value, wrong.overall.r2.value) == (1.0, 0.0)
        assert right.columns[0].spearman is None and wrong.overall.spearman is None
    # scikit-learn agrees where the mean has no rounding error (for 0.1 it gives -5e39).
    assert (r2_score([5, 5, 5], [5, 5, 5]), r2_score([5, 5, 5], [6, 6, 6])) == (1.0, 0.0)
    # Equal values for different targets: no rank correlation either, and R2 as in scikit-learn.
    flat = number_metrics(of_numbers([[2.0]] * 3, [[1.0], [2.0], [3.0]]))
    assert flat.columns[0].spearman is None and flat.columns[0].r2.value == pytest.approx(0.0)


def test_intervals_of_numbers_are_those_of_a_bootstrap() -> None:
    result = numbers(200, 1, steps=2)
    random = np.random.default_rng(3)
    drawn: dict[str, list[float]] = {"mae": [], "rmse": [], "r2": [], "spearman": []}
    for _ in range(600):
        rows = random.integers(0, 200, 200)
        right, values = result.targets[rows, 0], result.outputs[rows, 0]
        drawn["mae"].append(mean_absolute_error(right, values))
        drawn["rmse"].append(root_mean_squared_error(right, values))
        drawn["r2"].append(r2_score(right, values))
        drawn["spearman"].append(spearmanr(right, values).statistic)
    (found,) = number_metrics(result).columns
    for name, values_drawn in drawn.items():
        low, high = np.percentile(values_drawn, [2.5, 97.5])
        width = high - low
        assert getattr(found, name).interval == pytest.approx((low, high), abs=width / 6), name


@pytest.mark.parametrize("scale", [np.array([0.3, 4.0]), None], ids=["scaled", "own units"])
@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_loss_of_numbers_is_torchs_in_deviations(loss: str, scale: NDArray[np.float64] | None) -> None:
    result = numbers()
    unit = np.ones(2) if scale is None else scale
    functions: dict[str, Callable[..., torch.Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
    function = functions[loss]
    wanted = function(torch.from_numpy(result.outputs / unit), torch.from_numpy(result.targets / unit))
    assert replace(result, loss=loss, scale=scale).score().loss == pytest.approx(float(wanted))


# --- all kinds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [outcome(7, absent=2), several(absent=1), numbers(), numbers(1)])
def test_metrics_survive_json(result: Outcome) -> None:
    found = measure(result, tune_on_val(result), seed=0)
    values = json.loads(json.dumps(metrics_to_json(found), allow_nan=False))
    assert values["kind"] == result.target.kind
    assert metrics_from_json(values) == found


def test_predictions_are_probabilities_or_the_numbers_themselves() -> None:
    for result, wanted in (
        (outcome(4), softmax(outcome(4).outputs.astype(np.float64), axis=1)),
        (several(), expit(several().outputs.astype(np.float64))),
        (numbers(), numbers().outputs),
    ):
        found = to_predictions(result.outputs, result.target)
        assert found.dtype == np.float32 and found == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    far = to_predictions(np.array([[-1e4, 1e4]], np.float32), several(1, 2).target)
    assert far.tolist() == [[0.0, 1.0]]


def test_without_tuning_the_temperature_is_1_and_without_a_loss_it_is_mse() -> None:
    found = measure(outcome(4), Tuning(), seed=0)
    assert isinstance(found, ClassMetrics) and found.scaled_calibration_error == found.calibration_error
    assert numbers().score().loss == replace(numbers(), loss="mse").score().loss


def test_metrics_need_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, featcache.heads.metrics, featcache.heads.records; "
        "print(sorted({'torch', 'torchmetrics', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- runs -------------------------------------------------------------------------------------------------


def test_run_keeps_the_metrics_of_val_and_test(run: Run) -> None:
    for part, score in (("val", run.training.val), ("test", run.training.test)):
        kept = Run.load(run.folder).metrics(part)
        assert isinstance(kept, ClassMetrics)
        assert score is not None and kept.accuracy == score.accuracy
        assert kept.accuracy_interval[0] < kept.accuracy < kept.accuracy_interval[1]
        assert sum(kept.images) == run.training.images[part]
        result = run.predictions(part)
        assert kept.calibration_error == pytest.approx(calibration_error(result.outputs, result.targets), abs=1e-5)
        # Ridge has already been calibrated on val.
        assert kept.temperature == pytest.approx(1.0, rel=0.05)


def test_metrics_that_are_not_there_are_an_error(run: Run, cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=r"no metrics of 'train', only of: val, test"):
        run.metrics("train")
    fresh = train_head(cache, "centroid", runs_dir=tmp_path)
    path = fresh.folder / "metrics.json"
    for damage in ({"metrics": {"val": {"accuracy": 1}}}, {"metrics": {"val": 3}}, {"metrics": None}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
        with pytest.raises(HeadError) as raised:
            fresh.metrics("val")
        assert raised.value.hint


# --- two heads --------------------------------------------------------------------------------------------


def predictions(right: list[bool], ids: list[str] | None = None) -> Predictions:
    labels = np.arange(len(right), dtype=np.int64) % 3
    guess = np.where(right, labels, (labels + 1) % 3)
    names = ids or [f"test/{row}" for row in range(len(right))]
    return Predictions(ids=tuple(names), targets=labels, outputs=np.eye(3, dtype=np.float32)[guess])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_many_disagreements_do_not_underflow() -> None:
    assert mcnemar(20_000, 20_000) == 1.0
    assert 0 <= mcnemar(1_000, 9_000) < 1e-300


def test_comparison_counts_images_that_only_one_head_has_right() -> None:
    one = [True] * 60 + [False] * 40
    other = [True] * 30 + [False] * 30 + [True] * 10 + [False] * 30
    found = compare_predictions(predictions(one), predictions(other))
    assert (found.images, found.only_first, found.only_second) == (100, 30, 10)
    assert (found.first, found.second, found.difference) == (0.6, 0.4, 0.2)
    assert found.p_value == pytest.approx(binomtest(10, 40).pvalue)
    gaps = np.array(one, int) - np.array(other, int)
    generator = np.random.default_rng(1)
    drawn = [gaps[generator.integers(0, 100, 100)].mean() for _ in range(4000)]
    assert found.interval == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.015)
    assert compare_predictions(predictions(one), predictions(other)) == found


@pytest.mark.parametrize(
    ("one", "other"),
    [(several(200, 4), several(200, 4, steps=2)), (numbers(200), numbers(200, steps=1))],
    ids=["lists", "numbers"],
)
def test_heads_of_other_kinds_are_compared_on_the_same_draws(one: Outcome, other: Outcome) -> None:
    other = replace(other, targets=one.targets)
    kind, ids = one.target.kind, tuple(map(str, range(200)))
    first, second = (
        Predictions(ids=ids, targets=result.targets, outputs=to_predictions(result.outputs, result.target), kind=kind)
        for result in (one, other)
    )
    found = compare_predictions(first, second)
    scores = one.score(), other.score()
    assert (found.metric, found.images, found.p_value) == (scores[0].metric, 200, None)
    assert (found.first, found.second) == pytest.approx([score.value for score in scores])
    assert found.interval[0] <= found.difference == found.first - found.second <= found.interval[1]
    # On the same draws, the difference varies less than either score.
    own = measure(one, tune_on_val(one), seed=0)
    wide = own.map_interval if isinstance(own, ListMetrics) else number_metrics(one).overall.r2.interval
    assert found.interval[1] - found.interval[0] < 1.5 * (wide[1] - wide[0])
    assert compare_predictions(first, first).interval == (0.0, 0.0)
    order = np.random.default_rng(0).permutation(200)
    turned = Predictions(
        ids=tuple(ids[row] for row in order), targets=second.targets[order], outputs=second.outputs[order], kind=kind
    )
    assert compare_predictions(first, turned) == found
    with pytest.raises(HeadError, match="1 images have another, the first 3"):
        changed = first.targets.copy()
        changed[3, 0] = 1 - changed[3, 0]
        compare_predictions(first, replace(second, targets=changed))


def test_order_of_the_images_does_not_matter() -> None:
    one, other = predictions([True, False, True, True]), predictions([True, True, False, True])
    order = [2, 0, 3, 1]
    turned = Predictions(
        ids=tuple(other.ids[row] for row in order), targets=other.targets[order], outputs=other.outputs[order]
    )
    assert compare_predictions(one, turned) == compare_predictions(one, other)


def test_other_images_are_refused_and_named() -> None:
    one, other = predictions([True] * 4, list("abcd")), predictions([True] * 4, list("bcde"))
    with pytest.raises(HeadError, match=r"1 \(a\) only in the first, 1 \(e\) only in the second, 3 in both") as raised:
        compare_predictions(one, other)
    assert "val_seed" in str(raised.value.hint)
    with pytest.raises(HeadError, match="same images"):
        compare_predictions(predictions([]), predictions([]))


def test_other_labels_are_refused() -> None:
    one = predictions([True] * 4)
    with pytest.raises(HeadError, match="1 images have another, the first test/2"):
        compare_predictions(one, replace(one, targets=np.array([0, 1, 0, 0])))


def test_runs_are_compared_by_their_folders(run: Run, cache: FeatureCache, tmp_path: Path) -> None:
    other = train_head(cache, "knn", runs_dir=tmp_path)
    found = compare_runs(run.folder, other, "val")
    assert found.first == run.training.val.accuracy and found.second == other.training.val.accuracy
    assert found.interval[0] <= found.difference <= found.interval[1]
    cut_elsewhere = train_head(cache, "centroid", val_seed=1, runs_dir=tmp_path)
    with pytest.raises(HeadError, match="same images"):
        compare_runs(run, cut_elsewhere, "val")
    assert compare_runs(run, cut_elsewhere, "test").images == 90


def test_runs_on_other_classes_are_refused(run: Run, cache: FeatureCache, tmp_path: Path) -> None:
    train = Blobs(features=cache["train"].features[:], labels=np.asarray(cache["train"].labels))
    other = write_cache(tmp_path, {"train": train}, classes=("ant", "bee", "dog"))
    with pytest.raises(HeadError, match=r"label \(ant, bee, cow\) and label \(ant, bee, dog\)"):
        compare_runs(run, train_head(other, "centroid", runs_dir=tmp_path / "runs"), "val")
