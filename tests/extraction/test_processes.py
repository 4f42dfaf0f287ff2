"""Functions in a new process: results, reports, errors and the peak of memory come back."""

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
from featcache.extraction.processes import run_in_new_process
from featcache.extraction.reporting import Reporter

MB = 1 << 20


class RecordingReporter:
    """A Reporter that records everything."""

    def __init__(self) -> None:
        self.reports: list[object] = []

    def info(self, text: str) -> None:
        self.reports.append(("info", text))

    def warn(self, text: str) -> None:
        self.reports.append(("warn", text))

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        self.reports.append((stage, done, total, bound))


def report_all(task: int, reporter: Reporter) -> tuple[int, int]:
    reporter.info("begun")
    reporter.warn("beware")
    reporter.advance("extracting", task, 10, bound="decode")
    return task + 1, os.getpid()


def hungry(task: int, reporter: Reporter) -> int:
    return int(np.ones(task * MB, np.uint8).sum()) // MB


def failing(task: str, reporter: Reporter) -> None:
    raise HeadError(task, hint="do something")


def at_fault(task: None, reporter: Reporter) -> None:
    raise ZeroDivisionError("by zero")


def kill_itself(task: None, reporter: Reporter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupting(task: int, reporter: Reporter) -> None:
    # A Ctrl-C for the process that waits.
    os.kill(task, signal.SIGINT)
    time.sleep(600)


INTERRUPTED = """
import os
import signal

from featcache.extraction.processes import run_in_new_process
from test_processes import RecordingReporter, interrupting

signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    try:
        run_in_new_process(interrupting, os.getpid(), RecordingReporter())
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_the_result_and_all_reports_come_back() -> None:
    reporter = RecordingReporter()
    (answer, process), *_ = [run_in_new_process(report_all, 3, reporter).result]
    assert answer == 4
    assert process != os.getpid()
    assert reporter.reports == [("info", "begun"), ("warn", "beware"), ("extracting", 3, 10, "decode")]


def test_memory_is_that_of_the_function_alone() -> None:
    little, much = (
        run_in_new_process(hungry, 1, RecordingReporter()),
        run_in_new_process(hungry, 100, RecordingReporter()),
    )
    assert much.result == 100
    assert (much.peak_bytes - much.libraries_bytes) / MB == approx(100, abs=20)
    # The next process starts without the memory of the one before.
    after = run_in_new_process(hungry, 1, RecordingReporter())
    assert after.peak_bytes == approx(little.peak_bytes, rel=0.1)
    assert after.device_peak_bytes is None or after.device_peak_bytes == 0


def test_an_error_keeps_its_hint_and_its_traceback() -> None:
    with pytest.raises(HeadError, match="too few") as caught:
        run_in_new_process(failing, "too few", RecordingReporter())
    assert caught.value.hint == "do something"
    assert "in failing" in str(caught.value.__cause__)


def test_other_exceptions_are_raised_too() -> None:
    with pytest.raises(ZeroDivisionError, match="by zero"):
        run_in_new_process(at_fault, None, RecordingReporter())


def test_a_killed_process_is_an_error_with_a_hint() -> None:
    with pytest.raises(ExtractionError, match="the process that ran kill_itself ended with exit code -9") as caught:
        run_in_new_process(kill_itself, None, RecordingReporter())
    assert "memory" in (caught.value.hint or "")


def test_ctrl_c_does_not_wait_for_the_other_process() -> None:
    # In a new process, because a Ctrl-C that arrives too late would end all tests.
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert ran.stdout == "interrupted\n", ran.stderr
