"""Reports of sweeps and of every kind of target, and what they conclude."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from head_caches import LAYER, Blobs, blobs, write_cache
from report_workspace import data_of

from featcache.cache.reader import FeatureCache
from featcache.cache.targets import Column
from featcache.errors import HeadError
from featcache.report import write_report
from featcache.report.conclusion import groups_of, runs_conclusion, sweep_conclusion
from featcache.report.run_results import read_inputs
from featcache.report.sweep_figures import sweep_figures
from featcache.runs.fit import train_head
from featcache.runs.run import Run
from featcache.sweeps.api import sweep
from featcache.sweeps.records import Sweep

COLUMNS = (Column(name="tags", kind="lists", names=("<b>big", "red")), Column(name="weight", kind="numbers"))


def images(count: int, seed: int) -> Blobs:
    """Points in clouds, with tags and a number that depend on their position."""
    plain = blobs(count, seed=seed, distance=0.5)
    features = plain.features.astype(np.float64)
    fixed = np.random.default_rng(7)
    tags = (features @ fixed.standard_normal((16, 2)) > 0.5).astype(np.int8)
    return replace(plain, targets={"tags": tags, "weight": features @ fixed.standard_normal(16)})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    folder = tmp_path_factory.mktemp("kinds")
    return write_cache(folder, {"train": images(160, 0), "test": images(60, 1)}, columns=COLUMNS)


@pytest.fixture(scope="module")
def found(cache: FeatureCache, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    grid: dict[str, list[object]] = {"head": ["linear", "mlp:8"], "lr": [0.001, 0.01, 0.1]}
    return sweep(cache, grid=grid, max_epochs=2, runs_dir=tmp_path_factory.mktemp("runs"))


def test_labels_and_numbers_are_reported_in_their_own_words(cache: FeatureCache, tmp_path: Path) -> None:
    runs = [train_head(cache, "ridge", target=name, runs_dir=tmp_path) for name in ("label", "tags", "weight")]
    written = write_report(runs, tmp_path / "report.html", figures=tmp_path / "figures", data_dir=tmp_path)
    page, data = written.path.read_text(), data_of(written.path)
    assert [images["kind"] for images in data["imageSets"]] == ["classes", "lists", "numbers"]
    for run, images in zip(runs, data["imageSets"], strict=True):
        targets = run.predictions("test").targets
        assert len(images["labels"]) == len(targets)
    assert data["imageSets"][1]["labels"] == [
        np.flatnonzero(row).tolist() for row in runs[1].predictions("test").targets
    ]
    for words in ("mean average precision", "Average precision by label", "predicted against true", "residuals"):
        assert words in page
    assert "<b>big" not in page
    assert any(path.name.endswith("residuals.pdf") for path in written.files)


def test_an_axis_of_few_epochs_has_whole_numbers_once(cache: FeatureCache, tmp_path: Path) -> None:
    run = train_head(cache, "linear", max_epochs=3, runs_dir=tmp_path)
    written = write_report([run], tmp_path / "report.html", figures=tmp_path / "figures", data_dir=tmp_path)
    (curve,) = (path for path in written.files if path.name.endswith("learning-curve.svg"))
    assert re.findall(r">([0-9]+)</text>", curve.read_text()) == ["1", "2", "3"]


def test_the_conclusion_names_the_best_on_val_and_corrects_for_many_comparisons(
    cache: FeatureCache, tmp_path: Path
) -> None:
    for head in ("ridge", "centroid", "knn"):
        train_head(cache, head, runs_dir=tmp_path)
    (group,) = groups_of(read_inputs((), tmp_path).results)
    assert group.best.run.training.val.value == max(one.run.training.val.value for one in group.results)
    for pair in group.pairs:
        assert pair.comparison is not None and pair.comparison.p_value is not None and pair.p_value is not None
        assert pair.comparison.p_value <= pair.p_value <= min(1.0, 2 * pair.comparison.p_value)
    sentence, sure = runs_conclusion(group)
    assert sentence.startswith(group.best.name) and "95 % interval" in sentence
    unsure = [pair.result.name for pair in group.pairs if not pair.differs]
    assert all(name in sure for name in unsure)


def test_a_sweep_is_drawn_with_its_chosen_run(found: Sweep, tmp_path: Path) -> None:
    by_name = write_report(found.folder.name, tmp_path / "a.html", runs_dir=found.folder.parent)
    by_record = write_report(found, tmp_path / "b.html", figures=tmp_path / "figures")
    assert by_name.runs == by_record.runs == 1
    page = by_record.path.read_text()
    assert "Accuracy on val by learning rate and head" in page and "Combinations by rank" in page
    assert sweep_conclusion(found)[0] in page
    assert f"{100 * found.best.estimate.value:.1f} %" in sweep_conclusion(found)[0]  # type: ignore[union-attr]
    first, heat_map, last = (figure.title for figure in sweep_figures(found))
    assert (first, last) == ("Accuracy on val by learning rate and head", "Combinations by rank")
    assert sorted(heat_map.lower().split(" and ")) == ["head", "learning rate"]
    # Every combination is in the numbers of the ranking.
    assert len(sweep_figures(found)[-1].rows) == len(found.rows) == 6


def test_few_shot_curves_are_drawn_by_shots(cache: FeatureCache, tmp_path: Path) -> None:
    some = sweep(cache, "centroid", shots=(1, 5), draws=2, layers=LAYER, runs_dir=tmp_path)
    curve = sweep_figures(some)[0]
    assert curve.title == "Few-shot curves"
    assert [row[0] for row in curve.rows] == ["5", "1"]


def test_a_sweep_of_one_combination_has_a_conclusion(cache: FeatureCache, tmp_path: Path) -> None:
    alone = sweep(cache, grid={"head": ["ridge"]}, runs_dir=tmp_path)
    assert sweep_conclusion(alone)[0].startswith("The only combination is ridge")
    assert write_report(alone, tmp_path / "report.html").runs == 1


def test_a_sweep_without_its_run_is_an_error(found: Sweep, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="chosen run of the sweep"):
        write_report(replace(found, run=tmp_path / "gone"), tmp_path / "report.html", runs_dir=tmp_path)


def test_classes_that_cannot_all_be_drawn_are_in_the_numbers(tmp_path: Path) -> None:
    many = tuple(f"class {number} \"with a long 'name'\" <script>" for number in range(60))
    random = np.random.default_rng(0)

    def some(count: int) -> Blobs:
        labels = np.arange(count) % 60
        return replace(
            blobs(count), features=random.normal(labels[:, None], 9, (count, 16)).astype("f4"), labels=labels
        )

    run: Run = train_head(
        write_cache(tmp_path, {"train": some(360), "test": some(120)}, classes=many), "centroid", runs_dir=tmp_path
    )
    page = write_report(run, tmp_path / "report.html", data_dir=tmp_path).path.read_text()
    assert page.count("<script") == 2
    assert "A matrix of 60 classes is not readable" in page
