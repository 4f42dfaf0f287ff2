"""Extraction on a Ray cluster: tasks compute units of an extraction and write them as segments into a shared folder.

The driver sends only the numbers of units; pixels and features never enter the object store. A worker process loads
the backbone once and keeps it. A worker that dies is replaced by Ray, a task that hangs is cancelled after its
deadline, a unit that fails is tried three times. A unit that is computed twice is harmless, and a segment that is
written is never computed again.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from featcache.cache.catalog import MARK
from featcache.errors import ExtractionError, FeatcacheError, InvalidOption, MissingExtra
from featcache.extraction.compute import compute
from featcache.extraction.cut import Cut, cut, cut_from_manifest
from featcache.extraction.execution import Cluster as Cluster
from featcache.extraction.execution import Execution
from featcache.extraction.inventory import Inventory
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.request import Request
from featcache.extraction.resolve import resolve
from featcache.extraction.result import Computed, Extraction, report_cache
from featcache.extraction.run import carry_out, lock
from featcache.files import disk_errors

_ATTEMPTS = 3
# Tasks per slot: with one queued, a worker that is done never waits for the driver.
_QUEUED_PER_SLOT = 2
_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a worker needs to know about the extraction; `key` identifies one run of the driver."""

    key: str
    folder: Path
    request: Request
    execution: Execution
    threads: int

    def mark(self, task: int) -> Path:
        """The file that a task creates when it begins, before anything that may hang."""
        return self.folder / f"{MARK}{self.key}-{task}"


def extract_on_ray(
    request: Request, execution: Execution, cluster: Cluster, *, reporter: Reporter | None = None
) -> Extraction:
    """Like `extract`, with the units computed by tasks of a Ray cluster that shares the data folder.

    Raises:
        MissingExtra: Ray is not installed.
        ExtractionError: A unit failed three times; its images are named.
        FeatcacheError: What `extract` raises.
    """
    ray, began, reporter = _ray(), time.monotonic(), reporter or LogReporter()
    if request.location.is_object or not isinstance(request.backbone, str):
        raise InvalidOption(
            "on a cluster every worker opens images and backbone itself: expected a data set's path or name and a "
            "backbone's name",
            hint="leave --engine out for arrays and modules of your own",
        )
    with disk_errors(request.data_dir), resolve([request], execution, reporter) as (job,):
        inventory = Inventory(job=job)
        if (found := inventory.hit(inventory.existing_cache())) is not None:
            return report_cache(job, found, Computed())
        computed, rate = 0, None
        with lock(inventory):
            begun = cut(inventory, inventory.existing_cache())
            if begun is not None and begun.todo:
                with _connect(ray, cluster):
                    work = _work(request, execution, cluster, inventory.folder)
                    computed, rate = _Driver(ray, begun, cluster, work, reporter).run()
            (done,) = carry_out([job], assembles=True, locks=False)
    reused = max(0, sum(done.rows.values()) - computed)
    seconds = time.monotonic() - began
    return replace(done, computed=computed, reused=reused, images_per_s=rate, seconds=seconds)


def _ray() -> Any:
    # Set before the import, because Ray reads it when it is loaded.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("--engine ray", package="ray", extra="ray") from error
    return ray


def _connect(ray: Any, cluster: Cluster) -> ExitStack:
    """Connect to the cluster; the returned context disconnects, unless this process was connected before."""
    stack = ExitStack()
    if not ray.is_initialized():
        here = {} if cluster.address else {"include_dashboard": False}
        ray.init(address=cluster.address, log_to_driver=False, **here)
        stack.callback(ray.shutdown)
    return stack


def _work(request: Request, execution: Execution, cluster: Cluster, folder: Path) -> _Work:
    # Absolute paths are the same on every node; relative ones depend on the folder a process runs in.
    weights, data_dir = Path(request.weights), request.data_dir.resolve()
    there = weights.resolve() if weights.is_file() else request.weights
    request = replace(request, dataset=request.origin, split_by_folder=(), weights=there, data_dir=data_dir)
    return _Work(
        key=secrets.token_hex(8),
        folder=folder.resolve(),
        request=request,
        execution=replace(execution, wait=True),
        threads=cluster.cpus_per_task,
    )


@dataclass(kw_only=True)
class _Task:
    unit: int
    number: int
    begun: float | None = None


class _Driver:
    """Gives units to the cluster until all are done, and reports progress."""

    def __init__(self, ray: Any, begun: Cut, cluster: Cluster, work: _Work, reporter: Reporter) -> None:
        self._ray, self._cut, self._cluster, self._work, self._reporter = ray, begun, cluster, work, reporter
        # A worker that dies does not count as a failed task (max_retries). Workers keep their backbone (max_calls).
        options = {"max_retries": -1, "max_calls": 0, "scheduling_strategy": "SPREAD"}
        self._remote = ray.remote(num_cpus=cluster.cpus_per_task, num_gpus=cluster.gpus_per_task, **options)(
            _compute_unit
        )
        self._waiting = deque(number for number, unit in enumerate(begun.units) if unit in begun.todo)
        self._tasks: dict[Any, _Task] = {}
        self._tries: Counter[int] = Counter()
        self._failed: dict[int, str] = {}
        self._rows: Counter[str] = Counter()
        self._numbers = count()
        # When a task last began or ended, and how long the next such event may take.
        self._last_event_s, self._patience_s = time.monotonic(), cluster.deadline_s

    def run(self) -> tuple[int, float]:
        """Compute all units. Returns how many images were computed, and images/s over all nodes.

        Raises ExtractionError.
        """
        began, total = time.monotonic(), len(self._waiting)
        try:
            while self._waiting or self._tasks:
                while self._waiting and len(self._tasks) < self._at_once():
                    task = _Task(unit=self._waiting.popleft(), number=next(self._numbers))
                    self._tries[task.unit] += 1
                    self._tasks[self._remote.remote(self._work, task.unit, task.number)] = task
                ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=_POLL_S)
                for reference in ready:
                    self._collect(reference, self._tasks.pop(reference))
                self._cancel_what_hangs()
                left = len(self._waiting) + len(self._tasks) + len(self._failed)
                self._reporter.advance("segments", total - left, total)
        finally:
            for reference in self._tasks:
                self._ray.cancel(reference, force=True)
            for path in self._work.folder.glob(f"{MARK}{self._work.key}*"):
                path.unlink(missing_ok=True)
        for unit, what in sorted(self._failed.items()):
            others = f"; {len(self._failed) - 1} more units failed too" if len(self._failed) > 1 else ""
            raise ExtractionError(
                f"{self._name_of(unit)} failed {_ATTEMPTS} times: {what}{others}",
                hint="fix the cause and run the same command again: finished segments are kept",
            )
        for node, rows in sorted(self._rows.items()):
            self._reporter.info(f"{node}: {rows:,} images")
        computed = sum(self._rows.values())
        return computed, computed / max(time.monotonic() - began, 1e-9)

    def _at_once(self) -> int:
        if self._cluster.max_parallel is not None:
            return self._cluster.max_parallel
        there = self._ray.cluster_resources()
        slots = there.get("CPU", 1.0) / self._cluster.cpus_per_task
        if self._cluster.gpus_per_task:
            slots = min(slots, there.get("GPU", 0.0) / self._cluster.gpus_per_task)
        return max(1, int(slots)) * _QUEUED_PER_SLOT

    def _collect(self, reference: Any, task: _Task) -> None:
        self._last_event_s = time.monotonic()
        try:
            node, rows = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._try_again(task, _first_line(getattr(error, "cause", None) or error))
        else:
            self._rows[node] += rows

    def _try_again(self, task: _Task, what: str) -> None:
        given_up = self._tries[task.unit] >= _ATTEMPTS
        self._reporter.warn(f"{self._name_of(task.unit)}: {what}; {'given up' if given_up else 'tried again'}")
        if given_up:
            self._failed[task.unit] = what
        else:
            self._waiting.append(task.unit)

    def _cancel_what_hangs(self) -> None:
        now, deadline_s = time.monotonic(), self._cluster.deadline_s
        for task in self._tasks.values():
            # Measured with this clock, from when the mark is first seen, because clocks of other nodes differ.
            if task.begun is None and self._work.mark(task.number).exists():
                task.begun = self._last_event_s = now
        # A task that hangs before its mark looks like one that waits for a slot. It counts as hung only when no task
        # begins or ends any more.
        silent = now - self._last_event_s > self._patience_s
        if silent:
            self._reporter.warn(
                f"no task began or ended for {self._patience_s:,.0f} s: waiting tasks are submitted again"
            )
            # Replacing a worker may take longer than a task.
            self._last_event_s, self._patience_s = now, 2 * self._patience_s
        for reference, task in list(self._tasks.items()):
            if task.begun is None and silent:
                self._tries[task.unit] -= 1
                self._waiting.append(task.unit)
            elif task.begun is not None and now - task.begun > deadline_s:
                self._try_again(task, f"it was not done after {deadline_s:,.0f} s")
            else:
                continue
            del self._tasks[reference]
            self._ray.cancel(reference, force=True)

    def _name_of(self, unit: int) -> str:
        images = self._cut.units[unit].images
        return f"images {images[0]} to {images[-1]}"


def _first_line(error: object) -> str:
    if isinstance(error, FeatcacheError):
        return error.message
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- in a worker -------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Worker:
    """The state that a worker process keeps between tasks: the extraction, opened by its first task."""

    key: str = ""
    cut: Cut | None = None
    opened: ExitStack = field(default_factory=ExitStack)

    def cut_of(self, work: _Work) -> Cut:
        import torch

        if self.key != work.key or self.cut is None:
            self.opened.close()
            torch.set_num_threads(work.threads)
            (job,) = self.opened.enter_context(resolve([work.request], work.execution, LogReporter()))
            self.cut, self.key = cut_from_manifest(Inventory(job=job)), work.key
        return self.cut


_worker = _Worker()


def _compute_unit(work: _Work, unit: int, task: int) -> tuple[str, int]:
    """A task: computes one unit and writes its segment. Returns the node, and how many images were computed."""
    import socket

    work.mark(task).touch()
    whole = _worker.cut_of(work)
    if whole.inventory.is_written(whole.units[unit]):
        return socket.gethostname(), 0
    (computed,) = compute([replace(whole, todo=[whole.units[unit]])])
    return socket.gethostname(), computed.rows
