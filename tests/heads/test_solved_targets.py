"""Solvers for several classes and for numbers, compared with scikit-learn on the same arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_caches import LAYER, Blobs, blobs, write_cache
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from featcache.errors import InvalidOption
from featcache.heads.architectures import HeadShape, parse_head
from featcache.heads.candidates import Choice
from featcache.heads.config import HeadConfig
from featcache.heads.solved import SolvedHead, outcome_of
from featcache.heads.solvers import require_solvable, solve
from featcache.heads.stopping import Interruption
from featcache.heads.stored import build_head_module, build_solved_head
from featcache.heads.target_scale import TargetScale
from featcache.rows.cuts import cut_cache
from featcache.rows.features import FeatureRows
from featcache.rows.target import HeadTarget
from featcache.runs.fit import fit_head

WIDE, ROWS = 12, 400
TARGETS = {
    "classes": HeadTarget(kind="classes", columns=("label",), names=("ant", "bee")),
    "lists": HeadTarget(kind="lists", columns=("tags",), names=("flies", "swims", "never", "always")),
    "numbers": HeadTarget(kind="numbers", columns=("weight", "height"), names=("weight", "height")),
}
Parts = dict[str, FeatureRows]


def values_of(kind: str, features: NDArray[np.float32]) -> NDArray[Any]:
    """Targets of rows (n, D): a linear function with noise."""
    noise = np.random.default_rng(1).standard_normal((len(features), 2))
    scores = features[:, :2] + features[:, 2:4] + 0.5 * noise
    if kind == "classes":
        return (scores[:, 0] > 0).astype(np.int64)
    if kind == "numbers":
        return np.stack([1000 + 30 * scores[:, 0], 1e-3 * scores[:, 1]], axis=1)
    marks = np.zeros((len(features), 4), np.int8)
    marks[:, 0], marks[:, 1], marks[:, 3] = scores[:, 0] > 0.8, scores[:, 1] > -0.5, 1
    return marks


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parts]:
    """Train and val of the same images, by kind of target."""
    features = np.random.default_rng(0).standard_normal((ROWS, WIDE)).astype(np.float32) * 3 + 1
    train = Blobs(features=features, labels=np.arange(ROWS, dtype=np.int64) % 2)
    cache = write_cache(tmp_path_factory.mktemp("solved"), {"train": train}, classes=("ant", "bee"))
    cut = cut_cache(cache, val_fraction=0.25, val_seed=42)
    found: dict[str, Parts] = {}
    for kind in TARGETS:
        found[kind] = {}
        for name, chosen in (("train", cut.train), ("val", cut.val)):
            some = replace(chosen, targets=values_of(kind, features[chosen.rows]))
            found[kind][name] = FeatureRows.of(cache, some, (LAYER,))
    return found


def solve_head(kind: str, parts: Parts, target: HeadTarget) -> Choice:
    rows = parts["train"], parts["val"]
    return solve(kind, *rows, target, device="cpu", interruption=Interruption(), progress=None)


def standardise(parts: Parts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scaler = StandardScaler().fit(parts["train"].values().astype(np.float64))
    train, val = (scaler.transform(parts[name].values().astype(np.float64)) for name in ("train", "val"))
    return train, val


def best_value(choice: Choice, name: str) -> float:
    return float(choice.candidate.name.removeprefix(f"{name}="))


def outputs(choice: Choice, rows: FeatureRows) -> NDArray[np.float32]:
    return choice.candidate.build().outputs(rows.values())


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def test_logreg_of_several_classes_is_one_of_scikit_learn_for_each(parts: dict[str, Parts]) -> None:
    mine = parts["lists"]
    choice = solve_head("logreg", mine, TARGETS["lists"])
    predicted = probabilities(outputs(choice, mine["val"]))
    train, val = standardise(mine)
    for column in (0, 1):
        model = LogisticRegression(C=best_value(choice, "C"), max_iter=5000, tol=1e-6)
        model.fit(train, mine["train"].targets[:, column])
        assert predicted[:, column] == pytest.approx(model.predict_proba(val)[:, 1], abs=0.01)


def test_a_class_that_no_image_or_every_image_has_gets_its_frequency_as_probability(parts: dict[str, Parts]) -> None:
    for kind in ("logreg", "ridge", "knn"):
        predicted = probabilities(outputs(solve_head(kind, parts["lists"], TARGETS["lists"]), parts["lists"]["val"]))
        assert predicted[:, 2].max() < 0.3 and predicted[:, 3].min() > 0.7
        assert np.isfinite(predicted).all()


def test_ridge_of_several_classes_orders_images_as_that_of_scikit_learn(parts: dict[str, Parts]) -> None:
    mine = parts["lists"]
    choice = solve_head("ridge", mine, TARGETS["lists"])
    train, val = standardise(mine)
    model = Ridge(alpha=best_value(choice, "alpha")).fit(train, mine["train"].targets * 2.0 - 1)
    predicted, expected = outputs(choice, mine["val"]), model.predict(val)
    factor = predicted[:, 0].std() / expected[:, 0].std()
    assert predicted == pytest.approx(expected * factor, abs=1e-3 * factor)


def test_knn_of_several_classes_gives_the_share_of_neighbours_that_have_each(parts: dict[str, Parts]) -> None:
    mine = parts["lists"]
    choice = solve_head("knn", mine, TARGETS["lists"])
    k, metric = choice.candidate.name.removeprefix("k=").split()
    near = NearestNeighbors(n_neighbors=int(k), metric=metric).fit(mine["train"].values())
    found = near.kneighbors(mine["val"].values(), return_distance=False)
    share = mine["train"].targets[found].mean(axis=1)
    predicted = probabilities(outputs(choice, mine["val"]))
    assert np.array_equal(np.argsort(predicted[:, 0], kind="stable"), np.argsort(share[:, 0], kind="stable"))
    assert predicted == pytest.approx(share, abs=0.2)


def test_ridge_of_numbers_is_that_of_scikit_learn(parts: dict[str, Parts]) -> None:
    mine = parts["numbers"]
    choice = solve_head("ridge", mine, TARGETS["numbers"])
    train, val = standardise(mine)
    expected = Ridge(alpha=best_value(choice, "alpha")).fit(train, mine["train"].targets).predict(val)
    deviation = mine["train"].targets.std(axis=0)
    assert outputs(choice, mine["val"]) / deviation == pytest.approx(expected / deviation, abs=1e-4)
    score = choice.candidate.val
    assert score.metric == "r2" and score.value == pytest.approx(r2_score(mine["val"].targets, expected), abs=1e-4)


def test_knn_of_numbers_is_that_of_scikit_learn(parts: dict[str, Parts]) -> None:
    mine = parts["numbers"]
    choice = solve_head("knn", mine, TARGETS["numbers"])
    for record in choice.history:
        k, metric = record.candidate.removeprefix("k=").split()
        model = KNeighborsRegressor(n_neighbors=int(k), metric=metric).fit(
            mine["train"].values(), mine["train"].targets
        )
        expected = r2_score(mine["val"].targets, model.predict(mine["val"].values()))
        assert record.val_score == pytest.approx(expected, abs=1e-3), record.candidate


@pytest.mark.parametrize("kind", ["ridge", "knn"])
def test_the_loss_of_numbers_is_measured_in_deviations_of_train(kind: str, parts: dict[str, Parts]) -> None:
    mine = parts["numbers"]
    choice = solve_head(kind, mine, TARGETS["numbers"])
    error = (outputs(choice, mine["val"]) - mine["val"].targets) / mine["train"].targets.std(axis=0)
    assert choice.candidate.val.loss == pytest.approx(np.square(error).mean(), rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("lists", "logreg"),
        ("lists", "ridge"),
        ("numbers", "ridge"),
        ("lists", "knn"),
        ("numbers", "knn"),
        ("classes", "knn"),
    ],
)
def test_a_stored_head_gives_the_same_without_torch_and_as_a_module(
    kind: str, head: str, parts: dict[str, Parts], tmp_path: Path
) -> None:
    mine, target = parts[kind], TARGETS[kind]
    built = solve_head(head, mine, target).candidate.build()
    features = mine["val"].values()
    again = build_solved_head(parse_head(head), built.tensors(), in_features=WIDE, target=target)
    shape = HeadShape(in_features=WIDE, classes=target.outputs, kind=target.kind)
    module = build_head_module(parse_head(head), built.tensors(), shape)
    with torch.inference_mode():
        by_torch = module(torch.from_numpy(features)).numpy()
    assert np.array_equal(again.outputs(features), built.outputs(features))
    scale = np.abs(by_torch).max(axis=0)
    assert by_torch / scale == pytest.approx(built.outputs(features) / scale, abs=1e-5)


@pytest.mark.parametrize("target", ["lists", "numbers", "classes"])
def test_tensors_that_do_not_fit_a_head_are_refused(target: str, parts: dict[str, Parts]) -> None:
    built = solve_head("knn", parts[target], TARGETS[target]).candidate.build()
    tensors = built.tensors() | {"centre": np.zeros(WIDE + 1, np.float32)}
    with pytest.raises(ValueError, match="centre"):
        build_solved_head(parse_head("knn"), tensors, in_features=WIDE, target=TARGETS[target])


@pytest.mark.parametrize(
    ("head", "kind", "offered"),
    [("centroid", "lists", "logreg"), ("centroid", "numbers", "ridge"), ("logreg", "numbers", "knn")],
)
def test_a_head_that_does_not_support_the_target_is_refused_with_a_suggestion(
    head: str, kind: str, offered: str, parts: dict[str, Parts]
) -> None:
    with pytest.raises(InvalidOption, match=head) as raised:
        solve_head(head, parts[kind], TARGETS[kind])
    assert TARGETS[kind].columns[0] in raised.value.message
    assert offered in str(raised.value.hint) and "--head linear" in str(raised.value.hint)


@pytest.mark.parametrize("head", ["logreg", "ridge", "centroid", "knn"])
def test_every_solved_head_supports_one_class_per_image(head: str) -> None:
    require_solvable(head, TARGETS["classes"])


def test_evaluation_in_blocks_equals_evaluation_as_a_whole(
    parts: dict[str, Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, target = parts["numbers"], TARGETS["numbers"]
    head: SolvedHead = solve_head("ridge", mine, target).candidate.build()
    scale = TargetScale.of(mine["train"].targets).deviation
    whole = outcome_of(head, mine["val"], target, scale=scale)
    monkeypatch.setattr("featcache.rows.features.BLOCK_BYTES", 7 * 4 * WIDE)
    cut = outcome_of(head, mine["val"], target, scale=scale)
    assert cut.outputs == pytest.approx(whole.outputs, rel=1e-5)
    assert np.array_equal(cut.targets, mine["val"].targets)


@pytest.mark.parametrize("head", ["logreg", "ridge", "centroid", "knn"])
@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_class_that_train_lacks_has_an_output_and_is_never_predicted(tmp_path: Path, head: str, absent: int) -> None:
    plain = blobs(120)
    there = np.flatnonzero(plain.labels != absent)
    train = Blobs(features=plain.features[there], labels=plain.labels[there])
    cache = write_cache(tmp_path, {"train": train, "test": blobs(60, seed=1)})
    run = fit_head(cache, HeadConfig(head=head), runs_dir=tmp_path / "runs")
    outputs = run.predictions("test").outputs
    assert outputs.shape == (60, 3) and np.isfinite(outputs).all()
    assert not (outputs.argmax(axis=1) == absent).any()
    assert any("train has no image of" in note for note in run.training.notes)
    assert run.training.test is not None and run.training.test.value == pytest.approx(2 / 3, abs=0.05)
