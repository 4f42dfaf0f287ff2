"""Figures: a chart with its description and numbers, drawn with Vega without a browser.

The page shows a figure as SVG at two widths and selects the one that fits the card. Files for papers have the width of
a column, as SVG, PDF and PNG.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import altair as alt

Chart = alt.Chart | alt.LayerChart
Values = list[dict[str, Any]]
Purpose = Literal["page", "paper"]

SERIES: Final = ("#4269d0", "#d9730d", "#2f9a45", "#d94f70", "#7c5cd6", "#2a9d9d", "#9c6b4e", "#858a93")
"""Colours of series: distinct on white and on black, and with most kinds of colour blindness."""
COLOUR: Final = alt.value(SERIES[0])
PER_CENT: Final = alt.Axis(format="%", tickCount=5)

NARROW, WIDE = 320, 480
"""The widths of charts on the page, in pixels: of a phone, and of half a screen."""
COLUMN_INCHES: Final = 3.3
POINTS_PER_INCH, DOTS_PER_INCH = 72, 300
_INK: Final = {"page": ("currentColor", "transparent"), "paper": ("#1b1f24", "white")}
_FONT: Final = {"page": "system-ui, sans-serif", "paper": "Helvetica, Arial, Liberation Sans, sans-serif"}
_FONT_SIZE: Final = {"page": 12, "paper": 8}
# The mean width of a letter as a share of the font size.
_LETTER: Final = 0.56


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """A chart with what is needed without seeing it.

    `draw`: the chart for a width in letters, which is the space for names. `description`: one sentence. `rows`: the
    numbers, one cell per entry of `columns`.
    """

    title: str
    description: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    draw: Callable[[int], Chart]
    note: str = ""

    @property
    def file_name(self) -> str:
        """The title as the name of a file, without an ending."""
        return slug(self.title)


def svg(figure: Figure, width: int) -> str:
    """A figure as an SVG element for the page, `width` pixels wide: lines and text have the colour of the text."""
    import vl_convert

    text: str = vl_convert.vegalite_to_svg(_specification(figure, width, "page"))
    return text


def write_figures(
    figures: Iterable[tuple[str, Figure]], folder: Path, publish: Callable[[Path, bytes], None]
) -> tuple[Path, ...]:
    """Write figures by name to `folder` as `<name>.svg`, `<name>.pdf` and `<name>.png`. Returns the paths."""
    written: dict[Path, None] = {}
    for name, figure in figures:
        unique = name if folder / f"{name}.svg" not in written else f"{name}-{len(written) // 3}"
        for kind, content in zip(("svg", "pdf", "png"), _for_paper(figure), strict=True):
            path = folder / f"{unique}.{kind}"
            publish(path, content)
            written[path] = None
    return tuple(written)


def _for_paper(figure: Figure) -> tuple[bytes, bytes, bytes]:
    """A figure as SVG, PDF and PNG, as wide as a column."""
    import vl_convert

    specification = _specification(figure, round(COLUMN_INCHES * POINTS_PER_INCH), "paper")
    drawn: str = vl_convert.vegalite_to_svg(specification)
    # Vega's unit is a point here: without a unit, a program would take it as a pixel of 1/96 inch.
    in_points = re.sub(r'width="([\d.]+)" height="([\d.]+)"', r'width="\1pt" height="\2pt"', drawn, count=1)
    return (
        in_points.encode(),
        vl_convert.vegalite_to_pdf(specification),
        vl_convert.vegalite_to_png(specification, ppi=DOTS_PER_INCH),
    )


def slug(text: str) -> str:
    """Text as part of the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "figure"


def shorten(text: str, letters: int) -> str:
    """Text of at most `letters` letters: the middle of a longer one is replaced by an ellipsis."""
    if len(text) <= letters:
        return text
    half = max(1, (letters - 1) // 2)
    return f"{text[:half]}…{text[-half:]}"


def legend(names: Sequence[str], letters: int) -> alt.Legend:
    """A legend below the chart with as many columns as fit."""
    longest = max(map(len, names), default=1) + 5
    return alt.Legend(orient="bottom", title=None, columns=max(1, letters // longest), labelLimit=0)


def colour_by(field: str, names: Sequence[str], letters: int) -> alt.Color:
    """Colour by a nominal field, in the order of `names`, with a legend below the chart."""
    scale = alt.Scale(domain=list(names), range=[SERIES[place % len(SERIES)] for place in range(len(names))])
    return alt.Color(f"{field}:N", scale=scale, sort=None, legend=legend(names, letters))


def data(rows: Values) -> dict[str, Values]:
    """Rows as the data of a chart."""
    return {"values": rows}


def with_height(chart: Chart, height: int) -> Chart:
    """The chart with a height in pixels; its width is that of the card."""
    result: Chart = chart.properties(height=height)
    return result


def intervals(rows: Values, *, axis: alt.X, letters: int, colour: Any = COLOUR) -> Chart:
    """One line per row of `name`, `value`, `low` and `high`: a point with its interval, its name above it.

    Names above lines are not cut, also on a phone.
    """
    own = [{**row, "label": shorten(row["name"], letters)} for row in rows]
    y = alt.Y("name:N", sort=None, axis=None, scale=alt.Scale(paddingOuter=0.3))
    base = alt.Chart(data(own)).encode(y=y)
    line = base.mark_rule(strokeWidth=2, yOffset=7).encode(x=axis, x2="high:Q", color=colour)
    point = base.mark_point(filled=True, size=70, opacity=1, yOffset=7).encode(x=alt.X("value:Q"), color=colour)
    label = base.mark_text(align="left", baseline="bottom", dy=0, dx=0).encode(x=alt.value(0), text="label:N")
    return with_height(line + point + label, 34 * len(rows) + 10)


def _specification(figure: Figure, width: int, purpose: Purpose) -> dict[str, Any]:
    ink, background = _INK[purpose]
    size = _FONT_SIZE[purpose]
    # By default Altair refuses more than 5,000 rows, to keep notebooks small.
    with alt.data_transformers.enable("default", max_rows=None):
        specification: dict[str, Any] = figure.draw(int(width / (_LETTER * size))).to_dict()
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": size, "titleFontSize": size, "titleFontWeight": 500}
    quiet = {"gridColor": ink, "gridOpacity": 0.12, "domainColor": ink, "domainOpacity": 0.4, "tickColor": ink}
    specification["width"] = width
    specification["autosize"] = {"type": "fit-x", "contains": "padding"}
    # Browsers have other fonts than the ones that were measured: names at the left edge may be wider.
    specification["padding"] = {"left": 12, "right": 6, "top": 5, "bottom": 5}
    specification["config"] = {
        "background": background,
        "font": _FONT[purpose],
        "view": {"stroke": None},
        "axis": {**quiet, **text, "tickOpacity": 0.4, "labelLimit": 0, "labelFlush": False},
        "legend": {
            **text,
            "symbolStrokeWidth": 2,
            "symbolOpacity": 1,
            "labelLimit": 0,
            "layout": {"bottom": {"direction": "vertical"}},
        },
        "range": {"category": list(SERIES)},
        "rule": {"color": ink},
        "text": {"color": ink, "fontSize": size},
        "line": {"color": ink, "strokeWidth": 2 if purpose == "page" else 1.2},
    }
    return specification
