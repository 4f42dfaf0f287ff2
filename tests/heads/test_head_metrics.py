"""Metrics against scikit-learn and against what their definitions say; two runs set side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from head_caches import Blobs, blobs, write_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.heads import metrics
from featcache.heads.metrics import Outcome, accuracy_interval, measure
from featcache.heads.records import Predictions
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
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes - absent, (images,), generator=generator)
    logits = torch.randn((images, classes), generator=generator)
    logits[torch.arange(images), labels] += 1.5
    return Outcome(logits=logits, labels=labels)


def calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """As its definition says: the gap between confidence and accuracy, weighted by the images of each bin."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.ceil(confidence * 15).astype(int)
    gaps = [abs(confidence[bins == bin].mean() - right[bins == bin].mean()) * (bins == bin).sum() for bin in set(bins)]
    return float(sum(gaps) / len(labels))


# --- one head ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "absent"), [(2, 0), (3, 0), (7, 0), (7, 2)])
def test_metrics_are_those_of_scikit_learn(classes: int, absent: int) -> None:
    said = outcome(classes, absent=absent)
    found = measure(said, temperature=2.0, seed=0)
    labels, logits = said.labels.numpy(), said.logits.numpy()
    guess = logits.argmax(axis=1)
    assert found.accuracy == said.score().accuracy == (guess == labels).mean()
    present = np.isin(np.arange(classes), labels)
    recalls = [float((guess[labels == label] == label).mean()) for label in np.flatnonzero(present)]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))
    if not absent:
        assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, guess))
    assert found.macro_f1 == pytest.approx(f1_score(labels, guess, average="macro"), abs=1e-6)
    precision, recall, _, images = precision_recall_fscore_support(
        labels, guess, labels=range(classes), zero_division=np.nan
    )
    assert found.images == tuple(images)
    assert np.array([np.nan if each is None else each for each in found.recall]) == pytest.approx(recall, nan_ok=True)
    assert np.array([np.nan if each is None else each for each in found.precision]) == pytest.approx(
        precision, nan_ok=True
    )
    assert found.confusion is not None
    assert np.array_equal(found.confusion, confusion_matrix(labels, guess, labels=range(classes)))
    if classes > 5:
        top5 = top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        assert found.top5 == pytest.approx(top5, abs=1e-6)
    else:
        assert found.top5 is None
    probabilities = said.logits.double().softmax(dim=1).numpy()
    assert found.calibration_error == pytest.approx(calibration_error(probabilities, labels), abs=1e-5)
    cooler = (said.logits.double() / 2).softmax(dim=1).numpy()
    assert found.scaled_calibration_error == pytest.approx(calibration_error(cooler, labels), abs=1e-5)


def test_logits_between_0_and_1_are_not_taken_for_probabilities() -> None:
    said = outcome(3)
    squeezed = Outcome(logits=said.logits.sigmoid(), labels=said.labels)
    expected = calibration_error(squeezed.logits.double().softmax(dim=1).numpy(), said.labels.numpy())
    assert measure(squeezed, temperature=1.0, seed=0).calibration_error == pytest.approx(expected, abs=1e-5)


def test_confusion_of_very_many_classes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LARGEST_CONFUSION", 6)
    assert measure(outcome(7), temperature=1.0, seed=0).confusion is None
    assert measure(outcome(6), temperature=1.0, seed=0).confusion is not None


def test_interval_is_that_of_drawing_images_again() -> None:
    right = np.arange(300) < 240
    generator = np.random.default_rng(5)
    drawn = [right[generator.integers(0, 300, 300)].mean() for _ in range(4000)]
    assert accuracy_interval(240, 300, seed=0) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.007)
    assert accuracy_interval(240, 300, seed=0) == accuracy_interval(240, 300, seed=0)
    assert accuracy_interval(300, 300, seed=0) == (1.0, 1.0)


def test_run_keeps_the_metrics_of_val_and_test(run: Run) -> None:
    for part, score in (("val", run.training.val), ("test", run.training.test)):
        kept = Run.load(run.folder).metrics(part)
        assert score is not None and kept.accuracy == score.accuracy
        assert kept.accuracy_interval[0] < kept.accuracy < kept.accuracy_interval[1]
        assert sum(kept.images) == run.training.images[part]
        said = run.predictions(part)
        assert kept.calibration_error == pytest.approx(calibration_error(said.probabilities, said.labels), abs=1e-5)
    # Ridge's scores were made logits on val already.
    assert run.metrics("test").temperature == pytest.approx(1.0, rel=0.05)


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
    return Predictions(ids=tuple(names), labels=labels, probabilities=np.eye(3, dtype=np.float32)[guess])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_many_disagreements_do_not_underflow() -> None:
    assert mcnemar(20_000, 20_000) == 1.0
    assert 0 <= mcnemar(1_000, 9_000) < 1e-300


def test_comparison_counts_what_only_one_has_right() -> None:
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


def test_order_of_the_images_does_not_matter() -> None:
    one, other = predictions([True, False, True, True]), predictions([True, True, False, True])
    order = [2, 0, 3, 1]
    turned = Predictions(
        ids=tuple(other.ids[row] for row in order), labels=other.labels[order], probabilities=other.probabilities[order]
    )
    assert compare_predictions(one, turned) == compare_predictions(one, other)


def test_other_images_are_refused_and_named() -> None:
    one, other = predictions([True] * 4, list("abcd")), predictions([True] * 4, list("bcde"))
    with pytest.raises(HeadError, match=r"1 \(a\) only in the first, 1 \(e\) only in the second, 3 in both") as raised:
        compare_predictions(one, other)
    assert "--val-seed" in str(raised.value.hint)
    with pytest.raises(HeadError, match="same images"):
        compare_predictions(predictions([]), predictions([]))


def test_other_labels_are_refused() -> None:
    one = predictions([True] * 4)
    with pytest.raises(HeadError, match="1 images have another, the first test/2"):
        compare_predictions(one, replace(one, labels=np.array([0, 1, 0, 0])))


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
    with pytest.raises(HeadError, match="ant, bee, cow and ant, bee, dog"):
        compare_runs(run, train_head(other, "centroid", runs_dir=tmp_path / "runs"), "val")
