"""How many of torch's threads a head is trained with.

Threads that wait for each other spin, and on a machine where others compute as well they wait for whole time slices:
a small head then trains tens of times slower with two threads than with one. A step that is too small to share has
one thread. For others both ways are tried for a moment, and all threads are taken where they are clearly faster.

The number changes the order in which products are summed, and so the last bits of a head: it is recorded with the
run, and `threads` pins it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from featcache.heads.architectures import HeadShape, build_head
from featcache.heads.config import HeadConfig
from featcache.rows.devices import seeded

# Multiplications of a forward pass below which a step never gains by sharing them.
SMALL_STEP = 2_000_000
# All threads have to be faster by this much, or one is taken.
_GAIN = 0.9
_TRIALS = 5
_TRIAL_ROWS = 256
# What a trial's features may take: memory is short where they are streamed.
_TRIAL_BYTES = 8 << 20
# A trial that takes this long has shown enough.
_PATIENCE_S = 0.2


@contextmanager
def training_threads(count: int | None) -> Iterator[None]:
    """Torch computes with `count` threads inside, and with as many as before outside. None: nothing is changed."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(
    config: HeadConfig,
    shape: HeadShape,
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> int | None:
    """One thread, or all that torch has now, for steps of `config` on a head of `shape`.

    None where the head is not trained on the CPU. `clock` gives seconds.
    """
    everything = torch.get_num_threads()
    if device.type != "cpu":
        return None
    if everything == 1 or multiplications(config, shape) < SMALL_STEP:
        return 1
    step = _trial(config, shape)
    spent = {1: [0.0], everything: [0.0]}
    # The first step of each makes what later ones find there.
    for trial in range(_TRIALS + 1):
        for threads, seconds in spent.items():
            with training_threads(threads):
                began = clock()
                step()
                if trial:
                    seconds.append(clock() - began)
        if sum(spent[everything]) > _PATIENCE_S:
            break
    return everything if sum(spent[everything]) < _GAIN * sum(spent[1]) else 1


def multiplications(config: HeadConfig, shape: HeadShape) -> int:
    """Those of the forward pass of one batch."""
    sizes = (shape.in_features, *shape.hidden, shape.classes)
    return config.head_batch_size * sum(wide * out for wide, out in itertools.pairwise(sizes))


def _trial(config: HeadConfig, shape: HeadShape) -> Callable[[], None]:
    """A step on a head that nobody keeps; the caller's random state is not touched."""
    rows = max(1, min(config.head_batch_size, _TRIAL_ROWS, _TRIAL_BYTES // (4 * shape.in_features)))
    with seeded(0, torch.device("cpu")):
        head = build_head(config.architecture, shape)
        features = torch.randn(rows, shape.in_features)
        labels = torch.randint(shape.classes, (rows,))
    optimizer = torch.optim.Adam(head.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        # Dropout would draw from the caller's random state.
        with seeded(0, torch.device("cpu")):
            torch.autograd.backward(F.cross_entropy(head(features), labels))
        optimizer.step()

    return step
