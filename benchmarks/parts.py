"""Runs the parts of a benchmark, all or some, and merges each into the result."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer
from machine import merge

Setting = TypeVar("Setting")


def run_parts(
    name: str,
    parts: Mapping[str, Callable[[Setting], dict[str, Any]]],
    only: Sequence[str] | None,
    setting: Callable[[Path], Setting],
    *,
    keep: bool = True,
) -> None:
    """Measure the parts (all, or `only` these), each in a new temporary folder, into `results/<name>.json`.

    `setting` makes the argument of a part from the folder. Without `keep`, results are only printed. Raises
    typer.BadParameter for an unknown part.
    """
    if unknown := set(only or ()) - set(parts):
        raise typer.BadParameter(f"unknown parts {', '.join(sorted(unknown))}; known: {', '.join(parts)}")
    for part in only or parts:
        load, began = os.getloadavg(), time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            result = parts[part](setting(Path(scratch)))
        measured = {"load_before": load, "took_s": round(time.perf_counter() - began, 1), **result}
        print(part, measured, flush=True)
        if keep:
            merge(name, part, measured)
