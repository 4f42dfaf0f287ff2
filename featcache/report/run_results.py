"""The results of runs and sweeps as a report shows them, on test, or on val without a test split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import FeatcacheError, HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.metric_records import ClassMetrics, Interval, ListMetrics, Metrics, NumberMetrics
from featcache.heads.records import EpochRecord, Predictions, Score
from featcache.report.page import per_cent
from featcache.rows.target import HeadTarget
from featcache.runs.catalog import find_run, run_folders
from featcache.runs.files import SWEEP_FILE, WEIGHTS_FILE, sweep_folders
from featcache.runs.run import Run
from featcache.sweeps.records import Sweep

METRICS = {"accuracy": "accuracy", "map": "mean average precision", "r2": "R²"}
"""The names of the metrics of `Score`."""


def score_text(value: float | None, metric: str, digits: int = 1) -> str:
    """A metric as text: accuracy in per cent, others as a number with two digits more; "" for None."""
    if value is None:
        return ""
    return per_cent(value, digits) if metric == "accuracy" else f"{value:.{digits + 2}f}"


def interval_text(interval: Interval | None, metric: str, digits: int = 1) -> str:
    """A confidence interval as text; "" for None."""
    return "" if interval is None else " to ".join(score_text(bound, metric, digits) for bound in interval)


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """One run with its metrics and predictions on `part` ("test", or "val" if there is no test split).

    `name`: short and unique in the report. `notes`: warnings for the reader.
    """

    run: Run
    name: str
    part: str
    measured: Metrics
    predictions: Predictions
    history: tuple[EpochRecord, ...]
    notes: tuple[str, ...] = ()

    @property
    def target(self) -> HeadTarget:
        """What the head predicts."""
        return self.run.target

    @property
    def metric(self) -> str:
        """The metric of the target's kind: "accuracy", "map" or "r2"."""
        return self.score.metric

    @property
    def score(self) -> Score:
        """The metric and the loss on `part`."""
        done = self.run.training
        return done.test if self.part == "test" and done.test is not None else done.val

    @property
    def interval(self) -> Interval:
        """The 95 % confidence interval of the metric on `part`."""
        match self.measured:
            case ClassMetrics(accuracy_interval=interval) | ListMetrics(map_interval=interval):
                return interval
            case NumberMetrics(overall=overall):
                return overall.r2.interval

    @property
    def predicted(self) -> NDArray[Any]:
        """The predictions in the form of the targets: classes int64 (N,), marks int8 (N, C), or numbers (N, C)."""
        outputs = self.predictions.outputs
        if isinstance(self.measured, ListMetrics):
            return (outputs >= np.asarray(self.measured.thresholds)).astype(np.int8)
        return outputs.argmax(axis=1) if isinstance(self.measured, ClassMetrics) else outputs

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Whether the prediction of each image is wrong, bool (N,): of several labels, any. Numbers are never right."""
        differ: NDArray[np.bool_] = self.predicted != self.predictions.targets
        return np.asarray(differ.reshape(len(differ), -1).any(axis=1))

    @property
    def sizes(self) -> NDArray[np.float64]:
        """By what mistakes are sorted, float64 (N,), the worst has the largest.

        Of classes the confidence, of labels the cross-entropy, of numbers the error in deviations of the targets.
        """
        outputs, targets = self.predictions.outputs.astype(np.float64), self.predictions.targets
        if isinstance(self.measured, ClassMetrics):
            return np.asarray(outputs.max(axis=1))
        if isinstance(self.measured, ListMetrics):
            own = np.clip(np.where(targets > 0, outputs, 1 - outputs), 1e-7, 1)
            return np.asarray(-np.log(own).mean(axis=1))
        deviations = np.where(targets.std(axis=0) > 0, targets.std(axis=0), 1.0)
        return np.asarray((np.abs(outputs - targets) / deviations).max(axis=1))

    @property
    def settings(self) -> dict[str, Any]:
        """The options of the head that differ from their defaults, without the head's name, layers and target."""
        config = self.run.config
        return {
            option.name: getattr(config, option.name)
            for option in fields(HeadConfig)
            if option.name not in ("head", "layers", "target") and getattr(config, option.name) != option.default
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """What a report is about. `left_out`: a sentence about each run and sweep that could not be read."""

    results: tuple[RunResult, ...]
    sweeps: tuple[Sweep, ...]
    left_out: tuple[str, ...]


def read_inputs(refs: Sequence[Run | Sweep | Path | str], runs_dir: Path) -> Inputs:
    """Read the given runs and sweeps, or all in `runs_dir` if none are given. A sweep adds its chosen run.

    A damaged one is an error if it was given, and is left out with a note otherwise.
    Raises HeadError if no run is left, UnknownName for a run that does not exist.
    """
    left_out: list[str] = []
    found = [_open(one, runs_dir) for one in refs] if refs else _open_all(runs_dir, left_out)
    sweeps = [one for one in found if isinstance(one, Sweep)]
    runs = {one.folder.resolve(): one for one in found if isinstance(one, Run)}
    for sweep in sweeps:
        _add_chosen(sweep, runs, left_out)
    results = []
    for run in runs.values():
        try:
            results.append(_result(run))
        except FeatcacheError as error:
            if refs:
                raise
            left_out.append(f"The run {run.folder.name} is left out: {error.message}.")
    if not results:
        raise HeadError(
            f"no run to report in {runs_dir}" + "".join(f": {note}" for note in left_out[:1]),
            hint="`featcache train-head` makes one; --runs-dir names their folder",
        )
    return Inputs(results=tuple(_with_unique_names(results)), sweeps=tuple(sweeps), left_out=tuple(left_out))


def _open(ref: Run | Sweep | Path | str, runs_dir: Path) -> Run | Sweep:
    if isinstance(ref, Run | Sweep):
        return ref
    name = str(ref)
    if (Path(ref) / SWEEP_FILE).is_file():
        return Sweep.load(ref)
    sweeps = [folder for folder in sweep_folders(runs_dir) if folder.name.startswith(name)]
    if len(sweeps) == 1 and not any(folder.name.startswith(name) for folder in run_folders(runs_dir)):
        return Sweep.load(sweeps[0])
    return Run.load(find_run(runs_dir, ref))


def _open_all(runs_dir: Path, left_out: list[str]) -> list[Run | Sweep]:
    found: list[Run | Sweep] = []
    readers = (("run", run_folders, Run.load), ("sweep", sweep_folders, Sweep.load))
    for kind, folders, load in readers:
        for folder in folders(runs_dir):
            try:
                found.append(load(folder))
            except FeatcacheError as error:
                left_out.append(f"The {kind} {folder.name} is left out: {error.message}.")
    return found


def _add_chosen(sweep: Sweep, runs: dict[Path, Run], left_out: list[str]) -> None:
    """Add the chosen run of a sweep, which may have been moved together with the sweep."""
    if sweep.run is None:
        left_out.append(f"The sweep {sweep.folder.name} was interrupted before a head was written.")
        return
    beside = sweep.folder.parent / sweep.run.name
    folder = sweep.run if (sweep.run / "config.json").is_file() else beside
    try:
        run = Run.load(folder)
    except FeatcacheError as error:
        left_out.append(f"The chosen run of the sweep {sweep.folder.name} is left out: {error.message}.")
        return
    runs.setdefault(folder.resolve(), run)


def _result(run: Run) -> RunResult:
    part = "val" if run.training.test is None else "test"
    predictions = run.predictions(part)
    _check_predictions(run, predictions)
    return RunResult(
        run=run,
        name=run.config.head,
        part=part,
        measured=run.metrics(part),
        predictions=predictions,
        history=run.history(),
        notes=_head_notes(run),
    )


def _check_predictions(run: Run, predictions: Predictions) -> None:
    rows, outputs, targets = len(predictions.ids), predictions.outputs, predictions.targets
    expected = (rows, run.target.outputs)
    classes = run.target.kind == "classes"
    fits = rows > 0 and outputs.shape == expected and targets.shape == ((rows,) if classes else expected)
    if classes and fits:
        fits = bool(((targets >= 0) & (targets < expected[1])).all())
    if not fits or not np.isfinite(outputs).all() or not np.isfinite(targets).all():
        raise HeadError(
            f"the predictions of the run {run.folder} are damaged: expected finite outputs {expected} and a target of "
            f"each image, got {outputs.shape} and {targets.shape}",
            hint="train again",
        )


def _head_notes(run: Run) -> tuple[str, ...]:
    # The results do not need the weights, but the report should warn before `predict` fails.
    try:
        with (run.folder / WEIGHTS_FILE).open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == run.weights_sha256
        problem = None if whole else "its bytes have changed"
    except OSError as error:
        problem = error.strerror or str(error)
    return () if problem is None else (f"{WEIGHTS_FILE} cannot be used ({problem}): train again before predicting.",)


def _with_unique_names(results: list[RunResult]) -> list[RunResult]:
    """Name each result as briefly as possible but uniquely: head, backbone, and the end of the folder's name."""
    several = len({one.run.features.label for one in results}) > 1
    short = [one.name + (f" on {one.run.features.label}" if several else "") for one in results]
    return [
        replace(one, name=f"{name}, {one.run.folder.name.rpartition('-')[2]}" if short.count(name) > 1 else name)
        for one, name in zip(results, short, strict=True)
    ]
