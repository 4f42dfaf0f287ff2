"""Evaluates the selected head on the test split and writes the run folder."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featcache.cache.catalog import mark_used
from featcache.heads.config import HeadConfig
from featcache.heads.metric_records import Metrics
from featcache.heads.metrics import Outcome, measure, to_predictions, tune_on_val
from featcache.heads.records import Predictions
from featcache.heads.solved import SolvedHead, outcome_of
from featcache.heads.standardisation import standardising_notes
from featcache.heads.stopping import Interruption
from featcache.rows.features import FeatureRows
from featcache.rows.views import views_notes
from featcache.runs.experiment_file import EXPERIMENT_FILE, experiment_file
from featcache.runs.records import Training
from featcache.runs.run import Run, run_name, write_run
from featcache.training.fit_result import FitResult
from featcache.training.preparation import Prepared

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def evaluate_and_save(
    prepared: Prepared,
    config: HeadConfig,
    fitted: FitResult,
    *,
    runs_dir: Path,
    created: datetime | None = None,
    name: str | None = None,
    interruption: Interruption | None = None,
    trainer: Literal["featcache", "lightning"] | Trainer = "featcache",
    logger: str | None = None,
    resampling: Mapping[str, Mapping[str, Any]] | None = None,
    more: Mapping[str, bytes] | None = None,
) -> Run:
    """Evaluate the selected head on test, if there are test images, and write the run.

    A Ctrl-C during this call is recorded in the run; evaluating and writing are finished first.

    Args:
        prepared: The rows of train, val and test.
        config: The head's options.
        fitted: The trained head, with its outputs for val.
        runs_dir: The folder that holds runs.
        created: The run's time in UTC; None for now.
        name: The name of the run's folder; None for a name made of time, backbone and head.
        interruption: Records Ctrl-C.
        trainer: What trained a head that is trained by steps: "featcache", "lightning", or a Trainer object.
        logger: The name of the logger of its epochs; None for no logger.
        resampling: For a head that was trained on a draw of few images: the options of an experiment file, by table,
            that draw them again.
        more: Contents of further files, by file name.

    Returns:
        The written run.

    Raises:
        HeadError: The run cannot be written.
    """
    rows = prepared.rows
    outcomes = {"val": fitted.val}
    if "test" in rows:
        outcomes["test"] = _evaluate_test(prepared, config, fitted)
    # Targets as stored in the cache: training by steps converts numbers to float32.
    outcomes = {part: replace(outcome, targets=rows[part].targets) for part, outcome in outcomes.items()}
    metrics = _measure_parts(outcomes, config.seed)
    if interruption is not None:
        fitted = replace(fitted, interrupted=fitted.interrupted or interruption.requested)
    created = created or datetime.now(UTC)
    trained_by = trainer if isinstance(trainer, str) else "lightning"
    versions = _versions()
    how = {"device": prepared.device_name, "threads": fitted.threads, "trainer": trained_by}
    experiment = experiment_file(
        prepared,
        config,
        # The defaults are left out.
        training={name: value for name, value in how.items() if value not in (None, "featcache")},
        version=versions["featcache"],
        resampling=resampling,
        own_trainer=trainer is not trained_by,
    )
    for column in prepared.columns:
        mark_used(column.cache.path, now=created.timestamp())
    return write_run(
        runs_dir,
        name=name or run_name(created, prepared.origins, config),
        created=created,
        config=config,
        features=prepared.origins,
        target=prepared.target,
        training=replace(
            _training(prepared, config, fitted, outcomes),
            trainer=None if config.architecture.solved else trained_by,
            logger=logger,
        ),
        versions=versions,
        weights=fitted.tensors(),
        history=fitted.history,
        metrics=metrics,
        predictions={part: _predictions(rows[part], outcome) for part, outcome in outcomes.items()},
        more={EXPERIMENT_FILE: experiment, **(more or {})},
    )


def _evaluate_test(prepared: Prepared, config: HeadConfig, fitted: FitResult) -> Outcome:
    """The head's outputs for the test images. Imports torch only for a head trained by steps."""
    rows, target, scale = prepared.rows["test"], prepared.target, fitted.val.scale
    if isinstance(fitted.head, SolvedHead):
        return outcome_of(fitted.head, rows, target, scale=scale)
    from featcache.rows.batches import StreamedBatches
    from featcache.training.evaluation import evaluate
    from featcache.training.threads import training_threads

    # Test is read once and in order: keeping it in memory gains nothing.
    test = StreamedBatches(rows, batch_size=config.head_batch_size, seed=config.seed, device=prepared.device)
    with training_threads(fitted.threads):
        return evaluate(fitted.head, test, target, scale=scale, loss=fitted.val.loss)


def _training(prepared: Prepared, config: HeadConfig, fitted: FitResult, outcomes: Mapping[str, Outcome]) -> Training:
    return Training(
        trainable=fitted.trainable,
        frozen=prepared.frozen,
        images=prepared.cut.images(),
        epochs=len(fitted.history),
        best_epoch=fitted.best_epoch,
        interrupted=fitted.interrupted,
        seconds=fitted.seconds,
        val=outcomes["val"].score(),
        last=fitted.last,
        test=outcomes["test"].score() if "test" in outcomes else None,
        device=prepared.device_name,
        threads=fitted.threads,
        notes=(
            *prepared.cut.notes,
            *views_notes(prepared.cache.spec, config.train_views),
            *standardising_notes(len(prepared.rows["train"]), config),
            *fitted.notes,
        ),
    )


def _measure_parts(outcomes: Mapping[str, Outcome], seed: int) -> dict[str, Metrics]:
    tuning = tune_on_val(outcomes["val"])
    return {part: measure(outcome, tuning, seed=seed) for part, outcome in outcomes.items()}


def _predictions(rows: FeatureRows, outcome: Outcome) -> Predictions:
    return Predictions(
        ids=rows.ids(),
        targets=outcome.targets,
        outputs=to_predictions(outcome.outputs, outcome.target),
        kind=outcome.target.kind,
    )


def _versions() -> dict[str, str]:
    packages = ("featcache", "torch", "pytorch-lightning", "torchmetrics", "scikit-learn", "numpy", "safetensors")
    return {"python": platform.python_version()} | {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        described = metadata.distribution(package).read_text("METADATA") or ""
    except metadata.PackageNotFoundError:
        return "not installed"
    # `metadata.version` parses the whole file as an e-mail, which takes ten times as long.
    found = re.search(r"^Version: (.*)$", described, re.MULTILINE)
    return metadata.version(package) if found is None else found[1].strip()
