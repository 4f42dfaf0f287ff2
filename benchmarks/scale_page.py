"""The tables of docs/scale.md, from `results/scale.json`: `python benchmarks/scale_page.py` puts them there.

A test compares the two, so that no number on the page is older than its result.
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
    """What was measured of ten million rows."""
    listed, batch, step = (result["training"][name] for name in ("catalogue", "first_batch", "first_step"))
    rows = [
        ("listing it (`featcache ls`)", f"{1000 * listed['listing_s']:.0f} ms", f"{listed['peak_mib']:,} MiB"),
        ("opening it", f"{1000 * batch['open_s']:.0f} ms", ""),
        ("cutting val from train", f"{batch['cut_s']:.2f} s", ""),
        ("from nothing to the first batch", f"{batch['seconds']:.2f} s", _memory(batch)),
        ("standardising, by a sample", f"{step['standardising_s']:.2f} s", ""),
        ("from nothing to a training's first step", f"{step['seconds']:.2f} s", _memory(step)),
    ]
    return _table(("what", "time", "memory at most"), rows) + _measured_on(result["training"])


def constants(result: dict[str, Any]) -> str:
    """What the model rests on."""
    found = result["model"]["constants"]
    rows = [
        ("listing an image, its stamp, the index", f"{1e6 * found['listing_s']:.1f} µs"),
        ("meeting an image for the first time, beside its bytes", f"{1e6 * found['hashing_s']:.1f} µs"),
        ("hashing bytes, two threads", f"{found['hashed_bytes_per_s'] / 1e6:,.0f} MB/s"),
        ("assembling a row, beside its bytes", f"{1e6 * found['row_s']:.1f} µs"),
        ("opening a part", f"{1e3 * found['part_s']:.2f} ms"),
        ("checking and copying bytes", f"{found['copied_bytes_per_s'] / 1e6:,.0f} MB/s"),
        ("memory: an image of a plan, met for the first time", f"{found['plan_bytes']:,.0f} B"),
        ("memory: an image of a plan, found in the index", f"{found['known_plan_bytes']:,.0f} B"),
        ("memory: an image while a cache is assembled", f"{found['assembling_bytes']:,.0f} B"),
        ("memory: an open part", f"{found['part_bytes']:,.0f} B"),
        ("memory: a process, before anything", f"{found['process_bytes'] / _MIB:,.0f} MiB"),
        ("decoding 640x480 to 224x224, a core", f"{result['model']['decoded_per_s']:,.0f} images/s"),
    ]
    return _table(("measured", "here"), rows) + _measured_on(result["model"])


def checks(result: dict[str, Any]) -> str:
    """Predicted and measured, side by side."""
    rows = [
        (
            check["what"],
            f"{check['images']:,}",
            f"{check['seconds']['predicted']:.1f} / {check['seconds']['measured']:.1f} s",
            *(
                f"{check[name]['predicted'] / 1e6:,.2f} / {check[name]['measured'] / 1e6:,.2f} MB"
                for name in ("cache_bytes", "parts_bytes")
            ),
            f"{check['parts']['predicted']} / {check['parts']['measured']}",
        )
        for check in result["model"]["checks"]
    ]
    return _table(("extracted", "images", "time", "cache", "parts", "files of parts"), rows)


def predictions(result: dict[str, Any]) -> str:
    """Prediction: what large sets would cost."""
    rows = [
        (
            said["network"],
            f"{said['images'] // 1_000_000} million",
            str(said["gpus"]),
            duration(said["seconds"]),
            f"{duration(said['plan_s'])}, {duration(said['computing_s'])}, {duration(said['assembling_s'])}",
            said["bound"],
            f"{size(said['cache_bytes'])} in {said['files']}",
            f"{said['parts']:,} ({said['parts_by_default']:,})",
            f"{size(said['driver_bytes'])}, {size(said['worker_bytes'])}",
        )
        for said in result["model"]["predictions"]
    ]
    heads = ("network", "images", "GPUs", "time", "plan, computing, assembling", "bound by", "cache, files",
             "parts (by default)", "memory: driver, worker")  # fmt: skip
    return _table(heads, rows)


def assumed(result: dict[str, Any]) -> str:
    """What the predictions assume beside what was measured."""
    told = result["model"]["assumed"]
    return (
        f"**Prediction, not measurement.** Assumed: a GPU of {told['peak_tflops']:g} TFLOP/s (an A100's published peak "
        f"in bf16) of which a network reaches {100 * told['share']:.0f} %, {told['cores']} processor cores beside "
        f"each, a store that gives and takes {told['store_gb_per_s']:g} GB/s in all, photographs of "
        f"{told['image_bytes'] / 1000:.0f} KB, parts of 8,192 rows (`--part-rows 8192`), images that nobody has met "
        "before, and that processor cores elsewhere are as fast as here.\n"
    )


def workers(result: dict[str, Any]) -> str:
    """Two processes of one thread against one of two."""
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
        + _measured_on(found)
    )


_WAYS = ("one_process", "two_processes")
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    table.__name__: table for table in (workers, training, constants, checks, assumed, predictions)
}


def rendered(page: str, result: dict[str, Any]) -> str:
    """The page with every table between its marks."""
    for name, table in TABLES.items():
        begin, end = f"<!-- scale: {name} -->\n", "<!-- end of scale -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{table(result)}\n{end}{rest.split(end, 1)[1]}"
    return page


def measured() -> dict[str, Any]:
    """The results that the page quotes."""
    found: dict[str, Any] = json.loads(RESULT.read_text())
    return found


def duration(seconds: float) -> str:
    """42 s, 17 min, 3.4 h, 12 days."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < most:
            value = seconds / length
            return f"{value:.1f} {unit}" if unit == "h" and value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def size(count: float) -> str:
    """850 MB, 1.7 GB, 50 GB, 5.0 TB."""
    for unit, length in (("TB", 1e12), ("GB", 1e9)):
        if count >= length:
            return f"{count / length:.1f} {unit}" if count < 100 * length else f"{count / length:.0f} {unit}"
    return f"{count / 1e6:.0f} MB"


def _memory(child: dict[str, Any]) -> str:
    return f"{child['peak_mib']:,} MiB, {child['imports_mib']:,} of them imports"


def _measured_on(part: dict[str, Any]) -> str:
    machine, load = part["machine"], part["load_before"][0]
    return (
        f"\n{machine['processor']}, {machine['cores']} cores, PyTorch {machine['versions']['torch']}, "
        f"{machine['date']}, load before {load:.1f}: `{part['command']}`\n"
    )


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(), measured()))
