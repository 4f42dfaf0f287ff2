"""Extraction on all GPUs of one machine: one process per GPU, each with a share of the images, as with `--shard`."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from featcache.backbones import devices
from featcache.errors import InvalidOption
from featcache.extraction.execution import ALL_GPUS, Execution
from featcache.extraction.processes import run_in_new_process
from featcache.extraction.reporting import Reporter, split_reporter
from featcache.extraction.request import Request
from featcache.extraction.resolve import resolve
from featcache.extraction.result import Extraction
from featcache.extraction.run import extract_each
from featcache.extraction.units import Shard


@dataclass(frozen=True, kw_only=True)
class _Share:
    requests: tuple[Request, ...]
    execution: Execution


def extract_on_all_gpus(
    requests: Sequence[Request], execution: Execution, reporter: Reporter
) -> tuple[Extraction, ...]:
    """Like `extract_each`, with a share of the images on every GPU.

    Raises:
        InvalidOption: There is no GPU, `shard` is set too, or images or backbone are objects of this process.
        FeatcacheError: A share failed; raised after the others have ended.
    """
    began, gpus = time.monotonic(), devices.all_gpus()
    if execution.shard is not None:
        raise InvalidOption(f"--device {ALL_GPUS} divides the work itself: leave --shard or --device out")
    if any(one.location.is_object or not isinstance(one.backbone, str) for one in requests):
        raise InvalidOption(
            f"--device {ALL_GPUS}: every process opens images and backbone itself: expected a data set's path or name "
            "and a backbone's name",
            hint="name one device for arrays and modules of your own",
        )
    requests = _without_auto(requests, replace(execution, device=gpus[0]), reporter)
    reporters = split_reporter(_LockingReporter(reporter), list(gpus)) if len(gpus) > 1 else [reporter]
    shares = [
        _Share(
            requests=tuple(requests),
            execution=replace(execution, device=gpu, shard=Shard(number=number, of=len(gpus))),
        )
        for number, gpu in enumerate(gpus)
    ]
    with ThreadPoolExecutor(len(gpus), thread_name_prefix="gpu") as pool:
        running = [
            pool.submit(run_in_new_process, _extract, share, its_reporter)
            for share, its_reporter in zip(shares, reporters, strict=True)
        ]
    found = [one.result().result for one in running]
    return tuple(_combine(of_request, time.monotonic() - began) for of_request in zip(*found, strict=True))


def _without_auto(requests: Sequence[Request], execution: Execution, reporter: Reporter) -> list[Request]:
    """The requests with precision and runner resolved, so that the processes need not measure them."""
    with resolve(requests, execution, reporter) as jobs:
        return [
            one if job.backbone.stores_bytes else replace(one, precision=job.spec.precision, runner=job.spec.runner)  # type: ignore[arg-type]
            for one, job in zip(requests, jobs, strict=True)
        ]


def _extract(share: _Share, reporter: Reporter) -> tuple[Extraction, ...]:
    return extract_each(share.requests, share.execution, reporter=reporter)


def _combine(shares: Sequence[Extraction], seconds: float) -> Extraction:
    """The result of the share that ended last and published the cache, with the numbers of all shares added up."""
    whole = next((one for one in shares if one.complete), shares[0])
    computed = sum(one.computed for one in shares)
    rates = [one.images_per_s for one in shares if one.images_per_s is not None]
    return replace(
        whole,
        computed=computed,
        reused=max(0, sum(whole.rows.values()) - computed),
        images_per_s=sum(rates) if rates else None,
        seconds=seconds,
    )


class _LockingReporter:
    """A Reporter that several threads may call."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._lock = reporter, threading.Lock()

    def info(self, text: str) -> None:
        with self._lock:
            self._reporter.info(text)

    def warn(self, text: str) -> None:
        with self._lock:
            self._reporter.warn(text)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        with self._lock:
            self._reporter.advance(stage, done, total, bound=bound)
