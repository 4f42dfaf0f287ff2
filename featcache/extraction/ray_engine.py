"""The same segments on a cluster: Ray tasks that compute units of the plan and leave them in a shared folder.

The driver sends numbers of units, and pixels and features never enter the object store. A worker process loads the
backbone once and keeps it. A worker that dies is replaced by Ray, one that hangs is cancelled when its deadline is
over, one that fails is tried three times and then reported with its rows. A unit done twice is harmless, and a driver
that was killed goes on from the segments that stand.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from featcache.cache.catalog import MARK
from featcache.errors import ExtractionError, FeatcacheError, InvalidOption, MissingExtra
from featcache.extraction.execution import Cluster as Cluster
from featcache.extraction.execution import Execution
from featcache.extraction.job import Cut, Job
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.request import Request
from featcache.extraction.result import Extraction
from featcache.extraction.run import prepared
from featcache.files import disk_errors
from featcache.images.sources import ImageSource

_TRIES = 3
# So many tasks beyond the slots there are: a worker that is done never waits for the driver.
_QUEUED_PER_SLOT = 2
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What a worker needs to know of the whole; `key` tells one driver's run from the next.

    `folder`: where a worker tells that it has begun, before it does anything that may hang.
    """

    key: str
    folder: Path
    request: Request
    execution: Execution
    threads: int


@dataclass(frozen=True, kw_only=True)
class _Done:
    """What a task reports: its unit, how many rows it computed, how long that took, and on which node."""

    unit: int
    rows: int
    seconds: float
    node: str


def extract_on_ray(
    request: Request, execution: Execution, cluster: Cluster, *, reporter: Reporter | None = None
) -> Extraction:
    """`extract`, with the units of the plan computed by tasks of a Ray cluster that shares the data folder.

    Raises MissingExtra without Ray, ExtractionError naming rows that failed three times, and what `extract` raises.
    """
    ray = _ray()
    reporter = reporter or LogReporter()
    if isinstance(request.dataset, ImageSource) or not isinstance(request.backbone, str):
        raise InvalidOption(
            "on a cluster every worker opens images and backbone itself: expected a data set's path or name and a "
            "backbone's name",
            hint="leave --engine out for arrays and modules of your own",
        )
    with (
        disk_errors(request.data_dir),
        prepared(request, execution, reporter) as job,
        job.lock(wait=execution.wait),
    ):
        began = time.monotonic()
        plan, standing = job.plan, job.inventory.standing()
        if (hit := job.inventory.hit(standing, plan)) is not None:
            return job.result(hit)
        computed, rate = 0, None
        donors, rows = job.inventory.donors(standing), job.rows_for_segments(plan, standing)
        if len(rows):
            cut = job.cut(plan, rows, donors)
            if cut.todo:
                with _connected(ray, cluster):
                    order = _order(request, execution, cluster, job.inventory.folder)
                    computed, rate = _Driver(ray, cut, cluster, order, reporter).run()
        job.assembles_only = True
        done = job.run()
    return replace(
        done,
        computed=computed,
        reused=sum(done.rows.values()) - computed,
        images_per_s=rate,
        seconds=time.monotonic() - began,
    )


def _ray() -> Any:
    # Before the import: Ray reads it when it is loaded.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("--engine ray", package="ray", extra="ray") from error
    return ray


def _connected(ray: Any, cluster: Cluster) -> ExitStack:
    """Leaves the cluster again, unless somebody else had entered it."""
    stack = ExitStack()
    if not ray.is_initialized():
        here = {} if cluster.address else {"include_dashboard": False}
        ray.init(address=cluster.address, log_to_driver=False, **here)
        stack.callback(ray.shutdown)
    return stack


def _order(request: Request, execution: Execution, cluster: Cluster, folder: Path) -> _Order:
    # Paths mean the same wherever a worker stands.
    weights = Path(request.weights)
    return _Order(
        key=secrets.token_hex(8),
        folder=folder.resolve(),
        request=replace(
            request,
            dataset=request.origin,
            weights=weights.resolve() if weights.is_file() else request.weights,
            data_dir=request.data_dir.resolve(),
        ),
        execution=replace(execution, wait=True),
        threads=cluster.cpus_per_task,
    )


@dataclass(kw_only=True)
class _Pending:
    unit: int
    number: int
    started: float | None = None


class _Driver:
    """Keeps the cluster busy with units until all are done, and says how far it is."""

    def __init__(self, ray: Any, cut: Cut, cluster: Cluster, order: _Order, reporter: Reporter) -> None:
        self._ray, self._cut, self._cluster, self._order, self._reporter = ray, cut, cluster, order, reporter
        self._task = ray.remote(
            num_cpus=cluster.cpus_per_task,
            num_gpus=cluster.gpus_per_task,
            # A worker that dies is no failure of the task; one that is replaced keeps its loaded backbone.
            max_retries=-1,
            max_calls=0,
            scheduling_strategy="SPREAD",
        )(_compute_unit)
        self._pending: dict[Any, _Pending] = {}
        self._tries: Counter[int] = Counter()
        self._failed: dict[int, str] = {}
        self._rows: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._numbers = count()
        # When a task last began or ended, and for how long nothing may be heard.
        self._heard: float | None = None
        self._patience_s = cluster.deadline_s

    def run(self) -> tuple[int, float]:
        """How many rows were computed, and images per second over all nodes. Raises ExtractionError."""
        waiting = deque(number for number, unit in enumerate(self._cut.units) if unit in self._cut.todo)
        began, done, total = time.monotonic(), 0, len(waiting)
        try:
            while waiting or self._pending:
                while waiting and len(self._pending) < self._at_once():
                    self._submit(waiting.popleft())
                for unit in self._collected():
                    if unit is None:
                        done += 1
                    elif self._tries[unit] < _TRIES:
                        waiting.append(unit)
                self._reporter.advance("segments", done, total)
        finally:
            for reference in self._pending:
                self._ray.cancel(reference, force=True)
            for path in self._order.folder.glob(f"{MARK}{self._order.key}*"):
                path.unlink(missing_ok=True)
        self._report_failures()
        for node, rows in sorted(self._rows.items()):
            self._reporter.say(f"{node}: {rows:,} rows, {rows / max(self._seconds[node], 1e-9):,.1f} a second and task")
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

    def _submit(self, unit: int) -> None:
        self._tries[unit] += 1
        number = next(self._numbers)
        self._pending[self._task.remote(self._order, unit, number)] = _Pending(unit=unit, number=number)

    def _collected(self) -> Iterator[int | None]:
        """None for every unit that is done, else the number of one that is to be tried again, or was given up."""
        # The first to be done wakes the driver: a slot that waits for slower ones to be collected would stand idle.
        ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=_LOOK_EVERY_S)
        for reference in ready:
            self._heard = time.monotonic()
            pending = self._pending.pop(reference)
            try:
                self._count(self._ray.get(reference))
                yield None
            except self._ray.exceptions.RayError as error:
                self._note_failure(pending.unit, error)
                yield pending.unit
        hung = [reference for reference, pending in self._pending.items() if self._is_hung(pending)]
        if any(self._pending[reference].started is None for reference in hung):
            self._reporter.warn(f"nothing began or ended for {self._patience_s:,.0f} s: what waits is given out again")
            # Whoever replaces a worker may take longer to start than a task takes.
            self._heard, self._patience_s = time.monotonic(), 2 * self._patience_s
        for reference in hung:
            pending = self._pending.pop(reference)
            self._ray.cancel(reference, force=True)
            if pending.started is None:
                # Most of them only waited for a slot.
                self._tries[pending.unit] -= 1
            else:
                self._note_failure(pending.unit, None)
            yield pending.unit

    def _count(self, done: _Done) -> None:
        self._failed.pop(done.unit, None)
        self._rows[done.node] += done.rows
        self._seconds[done.node] += done.seconds

    def _is_hung(self, pending: _Pending) -> bool:
        # By this clock, from when the mark is first seen: clocks of other nodes differ.
        now = time.monotonic()
        if pending.started is None and _mark(self._order, pending.unit, pending.number).exists():
            pending.started = self._heard = now
        if pending.started is not None:
            return now - pending.started > self._cluster.deadline_s
        # A task that hangs before its mark looks like one that waits for a slot, until nothing happens any more.
        return self._heard is not None and now - self._heard > self._patience_s

    def _note_failure(self, unit: int, error: Exception | None) -> None:
        cause = getattr(error, "cause", None) or error
        what = f"it was not done after {self._cluster.deadline_s:,.0f} s" if error is None else _first_line(cause)
        self._failed[unit] = what
        again = "tried again" if self._tries[unit] < _TRIES else "given up"
        self._reporter.warn(f"rows {self._range(unit)}: {what}; {again}")

    def _range(self, number: int) -> str:
        rows = self._cut.units[number].rows
        return f"{rows[0]} to {rows[-1]}"

    def _report_failures(self) -> None:
        if not self._failed:
            return
        unit, what = min(self._failed.items())
        others = f"; {len(self._failed) - 1} more units failed too" if len(self._failed) > 1 else ""
        raise ExtractionError(
            f"rows {self._range(unit)} failed {_TRIES} times: {what}{others}",
            hint="mend the cause and run the same command again: what is done stands",
        )


def _first_line(error: object) -> str:
    if isinstance(error, FeatcacheError):
        return error.message
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _mark(order: _Order, unit: int, number: int) -> Path:
    """By which the task `number`, which computes `unit`, tells that it has begun."""
    return order.folder / f"{MARK}{order.key}-{unit}-{number}"


# --- in a worker -------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Worker:
    """A job that a worker process keeps from task to task, with what there was when it was made."""

    key: str = ""
    job: Job | None = None
    rows: Any = None
    donors: list[Any] = field(default_factory=list)
    opened: ExitStack = field(default_factory=ExitStack)


_worker = _Worker()


def _compute_unit(order: _Order, unit: int, number: int) -> _Done:
    """A task: computes one unit and leaves it as a segment."""
    import socket

    _mark(order, unit, number).touch()
    job = _job_of(order)
    began = time.monotonic()
    computed = job.run_units([unit], _worker.rows, _worker.donors)
    return _Done(unit=unit, rows=computed, seconds=time.monotonic() - began, node=socket.gethostname())


def _job_of(order: _Order) -> Job:
    import torch

    if _worker.key != order.key or _worker.job is None:
        _worker.opened.close()
        torch.set_num_threads(order.threads)
        _worker.job = _worker.opened.enter_context(prepared(order.request, order.execution, LogReporter()))
        standing = _worker.job.inventory.standing()
        _worker.donors = _worker.job.inventory.donors(standing)
        _worker.rows = _worker.job.rows_for_segments(_worker.job.plan, standing)
        _worker.key = order.key
    return _worker.job
