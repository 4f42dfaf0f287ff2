"""Reads the JSON file of `featcache benchmark`: the seconds of the four setups as a figure, and the speed-ups as text.

The setups are end to end, as a notebook or tuned, and cached, cold or warm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import altair as alt

from featcache.errors import ReportError
from featcache.report.drawing import Chart, Figure, colour_by, data, shorten, with_height

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

    def figure(self) -> Figure:
        """The seconds until heads are tested as bars, one group for each setup."""
        kinds = list(dict.fromkeys(str(bar["what"]) for bar in self.bars))
        return Figure(
            title="Time until heads are tested",
            description=f"Seconds by setup. {self.summary}",
            columns=("setup", "until", "seconds"),
            rows=[[str(bar["setup"]), str(bar["what"]), _seconds(bar["seconds"])] for bar in self.bars],
            draw=lambda letters: _draw_bars(self.bars, kinds, letters),
            note=self.note,
        )


def _seconds(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds < 100 else f"{seconds:,.0f} s"


def _draw_bars(bars: Sequence[Mapping[str, Any]], kinds: Sequence[str], letters: int) -> Chart:
    rows = [
        {
            **bar,
            "name": f"{bar['setup']}: {bar['what']}",
            "label": shorten(f"{bar['setup']}: {_seconds(bar['seconds'])}", letters),
        }
        for bar in bars
    ]
    longest = max(bar["seconds"] for bar in bars)
    base = alt.Chart(data(rows)).encode(y=alt.Y("name:N", sort=None, axis=None, scale=alt.Scale(paddingOuter=0.3)))
    x = alt.X("seconds:Q", title="seconds", axis=alt.Axis(tickCount=5), scale=alt.Scale(domain=[0, longest]))
    bar = base.mark_bar(height=8, yOffset=8).encode(x=x, color=colour_by("what", kinds, letters))
    label = base.mark_text(align="left", baseline="bottom").encode(x=alt.value(0), text="label:N")
    return with_height(bar + label, 36 * len(rows) + 10)


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
