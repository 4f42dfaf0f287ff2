"""Reads the JSON file of `featcache benchmark`: the seconds of the four ways of training, and the speed-ups as text.

The ways are end to end, as a notebook or tuned, and cached, cold or warm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from featcache.errors import ReportError

_FORMAT: Final = 1
_TITLES: Final = {
    "notebook": "end to end, as a notebook",
    "tuned": "end to end, at featcache's speed",
    "cold": "featcache, cold",
    "warm": "featcache, warm",
}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark as the page shows it.

    `bars`: `setup`, `what` and `seconds` of each mark of the chart. `summary`: the speed-ups as text. `note`: which
    numbers were extrapolated.
    """

    bars: tuple[Mapping[str, Any], ...]
    summary: str
    note: str


def read_benchmark(path: Path) -> Benchmark:
    """Read a benchmark result. Raises ReportError for a file that is not one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise _foreign(path, "it is not a result of this version")
        return _benchmark(values)
    except OSError as error:
        raise ReportError(
            f"cannot read {path}: {error.strerror or error}", hint="--benchmark takes the JSON file"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from error


def _foreign(path: Path, reason: str) -> ReportError:
    return ReportError(
        f"expected the result of a benchmark in {path}, but {reason}", hint="`featcache benchmark` writes one"
    )


def _benchmark(values: Mapping[str, Any]) -> Benchmark:
    totals, scenario = values["summary"]["totals"], values["scenario"]
    heads = int(scenario["heads"])
    bars = [
        {"setup": title, "what": what, "seconds": float(totals[setup][key])}
        for setup, title in _TITLES.items()
        for what, key in (("one head", "one_head_s"), (f"{heads} heads", "all_heads_s"))
        if setup in totals and (heads > 1 or key == "one_head_s")
    ]
    gains = values["summary"]["comparisons"]
    over = "; ".join(
        f"over {_TITLES[setup]}: {_times(gain['warm_epoch'])} per epoch with the cache present, "
        f"{_times(gain['cold_all_heads'])} for all {heads} heads, extraction included"
        for setup, gain in gains.items()
    )
    scaled = [_TITLES[setup] for setup, total in totals.items() if total["scaled"] or total["multiplied"]]
    machine = values["machine"]
    return Benchmark(
        bars=tuple(bars),
        summary=f"Speed-ups {over}. On {machine['cores']} cores of {machine['processor']}, {machine['date']}.",
        note=f"Extrapolated from fewer images or heads: {', '.join(scaled)}." if scaled else "",
    )


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.1f} times"
