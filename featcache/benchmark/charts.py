"""Charts of a result: pure functions from a Result to Vega-Lite specs, and from specs to files.

Each chart is rendered twice, for light and for dark pages. Pale bars and dashed lines are scaled, not measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import altair as alt

from featcache.benchmark.arithmetic import break_even, cost, summarise
from featcache.benchmark.records import COLD, NOTEBOOK, TUNED, WARM, WAYS, Agreement, GrowthResult, Result
from featcache.benchmark.wording import TITLES, duration, how_it_was_scaled, times

Spec = dict[str, Any]
THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {"background": "#ffffff", "ink": "#1f2328", "grid": "#d8dee4"},
    "dark": {"background": "#0d1117", "ink": "#e6edf3", "grid": "#30363d"},
}
# Distinguishable on white and on black, and with red-green colour blindness.
_COLOURS = {NOTEBOOK: "#d9622b", TUNED: "#d9a62b", COLD: "#3f8fd2", WARM: "#2fa58f"}
_WIDTH = 560
_DOUBLINGS = [1, 2, 4, 8, 16, 32, 64]
_TICKS_S = [0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36000, 360000]
_TICK_LABELS = (
    "datum.value < 60 ? datum.value + ' s' : datum.value < 3600 ? datum.value / 60 + ' min' : datum.value / 3600 + ' h'"
)


def charts(result: Result) -> dict[str, Spec]:
    """Every chart of a result by name."""
    made = {"ways": ways_chart(result), "epochs": epochs_chart(result), "losses": losses_chart(result)}
    if result.scenario.heads > 1:
        made["heads"] = heads_chart(result)
    return {name: chart.to_dict() for name, chart in made.items()}


def growth_charts(result: GrowthResult) -> dict[str, Spec]:
    """Time against images."""
    return {"images": images_chart(result).to_dict()}


# --- how long each way takes -------------------------------------------------------------------------------


def ways_chart(result: Result) -> Any:
    """Bars of the four ways on a log scale: an epoch, one head, all heads."""
    rows = _bars(result)
    least = min(row["seconds"] for row in rows) / 3
    most = max(row["seconds"] for row in rows) * 12
    y = alt.Y("way:N", sort=[TITLES[name] for name in WAYS], title=None, axis=alt.Axis(labelLimit=300))
    seconds = alt.X(
        "seconds:Q",
        scale=alt.Scale(type="log", domain=[least, most]),
        axis=alt.Axis(title="log scale", values=_TICKS_S, labelExpr=_TICK_LABELS),
    )
    base = alt.Chart().encode(y=y)
    bars = base.mark_bar(height={"band": 0.72}).encode(
        x=seconds,
        x2="from:Q",
        color=_colour(legend=False),
        opacity=alt.Opacity("measured:N", scale=alt.Scale(domain=[True, False], range=[1.0, 0.55]), legend=None),
    )
    labels = base.mark_text(align="left", dx=5).encode(x=seconds, text="label:N")
    panels = list(dict.fromkeys(row["what"] for row in rows))
    return (
        alt.layer(bars, labels, data=alt.InlineData(values=[row | {"from": least} for row in rows]))
        .properties(width=_WIDTH, height=alt.Step(26))
        .facet(
            row=alt.Row("what:N", sort=panels, title=None, header=alt.Header(labelOrient="top", labelAnchor="start"))
        )
        .resolve_scale(y="independent")
        .properties(title=_title(result, _headline(result), how_it_was_scaled(result)))
    )


def _headline(result: Result) -> str:
    gain = summarise(result).comparisons[NOTEBOOK]
    return f"From the second training on, an epoch is {times(gain.warm_epoch)} times faster"


def _bars(result: Result) -> list[dict[str, Any]]:
    scenario, totals = result.scenario, summarise(result).totals
    panels: list[tuple[str, Callable[[str], tuple[float, bool]], tuple[str, ...]]] = [
        # Once extracted, a cold epoch is a warm one.
        ("an epoch", lambda name: (totals[name].epoch_s, totals[name].scaled), (NOTEBOOK, TUNED, WARM)),
        (
            f"one head, {scenario.epochs} epochs",
            lambda name: (totals[name].one_head_s, totals[name].scaled),
            WAYS,
        ),
    ]
    if scenario.heads > 1:
        panels.append(
            (
                f"{scenario.heads} heads, {scenario.epochs} epochs each",
                lambda name: (totals[name].all_heads_s, totals[name].scaled or totals[name].multiplied),
                WAYS,
            )
        )
    rows = []
    for what, value, names in panels:
        for name in names:
            seconds, scaled = value(name)
            rows.append(
                {
                    "what": what,
                    "way": TITLES[name],
                    "seconds": seconds,
                    "measured": not scaled,
                    "label": ("≈ " if scaled else "") + duration(seconds),
                }
            )
    return rows


# --- break-even --------------------------------------------------------------------------------------------


def epochs_chart(result: Result) -> Any:
    """Lines of time against the epochs of one head, with the points from which the cached way is faster."""
    costs = {name: cost(result, name) for name in WAYS}
    crossings = {name: break_even(costs[name], costs[COLD]) for name in (NOTEBOOK, TUNED)}
    shown = _epochs_shown(result, crossings)
    unit, unit_s = ("minutes", 60.0) if costs[NOTEBOOK].seconds(shown) > 300 else ("seconds", 1.0)
    lines = [
        {
            "way": TITLES[name],
            "epochs": epochs,
            "time": costs[name].seconds(epochs) / unit_s,
            "scaled": costs[name].scaled,
        }
        for name in WAYS
        for epochs in range(shown + 1)
    ]
    points = [
        {
            "epochs": crossing,
            "time": costs[COLD].seconds(crossing) / unit_s,
            "label": f"ahead after {crossing:.1f} epochs",
        }
        for crossing in crossings.values()
        if crossing is not None and 0 < crossing <= shown
    ]
    x = alt.X("epochs:Q", title="epochs of one head", axis=alt.Axis(tickMinStep=1, format="d"))
    y = alt.Y("time:Q", title=unit)
    drawn = (
        alt.Chart(alt.InlineData(values=lines))
        .mark_line(strokeWidth=2.5)
        .encode(x=x, y=y, color=_colour(legend=True), strokeDash=_dash())
    )
    marked = alt.Chart(alt.InlineData(values=points)).encode(x=x, y=y)
    return alt.layer(
        drawn,
        marked.mark_point(size=90, filled=True, opacity=1),
        marked.mark_text(align="left", dx=9, dy=12).encode(text="label:N"),
    ).properties(
        width=_WIDTH,
        height=280,
        title=_title(result, "Extraction is paid for once", how_it_was_scaled(result, heads=False)),
    )


def _epochs_shown(result: Result, crossings: Mapping[str, float | None]) -> int:
    latest = max((crossing for crossing in crossings.values() if crossing is not None), default=0.0)
    return max(3, min(result.scenario.epochs, round(2 * latest) + 1))


# --- growth ------------------------------------------------------------------------------------------------


def heads_chart(result: Result) -> Any:
    """Time against the epochs of one head and against the number of heads, both on log scales."""
    scenario, costs = result.scenario, {name: cost(result, name) for name in WAYS}
    epochs = [epochs for epochs in _DOUBLINGS if epochs <= max(64, scenario.epochs)]
    heads = sorted({*(count for count in _DOUBLINGS if count <= scenario.heads), scenario.heads})
    cold = result.ways[COLD]
    after = {
        COLD: [(count, seconds) for count, seconds in cold.heads_s if count in heads],
        WARM: [(count, seconds - cold.setup_s) for count, seconds in cold.heads_s if count in heads],
    }
    rows = [
        _point(
            "epochs of one head", name, count, costs[name].seconds(count), scaled=count > _epochs_measured(result, name)
        )
        for name in WAYS
        for count in epochs
    ]
    what = f"heads of {scenario.epochs} epochs"
    for name in WAYS:
        multiplied = [(count, costs[name].seconds(scenario.epochs, count)) for count in heads]
        known = after.get(name, multiplied)
        rows += [_point(what, name, count, seconds, scaled=name not in after) for count, seconds in known]
    note = "Dashed: from the time of one epoch, or of one head."
    return (
        _growth_lines(rows, width=_WIDTH // 2 - 20, x_title=None)
        .facet(column=alt.Column("what:N", sort=["epochs of one head", what], title=None))
        .resolve_scale(x="independent")
        .properties(title=_title(result, "Another head costs seconds, or everything again", note))
    )


def images_chart(result: GrowthResult) -> Any:
    """Time of an epoch against the number of images, both on log scales."""
    rows = [_point("", one.way, one.images, one.seconds, scaled=one.scaled) for one in result.points]
    scenario, machine = result.scenario, result.machine
    size = f" at {scenario.image_size}x{scenario.image_size}" if scenario.image_size else ""
    about = f"{scenario.backbone}{size}, {machine['cores']} cores of {machine['processor']}. Dashed: scaled by images."
    title = alt.TitleParams("Time of an epoch against images", subtitle=[about], anchor="start", offset=12)
    return _growth_lines(rows, width=_WIDTH, x_title="images").properties(title=title)


def _epochs_measured(result: Result, name: str) -> int:
    way = result.ways[name]
    return 0 if cost(result, name).scaled else len(way.epoch_s)


def _point(what: str, name: str, count: int, seconds: float, *, scaled: bool) -> dict[str, Any]:
    return {"what": what, "way": TITLES[name], "count": count, "seconds": seconds, "scaled": scaled}


def _bridges(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Extra points that connect each dashed (scaled) line to the end of its measured line."""
    for key in dict.fromkeys((row["what"], row["way"]) for row in rows):
        ours = [row for row in rows if (row["what"], row["way"]) == key]
        known = [row for row in ours if not row["scaled"]]
        if known and len(known) < len(ours):
            yield max(known, key=lambda row: int(row["count"])) | {"scaled": True}


def _growth_lines(rows: list[dict[str, Any]], *, width: int, x_title: str | None) -> Any:
    rows = [*rows, *_bridges(rows)]
    counts = sorted({row["count"] for row in rows})
    x = alt.X(
        "count:Q",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(title=x_title, values=counts, format=",d"),
    )
    y = alt.Y(
        "seconds:Q",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(title="log scale", values=_TICKS_S, labelExpr=_TICK_LABELS),
    )
    base = alt.Chart().encode(x=x, y=y, color=_colour(legend=True))
    lines = base.mark_line(strokeWidth=2.5).encode(strokeDash=_dash())
    points = base.transform_filter("!datum.scaled").mark_point(filled=True, size=45, opacity=1)
    return alt.layer(lines, points, data=alt.InlineData(values=rows)).properties(width=width, height=280)


# --- the same head -----------------------------------------------------------------------------------------


def losses_chart(result: Result) -> Any:
    """The loss of every step, cached drawn over end to end: one line where they agree."""
    rows = [row for one in result.agreements for row in _steps(result, one)]
    base = alt.Chart().encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, format="d")),
        y=alt.Y("loss:Q", title="loss before the step", scale=alt.Scale(zero=False)),
    )
    domain = ["end to end", "cached"]
    colour = alt.Color(
        "way:N",
        sort=domain,
        scale=alt.Scale(domain=domain, range=[_COLOURS[NOTEBOOK], _COLOURS[COLD]]),
        legend=alt.Legend(orient="bottom", title=None),
    )
    wide = base.transform_filter("datum.way == 'end to end'").mark_line(strokeWidth=7, opacity=0.5)
    thin = base.transform_filter("datum.way == 'cached'").mark_line(strokeWidth=1.8)
    panel = alt.layer(wide.encode(color=colour), thin.encode(color=colour), data=alt.InlineData(values=rows))
    return (
        panel.properties(width=_WIDTH // 2 - 20, height=220)
        .facet(column=alt.Column("against:N", title=None, sort=list(dict.fromkeys(row["against"] for row in rows))))
        .properties(title=_title(result, "The same head, step by step"))
    )


def _steps(result: Result, agreement: Agreement) -> list[dict[str, Any]]:
    against = f"{agreement.precision}, stored as {agreement.stored}"
    both = {"end to end": result.ways[agreement.baseline].curve, "cached": agreement.cached}
    return [
        {"against": against, "way": way, "step": step, "loss": loss}
        for way, curve in both.items()
        for step, loss in enumerate(curve.step_losses, start=1)
    ]


# --- shared parts ------------------------------------------------------------------------------------------


def _title(result: Result, text: str, note: str | None = None) -> alt.TitleParams:
    scenario, images = result.scenario, sum(result.ways[WARM].images.values())
    about = (
        f"{scenario.name}: {scenario.backbone}, {images:,} images, head {scenario.head.head}, "
        f"{result.machine['cores']} cores of {result.machine['processor']}"
    )
    return alt.TitleParams(text, subtitle=[about] if note is None else [about, note], anchor="start", offset=12)


def _colour(*, legend: bool) -> alt.Color:
    return alt.Color(
        "way:N",
        sort=[TITLES[name] for name in WAYS],
        scale=alt.Scale(domain=[TITLES[name] for name in WAYS], range=[_COLOURS[name] for name in WAYS]),
        legend=alt.Legend(orient="bottom", columns=2, title=None, labelLimit=320, symbolType="stroke")
        if legend
        else None,
    )


def _dash() -> alt.StrokeDash:
    return alt.StrokeDash("scaled:N", scale=alt.Scale(domain=[False, True], range=[[1, 0], [6, 4]]), legend=None)


def with_theme(spec: Spec, theme: str) -> Spec:
    """A spec in the colours of a theme: "light" or "dark"."""
    colours = THEMES[theme]
    ink, grid = colours["ink"], colours["grid"]
    config = {
        "font": "sans-serif",
        "view": {"stroke": None},
        "axis": {
            "labelColor": ink, "titleColor": ink, "gridColor": grid, "domainColor": grid, "tickColor": grid,
            "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
        },
        "legend": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12},
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 13, "labelFontWeight": "bold"},
        "title": {"color": ink, "subtitleColor": ink, "fontSize": 16, "subtitleFontSize": 12},
        "text": {"color": ink, "fontSize": 12},
        "point": {"color": ink},
    }  # fmt: skip
    return spec | {"background": colours["background"], "padding": 14, "config": spec.get("config", {}) | config}


def render_charts(specs: Mapping[str, Spec]) -> dict[str, bytes]:
    """Render charts as files, by name: `<name>-<theme>.svg` and `.png`, and the spec as `<name>.vl.json`."""
    import vl_convert

    files: dict[str, bytes] = {}
    for name, spec in specs.items():
        files[f"{name}.vl.json"] = (json.dumps(spec, indent=1) + "\n").encode()
        for theme in THEMES:
            coloured = with_theme(spec, theme)
            files[f"{name}-{theme}.svg"] = vl_convert.vegalite_to_svg(coloured).encode()
            files[f"{name}-{theme}.png"] = vl_convert.vegalite_to_png(coloured, scale=2)
    return files
