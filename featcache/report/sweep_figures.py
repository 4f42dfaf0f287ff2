"""The figures of a sweep: its metric by layer, by a number, by shots, by two options, and its best combinations.

A figure shows one or two options. Of the combinations that differ only in other options, it shows the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import altair as alt

from featcache.report.drawing import (
    COLOUR,
    PER_CENT,
    SERIES,
    Chart,
    Figure,
    Values,
    colour_by,
    data,
    intervals,
    shorten,
    with_height,
)
from featcache.report.run_figures import MOST_LINES, metric_axis
from featcache.report.run_results import METRICS, interval_text, score_text
from featcache.sweeps.records import Estimate, Sweep, SweepRow

MOST_RANKED = 12
_LEAST_NUMBERS = 3
# Where the largest value is so many times the least, a logarithmic scale is used.
_LOG_FROM = 20


class SweepView:
    """A sweep prepared for figures and sentences: its scored rows and the options that vary in them."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.rows = [row for row in sweep.rows if row.estimate is not None]
        most = max((row.shots or 0 for row in self.rows), default=0)
        self.final = [row for row in self.rows if (row.shots or 0) == most]
        varied = {name: self.values(name) for name in sweep.options}
        self.options = [name for name, values in varied.items() if len(values) > 1]

    @property
    def metric(self) -> str:
        """The metric of the rows."""
        return estimate_of(self.rows[0]).metric if self.rows else "accuracy"

    def values(self, option: str) -> list[str]:
        """The values of an option that have a score, in the order of the grid."""
        there = {row.values.get(option, "-") for row in self.rows}
        return [*(value for value in self.sweep.grid[option] if value in there), *(["-"] if "-" in there else [])]

    def effects(self) -> list[tuple[str, float]]:
        """Each option with the difference between its best and its worst value, the largest first.

        A value counts as the best combination that has it.
        """
        spans = []
        for option in self.options:
            best = [estimate_of(row).value for row in self.best_by(option)]
            spans.append((option, max(best) - min(best)))
        return sorted(spans, key=lambda one: -one[1])

    def best_by(self, *options: str) -> list[SweepRow]:
        """The best row for each combination of the values of some options."""
        best: dict[tuple[str, ...], SweepRow] = {}
        for row in self.final:
            # Rows are sorted, the best first.
            best.setdefault(tuple(row.values.get(name, "-") for name in options), row)
        return list(best.values())

    def name(self, row: SweepRow, without: Iterable[str] = ()) -> str:
        """What distinguishes a row from the others, as text."""
        parts = [
            row.values[name] if name in ("cache", "layer", "head") else f"{name.replace('_', ' ')} {row.values[name]}"
            for name in self.options
            if name in row.values and name not in without
        ]
        return ", ".join(parts) or row.config.head


def estimate_of(row: SweepRow) -> Estimate:
    """The estimate of a row that has one."""
    if row.estimate is None:
        raise ValueError("expected a row with a score")
    return row.estimate


def sweep_figures(sweep: Sweep) -> list[Figure]:
    """All figures of a sweep, the most important first; none if no head has a score."""
    view = SweepView(sweep)
    if not view.rows:
        return []
    figures = [_by_shots(view)] if sweep.shots else []
    order = [name for name, _ in view.effects()]
    curves = [name for name in order if name == "layer" or _is_number(view, name)]
    figures += [_by_option(view, name) for name in curves or ([] if figures else order[:1])]
    if len(order) > 1:
        figures.append(_heat_map(view, *_pair(view, order)))
    return [*figures, _by_rank(view)]


def _pair(view: SweepView, order: Sequence[str]) -> tuple[str, str]:
    """The two options of a heat map (across, up): those of the largest effect that no other figure shows together."""
    shown = {"layer", _second(view, "layer")} if "layer" in order else set()
    pairs = [pair for pair in combinations(order, 2) if set(pair) != shown] or [(order[0], order[1])]
    first, second = next((pair for pair in pairs if "layer" in pair), pairs[0])
    # Names of layers are long, and the vertical axis has the space for them.
    return (second, first) if first == "layer" else (first, second)


def _is_number(view: SweepView, option: str) -> bool:
    return len(view.values(option)) >= _LEAST_NUMBERS and all(_number(one) is not None for one in view.values(option))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _point(view: SweepView, row: SweepRow) -> dict[str, Any]:
    """The numbers of a row, as a row of a chart's data."""
    one = estimate_of(row)
    low, high = one.interval or (one.value, one.value)
    return {"value": one.value, "low": low, "high": high}


def _table(view: SweepView, rows: Sequence[SweepRow], first: Sequence[str]) -> list[list[str]]:
    cells = []
    for name, row in zip(first, rows, strict=True):
        one = estimate_of(row)
        cells.append(
            [name, view.name(row), score_text(one.value, one.metric, 2), interval_text(one.interval, one.metric)]
        )
    return cells


def _second(view: SweepView, option: str) -> str | None:
    """The option that distinguishes the lines of a figure: the cache, or else that of the largest effect."""
    others = [name for name, _ in view.effects() if name != option]
    few = [name for name in others if len(view.values(name)) <= MOST_LINES]
    return next((name for name in few if name == "cache"), next(iter(few), None))


def _by_option(view: SweepView, option: str) -> Figure:
    """The metric by one option, one line for each value of a second one, with intervals."""
    second = _second(view, option)
    rows = view.best_by(option, *([second] if second else []))
    number = _is_number(view, option)
    values = view.values(option)
    lines = view.values(second) if second else [view.sweep.judge]
    points = [
        {
            **_point(view, row),
            "at": _number(row.values[option]) if number else row.values.get(option, "-"),
            "line": row.values.get(second, "-") if second else lines[0],
        }
        for row in rows
    ]

    def draw(letters: int) -> Chart:
        short = {name: shorten(name, letters - 6) for name in lines}
        own = [{**point, "line": short[point["line"]]} for point in points]
        kind = "Q" if number else "N"
        at = [point["at"] for point in own]
        log = number and min(at) > 0 and max(at) >= _LOG_FROM * min(at)
        scale = alt.Scale(type="log") if log else alt.Scale(zero=False, padding=14)
        tilt = alt.Axis(labelAngle=-30) if sum(map(len, values)) > letters * 0.6 else alt.Axis(labelAngle=0)
        x = (
            alt.X("at:Q", title=option_title(option), scale=scale, axis=alt.Axis(values=sorted(set(at)), format="~g"))
            if number
            else alt.X(
                "at:N", title=option_title(option), sort=values, axis=tilt, scale=alt.Scale(type="point", padding=0.4)
            )
        )
        y = alt.Y("low:Q", title=_metric_title(view), axis=_axis(view), scale=alt.Scale(zero=False))
        colour = colour_by("line", list(short.values()), letters) if second else COLOUR
        shift = {} if number or not second else {"xOffset": _shift(list(short.values()))}
        base = alt.Chart(data(own)).encode(x=x, color=colour)
        line = base.mark_line(strokeWidth=1.5).encode(y=alt.Y("value:Q"), **({"order": "at:Q"} if kind == "Q" else {}))
        span = base.mark_rule(strokeWidth=1.5, opacity=0.55).encode(y=y, y2="high:Q", **shift)
        dots = base.mark_point(filled=True, size=55, opacity=1).encode(y=alt.Y("value:Q"), **shift)
        joined = line.encode(**shift) if option == "layer" or number else None
        return with_height(span + dots if joined is None else span + joined + dots, 240)

    by = f" and {option_title(second)}" if second else ""
    best = max(rows, key=lambda row: estimate_of(row).value)
    return Figure(
        title=f"{_metric_title(view).capitalize() if view.metric != 'r2' else 'R²'} by {option_title(option)}{by}",
        description=f"The {METRICS[view.metric]} of {len(rows)} combinations; the best is {view.name(best)}.",
        columns=(option_title(option), "combination", METRICS[view.metric], "95 % interval"),
        rows=_table(view, rows, [row.values.get(option, "-") for row in rows]),
        draw=draw,
        note=_note(view, option, second),
    )


def _shift(names: Sequence[str]) -> alt.XOffset:
    """Lines of different colours beside each other, so that their intervals do not overlap."""
    step = 12
    first = -step * (len(names) - 1) / 2
    places = [first + step * place for place in range(len(names))]
    return alt.XOffset("line:N", sort=None, scale=alt.Scale(domain=list(names), range=places))


def option_title(option: str | None) -> str:
    names = {"cache": "backbone", "lr": "learning rate", None: ""}
    return names.get(option, str(option).replace("_", " "))


def _metric_title(view: SweepView) -> str:
    return f"{METRICS[view.metric]} {'of held-out folds' if view.sweep.folds else 'on val'}"


def _axis(view: SweepView) -> alt.Axis:
    return PER_CENT if view.metric == "accuracy" else alt.Axis(tickCount=5)


def _note(view: SweepView, *shown: str | None) -> str:
    others = [option_title(name) for name in view.options if name not in shown]
    best = f" At the best {' and '.join(others)} for each point." if others else ""
    intervals_there = any(estimate_of(row).interval is not None for row in view.rows)
    return ("Vertical lines are 95 % intervals." if intervals_there else "") + best


def _heat_map(view: SweepView, across: str, up: str) -> Figure:
    """The metric by two options, as numbers in coloured cells."""
    rows = view.best_by(across, up)
    values = [estimate_of(row).value for row in rows]
    low, high = min(values), max(values)
    cells: Values = [
        {
            "across": row.values.get(across, "-"),
            "up": row.values.get(up, "-"),
            "value": estimate_of(row).value,
            "text": score_text(estimate_of(row).value, view.metric).removesuffix(" %"),
            "dark": estimate_of(row).value > low + 0.55 * (high - low),
        }
        for row in rows
    ]

    def draw(letters: int) -> Chart:
        own = [{**cell, "up": shorten(cell["up"], letters // 3)} for cell in cells]
        ups = [shorten(name, letters // 3) for name in view.values(up)]
        angle = 0 if sum(len(name) + 2 for name in view.values(across)) < letters * 0.6 else -30
        base = alt.Chart(data(own)).encode(
            x=alt.X("across:N", title=option_title(across), sort=view.values(across), axis=alt.Axis(labelAngle=angle)),
            y=alt.Y("up:N", title=None, sort=ups),
        )
        fill = alt.Color("value:Q", legend=None, scale=alt.Scale(scheme="blues", domain=[low - (high - low) / 4, high]))
        ink = alt.condition("datum.dark", alt.value("white"), alt.value("#10151c"))
        return with_height(
            base.mark_rect().encode(color=fill) + base.mark_text().encode(text="text:N", color=ink),
            max(100, 34 * len(ups)),
        )

    others = [option_title(name) for name in view.options if name not in (across, up)]
    unit = " in per cent" if view.metric == "accuracy" else ""
    return Figure(
        title=f"{option_title(up).capitalize()} and {option_title(across)}",
        description=f"The {METRICS[view.metric]} by {option_title(up)} and {option_title(across)}, from "
        f"{score_text(low, view.metric)} to {score_text(high, view.metric)}.",
        columns=(option_title(up), "combination", METRICS[view.metric], "95 % interval"),
        rows=_table(view, rows, [row.values.get(up, "-") for row in rows]),
        draw=draw,
        note=f"{_metric_title(view).capitalize()}{unit}."
        + (f" At the best {' and '.join(others)} for each cell." if others else ""),
    )


def _by_rank(view: SweepView) -> Figure:
    """The best combinations with their intervals."""
    shown = view.final[:MOST_RANKED]
    tied = view.sweep.tied
    points = [
        {"name": view.name(row), **_point(view, row), "apart": "yes" if tied and place >= tied else "no"}
        for place, row in enumerate(shown)
    ]
    # Equal names would be one line.
    for place, point in enumerate(points):
        point["name"] += "" if [one["name"] for one in points].count(point["name"]) == 1 else f" ({place + 1})"
    colour = alt.condition("datum.apart == 'yes'", alt.value(SERIES[7]), COLOUR)
    drawn = f"The best {len(shown)} of {len(view.final)} combinations." if len(shown) < len(view.final) else ""
    return Figure(
        title="Combinations by rank",
        description=f"The {METRICS[view.metric]} of the best {len(shown)} combinations with intervals.",
        columns=("rank", "combination", METRICS[view.metric], "95 % interval"),
        rows=_table(view, view.final, [str(place + 1) for place in range(len(view.final))]),
        draw=lambda letters: intervals(
            points, axis=metric_axis("low", view.metric, _metric_title(view)), letters=letters, colour=colour
        ),
        note=f"{drawn} {'Grey: clearly below the best.' if 0 < tied < len(shown) else ''}".strip(),
    )


def _by_shots(view: SweepView) -> Figure:
    """Few-shot curves: the metric by the number of train images per class."""
    names = list(dict.fromkeys(view.name(row) for row in view.final))[:MOST_LINES]
    rows = [row for row in view.rows if view.name(row) in names and row.shots]
    points = [{**_point(view, row), "shots": row.shots, "line": view.name(row)} for row in rows]

    def draw(letters: int) -> Chart:
        short = {name: shorten(name, letters - 6) for name in names}
        own = [{**point, "line": short[point["line"]]} for point in points]
        shots = sorted({point["shots"] for point in own})
        log = shots[-1] >= _LOG_FROM * shots[0] / 2
        scale = alt.Scale(type="log") if log else alt.Scale(zero=False, padding=10)
        axis = alt.Axis(values=shots, format="d")
        base = alt.Chart(data(own)).encode(
            x=alt.X("shots:Q", title="train images per class", scale=scale, axis=axis),
            color=colour_by("line", list(short.values()), letters),
        )
        y = alt.Y("low:Q", title=_metric_title(view), axis=_axis(view), scale=alt.Scale(zero=False))
        band = base.mark_area(opacity=0.15).encode(y=y, y2="high:Q")
        return with_height(band + base.mark_line(point={"filled": True, "size": 45}).encode(y=alt.Y("value:Q")), 240)

    return Figure(
        title="Few-shot curves",
        description=f"The {METRICS[view.metric]} of {len(names)} combinations by the number of train images per class.",
        columns=("images per class", "combination", METRICS[view.metric], "95 % interval"),
        rows=_table(view, rows, [str(row.shots) for row in rows]),
        draw=draw,
        note=f"Means over {view.sweep.draws} draws; bands are 95 % intervals over the draws.",
    )
