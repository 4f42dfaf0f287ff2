"""Several jobs over the same images, in turns: the one that is furthest behind computes its next batch.

So an image is decoded once, and is kept for no longer than a few batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing

from featcache.extraction.job import Job, Steps
from featcache.extraction.result import Extraction

_NOT_BEGUN = -2


def side_by_side(jobs: Sequence[Job], *, wait: bool) -> tuple[Extraction, ...]:
    """Does all of them, and returns their results in the same order. Raises CacheBusy unless `wait`."""
    # What is there already needs no lock, and so no folder that can be written.
    done = {number: hit for number, job in enumerate(jobs) if (hit := job.hit()) is not None}
    left = [number for number in range(len(jobs)) if number not in done]
    with ExitStack() as held:
        # Acquire locks in a fixed order, to avoid deadlock.
        for number in sorted(left, key=lambda number: jobs[number].name):
            held.enter_context(jobs[number].lock(wait=wait))
        steps = [held.enter_context(closing(jobs[number].steps())) for number in left]
        done |= dict(zip(left, _in_turns(steps), strict=True))
    return tuple(done[number] for number in range(len(jobs)))


def _in_turns(steps: Sequence[Steps]) -> tuple[Extraction, ...]:
    reached = dict.fromkeys(range(len(steps)), _NOT_BEGUN)
    done: dict[int, Extraction] = {}
    while reached:
        behind = min(reached, key=reached.__getitem__)
        try:
            reached[behind] = next(steps[behind])
        except StopIteration as end:
            done[behind] = end.value
            del reached[behind]
    return tuple(done[job] for job in range(len(steps)))
