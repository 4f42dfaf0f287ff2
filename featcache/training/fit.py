"""Fit a head on prepared rows: by a solver, by featcache's training engine, or by Lightning's Trainer.

torch is imported only for heads that are trained by gradient steps.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from featcache.heads.config import HeadConfig
from featcache.heads.records import Progress
from featcache.heads.standardisation import standardising_notes
from featcache.heads.stopping import Interruption
from featcache.rows.notes import Report, report_notes
from featcache.training.fit_result import FitResult
from featcache.training.preparation import Prepared, open_prepared
from featcache.training.solving import fit_solved
from featcache.training.texts import text_notes

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from featcache.training.checkpoints import Checkpoint, Unfinished


def fit(
    prepared: Prepared,
    config: HeadConfig,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
    resident_bytes: int | None = None,
    interruption: Interruption | None = None,
    threads: int | None = None,
    unfinished: Unfinished | None = None,
    resumed: Checkpoint | None = None,
    trainer: Literal["featcache", "lightning"] | Trainer = "featcache",
) -> FitResult:
    """Fit a head on train and val; the test rows are not read.

    Args:
        prepared: The rows of train and val.
        config: The head's options.
        progress: Called with the record of every epoch, or of every candidate of a solver.
        report: Called with notes for the user.
        resident_bytes: The most bytes that features may take on the device; above that they are streamed.
        interruption: Handles Ctrl-C.
        threads: Torch's threads on the CPU; None for the fastest number by measurement.
        unfinished: The folder for checkpoints; None for no checkpoints. A Trainer writes none.
        resumed: The checkpoint to resume from.
        trainer: `featcache` for its own engine, `lightning` for a Trainer with the options' epochs and patience, or
            your own Trainer.

    Raises:
        KeyboardInterrupt: After a Ctrl-C before the first epoch has ended, and after a second one.
        HeadError: The loss became infinite or NaN.
    """
    if config.architecture.solved:
        return fit_solved(prepared, config, progress=progress, report=report, interruption=interruption)
    began = time.perf_counter()
    train, val = open_prepared(prepared, config, report=report, resident_bytes=resident_bytes)
    reading = time.perf_counter() - began
    report_notes(report, standardising_notes(len(train.rows), config))
    report_notes(report, text_notes(config, train.rows, prepared.target))
    if trainer == "featcache":
        from featcache.training.fitting import fit_batches

        fitted = fit_batches(
            train,
            val,
            prepared.target,
            config,
            progress=progress,
            interruption=interruption,
            threads=threads,
            unfinished=unfinished,
            resumed=resumed,
        )
    else:
        from featcache.training.by_trainer import fit_by_trainer

        fitted = fit_by_trainer(
            train,
            val,
            prepared.target,
            config,
            trainer=None if isinstance(trainer, str) else trainer,
            progress=progress,
            interruption=interruption,
            threads=threads,
        )
    return replace(fitted, seconds=reading + fitted.seconds)
