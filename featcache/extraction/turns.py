"""Several jobs over the same images, in turns: whoever is furthest behind computes its next batch.

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
    with ExitStack() as held:
        # Everybody takes locks in this order: nobody waits for somebody who waits for him.
        for job in sorted(jobs, key=lambda job: job.cache_path.stem):
            held.enter_context(job.lock(wait=wait))
        steps = [held.enter_context(closing(job.steps())) for job in jobs]
        return _in_turns(steps)


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
