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
from featcache.rows.batches import FeatureRows, StreamedBatches
from featcache.heads.calibration import sharpness
from featcache.training.fitted import Fitted
from featcache.heads.config import HeadConfig
from featcache.heads.metrics import Outcome, evaluate, measure
from featcache.training.preparation import Prepared
from featcache.heads.records import EpochRecord, Metrics, Predictions, Score
from featcache.runs.records import Training
from featcache.runs.run import Run, run_name, write_run
from featcache.heads.standardisation import standardising_notes
from featcache.heads.stopping import Interruption
from featcache.training.threads import training_threads
from featcache.rows.views import views_notes


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
