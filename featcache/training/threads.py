"""Set the number of torch's threads for training.

Threads wait for each other in busy loops, and on a machine that also runs other programs they wait for whole time
slices: a small head then trains tens of times slower with two threads than with one. So small steps use one thread. For
larger ones, both numbers are measured for a moment (training/stacking.py), and all threads are used if they are clearly
faster.

The number of threads changes the order in which products are summed, and so the last bits of a head. It is recorded
with the run, and the option `threads` sets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def training_threads(count: int | None) -> Iterator[None]:
    """Set torch's threads to `count` inside the `with` block, and restore them afterwards. None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
