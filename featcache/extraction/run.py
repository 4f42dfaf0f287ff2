"""images + backbone -> cache, in one sentence: resolve, look which rows there are, compute the others, publish."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

from featcache.cache.locks import Owner, locked
from featcache.extraction.execution import ALL_GPUS
from featcache.extraction.execution import Execution as Execution
from featcache.extraction.inventory import Inventory
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.request import Request
from featcache.extraction.resolve import Job, resolve
from featcache.extraction.result import Computed, Extraction, report_cache
from featcache.files import disk_errors


def extract(request: Request, execution: Execution | None = None, *, reporter: Reporter | None = None) -> Extraction:
    """Makes sure that the cache `request` describes is there, computing only rows that no other has.

    Raises FeatcacheError; whatever was finished before stands, and the same call goes on from there.
    """
    began = time.monotonic()
    (done,) = extract_each([request], execution, reporter=reporter)
    return replace(done, seconds=time.monotonic() - began)


def extract_each(
    requests: Sequence[Request], execution: Execution | None = None, *, reporter: Reporter | None = None
) -> tuple[Extraction, ...]:
    """The same for several backbones over the same images, which are listed, read, hashed and decoded once.

    Each has a cache, segments and a lock of its own; `seconds` and `images_per_s` count the time spent on it alone.
    Raises InvalidOption where the requests differ in their images, or two ask for the same backbone.
    """
    execution, reporter = execution or Execution(), reporter or LogReporter()
    with disk_errors(requests[0].data_dir):
        if execution.device == ALL_GPUS:
            from featcache.extraction.gpus import extract_on_all_gpus

            return extract_on_all_gpus(requests, execution, reporter)
        with resolve(requests, execution, reporter) as jobs:
            return carry_out(jobs)


def assemble(request: Request, execution: Execution | None = None, *, reporter: Reporter | None = None) -> Extraction:
    """Publishes the cache `request` describes from segments that shards have written; nothing is computed.

    Raises CacheIncomplete where rows are missing, and what `extract` raises.
    """
    with (
        disk_errors(request.data_dir),
        resolve([request], execution or Execution(), reporter or LogReporter()) as jobs,
    ):
        (done,) = carry_out(jobs, assembles=True)
    return done


def carry_out(jobs: Sequence[Job], *, assembles: bool = False, locks: bool = True) -> tuple[Extraction, ...]:
    """Do all of some jobs over the same images, and return their results in the same order.

    Args:
        jobs: As `resolve` gives them.
        assembles: Nothing is computed: what others have computed is published.
        locks: Whether other processes are kept from writing the same caches; False where the caller does.

    Raises:
        CacheBusy: Another process writes one of the caches, and `wait` is off.
        CacheIncomplete: Rows are missing, and nothing is to be computed.
    """
    inventories = [Inventory(job=job) for job in jobs]
    # What is there already needs no lock, and so no folder that can be written.
    done = {one: hit for one in inventories if (hit := _look(one, assembles)) is not None}
    left = [one for one in inventories if one not in done]
    with ExitStack() as held:
        # In a fixed order, to avoid a deadlock.
        for one in sorted(left, key=lambda one: one.name) if locks else ():
            held.enter_context(lock(one))
        if left:
            # Only now: where everything is there, nothing that computes is imported.
            from featcache.extraction.complete import complete

            done |= complete(left, assembles=assembles)
    return tuple(done[one] for one in inventories)


def lock(inventory: Inventory) -> AbstractContextManager[object]:
    """Keeps others from writing the same cache; raises CacheBusy where that is not waited for."""
    job = inventory.job

    def waiting(owner: Owner | None) -> None:
        writer = owner or "another process"
        job.reporter.say(f"waiting: {writer} is writing this cache (--no-wait stops instead)")

    return locked(
        job.request.features_dir,
        inventory.name,
        shared=job.execution.shard is not None,
        wait=job.execution.wait,
        waiting=waiting,
    )


def _look(inventory: Inventory, assembles: bool) -> Extraction | None:
    """The result where every row is in one complete cache already; nothing is locked or written."""
    with inventory.job.watch:
        found = inventory.hit(inventory.standing(), assembles=assembles)
        if found is None:
            return None
        inventory.discard_leftovers(found)
    return report_cache(inventory.job, found, Computed())
