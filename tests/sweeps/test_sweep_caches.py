"""A sweep over several caches of the same images: each is a value of the grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_caches import LAYER, Blobs, blobs, write_cache

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, InvalidOption, UnknownName
from featcache.heads.config import HeadConfig
from featcache.heads.records import Score
from featcache.runs.run import Run
from featcache.sweeps.api import sweep
from featcache.sweeps.plan import SweepPlan
from featcache.sweeps.records import Estimate, Sweep, SweepRow, TrialResult
from featcache.sweeps.results import mean_estimate
from featcache.sweeps.tables import csv_text, markdown, table_of

QUICK: dict[str, Any] = {"max_epochs": 4, "lr": 0.05}


def write_backbone_cache(
    folder: Path, backbone: str, distance: float, *, train: int = 150, more: bool = False
) -> FeatureCache:
    """Write a cache of the same images for every backbone; the greater `distance`, the easier the classes."""
    parts = {"train": blobs(train, distance=distance), "test": blobs(60, seed=1, distance=distance)}
    if more:
        rng = np.random.default_rng(0)
        parts = {
            name: Blobs(
                features=one.features,
                labels=one.labels,
                more={"early": rng.random((len(one.labels), 4)).astype(np.float16)},
            )
            for name, one in parts.items()
        }
    return write_cache(folder, parts, backbone=backbone)


@pytest.fixture
def caches(tmp_path: Path) -> list[FeatureCache]:
    return [write_backbone_cache(tmp_path, "weak", 0.3), write_backbone_cache(tmp_path, "strong", 2.0)]


def test_each_cache_is_a_value_of_the_grid_and_the_best_head_reads_its_own(
    caches: list[FeatureCache], tmp_path: Path
) -> None:
    found = sweep(caches, grid={"head": ["linear", "ridge"]}, seeds=2, runs_dir=tmp_path / "runs", lr=0.05)
    assert {(row.values["cache"], row.values["head"]) for row in found.rows} == {
        (cache, head) for cache in ("weak", "strong") for head in ("linear", "ridge")
    }
    assert [row.cache for row in found.rows[:2]] == [1, 1] and found.best.values["cache"] == "strong"
    assert found.grid["cache"] == ("weak", "strong")
    assert found.caches == tuple(str(cache.path) for cache in caches)
    assert found.run is not None
    run = Run.load(found.run)
    assert run.features.cache == str(caches[1].path) and run.training.test == found.test
    assert Sweep.load(found.folder) == found
    assert found.folder.name.split("-")[1:3] == ["weak", "strong"]


def test_every_head_is_the_one_that_its_cache_alone_gives(caches: list[FeatureCache], tmp_path: Path) -> None:
    both = sweep(caches, "linear", runs_dir=tmp_path / "runs", **QUICK)
    for row in both.rows:
        alone = sweep(caches[row.cache], "linear", runs_dir=tmp_path / "runs", **QUICK)
        assert row.estimate == alone.best.estimate


@pytest.mark.parametrize("options", [{"folds": 3}, {"shots": [2, 5], "draws": 2}], ids=["folds", "shots"])
def test_folds_and_shots_are_the_same_images_of_every_cache(
    caches: list[FeatureCache], tmp_path: Path, options: dict[str, Any]
) -> None:
    found = sweep(caches, "ridge", runs_dir=tmp_path / "runs", **options)
    assert found.best.values["cache"] == "strong"
    assert found.run is not None and Run.load(found.run).features.cache == str(caches[1].path)


def test_a_cache_has_the_combinations_whose_layers_it_holds(tmp_path: Path) -> None:
    both = [write_backbone_cache(tmp_path, "one", 1.0), write_backbone_cache(tmp_path, "two", 1.0, more=True)]
    reports: list[str] = []
    grid: dict[str, list[Any]] = {"layer": [LAYER, "early"]}
    found = sweep(both, "ridge", grid=grid, runs_dir=tmp_path / "runs", report=reports.append)
    read = {(row.values["cache"], row.values["layer"]) for row in found.rows}
    assert read == {("one", LAYER), ("two", LAYER), ("two", "early")}
    assert "1 of 4 combinations are left out: their cache lacks the layer, or a text encoder" in reports
    with pytest.raises(UnknownName, match="avgpol"):
        sweep(both, "ridge", layers="avgpol", runs_dir=tmp_path / "runs")


@pytest.mark.parametrize("images", [120, 180])
def test_caches_of_other_images_are_refused(caches: list[FeatureCache], tmp_path: Path, images: int) -> None:
    with pytest.raises(HeadError, match="differ in their train images") as raised:
        sweep(
            [caches[0], write_backbone_cache(tmp_path, "other", 1.0, train=images)], "ridge", runs_dir=tmp_path / "runs"
        )
    assert "--limit" in str(raised.value.hint)


def test_caches_of_one_backbone_are_called_by_their_own_names(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    both = [write_backbone_cache(folder, "net", 1.0) for folder in folders]
    found = sweep([both[0], str(both[1].path)], "ridge", runs_dir=tmp_path / "runs")
    assert found.grid["cache"] == tuple(cache.name for cache in both)


def test_an_empty_list_of_caches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="an empty list"):
        sweep([], "ridge", runs_dir=tmp_path)


def test_combinations_are_grouped_by_what_they_read() -> None:
    plan = SweepPlan.of({}, {"layer": ["a", "b"], "lr": [0.1, 0.2]}, caches=("one", "two"))
    assert plan.groups() == {
        (0, ("a",)): [0, 1],
        (0, ("b",)): [2, 3],
        (1, ("a",)): [4, 5],
        (1, ("b",)): [6, 7],
    }


# --- intervals ---------------------------------------------------------------------------------------------


def row(value: float, interval: tuple[float, float] | None, *, metric: str = "accuracy", head: str = "linear") -> Any:
    estimate = Estimate(value=value, loss=0.5, metric=metric, interval=interval)
    heads = (TrialResult(seed=0, val=Score(value=value, loss=0.5, metric=metric)),)
    return SweepRow(values={"head": head}, config=HeadConfig(head=head), heads=heads, wanted=1, estimate=estimate)


def sweep_of(*rows: SweepRow) -> Sweep:
    return Sweep(
        folder=Path("runs/sweep"),
        created="2026-01-01T00:00:00",
        caches=("a.h5",),
        grid={"head": ("linear",)},
        seeds=(0,),
        folds=None,
        shots=(),
        draws=5,
        images={"train": 90, "val": 90},
        rows=rows,
        run=None,
        chosen={"seed": 0, "draw": None},
        test=None,
        seconds=1.0,
        interrupted=False,
    )


def test_rows_whose_intervals_overlap_that_of_the_first_are_tied() -> None:
    close = [row(0.80, (0.71, 0.87)), row(0.78, (0.68, 0.85)), row(0.60, (0.50, 0.70)), row(0.59, (0.49, 0.72))]
    found = sweep_of(*close)
    assert found.tied == 2 and found.to_json()["tied"] == 2
    assert "Rows 1 to 2 do not differ clearly: their intervals overlap that of row 1." in markdown(found)
    assert table_of(found).tied == 2
    assert sweep_of(row(0.9, (0.85, 0.95)), row(0.5, (0.4, 0.6))).tied == 1


def test_without_intervals_no_rows_are_tied() -> None:
    found = sweep_of(row(0.81, None, metric="map"), row(0.8, None, metric="map"))
    assert found.tied == 0
    assert "do not differ clearly" not in markdown(found) and "mean average precision" in markdown(found)
    assert ",map,0.81," in csv_text(found) and "0.8100" in markdown(found)


def test_a_mean_keeps_its_metric() -> None:
    scores = [Score(value=value, loss=0.1, metric="r2") for value in (-0.5, 0.5)]
    found = mean_estimate(scores, independent=False)
    assert (found.metric, found.value, found.to_json()["r2"]) == ("r2", 0.0, 0.0)
    assert Estimate.from_json(found.to_json()) == found
    with pytest.raises(AttributeError, match="not an accuracy"):
        _ = found.accuracy
