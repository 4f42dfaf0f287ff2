from __future__ import annotations

import csv
import gc
import json
import random
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_caches import LAYER, Blobs, blobs, write_cache
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, InvalidOption, UnknownName
from featcache.heads.config import HeadConfig
from featcache.heads.records import Score
from featcache.rows.batches import ResidentBatches
from featcache.rows.features import FeatureRows
from featcache.runs.fit import fit_head
from featcache.runs.run import Run, caches_in_use
from featcache.sweeps.api import sweep
from featcache.sweeps.options import SweepOptions
from featcache.sweeps.plan import SweepPlan
from featcache.sweeps.records import Estimate, Sweep, TrialResult
from featcache.sweeps.results import estimate_row
from featcache.sweeps.sweeping import sweep_heads
from featcache.sweeps.tables import table_of
from featcache.training.options import TrainingOptions

GRID: dict[str, list[Any]] = {"lr": [1e-3, 1e-2], "head": ["mlp:8", "mlp:8,4"]}
QUICK: dict[str, Any] = {"max_epochs": 6}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Three overlapping clouds, with 150 images in train and 60 in test; a second layer is pure noise."""
    rng = np.random.default_rng(5)
    more = {split: {"noise": rng.standard_normal((count, 6)).astype(np.float16)} for split, count in SIZES.items()}
    plain = {split: blobs(count, seed=seed, distance=0.6) for seed, (split, count) in enumerate(SIZES.items())}
    splits = {name: Blobs(features=one.features, labels=one.labels, more=more[name]) for name, one in plain.items()}
    return write_cache(tmp_path_factory.mktemp("swept"), splits)


SIZES = {"train": 150, "test": 60}


@pytest.fixture(scope="module")
def swept(cache: FeatureCache, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Four combinations, two seeds."""
    return sweep(cache, grid=GRID, seeds=2, layers=LAYER, runs_dir=tmp_path_factory.mktemp("runs"), **QUICK)


def assert_close(one: Score, other: Score) -> None:
    """Assert that two scores are equal within the rounding of the folded standardisation."""
    assert one.accuracy == other.accuracy and one.loss == pytest.approx(other.loss, rel=1e-4)


# --- ranking -----------------------------------------------------------------------------------------------


def test_every_combination_has_a_row_and_the_best_on_val_is_first(swept: Sweep) -> None:
    assert {tuple(row.values.values()) for row in swept.rows} == {
        (lr, head) for lr in ("0.001", "0.01") for head in ("mlp:8", "mlp:8-4")
    }
    means = []
    for row in swept.rows:
        assert [head.seed for head in row.heads] == [0, 1] and row.complete and row.estimate is not None
        accuracies = [head.val.accuracy for head in row.heads if head.val is not None]
        assert row.estimate.accuracy == pytest.approx(np.mean(accuracies))
        assert row.estimate.spread == pytest.approx(np.std(accuracies, ddof=1))
        low, high = row.estimate.interval or (1.0, 0.0)
        assert low <= row.estimate.accuracy <= high
        means.append((row.estimate.accuracy, -row.estimate.loss))
    assert means == sorted(means, reverse=True)


def test_the_chosen_head_is_an_ordinary_run_as_train_head_gives_it(
    swept: Sweep, cache: FeatureCache, tmp_path: Path
) -> None:
    assert swept.run is not None
    run = Run.load(swept.run)
    seed = swept.chosen["seed"]
    best = max(swept.best.heads, key=lambda head: head.val.accuracy if head.val else 0)
    assert run.config == HeadConfig.from_json({**swept.best.config.to_json(), "seed": seed})
    assert best.seed == seed and best.val is not None and best.best_epoch == run.training.best_epoch
    assert_close(best.val, run.training.val)
    assert swept.test == run.training.test
    assert swept.folder.name in run.training.notes[-1]
    same = fit_head(cache, run.config, runs_dir=tmp_path)
    assert [epoch.val_loss for epoch in run.history()] == pytest.approx(
        [one.val_loss for one in same.history()], rel=1e-4
    )
    for name, tensor in same.head().state_dict().items():
        torch.testing.assert_close(run.head().state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert run.to_json()["n"] == same.to_json()["n"] == {"train": 120, "val": 30, "test": 60}
    assert np.array_equal(run.predict(cache["test"].layer(LAYER)[:]), run.predictions("test").outputs)
    assert {path.name for path in run.folder.iterdir()} == {path.name for path in same.folder.iterdir()}


def test_a_head_without_random_numbers_is_trained_with_one_seed_only(cache: FeatureCache, tmp_path: Path) -> None:
    found = sweep(cache, grid={"head": ["ridge", "linear"]}, seeds=3, layers=LAYER, runs_dir=tmp_path, **QUICK)
    heads = {row.config.head: row for row in found.rows}
    assert [len(heads[name].heads) for name in ("ridge", "linear")] == [1, 3]
    assert heads["ridge"].complete and heads["ridge"].estimate is not None
    assert heads["ridge"].estimate.spread is None and "alpha=" in heads["ridge"].remark


def test_layers_can_be_varied(cache: FeatureCache, tmp_path: Path) -> None:
    grid: dict[str, list[Any]] = {"layer": [LAYER, "noise", (LAYER, "noise")], "head": ["linear", "centroid"]}
    found = sweep(cache, grid=grid, lr=0.05, runs_dir=tmp_path, **QUICK)
    assert found.rows[-1].values["layer"] == found.rows[-2].values["layer"] == "noise"
    assert {row.values["layer"] for row in found.rows} == {LAYER, "noise", f"{LAYER}+noise"}
    assert found.run is not None
    assert Run.load(found.run).features.layers[0].name == LAYER


def test_heads_with_norms_dropout_and_augmentation_are_stacked_too(cache: FeatureCache, tmp_path: Path) -> None:
    grid: dict[str, Any] = {"lr": [1e-3, 1e-2], "batch_norm": [False, True], "dropout": [0.0, 0.2], "mixup": [0.0, 0.3]}
    found = sweep(cache, "mlp:8", grid=grid, noise=0.1, layers=LAYER, runs_dir=tmp_path, **QUICK)
    assert sum(found.stacks) == 16 and max(found.stacks) == 2
    for row in found.rows[:4]:
        run = fit_head(cache, row.config, runs_dir=tmp_path)
        assert row.estimate is not None and row.estimate.loss == pytest.approx(run.training.val.loss, rel=1e-3)


@pytest.mark.parametrize("stack_bytes", [1, 12_000])
def test_heads_that_do_not_fit_in_memory_together_train_in_turns(
    cache: FeatureCache, swept: Sweep, tmp_path: Path, stack_bytes: int
) -> None:
    plan = SweepPlan.of({"layers": (LAYER,), **QUICK}, GRID, SweepOptions(seeds=2))
    found = sweep_heads([cache], plan, TrainingOptions(resident_bytes=0), runs_dir=tmp_path, stack_bytes=stack_bytes)
    assert max(found.stacks) < max(swept.stacks) and sum(found.stacks) == sum(swept.stacks) == 8
    assert [row.values for row in found.rows] == [row.values for row in swept.rows]
    losses = [[row.estimate.loss for row in one.rows if row.estimate is not None] for one in (found, swept)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_only_heads_that_may_be_chosen_are_kept(cache: FeatureCache, tmp_path: Path) -> None:
    from featcache.sweeps.results import SweepResults

    kept: list[int] = []
    drop = SweepResults._drop_beaten

    def spy(self: SweepResults, key: Any) -> None:
        drop(self, key)
        kept.append(sum(len(self.heads(other)) for other in self.rows()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepResults, "_drop_beaten", spy)
        sweep(cache, "linear", grid={"lr": [1e-4, 1e-3, 1e-2, 0.1]}, seeds=2, layers=LAYER, runs_dir=tmp_path, **QUICK)
    # The best complete row, and the one that is not complete yet.
    assert len(kept) == 8 and max(kept) <= 3 and kept[-1] == 2


# --- test is evaluated once --------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Records the rows read from disk: split and number of rows."""
    found: list[tuple[str, int]] = []
    reading = FeatureRows.read

    def spy(rows: FeatureRows, positions: NDArray[np.int64], out: Sequence[Any]) -> None:
        found.append((rows.split.name, len(positions)))
        reading(rows, positions, out)

    monkeypatch.setattr(FeatureRows, "read", spy)
    return found


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({"seeds": 2}, 1),
        ({"folds": 3}, 1),
        # All draws of the chosen combination, and the run.
        ({"shots": (2,), "draws": 4}, 5),
    ],
    ids=["seeds", "folds", "shots"],
)
def test_test_rows_are_read_for_the_chosen_head_alone(
    cache: FeatureCache, tmp_path: Path, reads: list[tuple[str, int]], options: dict[str, Any], chosen: int
) -> None:
    def no_test_yet(done: int, total: int) -> None:
        assert "test" not in [split for split, _ in reads]

    grid: dict[str, list[Any]] = {"head": ["linear", "mlp:4", "ridge", "knn"], "lr": [1e-3, 1e-2]}
    found = sweep(cache, grid=grid, layers=LAYER, runs_dir=tmp_path, progress=no_test_yet, **options, **QUICK)
    assert sum(len(row.heads) for row in found.rows) > 8
    assert sum(count for split, count in reads if split == "test") == chosen * 60
    # And they are read last: nothing is trained any more.
    splits = [split for split, _ in reads]
    assert set(splits[splits.index("test") :]) == {"test"}
    assert [head.test for row in found.rows[1:] for head in row.heads if head.test is not None] == []


def test_test_images_never_influence_the_choice(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        test = blobs(30, seed=seed, distance=float(seed))
        cache = write_cache(tmp_path / str(seed), {"train": blobs(120, distance=0.5), "test": test})
        found.append(sweep(cache, grid=GRID, seeds=2, runs_dir=tmp_path / "runs", **QUICK))
    assert found[0].test != found[1].test
    assert [(row.values, row.estimate) for row in found[0].rows] == [
        (row.values, row.estimate) for row in found[1].rows
    ]


def test_without_a_test_split_there_is_no_test_score(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": blobs(60)})
    found = sweep(cache, "centroid", shots=[1, 3], draws=2, val_seed=1, runs_dir=tmp_path / "runs")
    assert found.test is None and all(row.test is None for row in found.rows)


# --- folds and shots ---------------------------------------------------------------------------------------


def test_folds_are_scored_on_held_out_images(cache: FeatureCache, tmp_path: Path) -> None:
    grid = {"head": ["linear", "logreg"]}
    found = sweep(cache, grid=grid, lr=0.05, folds=4, seeds=2, layers=LAYER, runs_dir=tmp_path, **QUICK)
    for row in found.rows:
        assert row.estimate is not None and row.estimate.interval is not None
        assert [(head.seed, head.fold) for head in row.heads] == [
            (seed, fold) for seed in (0, 1) for fold in range(1, 5)
        ]
        right = sum(round(head.held.accuracy * head.held_images) for head in row.heads if head.held is not None)
        assert sum(head.held_images for head in row.heads) == 300
        assert row.estimate.accuracy == pytest.approx(right / 300)
        low, high = row.estimate.interval
        assert low < row.estimate.accuracy < high
    # The head itself is trained on the ordinary cut, and is train_head's to the bit.
    run = Run.load(found.run or "")
    assert run.weights_sha256 == fit_head(cache, found.best.config, runs_dir=tmp_path).weights_sha256


def test_shots_are_ranked_by_number_and_have_an_interval_over_draws(cache: FeatureCache, tmp_path: Path) -> None:
    grid = {"head": ["centroid", "linear"]}
    found = sweep(cache, grid=grid, shots=[5, 1, 5], draws=4, layers=LAYER, runs_dir=tmp_path, **QUICK)
    assert [row.shots for row in found.rows] == [5, 5, 1, 1]
    for row in found.rows:
        assert [(head.draw, head.seed) for head in row.heads] == [(1, 0), (2, 1), (3, 2), (4, 3)]
        assert row.estimate is not None and row.estimate.interval is not None
    tested = [row for row in found.rows if row.test is not None]
    assert [row.shots for row in tested] == [5, 1]
    assert tested[0] is found.rows[0] and tested[1] is found.rows[2]
    scores = [head.test.accuracy for head in tested[0].heads if head.test is not None]
    assert tested[0].test is not None and tested[0].test.accuracy == pytest.approx(np.mean(scores))
    run = Run.load(found.run or "")
    assert run.training.images == {"train": 15, "val": 30, "test": 60}
    assert "15 images only" in run.training.notes[-1]
    assert found.chosen["draw"] == run.config.seed + 1


@pytest.mark.parametrize("options", [{"folds": 60}, {"shots": [50]}])
def test_too_few_images_are_an_error_before_anything_is_trained(
    cache: FeatureCache, tmp_path: Path, reads: list[tuple[str, int]], options: dict[str, Any]
) -> None:
    with pytest.raises(HeadError, match=r"ant \(\d+\), bee \(\d+\), cow \(\d+\)"):
        sweep(cache, layers=LAYER, runs_dir=tmp_path, **options)
    assert reads == [] and list(tmp_path.iterdir()) == []


def test_few_shots_of_many_draws_are_stacked_over_the_draws(cache: FeatureCache, tmp_path: Path) -> None:
    found = sweep(cache, "linear", shots=[3], draws=7, layers=LAYER, runs_dir=tmp_path, **QUICK)
    assert found.stacks == (7,)


def test_the_estimate_of_folds_weighs_every_image_alike() -> None:
    heads = [
        TrialResult(seed=0, fold=1, held=Score(value=1.0, loss=0.0), held_images=30),
        TrialResult(seed=0, fold=2, held=Score(value=0.5, loss=1.0), held_images=10),
    ]
    found = estimate_row(heads, val_images=7)
    assert isinstance(found, Estimate)
    assert (found.accuracy, found.loss) == (0.875, 0.25)
    assert found.interval is not None and found.interval[0] < 0.875 < found.interval[1]
    assert estimate_row([TrialResult(seed=0, trouble="diverged")], val_images=7) is None


# --- the record --------------------------------------------------------------------------------------------


@pytest.fixture(params=["seeds", "folds", "shots", "diverged"])
def recorded(request: pytest.FixtureRequest, cache: FeatureCache, tmp_path: Path) -> Sweep:
    options: dict[str, dict[str, Any]] = {
        "seeds": {"seeds": 2, "grid": GRID},
        "folds": {"folds": 2, "grid": {"head": ["linear", "knn"]}},
        "shots": {"shots": [1, 2], "draws": 2, "head": "ridge"},
        "diverged": {"grid": {"lr": [1e30, 1e-2], "seed": [4]}},
    }
    return sweep(cache, layers=LAYER, runs_dir=tmp_path, **options[request.param], **_quick(request.param))


def _quick(case: str) -> dict[str, Any]:
    return {} if case == "shots" else QUICK


def test_a_record_reads_back_as_it_was_written(recorded: Sweep) -> None:
    assert Sweep.load(recorded.folder) == recorded
    written = json.loads((recorded.folder / "sweep.json").read_text())
    assert written == json.loads(json.dumps(recorded.to_json()))
    assert Path(written["run"]) == recorded.run and Path(written["sweep"]) == recorded.folder


def test_the_table_is_the_same_as_csv_and_as_markdown(recorded: Sweep) -> None:
    rows = list(csv.DictReader((recorded.folder / "table.csv").open(newline="")))
    page = (recorded.folder / "table.md").read_text()
    table = table_of(recorded)
    assert len(rows) == len(table.rows) == len(recorded.rows)
    for row, line, cells in zip(recorded.rows, rows, table.rows, strict=True):
        assert line["head"] == row.config.head
        assert line["value"] == ("" if row.estimate is None else str(row.estimate.accuracy))
        assert ("-" if row.estimate is None else f"{100 * row.estimate.accuracy:.2f}") in cells
        assert f"| {' | '.join(cells)} |" in page
    assert len({len(line.split(" | ")) for line in page.splitlines() if line.startswith("|")}) == 1


def test_a_head_that_diverges_is_marked_and_ranks_last(cache: FeatureCache, tmp_path: Path) -> None:
    grid: dict[str, list[Any]] = {"lr": [1e30, 1e-2, 1e37], "head": ["mlp:8"]}
    found = sweep(cache, grid=grid, seeds=2, layers=LAYER, runs_dir=tmp_path, **QUICK)
    assert found.best.values["lr"] == "0.01" and found.best.remark == ""
    for row in found.rows[1:]:
        assert row.estimate is None and not row.complete
        assert "diverged" in row.remark and "0 of 2 heads" in row.remark


def test_when_every_head_diverges_it_is_an_error_and_nothing_is_written(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="none of 2 heads could be trained: diverged") as raised:
        sweep(cache, grid={"lr": [1e30, 1e36]}, layers=LAYER, runs_dir=tmp_path, **QUICK)
    assert "lower learning rates" in str(raised.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_a_sweep_read_is_in_use(cache: FeatureCache, tmp_path: Path) -> None:
    found = sweep(cache, "ridge", layers=LAYER, runs_dir=tmp_path)
    for path in (found.run or Path()).iterdir():
        path.unlink()
    reported: list[str] = []
    assert caches_in_use(tmp_path, reported.append) == {cache.path}
    (found.folder / "sweep.json").write_text("{}")
    assert caches_in_use(tmp_path, reported.append) == set()
    assert "does not record which caches" in reported[0]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: text.replace('"format": 2', '"format": 99'), "format 2"),
        (lambda text: text.replace('"wanted"', '"wnated"'), "damaged"),
        (lambda text: text[:-9], "cannot read"),
    ],
)
def test_a_damaged_record_is_an_error(
    cache: FeatureCache, tmp_path: Path, damage: Callable[[str], str], expected: str
) -> None:
    found = sweep(cache, "centroid", layers=LAYER, runs_dir=tmp_path)
    path = found.folder / "sweep.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(HeadError, match=expected):
        Sweep.load(found.folder)


def test_a_full_disk_leaves_no_half_a_record(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == "table.csv":
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr("featcache.runs.files.write_durably", full)
    with pytest.raises(HeadError, match="cannot write the sweep") as raised:
        sweep(cache, "centroid", layers=LAYER, runs_dir=tmp_path)
    assert "--runs-dir" in str(raised.value.hint)
    assert [path for path in tmp_path.iterdir() if "sweep" in path.name] == []


# --- Ctrl-C ------------------------------------------------------------------------------------------------


def interrupt_at(share: float) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= share * total:
            signal.raise_signal(signal.SIGINT)

    return progress


@pytest.fixture
def report_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report progress after every block, instead of twice a second."""
    monkeypatch.setattr("featcache.training.engine.PROGRESS_EVERY_S", 0.0)


@pytest.mark.usefixtures("report_every_block")
@pytest.mark.parametrize("grid", [{"lr": [1e-3, 1e-2]}, {"head": ["linear", "ridge", "knn"]}], ids=["stack", "mixed"])
def test_ctrl_c_keeps_what_is_finished_and_the_best_so_far(
    cache: FeatureCache, tmp_path: Path, grid: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"max_epochs": 60, "patience": 60, "seeds": 2, "layers": LAYER, "runs_dir": tmp_path}
    found = sweep(cache, grid=grid, progress=interrupt_at(0.2), **options)
    assert found.interrupted and Sweep.load(found.folder) == found
    assert "interrupted" in (found.folder / "table.md").read_text()
    assert found.run is not None and found.test is not None
    run = Run.load(found.run)
    assert run.training.interrupted and 1 <= run.training.epochs < 60
    (val,) = [head.val for head in found.best.heads if head.seed == run.config.seed]
    assert val is not None
    assert_close(val, run.training.val)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("report_every_block")
def test_ctrl_c_before_the_first_epoch_leaves_nothing(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(cache, "linear", head_batch_size=8, layers=LAYER, runs_dir=tmp_path, progress=interrupt_at(0.0))
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("report_every_block")
def test_ctrl_c_during_folds_keeps_the_table_without_a_run(cache: FeatureCache, tmp_path: Path) -> None:
    grid = {"lr": [1e-3, 1e-2]}
    found = sweep(cache, "linear", grid=grid, folds=3, layers=LAYER, runs_dir=tmp_path, progress=interrupt_at(0.5))
    assert found.interrupted and found.run is None and found.test is None
    assert all("of 3 heads" in row.remark for row in found.rows)
    assert Sweep.load(found.folder) == found


@pytest.mark.usefixtures("report_every_block")
def test_a_second_ctrl_c_ends_at_once(cache: FeatureCache, tmp_path: Path) -> None:
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if done >= 0.3 * total:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sweep(cache, grid=GRID, layers=LAYER, runs_dir=tmp_path, progress=progress)
    assert list(tmp_path.iterdir()) == []


# --- progress, random state and errors ---------------------------------------------------------------------


@pytest.mark.usefixtures("report_every_block")
@pytest.mark.parametrize("options", [{"seeds": 2}, {"folds": 2}, {"shots": [1, 2], "draws": 2}])
def test_progress_grows_to_its_total(cache: FeatureCache, tmp_path: Path, options: dict[str, Any]) -> None:
    calls: list[tuple[int, int]] = []
    grid = {"head": ["linear", "mlp:4", "ridge"]}
    sweep(
        cache,
        grid=grid,
        layers=LAYER,
        runs_dir=tmp_path,
        progress=lambda done, total: calls.append((done, total)),
        **options,
        **QUICK,
    )
    assert len({total for _, total in calls}) == 1
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]


def test_callers_random_state_is_untouched(cache: FeatureCache, tmp_path: Path) -> None:
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    sweep(cache, "mlp:4", grid={"dropout": [0.0, 0.5]}, shots=[2], draws=2, layers=LAYER, runs_dir=tmp_path, **QUICK)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (repr(np.random.get_state()), random.getstate()) == before[1:]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"grid": {"layer": [LAYER, "avgpol"]}}, UnknownName),
        ({"lrr": 0.1}, InvalidOption),
        ({"device": "abacus"}, InvalidOption),
        ({"seeds": 0}, InvalidOption),
        ({"grid": {"lr": [0.1, "x"]}}, InvalidOption),
        ({}, InvalidOption),
    ],
    ids=["layer", "option", "device", "seeds", "value", "no layer named"],
)
def test_impossible_options_are_errors_before_anything_is_read(
    cache: FeatureCache, tmp_path: Path, reads: list[tuple[str, int]], options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        sweep(cache, runs_dir=tmp_path, **options)
    assert reads == [] and list(tmp_path.iterdir()) == []


def test_what_was_left_out_is_reported_once(tmp_path: Path) -> None:
    train = blobs(90)
    labels = np.where(np.arange(90) % 10 == 0, -1, train.labels)
    cache = write_cache(tmp_path, {"train": Blobs(features=train.features, labels=labels)})
    reports: list[str] = []
    found = sweep(
        str(cache.path),
        grid={"head": ["linear", "knn"]},
        folds=2,
        runs_dir=tmp_path / "runs",
        report=reports.append,
        **QUICK,
    )
    assert reports[0] == "9 of 90 train images are unlabelled and left out" == found.notes[0]
    assert reports.count(reports[0]) == 1


def test_real_handwritten_digits_are_swept(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    splits = {
        name: Blobs(features=(images[rows] * 15).astype(np.uint8), labels=labels[rows].astype(np.int64))
        for name, rows in (("train", order[:1000]), ("test", order[1000:]))
    }
    cache = write_cache(tmp_path, splits, classes=tuple("0123456789"), scaling={LAYER: (1 / 127.5, -1.0)})
    grid: dict[str, list[Any]] = {"head": ["linear", "mlp:32"], "lr": [1e-4, 1e-2]}
    found = sweep(cache, grid=grid, max_epochs=10, runs_dir=tmp_path / "runs")
    assert found.best.values["lr"] == "0.01"
    assert found.test is not None and found.test.accuracy > 0.93


# --- memory ------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """`gc.collect()` looks at new objects only: all of torch's take longer than a sweep."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collection")
@pytest.mark.parametrize(
    ("options", "share"),
    [({"shots": (4, 8), "draws": 4}, 0.5), ({"folds": 3}, 1.5), ({"seeds": 2}, 3.0), ({"seeds": 2}, 0.5)],
    ids=["draws", "folds", "seeds", "seeds in little memory"],
)
def test_the_memory_for_features_holds_for_all_that_is_open(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], share: float
) -> None:
    budget = int(share * 24 * cache["train"].layer(LAYER).shape[1] * 4)
    peak = 0

    def watch(self: ResidentBatches, *given: Any, **more: Any) -> None:
        nonlocal peak
        init(self, *given, **more)
        opened.append(weakref.ref(self))
        gc.collect()
        peak = max(peak, sum(one.resident_bytes for one in (ref() for ref in opened) if one is not None))

    init, opened = ResidentBatches.__init__, list[weakref.ref[ResidentBatches]]()
    whole = sweep(cache, runs_dir=tmp_path, layers=LAYER, **QUICK, **options)
    monkeypatch.setattr(ResidentBatches, "__init__", watch)
    found = sweep(cache, runs_dir=tmp_path, layers=LAYER, resident_bytes=budget, **QUICK, **options)
    assert peak <= budget
    assert [row.estimate for row in found.rows] == [row.estimate for row in whole.rows]
