"""A measurement in a process of its own: its peak of memory is its own, and nothing is warm that should be cold."""

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
class Apart(Generic[Result]):
    """What a function returned, and the most memory that its process held until then, in bytes.

    `libraries_bytes` is what the process held before: the interpreter and the libraries it had loaded.
    `device_peak_bytes`: the most that torch allocated on a CUDA device, None without one.
    """

    result: Result
    peak_bytes: int
    libraries_bytes: int
    device_peak_bytes: int | None


class ElsewhereError(Exception):
    """Where in the other process an error was raised: the cause of the same error here."""


def run_apart(function: Callable[[Task, Reporter], Result], task: Task, reporter: Reporter) -> Apart[Result]:
    """Run `function(task, reporter)` in a new process. What it reports arrives here, what it raises is raised here.

    Raises ExtractionError where the process was killed.
    """
    context = _context(function.__module__)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, function, task), daemon=True)
    process.start()
    # So that the end of the process is the end of the pipe.
    sender.close()
    try:
        result: Apart[Result] = _answer(receiver, reporter)
    except EOFError:
        process.join()
        raise ExtractionError(
            f"the process that ran {function.__name__} ended with {process.exitcode} and gave no reason",
            hint="it may have been killed for lack of memory: fewer --images, or a smaller --image-size",
        ) from None
    finally:
        # After an answer there is nothing left to do; without one nobody waits for it any more. Lightning would
        # catch a milder signal and go on to the end of its epoch.
        process.kill()
        process.join()
        receiver.close()
    return result


def _context(module: str) -> SpawnContext | ForkServerContext:
    """Processes that begin alike: with the libraries of `module`, and with nothing that an earlier one computed."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    # One process imports them for all: it computes nothing, and every measurement is a copy of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _answer(receiver: Connection, reporter: Reporter) -> Any:
    while True:
        kind, words, named = receiver.recv()
        if kind == "done":
            return words[0]
        if kind == "failed":
            error, where = words
            raise error from ElsewhereError(where)
        getattr(reporter, kind)(*words, **named)


# --- inside the process ------------------------------------------------------------------------------------


class _Link:
    """A Reporter whose reader is another process."""

    def __init__(self, sender: Connection) -> None:
        self._sender = sender

    def say(self, text: str) -> None:
        self._sender.send(("say", (text,), {}))

    def warn(self, text: str) -> None:
        self._sender.send(("warn", (text,), {}))

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        self._sender.send(("advance", (stage, done, total), {"bound": bound}))


def _serve(sender: Connection, function: Callable[[Task, Reporter], Result], task: Task) -> None:
    libraries = peak_bytes()
    try:
        result = function(task, _Link(sender))
        done = Apart(
            result=result, peak_bytes=peak_bytes(), libraries_bytes=libraries, device_peak_bytes=_device_peak_bytes()
        )
        sender.send(("done", (done,), {}))
    except BaseException as error:
        # Whoever started this may be gone already: then nobody is left to be told.
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
