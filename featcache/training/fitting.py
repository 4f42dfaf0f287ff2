"""Train one head by gradient steps on train, and choose its best epoch on val. Test is not read here."""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import Tensor, nn

from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord, Progress
from featcache.heads.standardisation import Standardisation, sample_rows
from featcache.heads.stopping import Interruption
from featcache.heads.target_scale import TargetScale
from featcache.rows.batches import Batches
from featcache.rows.target import HeadTarget
from featcache.training.checkpoints import Checkpoint, Unfinished
from featcache.training.engine import Engine
from featcache.training.evaluation import evaluate
from featcache.training.finished import final_head, parameter_count
from featcache.training.fit_result import FitResult
from featcache.training.stacking import Setting
from featcache.training.texts import text_notes
from featcache.training.threads import training_threads
from featcache.training.trial import Scaling, Source, Trial

# Statistics of batch norms, which are not learned by gradients.
_COUNTED = ("running_mean", "running_var", "num_batches_tracked")


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
) -> FitResult:
    """Train a head by gradient steps, in the order of `train`, and return the head of the best epoch on val.

    Args:
        train: The train batches.
        val: The val batches, which choose the epoch.
        target: The target.
        config: The head's options.
        progress: Called with the record of every epoch.
        interruption: Handles Ctrl-C, after which the best epoch so far is returned.
        threads: Torch's threads on the CPU; None for the fastest number by measurement.
        unfinished: The folder for checkpoints; None for no checkpoints.
        resumed: The checkpoint of the same training to resume from.

    Raises:
        KeyboardInterrupt: After a Ctrl-C before the first epoch has ended, and after a second one.
        HeadError: The loss became infinite or NaN.
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
            if not trial.history or interruption.aborted:
                raise
    trial.require_finite()
    head = final_head(trial, source.scaling, target, train.feature_dim)
    seconds = past + time.perf_counter() - began
    return fit_result_of(trial, head, val, target, source.scaling, seconds=seconds)


def fit_result_of(
    trial: Trial, head: nn.Module, val: Batches, target: HeadTarget, scaling: Scaling, *, seconds: float
) -> FitResult:
    """The result of a trial with its final head, which is evaluated on val."""
    with training_threads(trial.threads):
        outcome = evaluate(head, val, target, scale=scaling.deviations, loss=trial.config.loss)
    return FitResult(
        head=head,
        val=outcome,
        last=trial.last,
        history=tuple(trial.history),
        best_epoch=trial.best_epoch,
        interrupted=trial.interrupted,
        seconds=seconds,
        folded=0 if trial.config.architecture.own else count_trained(trial) - parameter_count(head),
        notes=(*_loss_notes(trial.config), *text_notes(trial.config, val.rows, target)),
        threads=trial.threads,
    )


def _loss_notes(config: HeadConfig) -> tuple[str, ...]:
    if config.own_loss is None:
        return ()
    return (
        f"the loss {config.own_loss} is used for training and to choose the epoch; the losses of val and test are "
        "featcache's default for this kind of target",
    )


def count_trained(trial: Trial) -> int:
    """Number of parameters that were trained."""
    return sum(tensor.numel() for name, tensor in trial.best.items() if not name.endswith(_COUNTED))


def source_of(train: Batches, config: HeadConfig, target: HeadTarget) -> Source:
    """The batches of a training with their standardisation."""
    return Source(batches=train, scaling=scaling_of(train, config, target))


def scaling_of(train: Batches, config: HeadConfig, target: HeadTarget) -> Scaling:
    """The standardisation of these rows for a head with these options."""
    return Scaling(
        features=standardisation(train) if config.standardize else None,
        targets=TargetScale.of(train.rows.targets) if target.kind == "numbers" else None,
    )


def standardisation(batches: Batches) -> Standardisation:
    """Mean and standard deviation of the rows of `batches`, or of a sample if there are very many."""
    sample = sample_rows(len(batches.rows))

    def read() -> Iterator[Tensor]:
        if sample is None:
            return (features for features, _ in batches.in_order(reuse=True))
        return batches.features_of(sample, reuse=True)

    return Standardisation.over(read, wide=batches.feature_dim)
