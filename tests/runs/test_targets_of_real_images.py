"""Several classes and numbers of real images, from a cache to a run: every metric equals scikit-learn's."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_caches import Blobs, write_cache
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score, root_mean_squared_error

from featcache.cache.reader import FeatureCache
from featcache.cache.targets import Column
from featcache.heads.metric_records import ListMetrics, NumberMetrics
from featcache.runs.comparison import compare_runs
from featcache.runs.fit import train_head
from featcache.runs.run import Run

pytestmark = pytest.mark.shared

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KINDS = {
    "animal": ("bird", "cat", "deer", "dog", "frog", "horse"),
    "vehicle": ("airplane", "automobile", "ship", "truck"),
    "flies": ("airplane", "bird"),
    "barks": ("dog",),
}
COPIES = 20
COLUMNS = (
    Column(name="kinds", kind="lists", names=tuple(KINDS)),
    Column(name="edges", kind="numbers"),
    Column(name="hue", kind="numbers"),
    Column(name="original", kind="groups", names=tuple(map(str, range(60)))),
)


def pictures(archive: Path, split: str, each: int) -> tuple[list[Image.Image], NDArray[np.int64]]:
    with zipfile.ZipFile(archive) as file:
        names = [f"cifar10/{split}/{name}/{number:04d}.jpg" for name in CLASSES for number in range(each)]
        found = [Image.open(BytesIO(file.read(name))).convert("RGB") for name in names]
    return found, np.repeat(np.arange(10), each)


def rows(images: list[Image.Image], labels: NDArray[np.int64], originals: NDArray[np.int64]) -> Blobs:
    """Small pixels as features; edge density and mean hue are measured on the image."""
    features = np.stack([np.asarray(one.resize((12, 12)), np.float32).ravel() / 255 for one in images])
    gray = np.stack([np.asarray(one.convert("L"), np.float64) / 255 for one in images])
    edges = np.abs(np.diff(gray, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(gray, axis=2)).mean(axis=(1, 2))
    hue = np.array([np.asarray(one.convert("HSV"), np.float64)[..., 0].mean() / 255 for one in images])
    kinds = np.array([[CLASSES[label] in members for members in KINDS.values()] for label in labels], np.int8)
    targets: dict[str, Any] = {"kinds": kinds, "edges": edges, "hue": hue, "original": originals}
    return Blobs(features=features.astype(np.float16), labels=labels, targets=targets)


@pytest.fixture(scope="module")
def cache(cifar_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    splits = {}
    for split, each in (("train", 60), ("test", 30)):
        images, labels = pictures(cifar_zip, split, each)
        splits[split] = rows(images, labels, np.full(len(labels), -1))
    return write_cache(tmp_path_factory.mktemp("cifar"), splits, classes=CLASSES, columns=COLUMNS)


def parts_of(run: Run) -> Mapping[str, tuple[NDArray[Any], NDArray[np.float32]]]:
    predictions = {part: run.predictions(part) for part in ("val", "test")}
    return {part: (one.targets, one.outputs) for part, one in predictions.items()}


@pytest.mark.parametrize("head", ["logreg", "ridge", "knn", "linear"])
def test_several_classes_of_real_images(cache: FeatureCache, tmp_path: Path, head: str) -> None:
    more = {"max_epochs": 5} if head == "linear" else {}
    run = train_head(cache, head, target="kinds", runs_dir=tmp_path, **more)  # type: ignore[arg-type]
    assert (run.target.kind, run.target.names) == ("lists", tuple(KINDS))
    for part, (targets, shares) in parts_of(run).items():
        measured = run.metrics(part)
        assert isinstance(measured, ListMetrics)
        # Rounded to float32 some logits become equal probabilities.
        assert measured.map == pytest.approx(average_precision_score(targets, shares, average="macro"), abs=1e-4)
        guess = shares >= np.array(measured.thresholds)
        assert measured.macro_f1 == pytest.approx(f1_score(targets, guess, average="macro"), abs=0.01)
        assert measured.map_interval[0] <= measured.map <= measured.map_interval[1]
    measured = run.metrics("test")
    assert isinstance(measured, ListMetrics) and measured.map > 0.5
    assert Run.load(run.folder) == run
    (column,) = {one for one in (run.folder / "history.csv").read_text().splitlines()[0].split(",") if "map" in one}
    assert column == "val_map"


@pytest.mark.parametrize("head", ["ridge", "knn", "linear"])
def test_numbers_of_real_images(cache: FeatureCache, tmp_path: Path, head: str) -> None:
    more = {"max_epochs": 20, "lr": 0.01} if head == "linear" else {}
    run = train_head(cache, head, target=("edges", "hue"), runs_dir=tmp_path, **more)  # type: ignore[arg-type]
    assert (run.target.kind, run.target.names) == ("numbers", ("edges", "hue"))
    for part, (targets, values) in parts_of(run).items():
        measured = run.metrics(part)
        assert isinstance(measured, NumberMetrics)
        for column, one in enumerate(measured.columns):
            right, predictions = targets[:, column], values[:, column]
            assert one.mae.value == pytest.approx(mean_absolute_error(right, predictions))
            assert one.rmse.value == pytest.approx(root_mean_squared_error(right, predictions))
            assert one.r2.value == pytest.approx(r2_score(right, predictions))
            assert one.spearman is not None
            assert one.spearman.value == pytest.approx(spearmanr(right, predictions).statistic)
        score = {"val": run.training.val, "test": run.training.test}[part]
        assert score is not None and score.value == pytest.approx(measured.overall.r2.value, abs=1e-6)
    assert run.training.test is not None and run.training.test.value > 0
    other = train_head(cache, "ridge", target=("edges", "hue"), runs_dir=tmp_path)
    assert compare_runs(run, other).metric == "r2"


def test_near_copies_of_real_images_are_never_on_both_sides(cifar_zip: Path, tmp_path: Path) -> None:
    images, labels = pictures(cifar_zip, "train", 6)
    random = np.random.default_rng(0)
    copies = [
        Image.fromarray(np.clip(np.asarray(one) + random.normal(0, 2, (32, 32, 3)), 0, 255).astype(np.uint8))
        for one in images
        for _ in range(COPIES)
    ]
    originals = np.repeat(np.arange(60), COPIES)
    train = rows(copies, np.repeat(labels, COPIES), originals)
    cache = write_cache(tmp_path, {"train": train}, classes=CLASSES, columns=COLUMNS)
    apart = train_head(cache, "knn", group="original", runs_dir=tmp_path / "runs")
    mixed = train_head(cache, "knn", runs_dir=tmp_path / "runs")
    places = {sample: row for row, sample in enumerate(cache["train"].ids)}
    val = {int(originals[places[sample]]) for sample in apart.predictions("val").ids}
    # Val would be 12 of 60, but it must contain every class.
    assert 10 <= len(val) <= 20 and apart.training.images["val"] == COPIES * len(val)
    assert {int(labels[one]) for one in val} == set(range(10))
    # Copies in both train and val make the score look perfect, and a note reports this.
    assert mixed.training.val.value > 0.95 > apart.training.val.value
    assert any("groups of original are in both train and val" in note for note in mixed.training.notes)
    assert not any("stand in" in note for note in apart.training.notes)
