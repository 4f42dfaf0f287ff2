"""After a failed system call, while files are written, packed or removed, nothing is lost, and a retry succeeds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from benchmark_files import BENCHMARKS


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, and /proc to know a descriptor's file")
def test_a_fault_at_any_of_a_hundred_calls_does_no_harm() -> None:
    # In a process of its own, whose children inherit no threads.
    line = [sys.executable, str(BENCHMARKS / "measure.py"), "faults", "--quick", "--sample", "100"]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)["faults"]
    assert found["faults"] == 100
    assert sum(ended["refused"] for ended in found.values() if isinstance(ended, dict) and "refused" in ended) > 0
