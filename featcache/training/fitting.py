"""A head is fitted: by steps, or solved at once. Train teaches, val chooses; nothing here sees test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from featcache.heads.architectures import HeadShape, build_head, without_norms
from featcache.heads.config import HeadConfig
from featcache.heads.metrics import evaluate
from featcache.heads.records import Progress, Score
from featcache.heads.solvers import solve
from featcache.heads.standardisation import (
    Standardisation,
    StandardisedHead,
    sampled_rows,
    standardising_notes,
)
from featcache.heads.stopping import Interruption
from featcache.rows.batches import Batches, StreamedBatches
from featcache.rows.devices import seeded
from featcache.rows.notes import Report, tell
from featcache.training.augmentation import NoisyHead
from featcache.training.checkpoints import Checkpoint, Unfinished
from featcache.training.fitted import Fitted
from featcache.training.lightning import HeadModule, balanced_weights, fit
from featcache.training.preparation import Prepared, open_prepared
from featcache.training.threads import choose_threads, training_threads


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
    """Train or solve a head on train and val; the test rows are not touched.

    `resident_bytes`: as in `fit_head`; the other four: as in `fit_batches`.
    """
    if config.architecture.solved:
        return fit_solved(prepared, config, progress=progress, report=report, interruption=interruption)
    began = time.perf_counter()
    train, val = open_prepared(prepared, config, report=report, resident_bytes=resident_bytes)
    reading = time.perf_counter() - began
    tell(report, standardising_notes(len(train.rows), config))
    fitted = fit_batches(
        train,
        val,
        prepared.classes,
        config,
        progress=progress,
        interruption=interruption,
        threads=threads,
        unfinished=unfinished,
        resumed=resumed,
    )
    return replace(fitted, seconds=reading + fitted.seconds)


def fit_solved(
    prepared: Prepared,
    config: HeadConfig,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
    interruption: Interruption | None = None,
) -> Fitted:
    """The best candidate of a head that is solved at once."""
    train, val, place = prepared.rows["train"], prepared.rows["val"], prepared.place
    interruption = interruption or Interruption()
    began = time.perf_counter()
    kind = config.architecture.kind
    choice = solve(kind, train, val, prepared.classes, device=place, interruption=interruption, progress=progress)
    head = choice.candidate.build().to(place)
    seconds = time.perf_counter() - began
    tell(report, choice.notes())
    # Read once and in order: nothing is gained by holding it.
    batches = StreamedBatches(val, batch_size=config.head_batch_size, seed=config.seed, device=place)
    outcome = evaluate(head, batches)
    return Fitted(
        head=head,
        val=outcome,
        last=outcome.score(),
        history=choice.history,
        best_epoch=choice.number,
        interrupted=choice.interrupted,
        seconds=seconds,
        notes=choice.notes(),
    )


def fit_batches(
    train: Batches,
    val: Batches,
    classes: int,
    config: HeadConfig,
    *,
    progress: Progress | None = None,
    interruption: Interruption | None = None,
    threads: int | None = None,
    unfinished: Unfinished | None = None,
    resumed: Checkpoint | None = None,
) -> Fitted:
    """Train a head by steps, in the order that `train` has; the best epoch on val is kept.

    `interruption`: how Ctrl-C arrives. `threads`: torch's, on the CPU; None for what training/threads.py chooses.
    `unfinished`: where checkpoints go; None for nowhere. `resumed`: the checkpoint of the same training from which it
    goes on.
    """
    began = time.perf_counter()
    place = train.device
    interruption = interruption or Interruption()
    shape = head_shape(config, train.feature_dim, classes)
    threads = threads or choose_threads(config, shape, place)
    with training_threads(threads):
        standard = standardisation(train) if config.standardize else None
        weights = balanced_weights(train.targets, classes) if config.class_weights == "balanced" else None
        with seeded(config.seed, place):
            head = build_head(config.architecture, shape)
            module = HeadModule(
                _trained(head, config, standard),
                config,
                interruption=interruption,
                progress=progress,
                class_weights=weights,
                epoch_ended=None if unfinished is None else unfinished.epoch_ended,
            )
            if resumed is not None:
                module.resume(resumed)
            past = sum(epoch.seconds for epoch in module.history)
            interrupted = fit(module, train, val, interruption)
        # The Trainer leaves the head on the CPU.
        module.head.to(place)
        learned = _numbers(head)
        head = without_norms(head) if config.batch_norm else head
        if standard is not None:
            standard.fold_into(head)
        seconds = past + time.perf_counter() - began
        outcome = evaluate(head, val)
    last = module.history[-1]
    return Fitted(
        head=head,
        val=outcome,
        last=Score(value=last.val_score, loss=last.val_loss),
        history=tuple(module.history),
        best_epoch=module.best_epoch,
        interrupted=interrupted,
        seconds=seconds,
        folded=learned - _numbers(head),
        threads=threads,
    )


def _trained(head: nn.Module, config: HeadConfig, standard: Standardisation | None) -> nn.Module:
    """The head behind what happens to features in training alone."""
    noisy = NoisyHead(head, config.noise) if config.noise else head
    return noisy if standard is None else StandardisedHead(noisy, standard)


def _numbers(head: nn.Module) -> int:
    return sum(parameter.numel() for parameter in head.parameters())


def standardisation(batches: Batches) -> Standardisation:
    """Mean and deviation of the rows of `batches`, or of a sample of very many."""
    sample = sampled_rows(len(batches.rows))

    def read() -> Iterator[Tensor]:
        if sample is None:
            return (features for features, _ in batches.in_order(reuse=True))
        return batches.features_of(sample, reuse=True)

    return Standardisation.over(read, wide=batches.feature_dim)


def head_shape(config: HeadConfig, in_features: int, classes: int) -> HeadShape:
    """What building the head of `config` needs."""
    return HeadShape(
        in_features=in_features,
        classes=classes,
        hidden=config.architecture.hidden,
        activation=config.activation,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )
