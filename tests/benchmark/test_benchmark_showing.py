"""A result as JSON, as a sentence, a table that marks what is scaled, and a chart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from made_up import FULL, SAMPLE, make_options, result, way

from featcache.benchmark.result import COLD, NOTEBOOK, TUNED, WARM, WAYS, Result
from featcache.benchmark.showing import (
    TITLES,
    bar,
    cells,
    chart_rows,
    duration,
    files,
    header,
    notes,
    page,
    sentence,
    speed_up,
    times,
)


def all_measured() -> Result:
    return result(
        make_options(heads=1, sample=None, sample_epochs=None),
        cold=way(COLD, setup_s=150.0, heads_s=((1, 162.0),)),
        notebook=way(NOTEBOOK, images=FULL, epoch_s=(200.0,) * 10, heads_s=((1, 2000.0),)),
        tuned=way(TUNED, images=FULL, epoch_s=(100.0,) * 10, heads_s=((1, 1000.0),)),
    )


def test_a_result_comes_back_from_json() -> None:
    values = json.loads(json.dumps(result().to_json()))
    assert Result.from_json(values) == result()
    assert values["scenario"]["limit"] == 1000
    assert values["summary"]["comparisons"][NOTEBOOK]["warm_epoch"] == 200.0
    assert values["summary"]["totals"][NOTEBOOK]["scaled"]
    assert not values["summary"]["totals"][WARM]["scaled"]


def test_the_sentence_has_the_fair_speed_up_first_and_its_baseline() -> None:
    # 2 + 10 * 100 + 50 seconds over 162, and over 12.
    assert sentence(result()) == (
        "Keeping the outputs of vgg16, instead of computing them in each of 10 epochs, trained a first classifier 6.5 "
        "times faster (2.7 min instead of ≈ 18 min, vgg16 equally fast in both) and each further one 88 times faster "
        "(12 s)."
    )


def test_without_test_images_the_notes_state_what_correct_is_of() -> None:
    images = {"train": 800, "val": 200}
    ways = {name: way(name, images=images, test_accuracy=None) for name in WAYS}
    untested = result(make_options(heads=1, sample=None, sample_epochs=None), **ways)
    assert cells(untested, WARM)[-1] == "60.0 %"
    assert '200 to choose by, none to test on, so "correct" is of those to choose by; ' in notes(untested)[0]
    assert ", H = 1 classifier: " in notes(untested)[1]
    assert "500 to test on; " in notes(result())[0]


def test_what_is_slower_is_called_slower() -> None:
    quick = way(TUNED, images=SAMPLE, epoch_s=(0.1, 0.1))
    assert "trained a first classifier 16 times slower" in sentence(result(tuned=quick))
    never = way(TUNED, images=SAMPLE, epoch_s=(0.01, 0.01))
    assert any("keeping outputs never pays" in line for line in notes(result(tuned=never)))
    assert [speed_up(factor) for factor in (2.345, 0.5)] == ["2.3 times faster", "2.0 times slower"]


def test_scaled_values_are_marked() -> None:
    rows = {name: cells(result(), name) for name in WAYS}
    for name in (NOTEBOOK, TUNED):
        assert all(cell.startswith("≈ ") for cell in rows[name][1:3])
    for name in (COLD, WARM):
        assert not any("≈" in cell for cell in rows[name])
    sample, heads = "from 150 images and 2 epochs, scaled by images", "one classifier's time x 4"
    assert f"≈ {sample}; {heads}." in notes(result())
    # An accuracy from fewer images cannot be compared.
    assert [row[-1] for row in rows.values()] == ["-", "-", "70.0 %", "70.0 %"]
    assert all(len(row) == len(header(result())) for row in rows.values())


def test_where_all_is_measured_nothing_is_marked() -> None:
    assert "≈" not in page(all_measured())
    assert [cells(all_measured(), name)[-1] for name in WAYS] == ["70.0 %"] * 4


@pytest.mark.parametrize("fault", [{"logits": 0.01}, {"val_accuracy": (0.6, 0.603)}], ids=str)
def test_heads_that_differ_are_not_called_the_same(fault: dict[str, Any]) -> None:
    exact, product = result().agreements
    assert any(line.startswith("The same classifier either way") for line in notes(result()))
    other = replace(result(), agreements=(replace(exact, **fault), product))
    assert any(line.startswith("NOT the same classifier") for line in notes(other))


def test_an_accuracy_that_rounding_changed_is_shown() -> None:
    exact, product = result().agreements
    assert not any("Rounded" in line for line in notes(result()))
    other = replace(result(), agreements=(exact, replace(product, test_accuracy=(0.39, 0.43))))
    assert any("accuracy by 4.0 points" in line and "Rounded" in line for line in notes(other))


def test_the_bars_are_as_long_as_the_times_of_all_heads() -> None:
    # 8402, 4202, 198 and 48 seconds.
    assert [bar(result(), name) for name in WAYS] == ["█" * 12, "█" * 6, "▏", "▏"]
    rows = {row["way"]: row for row in chart_rows(result()) if row["until"] == "all 4 classifiers"}
    assert rows[TITLES[NOTEBOOK]] == {
        "way": TITLES[NOTEBOOK], "until": "all 4 classifiers", "seconds": 8402.0, "label": "≈ 2.3 h", "measured": False
    }  # fmt: skip
    assert [rows[TITLES[name]]["measured"] for name in WAYS] == [False, False, True, True]


def test_files_carry_the_result_its_page_and_its_chart() -> None:
    made = files(result())
    assert set(made) == {"benchmark.json", "benchmark.md", "benchmark.svg"}
    assert made["benchmark.svg"].startswith(b"<svg") and "≈ 2.3 h".encode() in made["benchmark.svg"]
    text = made["benchmark.md"].decode()
    assert "| in every epoch, as in a notebook | ≈ 35 min | ≈ 2.3 h | - | ≈ 3.3 min | 524 MB |" in text
    assert "33 by the formula E H t / (t + E H h)" in text
    assert "python benchmarks/end_to_end.py" in text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0432, "0.043 s"), (3.21, "3.2 s"), (75, "75 s"), (150, "2.5 min"), (4000, "67 min"), (40000, "11.1 h"),
     (400000, "4.6 days")],
)  # fmt: skip
def test_durations_are_short(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_factors_are_no_more_exact_than_they_are_known() -> None:
    assert [times(factor) for factor in (1.234, 12.6, 1234.5)] == ["1.2", "13", "1,234"]
