"""One head is trained by steps. Train teaches, val chooses; nothing here sees test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord, Progress
from featcache.heads.standardisation import Standardisation, sampled_rows, standardising_notes
from featcache.heads.stopping import Interruption
from featcache.heads.target_scale import TargetScale
from featcache.rows.batches import Batches
from featcache.rows.notes import Report, tell
from featcache.rows.target import HeadTarget
from featcache.training.checkpoints import Checkpoint, Unfinished
from featcache.training.engine import Engine
from featcache.training.evaluation import evaluate
from featcache.training.finished import finished_head, numbers_in
from featcache.training.fitted import Fitted
from featcache.training.preparation import Prepared, open_prepared
from featcache.training.stacking import Setting
from featcache.training.threads import training_threads
from featcache.training.trial import Scaling, Source, Trial

# What a batch norm has counted, not learned.
_COUNTED = ("running_mean", "running_var", "num_batches_tracked")


def fit_prepared(
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
) -> Fitted:
    """Train a head by steps on the rows of train and val, which are opened first.

    `fit` (training/fit.py) has the same arguments and explains them. Raises what `fit_batches` raises.
    """
    began = time.perf_counter()
    train, val = open_prepared(prepared, config, report=report, resident_bytes=resident_bytes)
    reading = time.perf_counter() - began
    tell(report, standardising_notes(len(train.rows), config))
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
    return replace(fitted, seconds=reading + fitted.seconds)


def fit_batches(
    train: Batches,
    val: Batches,
    target: HeadTarget,
    config: HeadConfig,
    *,
    progress: Progress | None = None,
    interruption: Interruption | None = None,
    threads: int | None = None,
    unfinished: Unfinished | None = None,
    resumed: Checkpoint | None = None,
) -> Fitted:
    """Train a head by steps, in the order that `train` has; the best epoch on val is kept.

    Args:
        train: What it learns from.
        val: What chooses the epoch.
        target: What it learns.
        config: Its options.
        progress: Called with every epoch.
        interruption: How Ctrl-C arrives. It keeps the best epoch so far; before the first there is none.
        threads: Torch's, on the CPU; None for what is measured to be fastest.
        unfinished: Where checkpoints go; None for nowhere.
        resumed: The checkpoint of the same training from which it goes on.

    Raises:
        KeyboardInterrupt: After a Ctrl-C before the first epoch was done, and after a second one.
        HeadError: The loss stops being finite.
    """
    began = time.perf_counter()
    interruption = interruption or Interruption()
    trial = Trial(config, metric=target.metric)
    source = source_of(train, config, target)

    def checkpoint() -> None:
        if unfinished is not None:
            unfinished.epoch_ended(engine.state)

    def epoch_ended(_: Trial, record: EpochRecord) -> None:
        if progress is not None:
            progress(record)

    engine = Engine(
        [trial],
        [source],
        val,
        target=target,
        interruption=interruption,
        epoch_ended=epoch_ended,
        checkpoint=checkpoint,
        setting=Setting(threads=threads),
    )
    if resumed is not None:
        engine.restore(resumed.progress, resumed.tensors)
    past = trial.seconds
    with interruption:
        try:
            engine.train()
        except KeyboardInterrupt:
            if not trial.history or interruption.insisted:
                raise
    trial.require_sound()
    head = finished_head(trial, source.scaling, target, train.feature_dim)
    seconds = past + time.perf_counter() - began
    return fitted_trial(trial, head, val, target, source.scaling, seconds=seconds)


def fitted_trial(
    trial: Trial, head: nn.Module, val: Batches, target: HeadTarget, scaling: Scaling, *, seconds: float
) -> Fitted:
    """The finished head of a trial, judged on val."""
    with training_threads(trial.threads):
        outcome = evaluate(head, val, target, scale=scaling.deviations, loss=trial.config.loss)
    return Fitted(
        head=head,
        val=outcome,
        last=trial.last,
        history=tuple(trial.history),
        best_epoch=trial.best_epoch,
        interrupted=trial.interrupted,
        seconds=seconds,
        folded=0 if trial.config.architecture.own else learned_numbers(trial) - numbers_in(head),
        notes=_loss_notes(trial.config),
        threads=trial.threads,
    )


def _loss_notes(config: HeadConfig) -> tuple[str, ...]:
    if config.own_loss is None:
        return ()
    return (
        f"epochs are trained and chosen by the loss {config.own_loss}; the losses of val and test are those that "
        "featcache has for such a target",
    )


def learned_numbers(trial: Trial) -> int:
    """How many numbers were trained."""
    return sum(tensor.numel() for name, tensor in trial.best.items() if not name.endswith(_COUNTED))


def source_of(train: Batches, config: HeadConfig, target: HeadTarget) -> Source:
    """The batches of a training with what standardises them."""
    return Source(batches=train, scaling=scaling_of(train, config, target))


def scaling_of(train: Batches, config: HeadConfig, target: HeadTarget) -> Scaling:
    """What standardises these rows for a head with these options."""
    return Scaling(
        features=standardisation(train) if config.standardize else None,
        targets=TargetScale.of(train.rows.targets) if target.kind == "numbers" else None,
    )


def standardisation(batches: Batches) -> Standardisation:
    """Mean and deviation of the rows of `batches`, or of a sample of very many."""
    sample = sampled_rows(len(batches.rows))

    def read() -> Iterator[Tensor]:
        if sample is None:
            return (features for features, _ in batches.in_order(reuse=True))
        return batches.features_of(sample, reuse=True)

    return Standardisation.over(read, wide=batches.feature_dim)
