"""Results as JSON, as tables that mark scaled values, and as charts for light and dark pages."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from made_up import FULL, MACHINE, make_scenario, result, way

from featcache.benchmark.charts import THEMES, charts, growth_charts, render_charts, with_theme
from featcache.benchmark.kinds import files, page, screen
from featcache.benchmark.records import (
    COLD,
    NOTEBOOK,
    TUNED,
    WARM,
    WAYS,
    GrowthResult,
    Point,
    Result,
    StreamingResult,
)
from featcache.benchmark.tables import markdown
from featcache.benchmark.wording import TITLES, duration, times

MEASURED = {
    NOTEBOOK: way(NOTEBOOK, images=FULL, epoch_s=(200.0,) * 10, heads_s=((1, 2000.0),)),
    TUNED: way(TUNED, images=FULL, epoch_s=(100.0,) * 10, heads_s=((1, 1000.0),)),
}


def all_measured() -> Result:
    return result(
        make_scenario(heads=1, sample=None, sample_epochs=None),
        cold=way(COLD, setup_s=150.0, heads_s=((1, 162.0),)),
        **MEASURED,
    )


def growth() -> GrowthResult:
    points = [
        Point(way=name, images=images, seconds=seconds * images, scaled=images > 2000 and name in (NOTEBOOK, TUNED))
        for name, seconds in zip(WAYS, (0.2, 0.1, 0.15, 0.0002), strict=True)
        for images in (1000, 2000, 4000)
    ]
    return GrowthResult(command="x", machine=MACHINE, scenario=make_scenario(heads=1), points=tuple(points))


def streaming() -> StreamingResult:
    return StreamingResult(
        command="x",
        machine=MACHINE,
        scenario=make_scenario(heads=1),
        features=result().features,
        limit_bytes=30_000_000,
        resident=way("resident"),
        streamed=way("streamed", epoch_s=(1.1, 1.1)),
        resident_fails="MemoryError: no",
    )


# --- JSON --------------------------------------------------------------------------------------------------


def test_a_result_comes_back_from_json() -> None:
    json_values = json.loads(json.dumps(result().to_json()))
    assert Result.from_json(json_values) == result()
    assert json_values["summary"]["comparisons"][NOTEBOOK]["warm_epoch"] == 200.0
    assert json_values["scenario"]["scaled"]
    assert json_values["summary"]["totals"][NOTEBOOK]["scaled"]
    assert not json_values["summary"]["totals"][WARM]["scaled"]


def test_the_points_of_growth_come_back_from_json() -> None:
    assert GrowthResult.from_json(json.loads(json.dumps(growth().to_json()))) == growth()


def test_the_streamed_result_is_json() -> None:
    assert json.loads(json.dumps(streaming().to_json()))["streamed"]["epoch_s"] == [1.1, 1.1]


# --- tables ------------------------------------------------------------------------------------------------


def test_scaled_values_are_marked_everywhere() -> None:
    shown = screen(result())
    for row in shown.rows[:2]:
        assert all(cell.startswith("≈ ") for cell in row[1:4])
    for row in shown.rows[2:]:
        assert not any("≈" in cell for cell in row)
    assert any(line.startswith("≈ measured on 150 images and 2 epochs") for line in shown.after)
    assert "≈ measured on 150 images" in markdown(result())
    # An accuracy from fewer images cannot be compared.
    assert [row[-1] for row in shown.rows] == ["-", "-", "70.0 %", "70.0 %"]


@pytest.mark.parametrize("fault", [{"logits": 0.01}, {"same_answers": 69}], ids=str)
def test_heads_that_differ_are_not_called_the_same(fault: dict[str, Any]) -> None:
    exact, product = result().agreements
    assert any(line.startswith("The head is the same") for line in screen(result()).after)
    other = replace(result(), agreements=(replace(exact, **fault), product))
    assert any(line.startswith("The heads are NOT the same") for line in screen(other).after)


def test_where_all_is_measured_nothing_is_marked() -> None:
    assert "≈" not in markdown(all_measured())
    assert [row[-1] for row in screen(all_measured()).rows] == ["70.0 %"] * 4


def test_the_page_shows_the_numbers_of_the_result() -> None:
    page = markdown(result())
    assert "| the notebook's way | 200 | 13 | 42 | 33 | 11 | 1 | 4.8 | 20 |" in page
    assert "| the notebook's way | fp32, float32 | 150, 2 | 1.0e-06 | 1.0e-05 | 70 of 70 |" in page
    assert "python benchmarks/end_to_end.py" in page


@pytest.mark.parametrize("made", [result(), all_measured(), growth(), streaming()], ids=lambda one: type(one).__name__)
def test_every_kind_has_a_screen_and_a_page(made: Any) -> None:
    shown = screen(made)
    assert all(len(row) == len(shown.header) for row in shown.rows)
    assert shown.before
    assert shown.after
    assert page(made).startswith("# Benchmark ")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0432, "0.043 s"), (3.21, "3.2 s"), (75, "75 s"), (150, "2.5 min"), (4000, "67 min"), (40000, "11.1 h"),
     (400000, "4.6 days")],
)  # fmt: skip
def test_durations_are_short(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_factors_are_no_more_exact_than_they_are_known() -> None:
    assert [times(factor) for factor in (1.234, 12.6, 1234.5)] == ["1.2", "13", "1,234"]


# --- charts ------------------------------------------------------------------------------------------------


def values(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All data of a chart, from all its datasets."""
    return [row for rows in spec["datasets"].values() for row in rows]


def test_the_bars_are_the_totals_and_scaled_ones_are_pale() -> None:
    bars = values(charts(result())["ways"])
    heads = {row["way"]: row for row in bars if row["what"] == "4 heads, 10 epochs each"}
    assert heads[TITLES[NOTEBOOK]]["seconds"] == 8402.0
    assert heads[TITLES[NOTEBOOK]]["label"] == "≈ 2.3 h"
    assert [heads[TITLES[name]]["measured"] for name in WAYS] == [False, False, True, True]


def test_the_break_even_point_lies_on_both_lines() -> None:
    rows = values(charts(result())["epochs"])
    points = [row for row in rows if "label" in row]
    assert [row["label"] for row in points] == ["ahead after 0.3 epochs", "ahead after 1.0 epochs"]
    tuned = {row["epochs"]: row["time"] for row in rows if row.get("way") == TITLES[TUNED]}
    crossing = points[1]
    between = tuned[1] + (tuned[2] - tuned[1]) * (crossing["epochs"] - 1)
    assert crossing["time"] == pytest.approx(between)


def test_loss_curves_of_both_stand_side_by_side() -> None:
    rows = values(charts(result())["losses"])
    assert {(row["against"], row["way"]) for row in rows} == {
        (against, kind)
        for against in ("fp32, stored as float32", "bf16, stored as float16")
        for kind in ("end to end", "cached")
    }


def test_measured_heads_are_points_and_multiplied_ones_are_dashed() -> None:
    rows = [row for row in values(charts(result())["heads"]) if row["what"] == "heads of 10 epochs"]
    cold = {row["count"]: row for row in rows if row["way"] == TITLES[COLD]}
    assert {count: row["seconds"] for count, row in cold.items()} == {1: 162.0, 2: 174.0, 4: 198.0}
    assert not any(row["scaled"] for row in cold.values())
    assert all(row["scaled"] for row in rows if row["way"] == TITLES[NOTEBOOK])


def test_growth_is_dashed_from_the_last_measured_size_on() -> None:
    rows = values(growth_charts(growth())["images"])
    dashed = sorted(row["count"] for row in rows if row["way"] == TITLES[NOTEBOOK] and row["scaled"])
    assert dashed == [2000, 4000]


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """The contrast ratio of WCAG, from 1 to 21."""
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_words_and_lines_stand_out_from_the_page(theme: str) -> None:
    colours = THEMES[theme]
    assert contrast(colours["ink"], colours["background"]) > 7
    scale = charts(result())["ways"]["spec"]["layer"][0]["encoding"]["color"]["scale"]["range"]
    assert len(scale) == 4
    assert min(contrast(colour, colours["background"]) for colour in scale) > 2
    assert with_theme(charts(result())["ways"], theme)["background"] == colours["background"]


def test_charts_are_drawn_for_both_pages() -> None:
    (name, spec), *_ = charts(all_measured()).items()
    made = render_charts({name: spec})
    assert set(made) == {f"{name}.vl.json"} | {f"{name}-{t}.{kind}" for t in THEMES for kind in ("svg", "png")}
    assert made[f"{name}-dark.png"].startswith(b"\x89PNG")
    svg = made[f"{name}-light.svg"].decode()
    assert svg.startswith("<svg")
    assert "From the second training on" in svg


def test_files_carry_the_result_its_page_and_its_charts() -> None:
    made = files(replace(growth()), "growth")
    assert {"growth.json", "growth.md", "images-light.svg", "images-dark.png", "images.vl.json"} <= set(made)
