"""What `featcache benchmark` wrote, as far as a report shows it: seconds by way, and what caching gains."""

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
    "tuned": "end to end, featcache's speed",
    "cold": "featcache, cold",
    "warm": "featcache, warm",
}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """`bars`: `way`, `what` and `seconds` of each mark; `told`: the speed-ups in words; `note`: what was scaled."""

    bars: tuple[Mapping[str, Any], ...]
    told: str
    note: str


def read_benchmark(path: Path) -> Benchmark:
    """The result in a file. Raises ReportError for a file that is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise _foreign(path, "it is no result of this version")
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
        {"way": title, "what": what, "seconds": float(totals[way][key])}
        for way, title in _TITLES.items()
        for what, key in (("one head", "one_head_s"), (f"{heads} heads", "all_heads_s"))
        if way in totals and (heads > 1 or key == "one_head_s")
    ]
    gains = values["summary"]["comparisons"]
    over = "; ".join(
        f"over {_TITLES[way]}: {_times(gain['warm_epoch'])} an epoch with the cache present, "
        f"{_times(gain['cold_all_heads'])} for all {heads} heads with extraction counted"
        for way, gain in gains.items()
    )
    scaled = [_TITLES[way] for way, total in totals.items() if total["scaled"] or total["multiplied"]]
    machine = values["machine"]
    return Benchmark(
        bars=tuple(bars),
        told=f"Speed-ups {over}. On {machine['cores']} cores of {machine['processor']}, {machine['date']}.",
        note=f"Reckoned from fewer images or heads than the whole: {', '.join(scaled)}." if scaled else "",
    )


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.1f} times"
