"""Writes results into `benchmarks/results/`, together with the machine and the command that made them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("featcache", "torch", "torchvision", "timm", "numpy", "h5py", "pytorch-lightning", "pillow")


def machine() -> dict[str, Any]:
    """Processor, cores, versions, commit, date."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        # The checkout may not be installed, and some packages are optional.
        with suppress(PackageNotFoundError):
            yield package, version(package)


def _commit() -> str | None:
    """The checkout's commit, followed by a plus if files differ from it; None without git."""
    try:
        outputs = [
            subprocess.run(["git", *words], cwd=RESULTS.parent, check=True, capture_output=True, text=True).stdout
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return outputs[0].strip() + ("+" if outputs[1].strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def command() -> str:
    """The command that was typed, with relative paths, because a result is read on other machines."""
    words = [os.path.relpath(word) if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def with_machine(result: dict[str, Any]) -> dict[str, Any]:
    """The result with its machine and the command that made it."""
    return {"command": command(), "machine": machine(), **result}


def write(name: str, result: dict[str, Any]) -> Path:
    """Write the result, with its machine and command, to `results/<name>.json`; returns the path."""
    return _write(name, with_machine(result))


def merge(name: str, part: str, result: dict[str, Any]) -> Path:
    """Write one part of `results/<name>.json`; other parts stay, each with its own machine and command."""
    path = RESULTS / f"{name}.json"
    parts = json.loads(path.read_text()) if path.exists() else {}
    return _write(name, parts | {part: with_machine(result)})


def _write(name: str, content: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
