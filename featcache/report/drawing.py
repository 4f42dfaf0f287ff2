"""Draws charts with Vega, without a browser: as SVG for the page, and as SVG and PNG for papers."""

from __future__ import annotations

from typing import Any, Final, Literal

import altair as alt

from featcache.report.charts import SERIES, Chart

Purpose = Literal["page", "paper"]

_INK: Final = {"page": ("currentColor", "transparent"), "paper": ("#1b1f24", "white")}


def svg(chart: Chart, purpose: Purpose = "page") -> str:
    """The chart as an SVG element. On a page its lines and text have the colour of the surrounding text."""
    import vl_convert

    text: str = vl_convert.vegalite_to_svg(_specification(chart, purpose))
    return text


def png(chart: Chart) -> bytes:
    """The chart as the bytes of a PNG file, at three times the resolution of the screen."""
    import vl_convert

    data: bytes = vl_convert.vegalite_to_png(_specification(chart, "paper"), scale=3)
    return data


def _specification(chart: Chart, purpose: Purpose) -> dict[str, Any]:
    ink, background = _INK[purpose]
    quiet = {"gridColor": ink, "gridOpacity": 0.12, "domainColor": ink, "domainOpacity": 0.4, "tickColor": ink}
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500}
    # By default Altair refuses more than 5,000 rows, to keep notebooks small.
    with alt.data_transformers.enable("default", max_rows=None):
        specification: dict[str, Any] = chart.to_dict()
    specification["config"] = {
        "background": background,
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": {**quiet, **text, "tickOpacity": 0.4},
        "legend": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "symbolStrokeWidth": 2},
        "range": {"category": list(SERIES)},
        "rule": {"color": ink},
        "text": {"color": ink, "fontSize": 12},
        "line": {"color": ink, "strokeWidth": 2},
    }
    return specification
