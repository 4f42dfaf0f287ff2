"""Every kind of head on every kind of target: trained or solved, measured as by scikit-learn, stored and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_caches import Blobs, blobs, write_cache
from numpy.typing import NDArray
from sklearn import metrics as sk

from featcache.cache.reader import FeatureCache
from featcache.cache.targets import Column
from featcache.errors import HeadError, InvalidOption, UnknownName
from featcache.heads.config import HeadConfig
from featcache.heads.metric_records import ListMetrics, NumberMetrics
from featcache.runs.fit import fit_head, train_head
from featcache.runs.resuming import resume_head
from featcache.runs.run import Run
from featcache.sweeps.api import sweep

TAGS = ("big", "flies", "swims", "red")
COLUMNS = (
    Column(name="tags", kind="lists", names=TAGS),
    Column(name="weight", kind="numbers"),
    Column(name="height", kind="numbers"),
    Column(name="flock", kind="groups", names=tuple(f"flock {number}" for number in range(12))),
    Column(name="remark", kind="text"),
)
#: The head, and its options, for each kind of target.
TRAINED: dict[str, dict[str, Any]] = {
    "linear": {"lr": 0.05, "max_epochs": 25},
    "mlp:16": {"lr": 0.02, "max_epochs": 25},
    "mlp:16,8": {"lr": 0.02, "max_epochs": 25, "batch_norm": True, "dropout": 0.1},
}
SOLVED = {"lists": ("logreg", "ridge", "knn"), "numbers": ("ridge", "knn")}


def images(count: int, seed: int) -> Blobs:
    """Points in clouds; tags and numbers are functions of their position, with a little noise."""
    plain = blobs(count, seed=seed, distance=0.5)
    features = plain.features.astype(np.float64)
    random, fixed = np.random.default_rng(seed + 100), np.random.default_rng(7)
    tags = (features @ fixed.standard_normal((16, 4)) + 0.3 * random.standard_normal((count, 4)) > 0.5).astype(np.int8)
    numbers = features @ fixed.standard_normal((16, 2)) + 0.3 * random.standard_normal((count, 2))
    weight, height = 1000 + 300 * numbers[:, 0], numbers[:, 1]
    tags[:5], weight[3:9] = -1, np.nan
    return Blobs(
        features=plain.features,
        labels=plain.labels,
        targets={
            "tags": tags,
            "weight": weight,
            "height": height,
            "flock": np.arange(count) % 12,
            "remark": np.full(count, b"x"),
        },
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    splits = {"train": images(240, 0), "test": images(90, 1)}
    return write_cache(tmp_path_factory.mktemp("kinds"), splits, columns=COLUMNS)


def train(cache: FeatureCache, head: str, runs_dir: Path, **options: Any) -> Run:
    return train_head(cache, head, runs_dir=runs_dir, **{**TRAINED.get(head, {}), **options})


def right(run: Run, part: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Targets and outputs of the head on a part."""
    predictions = run.predictions(part)
    return predictions.targets, predictions.outputs


@pytest.mark.parametrize("head", [*TRAINED, *SOLVED["lists"]])
def test_several_classes_are_learned_measured_and_kept(cache: FeatureCache, tmp_path: Path, head: str) -> None:
    run = train(cache, head, tmp_path, target="tags")
    targets, probabilities = right(run, "test")
    assert targets.shape == probabilities.shape == (85, 4)
    expected = sk.average_precision_score(targets, probabilities, average="macro")
    measured = run.metrics("test")
    assert isinstance(measured, ListMetrics)
    assert run.training.test is not None and run.training.test.metric == "map"
    assert run.training.test.value == pytest.approx(expected, abs=1e-6) and expected > 0.8
    chosen = probabilities >= np.array(measured.thresholds)
    assert measured.micro_f1 == pytest.approx(sk.f1_score(targets, chosen, average="micro"))
    assert measured.macro_f1 == pytest.approx(sk.f1_score(targets, chosen, average="macro", zero_division=0))
    loaded = Run.load(run.folder)
    assert loaded == run and loaded.target.kind == "lists" and loaded.target.names == TAGS
    rows = np.flatnonzero(cache["test"].target("tags").has_value)
    again = loaded.predict(cache["test"].features[:][rows])
    assert again == pytest.approx(probabilities, abs=1e-5)
    assert any("tags" in note and "left out" in note for note in run.training.notes), run.training.notes


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
@pytest.mark.parametrize("head", [*TRAINED, *SOLVED["numbers"]])
@pytest.mark.parametrize("columns", [("weight",), ("weight", "height")])
def test_numbers_are_learned_measured_and_kept(
    cache: FeatureCache, tmp_path: Path, head: str, columns: tuple[str, ...], loss: str
) -> None:
    if head not in TRAINED and loss != "mse":
        pytest.skip("solved heads have a loss of their own")
    more = {"loss": loss} if head in TRAINED else {}
    run = train(cache, head, tmp_path, target=columns, **more)
    targets, values = right(run, "test")
    assert targets.shape == values.shape == (84, len(columns))
    expected = sk.r2_score(targets, values)
    assert run.training.test is not None and run.training.test.metric == "r2"
    assert run.training.test.value == pytest.approx(expected, abs=1e-5) and expected > 0.6
    measured = run.metrics("test")
    assert isinstance(measured, NumberMetrics)
    assert measured.columns[0].mae.value == pytest.approx(sk.mean_absolute_error(targets[:, 0], values[:, 0]), rel=1e-5)
    loaded = Run.load(run.folder)
    rows = np.flatnonzero(~np.isnan(cache["test"].target("weight").values))
    assert loaded.predict(cache["test"].features[:][rows]) == pytest.approx(values, rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("target", ["tags", "weight"])
def test_streamed_and_resident_are_the_same_to_the_bit(cache: FeatureCache, tmp_path: Path, target: str) -> None:
    runs = [train(cache, "mlp:16", tmp_path, target=target, resident_bytes=size) for size in (None, 0)]
    assert runs[0].weights_sha256 == runs[1].weights_sha256


@pytest.mark.parametrize("target", ["tags", "weight"])
def test_a_training_on_any_target_is_resumed_where_it_stopped(cache: FeatureCache, tmp_path: Path, target: str) -> None:
    config = HeadConfig(head="mlp:8", target=(target,), max_epochs=6, patience=6, dropout=0.2)
    whole = fit_head(cache, config, runs_dir=tmp_path / "whole")

    def cut(record: Any) -> None:
        if record.epoch == 3:
            raise KeyboardInterrupt

    fit_head(cache, config, runs_dir=tmp_path / "cut", progress=cut, checkpoint_every_s=0.0)
    assert resume_head(runs_dir=tmp_path / "cut").weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize(("target", "metric"), [("tags", "map"), (("weight", "height"), "r2")])
def test_sweeps_rank_by_the_metric_of_the_target(cache: FeatureCache, tmp_path: Path, target: Any, metric: str) -> None:
    grid = {"head": ["linear", "mlp:8", "ridge", "knn"]}
    found = sweep(cache, grid=grid, target=target, runs_dir=tmp_path)
    values = [row.estimate.value for row in found.rows if row.estimate is not None]
    assert len(values) == 4 and values == sorted(values, reverse=True)
    assert found.test is not None and found.test.metric == metric
    assert found.run is not None and Run.load(found.run).target.metric == metric


def test_groups_are_on_one_side_alone(cache: FeatureCache, tmp_path: Path) -> None:
    run = train(cache, "linear", tmp_path, group="flock")
    ids = {sample: number for number, sample in enumerate(cache["train"].ids)}
    flocks = cache["train"].target("flock").values
    val = {int(flocks[ids[sample]]) for sample in run.predictions("val").ids}
    assert 1 <= len(val) < 12 and run.training.images["val"] == 20 * len(val)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "remark"}, "text"),
        ({"target": "flock"}, "groups"),
        ({"target": ("tags", "weight")}, "numbers"),
        ({"loss": "l1"}, "--loss"),
        ({"target": "weight", "head": "logreg"}, "logreg"),
        ({"target": "tags", "head": "centroid"}, "centroid"),
        ({"target": "weight", "class_weights": "balanced"}, "--class-weights"),
        ({"target": "weight", "label_smoothing": 0.1}, "--label-smoothing"),
    ],
)
def test_what_does_not_fit_the_target_is_refused(
    cache: FeatureCache, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((InvalidOption, HeadError), match=message):
        train_head(cache, **{"head": "linear", **options}, runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_target_offers_the_nearest(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="wieght") as caught:
        train_head(cache, "linear", target="wieght", runs_dir=tmp_path)
    assert "weight" in str(caught.value.hint)


def test_class_weights_of_several_classes_raise_the_recall_of_a_rare_one(tmp_path: Path) -> None:
    plain = blobs(300, distance=0.3)
    tags = np.stack([plain.labels == 0, np.arange(300) % 25 == 0], axis=1).astype(np.int8)
    splits = {"train": Blobs(features=plain.features, labels=plain.labels, targets={"tags": tags})}
    cache = write_cache(tmp_path, splits, columns=(Column(name="tags", kind="lists", names=("ant", "rare")),))
    means = []
    for weights in ("none", "balanced"):
        run = train_head(
            cache, "linear", target="tags", class_weights=weights, lr=0.02, max_epochs=10, runs_dir=tmp_path / "runs"
        )
        means.append(float(run.predictions("val").outputs[:, 1].mean()))
    assert means[1] > means[0] + 0.1
