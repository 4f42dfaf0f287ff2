"""Numbers in the README and on the page about large sets come from a result that was measured."""

from __future__ import annotations

import json

from benchmark_files import benchmark_module
from project_tree import ROOT


def test_the_readmes_numbers_are_the_measured_ones() -> None:
    renderer, readme = benchmark_module("readme_table"), (ROOT / "README.md").read_text()
    assert readme == renderer.render(readme, renderer.read_numbers()), "run `python benchmarks/readme_table.py`"


def test_the_numbers_of_large_sets_are_the_measured_and_predicted_ones() -> None:
    renderer, page = benchmark_module("scale_page"), (ROOT / "docs" / "scale.md").read_text()
    assert page == renderer.render(page, renderer.read_results()), "run `python benchmarks/scale_page.py`"


def test_every_result_names_its_command_and_machine() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        # Parts that were run one at a time each have their own.
        runs = [result] if "command" in result else list(result.values())
        assert runs, path
        for run in runs:
            assert run["command"].startswith("python benchmarks/"), path
            assert {"processor", "cores", "versions", "date"} <= run["machine"].keys(), path
