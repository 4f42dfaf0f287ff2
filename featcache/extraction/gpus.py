"""All GPUs of one machine: each computes a share of the images in a process of its own, as `--shard` does."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from featcache.backbones import devices
from featcache.errors import InvalidOption
from featcache.extraction.execution import ALL_GPUS, Execution
from featcache.extraction.processes import run_apart
from featcache.extraction.reporting import Reporter, taking_turns
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
    """`extract_each`, with a share of the images on every GPU.

    Raises:
        InvalidOption: There is no GPU, a share was asked for too, or images or backbone are objects of this process.
        FeatcacheError: What a share raises, after the others have ended.
    """
    began, gpus = time.monotonic(), devices.all_gpus()
    if execution.shard is not None:
        raise InvalidOption(f"--device {ALL_GPUS} cuts the work itself: leave one of --shard and --device out")
    if any(one.location.is_object or not isinstance(one.backbone, str) for one in requests):
        raise InvalidOption(
            f"--device {ALL_GPUS}: every process opens images and backbone itself: expected a data set's path or name "
            "and a backbone's name",
            hint="name one device for arrays and modules of your own",
        )
    requests = _settled(requests, replace(execution, device=gpus[0]), reporter)
    reporters = taking_turns(_Locked(reporter), list(gpus)) if len(gpus) > 1 else [reporter]
    shares = [
        _Share(
            requests=tuple(requests),
            execution=replace(execution, device=gpu, shard=Shard(number=number, of=len(gpus))),
        )
        for number, gpu in enumerate(gpus)
    ]
    with ThreadPoolExecutor(len(gpus), thread_name_prefix="gpu") as pool:
        running = [pool.submit(run_apart, _extract, share, told) for share, told in zip(shares, reporters, strict=True)]
    found = [one.result().result for one in running]
    return tuple(_together(of_request, time.monotonic() - began) for of_request in zip(*found, strict=True))


def _settled(requests: Sequence[Request], execution: Execution, reporter: Reporter) -> list[Request]:
    """The requests with nothing that each process would have to measure for itself."""
    with resolve(requests, execution, reporter) as jobs:
        return [
            one if job.backbone.stores_bytes else replace(one, precision=job.spec.precision, runner=job.spec.runner)  # type: ignore[arg-type]
            for one, job in zip(requests, jobs, strict=True)
        ]


def _extract(share: _Share, reporter: Reporter) -> tuple[Extraction, ...]:
    return extract_each(share.requests, share.execution, reporter=reporter)


def _together(shares: Sequence[Extraction], seconds: float) -> Extraction:
    """The result of the share that ended last, which published the cache, with what all of them computed."""
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


class _Locked:
    """A Reporter that several threads speak to."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._lock = reporter, threading.Lock()

    def say(self, text: str) -> None:
        with self._lock:
            self._reporter.say(text)

    def warn(self, text: str) -> None:
        with self._lock:
            self._reporter.warn(text)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        with self._lock:
            self._reporter.advance(stage, done, total, bound=bound)
