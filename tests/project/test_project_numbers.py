"""Numbers in the README and on the pages come from results that were measured, and benchmarks/ stays small."""

from __future__ import annotations

import json

import pytest
from benchmark_files import BENCHMARKS, benchmark_module
from project_tree import ROOT


@pytest.mark.parametrize("page", ["README.md", "docs/measurements.md", "docs/scale.md"])
def test_the_numbers_of_a_page_are_those_of_the_results(page: str) -> None:
    pages, text = benchmark_module("pages"), (ROOT / page).read_text()
    assert text == pages.render(text, pages.texts()[page]), "run `python benchmarks/measure.py page`"


def test_every_result_names_its_command_and_machine() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        # Parts that were run one at a time each have their own.
        runs = [result] if "command" in result else list(result.values())
        assert runs, path
        for run in runs:
            assert run["command"].startswith(("python benchmarks/", "not kept: ")), path
            assert {"processor", "cores", "versions", "date"} <= run["machine"].keys(), path


def test_the_measurements_stay_small() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in BENCHMARKS.glob("*.py"))
    assert lines <= 2000
