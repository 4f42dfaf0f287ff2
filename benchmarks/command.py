"""Runs the featcache command in a new process and returns the JSON that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any


def run(words: list[str]) -> dict[str, Any]:
    """Run `featcache WORDS --json`; returns the printed JSON, with the duration as "wall_seconds"."""
    print("$ featcache", *words, flush=True)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "featcache", *words, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed | {"wall_seconds": round(time.monotonic() - began, 2)}
