"""Numbers in the README come from a result that was measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def _renderer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "benchmarks" / "readme_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readmes_numbers_are_the_measured_ones() -> None:
    renderer, readme = _renderer(), (ROOT / "README.md").read_text()
    assert readme == renderer.rendered(readme, *renderer.measured()), "run `python benchmarks/readme_table.py`"


def test_every_result_names_its_command_and_machine() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        # Parts that were run one at a time each have their own.
        runs = [result] if "command" in result else list(result.values())
        assert runs, path
        for run in runs:
            assert run["command"].startswith("python benchmarks/"), path
            assert {"processor", "cores", "versions", "date"} <= run["machine"].keys(), path
