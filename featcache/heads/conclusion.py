"""After everything has been decided: test is looked at, once, and the run is written."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from torch import nn

from featcache.cache.catalog import mark_used
from featcache.heads.batches import FeatureRows, StreamedBatches
from featcache.heads.calibration import sharpness
from featcache.heads.config import HeadConfig
from featcache.heads.metrics import Outcome, evaluate, measure
from featcache.heads.preparation import Prepared
from featcache.heads.records import EpochRecord, Metrics, Predictions, Score, Training
from featcache.heads.runs import Run, run_name, write_run
from featcache.heads.standardisation import standardising_notes
from featcache.heads.stopping import Interruption
from featcache.heads.threads import training_threads
from featcache.heads.views import views_notes


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """The head of the best epoch (or candidate), what it says of val, and how the fit went.

    `folded`: numbers that were learned, and folded into others of the head when it was done. `threads`: torch's while
    it was trained; None for what the process has.
    """

    head: nn.Module
    val: Outcome
    last: Score
    history: tuple[EpochRecord, ...]
    best_epoch: int
    interrupted: bool
    seconds: float
    notes: tuple[str, ...] = ()
    folded: int = 0
    threads: int | None = None

    @property
    def trainable(self) -> int:
        """How many numbers were learned."""
        left = sum(parameter.numel() for parameter in self.head.parameters() if parameter.requires_grad)
        return left + self.folded


def conclude(
    prepared: Prepared,
    config: HeadConfig,
    fitted: Fitted,
    *,
    runs_dir: Path,
    created: datetime | None = None,
    name: str | None = None,
    interruption: Interruption | None = None,
    more: Mapping[str, bytes] | None = None,
) -> Run:
    """Look at test, now that everything has been decided, and write the run.

    `created`: the time in UTC, None for now; `name`: the folder's, None for one made of time, backbone and head.
    `more`: further files by name. A Ctrl-C meanwhile is recorded, and what is being done is finished.
    """
    rows = prepared.rows
    outcomes = {"val": fitted.val}
    if "test" in rows:
        test = StreamedBatches(rows["test"], batch_size=config.head_batch_size, seed=config.seed, device=prepared.place)
        with training_threads(fitted.threads):
            outcomes["test"] = evaluate(fitted.head, test)
    metrics = _measured(outcomes, config.seed)
    if interruption is not None:
        fitted = replace(fitted, interrupted=fitted.interrupted or interruption.requested)
    created = created or datetime.now(UTC)
    for column in prepared.columns:
        mark_used(column.cache.path, now=created.timestamp())
    return write_run(
        runs_dir,
        name=name or run_name(created, prepared.origins, config),
        created=created,
        config=config,
        features=prepared.origins,
        classes=prepared.cache.classes,
        training=_training(prepared, config, fitted, outcomes),
        versions=_versions(),
        weights={name: tensor.cpu().numpy() for name, tensor in fitted.head.state_dict().items()},
        history=fitted.history,
        metrics=metrics,
        predictions={part: _predictions(rows[part], outcome) for part, outcome in outcomes.items()},
        more=more or {},
    )


def _training(prepared: Prepared, config: HeadConfig, fitted: Fitted, outcomes: Mapping[str, Outcome]) -> Training:
    return Training(
        trainable=fitted.trainable,
        frozen=prepared.frozen,
        images=prepared.cut.images(),
        epochs=len(fitted.history),
        best_epoch=fitted.best_epoch,
        interrupted=fitted.interrupted,
        seconds=fitted.seconds,
        val=fitted.val.score(),
        last=fitted.last,
        test=outcomes["test"].score() if "test" in outcomes else None,
        device=str(prepared.place),
        threads=fitted.threads,
        notes=(
            *prepared.cut.notes,
            *views_notes(prepared.cache.spec, config.train_views),
            *standardising_notes(len(prepared.rows["train"]), config),
            *fitted.notes,
        ),
    )


def _measured(outcomes: Mapping[str, Outcome], seed: int) -> dict[str, Metrics]:
    temperature = 1 / sharpness(outcomes["val"].logits, outcomes["val"].labels)
    return {part: measure(outcome, temperature=temperature, seed=seed) for part, outcome in outcomes.items()}


def _predictions(rows: FeatureRows, outcome: Outcome) -> Predictions:
    return Predictions(
        ids=rows.ids(),
        labels=outcome.labels.cpu().numpy(),
        probabilities=outcome.logits.softmax(dim=1).cpu().numpy(),
    )


def _versions() -> dict[str, str]:
    packages = ("featcache", "torch", "pytorch-lightning", "torchmetrics", "scikit-learn", "numpy", "safetensors")
    return {"python": platform.python_version()} | {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
