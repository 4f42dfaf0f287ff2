"""What came out of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featcache.heads.records import Score


@dataclass(frozen=True, kw_only=True)
class Training:
    """What came out of a training, before and after it has a folder.

    `seconds`: reading the features and fitting; not imports, the test split or writing.
    `trainable`: numbers that were learned; 0 for knn, which only remembers.
    `images`: how many images each part has. `last`: val at the last epoch, as against `val`, at the best.
    Of a head that is solved, `epochs` counts the candidates, `best_epoch` is the number of the chosen one, and `last`
    is `val`. `threads`: torch's while it was trained by steps on the CPU, else None.
    `trainer`: "featcache" or "lightning"; None for a head that is solved. `logger`: as `--logger` has it.
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
