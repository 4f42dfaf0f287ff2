"""The record of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featcache.display import Shown
from featcache.heads.records import Score


@dataclass(frozen=True, kw_only=True, repr=False)
class Training(Shown):
    """The outcome of a training. For a head that is solved, candidates take the place of epochs.

    Attributes:
        trainable: Number of learned parameters; 0 for knn, which stores the train rows.
        frozen: Number of parameters of the backbone; None if unknown.
        images: Number of images of each part.
        epochs: Number of epochs, or of candidates.
        best_epoch: The selected epoch or candidate, counted from 1.
        interrupted: Whether Ctrl-C ended it.
        seconds: Time to read the features and fit; without imports, the test split and writing.
        val: Score on val of the best epoch.
        last: Score on val of the last epoch; for a head that is solved, `val`.
        test: Score on test; None without test images.
        device: The device, as text.
        notes: Sentences about the training.
        threads: Number of torch threads, if trained by steps on the CPU; else None.
        trainer: "featcache" or "lightning"; None for a head that is solved.
        logger: The value of `--logger`.
    """

    trainable: int
    frozen: int | None
    images: Mapping[str, int]
    epochs: int
    best_epoch: int
    interrupted: bool
    seconds: float
    val: Score
    last: Score
    test: Score | None
    device: str
    notes: tuple[str, ...] = field(default=())
    threads: int | None = None
    trainer: str | None = None
    logger: str | None = None
