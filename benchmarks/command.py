"""Running featcache as a person would, and keeping what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any


def run(words: list[str]) -> dict[str, Any]:
    """What `featcache WORDS --json` prints, and its whole time."""
    print("$ featcache", *words, flush=True)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "featcache", *words, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed | {"wall_seconds": round(time.monotonic() - began, 2)}
