"""Runs as a report shows them: each with a name of its own, and judged on test, or on val where there is no test."""

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
class Subject:
    """One run and what it said of `part` ("test", or "val" where the set has no test split).

    `name`: short, and no other subject's. `notes`: what a reader has to know about it.
    """

    run: Run
    name: str
    part: str
    measured: ClassMetrics
    said: Predictions
    history: tuple[EpochRecord, ...]
    notes: tuple[str, ...] = ()

    @property
    def answers(self) -> NDArray[np.int64]:
        """The class that was said of each image: int64 (N,)."""
        found: NDArray[np.int64] = self.said.outputs.argmax(axis=1)
        return found

    @property
    def confidences(self) -> NDArray[np.float32]:
        """Its probability: float32 (N,)."""
        found: NDArray[np.float32] = self.said.outputs.max(axis=1)
        return found

    @property
    def score(self) -> Score:
        """Accuracy and loss on `part`."""
        done = self.run.training
        return done.test if self.part == "test" and done.test is not None else done.val

    @property
    def settings(self) -> dict[str, Any]:
        """The options of the head that are not left as they are by default, but for the head itself."""
        config = self.run.config
        return {
            option.name: getattr(config, option.name)
            for option in fields(HeadConfig)
            if option.name not in ("head", "layers") and getattr(config, option.name) != option.default
        }


def read_subjects(runs: Sequence[Run | Path | str], runs_dir: Path) -> tuple[list[Subject], list[str]]:
    """The runs that are named, or all in `runs_dir` where none is; and what was left out.

    A run that is named and damaged is an error; one of all that are there is left out, and said.
    Raises HeadError where no run is left, UnknownName for a name that is none.
    """
    if runs:
        return _named(
            [_subject(one if isinstance(one, Run) else Run.load(find_run(runs_dir, one))) for one in runs]
        ), []
    found, left_out = [], []
    for folder in run_folders(runs_dir):
        try:
            found.append(_subject(Run.load(folder)))
        except FeatcacheError as error:
            left_out.append(f"The run {folder.name} is left out: {error.message}.")
    if not found:
        raise HeadError(
            f"no run to report in {runs_dir}" + "".join(f": {note}" for note in left_out[:1]),
            hint="`featcache train-head` makes one; --runs-dir says where they are",
        )
    return _named(found), left_out


def _subject(run: Run) -> Subject:
    part = "val" if run.training.test is None else "test"
    measured = run.metrics(part)
    if not isinstance(measured, ClassMetrics):
        raise HeadError(
            f"the page shows heads that tell classes apart, and the run {run.folder} learned "
            f"{', '.join(run.config.target)}, which is something else",
            hint="its metrics.json and predictions hold all numbers",
        )
    said = run.predictions(part)
    _require_fitting(run, said)
    return Subject(
        run=run,
        name=run.config.head,
        part=part,
        measured=measured,
        said=said,
        history=run.history(),
        notes=_head_notes(run),
    )


def _require_fitting(run: Run, said: Predictions) -> None:
    rows, classes = len(said.ids), len(run.classes)
    expected, labels = (rows, classes), said.targets
    fits = said.outputs.shape == expected and labels.shape == (rows,) and rows > 0
    if not fits or not ((labels >= 0) & (labels < classes)).all() or not np.isfinite(said.outputs).all():
        raise HeadError(
            f"the predictions of the run {run.folder} are damaged: expected probabilities {expected} and a label of "
            f"{classes} classes for each, got {said.outputs.shape} and {labels.shape}",
            hint="train again",
        )


def _head_notes(run: Run) -> tuple[str, ...]:
    # The results stand without it, but nobody should learn of it from `predict`.
    try:
        with (run.folder / WEIGHTS_FILE).open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == run.weights_sha256
        problem = None if whole else "its bytes are not those that were written"
    except OSError as error:
        problem = error.strerror or str(error)
    return () if problem is None else (f"{WEIGHTS_FILE} cannot be used ({problem}): train again before predicting.",)


def _named(subjects: list[Subject]) -> list[Subject]:
    """Each with the shortest name that tells it from the others: head, backbone, the end of its folder's name."""
    several = len({one.run.features.label for one in subjects}) > 1
    short = [one.name + (f" on {one.run.features.label}" if several else "") for one in subjects]
    return [
        replace(one, name=f"{name}, {one.run.folder.name.rpartition('-')[2]}" if short.count(name) > 1 else name)
        for one, name in zip(subjects, short, strict=True)
    ]
