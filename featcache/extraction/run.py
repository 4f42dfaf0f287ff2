"""images + backbone -> cache: resolve the request, find the existing rows, compute the others, publish the cache."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

from featcache.cache.catalog import CacheEntry
from featcache.cache.locks import Owner, lock_cache
from featcache.cache.reader import FeatureCache
from featcache.config import from_command_words
from featcache.errors import InvalidOption
from featcache.extraction.execution import ALL_GPUS
from featcache.extraction.execution import Execution as Execution
from featcache.extraction.inventory import Inventory
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.request import Request
from featcache.extraction.resolve import Job, resolve
from featcache.extraction.result import Computed, Extraction, report_cache, report_existing
from featcache.files import disk_errors


def extract(request: Request, execution: Execution | None = None, *, reporter: Reporter | None = None) -> Extraction:
    """Make the cache that `request` describes, if it does not exist. Only rows that no other cache has are computed.

    Args:
        request: The images, the backbone and how features are stored.
        execution: How the extraction runs; None: the defaults.
        reporter: Receives messages and progress; None: the logger "featcache".

    Returns:
        The cache, and what was computed and reused.

    Raises:
        FeatcacheError: The extraction failed. Finished segments are kept, and the same call continues from there.
    """
    began = time.monotonic()
    (done,) = extract_each([request], execution, reporter=reporter)
    return replace(done, seconds=time.monotonic() - began)


def extract_each(
    requests: Sequence[Request], execution: Execution | None = None, *, reporter: Reporter | None = None
) -> tuple[Extraction, ...]:
    """Like `extract` for several backbones over the same images, which are listed, read, hashed and decoded once.

    Args:
        requests: One for each backbone. Each has its own cache, segments and lock.
        execution: How the extractions run; None: the defaults.
        reporter: Receives messages and progress; None: the logger "featcache".

    Returns:
        A result for each request; `seconds` and `images_per_s` count the time spent on it alone.

    Raises:
        InvalidOption: The requests differ in their images, or two have the same backbone.
        FeatcacheError: What `extract` raises.
    """
    execution, reporter = execution or Execution(), reporter or LogReporter()
    with disk_errors(requests[0].data_dir):
        if execution.device == ALL_GPUS:
            from featcache.extraction.gpus import extract_on_all_gpus

            return extract_on_all_gpus(requests, execution, reporter)
        with resolve(requests, execution, reporter) as jobs:
            return carry_out(jobs)


def assemble(
    request: Request,
    execution: Execution | None = None,
    *,
    name: str | None = None,
    reporter: Reporter | None = None,
) -> Extraction:
    """Publish the cache that `request` describes from segments that shards have written; nothing is computed.

    Args:
        request, execution, reporter: As for `extract`.
        name: The name that the cache must have; None for any.

    Returns:
        The cache.

    Raises:
        CacheIncomplete: Rows are missing.
        InvalidOption: The cache has another name.
        FeatcacheError: What `extract` raises.
    """
    with (
        disk_errors(request.data_dir),
        resolve([request], execution or Execution(), reporter or LogReporter()) as (job,),
    ):
        if name not in (None, expected := Inventory(job=job).name):
            raise InvalidOption(f"{name} was called {expected} when it was begun", hint="give it this name again")
        (done,) = carry_out([job], assembles=True)
    return done


def assemble_cache(
    entry: CacheEntry, execution: Execution | None = None, *, reporter: Reporter | None = None
) -> Extraction:
    """`assemble` for a cache where it lies, by the command that its manifest records.

    Args:
        entry: The cache, unfinished or complete. One that is packed is reported as it is.
        execution: Whether to pack, and what to do at images that cannot be read.
        reporter: Where progress and remarks go.

    Raises:
        InvalidOption: A packed cache is not to be packed, its images were given from Python, or it was moved out of the
            features folder of a data folder, or renamed.
        CacheIncomplete: Rows are missing.
    """
    execution = execution or Execution()
    if entry.command is None:
        if execution.pack is False:
            raise InvalidOption(f"{entry.name} is packed already", hint="extract again with --no-pack")
        with FeatureCache.open(entry.require_complete()) as cache:
            return report_existing(cache)
    words = shlex.split(entry.command)
    if words[:2] != ["featcache", "extract"]:
        raise InvalidOption(
            f"the images of {entry.name} were given from Python, expected a command that names them",
            hint=f"call {entry.command} again: rows that are there are not computed again",
        )
    features = entry.path.absolute().parent
    request = from_command_words(Request, words[2:], data_dir=features.parent)
    if request.features_dir != features:
        raise InvalidOption(f"{entry.path} is not in a folder called features", hint="move it back to DATA/features")
    return assemble(request, execution, name=entry.name, reporter=reporter)


def carry_out(jobs: Sequence[Job], *, assembles: bool = False, locks: bool = True) -> tuple[Extraction, ...]:
    """Do all of some jobs over the same images, and return their results in the same order.

    Args:
        jobs: As `resolve` yields them.
        assembles: Compute nothing; publish what other processes have computed.
        locks: Whether to lock the caches; False where the caller holds the locks.

    Raises:
        CacheBusy: Another process writes one of the caches, and `wait` is off.
        CacheIncomplete: Rows are missing, and `assembles` forbids to compute them.
    """
    inventories = [Inventory(job=job) for job in jobs]
    # A cache that exists already needs no lock, so the folder may be read-only.
    done = {one: hit for one in inventories if (hit := _look(one, assembles)) is not None}
    left = [one for one in inventories if one not in done]
    with ExitStack() as held:
        # Acquire locks in a fixed order, to avoid a deadlock.
        for one in sorted(left, key=lambda one: one.name) if locks else ():
            held.enter_context(lock(one))
        if left:
            # Imported only when rows are missing: the modules that compute need torch.
            from featcache.extraction.complete import complete_caches

            done |= complete_caches(left, assembles=assembles)
    return tuple(done[one] for one in inventories)


def lock(inventory: Inventory) -> AbstractContextManager[object]:
    """Lock the cache of an extraction. Raises CacheBusy where another process has it and `wait` is off."""
    job = inventory.job

    def waiting(owner: Owner | None) -> None:
        writer = owner or "another process"
        job.reporter.info(f"waiting: {writer} is writing this cache (--no-wait stops instead)")

    return lock_cache(
        job.request.features_dir,
        inventory.name,
        shared=job.execution.shard is not None,
        wait=job.execution.wait,
        waiting=waiting,
    )


def _look(inventory: Inventory, assembles: bool) -> Extraction | None:
    """The result, where one complete cache has every row already; else None. Nothing is locked or written."""
    with inventory.job.watch:
        found = inventory.hit(inventory.existing_cache(), assembles=assembles)
        if found is None:
            return None
        inventory.discard_leftovers(found)
    return report_cache(inventory.job, found, Computed())
