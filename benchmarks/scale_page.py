"""Writes the tables of docs/scale.md from `results/scale.json`: `python benchmarks/scale_page.py`.

A test compares the two, so that the page always shows the current results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
RESULT = ROOT / "benchmarks" / "results" / "scale.json"
_MIB = 1 << 20


def training(result: dict[str, Any]) -> str:
    """The measurements with ten million rows."""
    listed, batch, step = (result["training"][name] for name in ("catalogue", "first_batch", "first_step"))
    rows = [
        ("listing it (`featcache ls`)", f"{1000 * listed['listing_s']:.0f} ms", f"{listed['peak_mib']:,} MiB"),
        ("opening it", f"{1000 * batch['open_s']:.0f} ms", ""),
        ("cutting val from train", f"{batch['cut_s']:.2f} s", ""),
        ("from nothing to the first batch", f"{batch['seconds']:.2f} s", _memory(batch)),
        ("standardising, by a sample", f"{step['standardising_s']:.2f} s", ""),
        ("from nothing to a training's first step", f"{step['seconds']:.2f} s", _memory(step)),
    ]
    return _table(("what", "time", "memory at most"), rows) + _machine_line(result["training"])


def workers(result: dict[str, Any]) -> str:
    """Two processes of one thread each, against one process of two threads."""
    if "workers" not in result:
        return "Not measured yet: `python benchmarks/scale.py ../shared --only workers`.\n"
    found = result["workers"]
    rows = [
        (str(number), *(f"{one[way][what]:.2f}" for what in ("images_per_s", "images_per_s_wall") for way in _WAYS))
        for number, one in enumerate(found["rounds"], start=1)
    ]
    heads = ("round", "one process, images/s", "two", "one process, start and end counted", "two")
    steady, wall = (found["ratios"][name] for name in ("images_per_s", "images_per_s_wall"))
    return (
        _table(heads, rows)
        + f"\nMedian of the rounds' ratios: {steady:.2f} of the throughput, {wall:.2f} with start and end.\n"
        + _machine_line(found)
    )


_WAYS = ("one_process", "two_processes")
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {table.__name__: table for table in (workers, training)}


def render(page: str, result: dict[str, Any]) -> str:
    """The page with every table written between its marks."""
    for name, table in TABLES.items():
        begin, end = f"<!-- scale: {name} -->\n", "<!-- end of scale -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{table(result)}\n{end}{rest.split(end, 1)[1]}"
    return page


def read_results() -> dict[str, Any]:
    """Read the results that the page shows."""
    found: dict[str, Any] = json.loads(RESULT.read_text())
    return found


def _memory(child: dict[str, Any]) -> str:
    return f"{child['peak_mib']:,} MiB, {child['imports_mib']:,} of them imports"


def _machine_line(part: dict[str, Any]) -> str:
    machine, load = part["machine"], part["load_before"][0]
    return (
        f"\n{machine['processor']}, {machine['cores']} cores, PyTorch {machine['versions']['torch']}, "
        f"{machine['date']}, load before {load:.1f}: `{part['command']}`\n"
    )


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(), read_results()))
