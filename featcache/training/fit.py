"""A head for prepared rows: solved at once, or trained by steps, by featcache's engine or by Lightning's Trainer.

torch is imported for a head that is trained by steps, and not for one that is solved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from featcache.heads.config import HeadConfig
from featcache.heads.records import Progress
from featcache.heads.stopping import Interruption
from featcache.rows.notes import Report
from featcache.training.fitted import Fitted
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
) -> Fitted:
    """Fit a head on train and val; the test rows are not touched.

    Args:
        prepared: The rows.
        config: The head's options.
        progress: Called with every epoch, or with every candidate of a head that is solved.
        report: Called with a sentence about whatever was left out.
        resident_bytes: The most that features may take on the device before they are streamed.
        interruption: How Ctrl-C arrives.
        threads: Torch's, on the CPU; None for what is measured to be fastest.
        unfinished: Where checkpoints go; None for nowhere. With a Trainer there are none.
        resumed: The checkpoint from which the training goes on.
        trainer: `featcache` for its own engine, `lightning` for a Trainer with the options' epochs and patience, or
            one's own Trainer.
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
