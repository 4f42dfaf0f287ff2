"""The results of runs as a report shows them: a unique name, and metrics on test, or on val without a test split."""

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
from featcache.heads.metric_records import ClassMetrics
from featcache.heads.records import EpochRecord, Predictions, Score
from featcache.runs.catalog import find_run, run_folders
from featcache.runs.files import WEIGHTS_FILE
from featcache.runs.run import Run


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """One run with its metrics and predictions on `part` ("test", or "val" if there is no test split).

    `name`: short and unique in the report. `notes`: warnings for the reader.
    """

    run: Run
    name: str
    part: str
    measured: ClassMetrics
    predictions: Predictions
    history: tuple[EpochRecord, ...]
    notes: tuple[str, ...] = ()

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The predicted class of each image: int64 (N,)."""
        predicted: NDArray[np.int64] = self.predictions.outputs.argmax(axis=1)
        return predicted

    @property
    def confidences(self) -> NDArray[np.float32]:
        """The probability of the predicted class: float32 (N,)."""
        confidences: NDArray[np.float32] = self.predictions.outputs.max(axis=1)
        return confidences

    @property
    def score(self) -> Score:
        """Accuracy and loss on `part`."""
        done = self.run.training
        return done.test if self.part == "test" and done.test is not None else done.val

    @property
    def settings(self) -> dict[str, Any]:
        """The options of the head that differ from their defaults, without the head's name and layers."""
        config = self.run.config
        return {
            option.name: getattr(config, option.name)
            for option in fields(HeadConfig)
            if option.name not in ("head", "layers") and getattr(config, option.name) != option.default
        }


def read_results(runs: Sequence[Run | Path | str], runs_dir: Path) -> tuple[list[RunResult], list[str]]:
    """Read the given runs, or all runs in `runs_dir` if none are given; and a note for each run that was left out.

    A damaged run is an error if it was given, and is left out with a note otherwise.
    Raises HeadError if no run is left, UnknownName for a run that does not exist.
    """
    if runs:
        return _with_unique_names(
            [_result(one if isinstance(one, Run) else Run.load(find_run(runs_dir, one))) for one in runs]
        ), []
    results, left_out = [], []
    for folder in run_folders(runs_dir):
        try:
            results.append(_result(Run.load(folder)))
        except FeatcacheError as error:
            left_out.append(f"The run {folder.name} is left out: {error.message}.")
    if not results:
        raise HeadError(
            f"no run to report in {runs_dir}" + "".join(f": {note}" for note in left_out[:1]),
            hint="`featcache train-head` makes one; --runs-dir names their folder",
        )
    return _with_unique_names(results), left_out


def _result(run: Run) -> RunResult:
    part = "val" if run.training.test is None else "test"
    measured = run.metrics(part)
    if not isinstance(measured, ClassMetrics):
        raise HeadError(
            f"a report shows classifiers with one class per image; the run {run.folder} predicts "
            f"{', '.join(run.config.target)} instead",
            hint="its metrics.json and predictions hold all numbers",
        )
    predictions = run.predictions(part)
    _check_predictions(run, predictions)
    return RunResult(
        run=run,
        name=run.config.head,
        part=part,
        measured=measured,
        predictions=predictions,
        history=run.history(),
        notes=_head_notes(run),
    )


def _check_predictions(run: Run, predictions: Predictions) -> None:
    rows, classes = len(predictions.ids), len(run.classes)
    expected, labels = (rows, classes), predictions.targets
    fits = predictions.outputs.shape == expected and labels.shape == (rows,) and rows > 0
    if not fits or not ((labels >= 0) & (labels < classes)).all() or not np.isfinite(predictions.outputs).all():
        raise HeadError(
            f"the predictions of the run {run.folder} are damaged: expected probabilities {expected} and a label of "
            f"{classes} classes for each, got {predictions.outputs.shape} and {labels.shape}",
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
