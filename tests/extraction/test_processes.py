"""A measurement in a process of its own: results, reports, errors and memory come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pytest import approx

from featcache.errors import ExtractionError, HeadError
from featcache.extraction.processes import run_apart
from featcache.extraction.reporting import Reporter

MB = 1 << 20


class Heard:
    """A Reporter that remembers."""

    def __init__(self) -> None:
        self.words: list[object] = []

    def say(self, text: str) -> None:
        self.words.append(("say", text))

    def warn(self, text: str) -> None:
        self.words.append(("warn", text))

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        self.words.append((stage, done, total, bound))


def told(task: int, reporter: Reporter) -> tuple[int, int]:
    reporter.say("begun")
    reporter.warn("beware")
    reporter.advance("extracting", task, 10, bound="decode")
    return task + 1, os.getpid()


def hungry(task: int, reporter: Reporter) -> int:
    return int(np.ones(task * MB, np.uint8).sum()) // MB


def failing(task: str, reporter: Reporter) -> None:
    raise HeadError(task, hint="do something")


def at_fault(task: None, reporter: Reporter) -> None:
    raise ZeroDivisionError("by zero")


def killed(task: None, reporter: Reporter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupting(task: int, reporter: Reporter) -> None:
    # What a Ctrl-C is to the process that waits.
    os.kill(task, signal.SIGINT)
    time.sleep(600)


INTERRUPTED = """
import os
import signal

from featcache.extraction.processes import run_apart
from test_processes import Heard, interrupting

signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    try:
        run_apart(interrupting, os.getpid(), Heard())
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_the_result_and_all_reports_come_back() -> None:
    heard = Heard()
    (answer, process), *_ = [run_apart(told, 3, heard).result]
    assert answer == 4
    assert process != os.getpid()
    assert heard.words == [("say", "begun"), ("warn", "beware"), ("extracting", 3, 10, "decode")]


def test_memory_is_that_of_the_function_alone() -> None:
    little, much = run_apart(hungry, 1, Heard()), run_apart(hungry, 100, Heard())
    assert much.result == 100
    assert (much.peak_bytes - much.libraries_bytes) / MB == approx(100, abs=20)
    # Nothing of the hungry one is left in the next.
    after = run_apart(hungry, 1, Heard())
    assert after.peak_bytes == approx(little.peak_bytes, rel=0.1)
    assert after.device_peak_bytes is None or after.device_peak_bytes == 0


def test_an_error_keeps_its_hint_and_says_where_it_was_raised() -> None:
    with pytest.raises(HeadError, match="too few") as caught:
        run_apart(failing, "too few", Heard())
    assert caught.value.hint == "do something"
    assert "in failing" in str(caught.value.__cause__)


def test_a_fault_is_raised_as_it_was() -> None:
    with pytest.raises(ZeroDivisionError, match="by zero"):
        run_apart(at_fault, None, Heard())


def test_a_killed_process_is_an_error_with_a_hint() -> None:
    with pytest.raises(ExtractionError, match="the process that ran killed ended with -9") as caught:
        run_apart(killed, None, Heard())
    assert "memory" in (caught.value.hint or "")


def test_ctrl_c_does_not_wait_for_the_other_process() -> None:
    # In a process of its own: a Ctrl-C that arrived a moment too late would end all tests.
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert ran.stdout == "interrupted\n", ran.stderr
