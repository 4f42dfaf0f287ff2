"""How many of torch's threads a head is trained with.

Threads that wait for each other spin, and on a machine where others compute as well they wait for whole time slices:
a small head then trains tens of times slower with two threads than with one. A step that is too small to share has
one thread. For others both numbers are tried for a moment (training/stacking.py), and all threads are taken where they
are clearly faster.

The number changes the order in which products are summed, and so the last bits of a head: it is recorded with the
run, and `threads` pins it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
