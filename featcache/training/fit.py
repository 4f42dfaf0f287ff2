"""Fit a head on prepared rows: by a solver, by featcache's training engine, or by Lightning's Trainer.

torch is imported only for heads that are trained by gradient steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from featcache.heads.config import HeadConfig
from featcache.heads.records import Progress
from featcache.heads.stopping import Interruption
from featcache.rows.notes import Report
from featcache.training.fit_result import FitResult
from featcache.training.solving import fit_solved

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from featcache.training.checkpoints import Checkpoint, Unfinished
    from featcache.training.preparation import Prepared


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
    """
    if config.architecture.solved:
        return fit_solved(prepared, config, progress=progress, report=report, interruption=interruption)
    if trainer != "featcache":
        from featcache.training.by_trainer import fit_by_trainer

        return fit_by_trainer(
            prepared,
            config,
            trainer=None if isinstance(trainer, str) else trainer,
            progress=progress,
            report=report,
            resident_bytes=resident_bytes,
            interruption=interruption,
            threads=threads,
        )
    from featcache.training.fitting import fit_prepared

    return fit_prepared(
        prepared,
        config,
        progress=progress,
        report=report,
        resident_bytes=resident_bytes,
        interruption=interruption,
        threads=threads,
        unfinished=unfinished,
        resumed=resumed,
    )
