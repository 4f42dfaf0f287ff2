"""How long a command has taken, as the person waits: from the start of the process, imports included."""

from __future__ import annotations

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()
_began: float | None = None


def begin_process() -> None:
    """Count from the start of this process, which is a command and nothing else."""
    global _began
    _began = _IMPORTED - _age(time.monotonic() - _IMPORTED)


def begin_command() -> None:
    """Count from now, where the process is another's (tests, a notebook)."""
    global _began
    if _began is None or _began > _IMPORTED:
        _began = time.monotonic()


def seconds_so_far() -> float:
    """Seconds since the process, or the command, began."""
    return time.monotonic() - (_IMPORTED if _began is None else _began)


def _age(since_import: float) -> float:
    """Seconds that this process had before this module was imported; 0 where the system does not tell."""
    try:
        # The 22nd value, in clock ticks since the machine started; the second, a name, may hold blanks.
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return max(0.0, age - since_import)
