"""Heads that are solved, against scikit-learn on the same arrays."""

from __future__ import annotations

import csv
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from head_caches import LAYER, Blobs, blobs, write_cache
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, InvalidOption
from featcache.heads import linear_solvers, neighbours, solvers
from featcache.heads.calibration import best_factor, minimise
from featcache.heads.candidates import Candidate
from featcache.heads.config import HeadConfig
from featcache.heads.linear_solvers import ridge_path
from featcache.heads.records import EpochRecord, Progress
from featcache.heads.standardisation import Standardisation
from featcache.rows.cuts import cut_cache
from featcache.runs.fit import fit_head, train_head
from featcache.runs.run import Run

SOLVED = ("logreg", "ridge", "centroid", "knn")
Part = tuple[NDArray[np.float32], NDArray[np.int64]]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Real handwritten digits as unscaled float16 features: 1,400 train and 397 test images."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    splits = {
        name: Blobs(features=images[rows].astype(np.float16), labels=labels[rows].astype(np.int64))
        for name, rows in (("train", order[:1400]), ("test", order[1400:]))
    }
    return write_cache(tmp_path_factory.mktemp("digits"), splits, classes=tuple("0123456789"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """More features than images, far from 0 and of very different sizes; two classes."""
    splits = {
        name: blobs(60, dim=200, classes=2, seed=seed, distance=0.15) for seed, name in enumerate(("train", "test"))
    }
    size, far = np.logspace(-2, 2, 200), np.linspace(-50, 50, 200)
    moved = {
        name: Blobs(features=(part.features * size + far).astype(np.float32), labels=part.labels)
        for name, part in splits.items()
    }
    return write_cache(tmp_path_factory.mktemp("wide"), moved, classes=("ant", "bee"))


def arrays(cache: FeatureCache) -> Mapping[str, Part]:
    """Features and labels of train, val and test."""
    cut = cut_cache(cache, val_fraction=0.2, val_seed=42)
    assert cut.test is not None
    parts = {"train": cut.train, "val": cut.val, "test": cut.test}
    return {
        name: (cache[part.source].layer(LAYER).gather(part.rows).astype(np.float32), part.targets)
        for name, part in parts.items()
    }


def best_candidate(run: Run) -> str:
    return run.history()[run.training.best_epoch - 1].candidate


def class_predictions(run: Run, part: str) -> NDArray[np.int64]:
    classes: NDArray[np.int64] = run.predictions(part).outputs.argmax(axis=1)
    return classes


def standardise(parts: Mapping[str, Part]) -> dict[str, NDArray[np.float64]]:
    scaler = StandardScaler().fit(parts["train"][0].astype(np.float64))
    return {name: scaler.transform(features.astype(np.float64)) for name, (features, _) in parts.items()}


# --- against scikit-learn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "wide"])
def test_logreg_equals_that_of_scikit_learn(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cache: FeatureCache = request.getfixturevalue(name)
    run = train_head(cache, "logreg", runs_dir=tmp_path)
    parts = arrays(cache)
    values = standardise(parts)
    c = float(best_candidate(run).removeprefix("C="))
    model = LogisticRegression(C=c, max_iter=5000, tol=1e-6).fit(values["train"], parts["train"][1])
    for part in ("val", "test"):
        accuracy = model.score(values[part], parts[part][1])
        assert (class_predictions(run, part) == parts[part][1]).mean() == pytest.approx(accuracy, abs=0.001)
        assert run.predictions(part).outputs == pytest.approx(model.predict_proba(values[part]), abs=0.02)


@pytest.mark.parametrize("name", ["digits", "wide"])
def test_ridge_equals_that_of_scikit_learn(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cache: FeatureCache = request.getfixturevalue(name)
    run = train_head(cache, "ridge", runs_dir=tmp_path)
    parts = arrays(cache)
    values = standardise(parts)
    model = RidgeClassifier(alpha=float(best_candidate(run).removeprefix("alpha="))).fit(
        values["train"], parts["train"][1]
    )
    for part in ("val", "test"):
        assert (class_predictions(run, part) == model.predict(values[part])).mean() > 0.998


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (30, 30)])
@pytest.mark.parametrize("alpha", [0.1, 10.0])
@pytest.mark.parametrize("decomposed", [0, 1024], ids=["factorised", "decomposed"])
def test_ridge_solves_the_normal_equations(
    shape: tuple[int, int], alpha: float, decomposed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_solvers, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(linear_solvers, "LARGEST_DECOMPOSED", decomposed)
    generator = np.random.default_rng(0)
    features = generator.standard_normal(shape, np.float32)
    targets = generator.standard_normal((shape[0], 3))
    weights = ridge_path(features, targets)(alpha)
    exact = features.astype(np.float64)
    gram = exact.T @ exact + alpha * np.eye(shape[1])
    assert gram @ weights == pytest.approx(exact.T @ targets, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("decomposed", [0, 1024], ids=["factorised", "decomposed"])
def test_ridge_refuses_an_alpha_that_is_lost_in_rounding(decomposed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_solvers, "LARGEST_DECOMPOSED", decomposed)
    features = np.full((6, 4), 1e12, np.float32)
    with pytest.raises(HeadError, match=r"alpha=0\.01"):
        ridge_path(features, np.ones((6, 2)))(0.01)


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
@pytest.mark.parametrize("name", ["digits", "wide"])
def test_centroid_equals_that_of_scikit_learn(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cache: FeatureCache = request.getfixturevalue(name)
    run = train_head(cache, "centroid", runs_dir=tmp_path)
    parts = arrays(cache)
    model = NearestCentroid().fit(parts["train"][0].astype(np.float64), parts["train"][1])
    for part in ("val", "test"):
        assert np.array_equal(class_predictions(run, part), model.predict(parts[part][0].astype(np.float64)))


@pytest.mark.parametrize("name", ["digits", "wide"])
def test_knn_equals_that_of_scikit_learn(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cache: FeatureCache = request.getfixturevalue(name)
    run = train_head(cache, "knn", runs_dir=tmp_path)
    parts = arrays(cache)
    for record in run.history():
        k, metric = record.candidate.removeprefix("k=").split()
        model = KNeighborsClassifier(n_neighbors=int(k), metric=metric).fit(*parts["train"])
        assert record.val_score == pytest.approx(model.score(*parts["val"]), abs=0.0036), record.candidate
        if record.candidate == best_candidate(run):
            assert (class_predictions(run, "test") == model.predict(parts["test"][0])).mean() > 0.997


def test_blocks_of_train_rows_do_not_change_neighbours(digits: FeatureCache, tmp_path: Path) -> None:
    whole = train_head(digits, "knn", runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK_BYTES", 4 * 397 * 300)
        cut = train_head(digits, "knn", runs_dir=tmp_path)
        assert np.array_equal(class_predictions(whole, "test"), class_predictions(cut, "test"))
        assert best_candidate(whole) == best_candidate(cut)


# --- what is kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logreg", "ridge", "centroid"])
def test_stored_head_is_a_plain_linear_layer_on_plain_features(kind: str, wide: FeatureCache, tmp_path: Path) -> None:
    run = train_head(wide, kind, runs_dir=tmp_path)
    tensors = safetensors.numpy.load_file(run.folder / "head.safetensors")
    assert {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()} == {
        "output.weight": ("float32", (2, 200)),
        "output.bias": ("float32", (2,)),
    }
    features = arrays(wide)["test"][0].astype(np.float64)
    logits = features @ tensors["output.weight"].T.astype(np.float64) + tensors["output.bias"]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    assert run.predictions("test").outputs == pytest.approx(shares, abs=1e-3)


def test_knn_stores_train_features_in_their_stored_dtype_and_their_labels(digits: FeatureCache, tmp_path: Path) -> None:
    run = train_head(digits, "knn", runs_dir=tmp_path)
    tensors = safetensors.numpy.load_file(run.folder / "head.safetensors")
    features, labels = arrays(digits)["train"]
    assert tensors["features"].dtype == np.float16
    assert np.array_equal(tensors["features"], features) and np.array_equal(tensors["labels"], labels)
    assert f"k={tensors['k'][0]} {'cosine' if tensors['cosine'][0] else 'euclidean'}" == best_candidate(run)


def test_knn_on_pixels_and_several_layers_uses_scaled_values(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    pixels = [(generator.integers(0, 80, (90, width)) + 60 * labels[:, None]).astype(np.uint8) for width in (12, 5)]
    train = Blobs(features=pixels[0], labels=labels, more={"late": pixels[1]})
    scaling = {LAYER: (1 / 127.5, -1.0), "late": (1 / 25.5, -3.0)}
    cache = write_cache(tmp_path, {"train": train, "test": train}, scaling=scaling)
    run = train_head(cache, "knn", layers=["late", LAYER], runs_dir=tmp_path / "runs")
    values = np.concatenate([pixels[1] / 25.5 - 3, pixels[0] / 127.5 - 1], axis=1)
    rows = cut_cache(cache, val_fraction=0.2, val_seed=42).train.rows
    k, metric = best_candidate(run).removeprefix("k=").split()
    model = KNeighborsClassifier(n_neighbors=int(k), metric=metric).fit(values[rows], labels[rows])
    assert (class_predictions(run, "test") == model.predict(values)).mean() > 0.97
    as_stored = np.concatenate([pixels[1], pixels[0]], axis=1)
    assert run.predict(as_stored) == pytest.approx(run.predict(values), abs=1e-5)


def test_history_names_the_candidates(digits: FeatureCache, tmp_path: Path) -> None:
    run = train_head(digits, "ridge", runs_dir=tmp_path)
    with (run.folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows][:2] == ["alpha=1e+07", "alpha=1e+06"]
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert best["candidate"] == best_candidate(run)
    assert any(best_candidate(run) in note and "of 10 candidates" in note for note in run.training.notes)
    assert run.training.last == run.training.val


@pytest.mark.parametrize("kind", SOLVED)
def test_probabilities_are_calibrated_on_val(kind: str, digits: FeatureCache, tmp_path: Path) -> None:
    run = train_head(digits, kind, runs_dir=tmp_path)
    outputs, labels = run.predictions("val").outputs, run.predictions("val").targets
    confidence, right = outputs.max(axis=1), outputs.argmax(axis=1) == labels
    assert confidence.mean() == pytest.approx(right.mean(), abs=0.05)
    assert run.training.test is not None and run.training.test.accuracy > 0.85
    assert run.training.test.loss < 0.6


# --- invalid options, too little memory, no convergence ---------------------------------------------------


@pytest.mark.parametrize("kind", SOLVED)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("activation", "gelu"), ("dropout", 0.1), ("lr", 0.1), ("weight_decay", 0.1), ("l1", 0.1)),
        *(("optimizer", "sgd"), ("schedule", "cosine"), ("label_smoothing", 0.1), ("class_weights", "balanced")),
        *(("standardize", False), ("head_batch_size", 7), ("max_epochs", 7), ("patience", 7), ("min_delta", 0.1)),
    ],
)
def test_options_of_steps_are_refused_when_they_were_changed(kind: str, option: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=option.replace("_", "[-_]")) as raised:
        HeadConfig(**{"head": kind, option: value})
    assert kind in raised.value.message and raised.value.hint


def test_a_solver_that_does_not_converge_is_a_note(
    digits: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_solvers, "LOGREG_ITERATIONS", 2)
    messages: list[str] = []
    run = fit_head(digits, HeadConfig(head="logreg"), runs_dir=tmp_path, report=messages.append)
    assert any("did not converge in 2 iterations" in note for note in run.training.notes)
    assert set(run.training.notes) == set(messages)


@pytest.mark.parametrize("kind", ["logreg", "ridge", "knn"])
def test_features_that_do_not_fit_in_memory_are_refused(
    digits: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(solvers, "free_bytes", lambda device: 1000)
    with pytest.raises(HeadError, match="GB") as raised:
        train_head(digits, kind, runs_dir=tmp_path)
    assert "--head linear" in str(raised.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_solver_that_finds_no_finite_loss_is_an_error(
    digits: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_solvers, "best_factor", lambda scores, labels: float("nan"))
    with pytest.raises(HeadError, match="val loss is nan at alpha"):
        train_head(digits, "ridge", runs_dir=tmp_path)


def interrupt_after(number: int, by_signal: bool) -> Progress:
    def progress(record: EpochRecord) -> None:
        if record.epoch == number:
            if not by_signal:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)

    return progress


@pytest.mark.parametrize("by_signal", [True, False])
@pytest.mark.parametrize("kind", ["logreg", "ridge", "knn"])
def test_ctrl_c_keeps_the_best_candidate_so_far(
    digits: FeatureCache, tmp_path: Path, kind: str, by_signal: bool
) -> None:
    run = train_head(digits, kind, runs_dir=tmp_path, progress=interrupt_after(3, by_signal))
    assert run.training.interrupted and run.training.epochs == 3
    assert run.training.test is not None and Run.load(run.folder) == run
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_first_candidate_leaves_nothing(
    digits: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupting(problem: object) -> Iterator[Candidate]:
        yield from (_interrupt() for _ in range(1))

    def _interrupt() -> Candidate:
        raise KeyboardInterrupt

    monkeypatch.setattr(solvers, "LINEAR_SOLVERS", {"ridge": interrupting})
    with pytest.raises(KeyboardInterrupt):
        train_head(digits, "ridge", runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_solving_leaves_the_callers_random_state(wide: FeatureCache, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for kind in SOLVED:
        train_head(wide, kind, runs_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# --- the parts --------------------------------------------------------------------------------------------


def test_standardisation_is_folded_into_the_layer() -> None:
    generator = np.random.default_rng(0)
    moved = generator.standard_normal((500, 6)) * np.logspace(-3, 3, 6) + np.linspace(-100, 100, 6)
    moved[:, 2] = 0.1
    features = moved.astype(np.float32)
    standard = Standardisation.of(features)
    assert standard.deviation[2] == 1.0
    weight, bias = generator.standard_normal((3, 6)), generator.standard_normal(3)
    plain, shift = standard.fold(weight, bias)
    expected = ((features - standard.mean) / standard.deviation) @ weight.T + bias
    assert features @ plain.T + shift == pytest.approx(expected, rel=1e-9, abs=1e-6)
    scaled = standard.apply_(features.copy())
    assert abs(scaled.mean(axis=0)).max() < 1e-2
    assert scaled[:, 3:].std(axis=0) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("valley", [0.02, 1.0, 30.0])
def test_the_minimum_of_a_unimodal_function_is_found(valley: float) -> None:
    assert minimise(lambda x: abs(np.log(x / valley)), 0.01, 100.0) == pytest.approx(valley, rel=0.01)


def test_the_best_factor_turns_scaled_logits_back() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn((20_000, 4), generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    assert best_factor((logits / 7).numpy(), labels.numpy()) == pytest.approx(7, rel=0.05)
