"""Run a function in a new process, to measure its peak memory alone and to start without warm caches."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any, Generic, TypeVar

from featcache.errors import ExtractionError
from featcache.extraction.reporting import Reporter

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ProcessResult(Generic[Result]):
    """The return value of a function, and the peak memory of its process, in bytes.

    `libraries_bytes` is the memory before the call: the interpreter and the libraries it had loaded.
    `device_peak_bytes`: the most that torch allocated on a CUDA device, None without one.
    """

    result: Result
    peak_bytes: int
    libraries_bytes: int
    device_peak_bytes: int | None


class RemoteTraceback(Exception):
    """The traceback of an error in the other process; set as the cause of the same error here."""


def run_in_new_process(
    function: Callable[[Task, Reporter], Result], task: Task, reporter: Reporter
) -> ProcessResult[Result]:
    """Run `function(task, reporter)` in a new process.

    Args:
        function: A function of a module, which the new process imports.
        task: Its argument; it must be picklable.
        reporter: Receives everything that the function reports.

    Returns:
        The function's return value, and the peak memory of the process.

    Raises:
        ExtractionError: The process was killed.
        Exception: Whatever the function raises.
    """
    context = _context(function.__module__)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, function, task), daemon=True)
    process.start()
    # Without it the pipe would not end when the process ends.
    sender.close()
    try:
        result: ProcessResult[Result] = _receive(receiver, reporter)
    except EOFError:
        process.join()
        raise ExtractionError(
            f"the process that ran {function.__name__} ended with exit code {process.exitcode} and no error message",
            hint="it may have been killed for lack of memory: fewer --images, or a smaller --image-size",
        ) from None
    finally:
        # After the result nothing is left to do, and after an error the result is not needed. Not SIGTERM: Lightning
        # would catch it and continue to the end of its epoch.
        process.kill()
        process.join()
        receiver.close()
    return result


def _context(module: str) -> SpawnContext | ForkServerContext:
    """A context whose processes all start in the same state: `module` and its libraries imported, nothing computed."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    # A server process imports them once and computes nothing; each new process is a fork of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _receive(receiver: Connection, reporter: Reporter) -> Any:
    while True:
        kind, words, named = receiver.recv()
        if kind == "done":
            return words[0]
        if kind == "failed":
            error, where = words
            raise error from RemoteTraceback(where)
        getattr(reporter, kind)(*words, **named)


# --- inside the new process --------------------------------------------------------------------------------


class _RemoteReporter:
    """A Reporter that sends everything to another process."""

    def __init__(self, sender: Connection) -> None:
        self._sender = sender

    def info(self, text: str) -> None:
        self._sender.send(("info", (text,), {}))

    def warn(self, text: str) -> None:
        self._sender.send(("warn", (text,), {}))

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        self._sender.send(("advance", (stage, done, total), {"bound": bound}))


def _serve(sender: Connection, function: Callable[[Task, Reporter], Result], task: Task) -> None:
    libraries = peak_bytes()
    try:
        result = function(task, _RemoteReporter(sender))
        done = ProcessResult(
            result=result, peak_bytes=peak_bytes(), libraries_bytes=libraries, device_peak_bytes=_device_peak_bytes()
        )
        sender.send(("done", (done,), {}))
    except BaseException as error:
        # The parent process may have ended already: then the error cannot be sent.
        with contextlib.suppress(OSError):
            sender.send(("failed", (error, traceback.format_exc()), {}))


def peak_bytes() -> int:
    """The most memory this process has held so far (resident set), in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its maximum is inherited from the process that started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _device_peak_bytes() -> int | None:
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
