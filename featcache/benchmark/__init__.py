"""benchmark: measures training end to end against training from a cache, on any images and any machine.

    result = run_benchmark(scenario("quick"), data_dir=Path("data"), command="...")
    result.to_json()["summary"]

`scenarios` defines what is measured. `ways` measures the four ways of training, each in its own process, with one
training loop (`training`); `end_to_end` runs the backbone in every step. `controls` trains the same heads from a cache,
and `agreement` compares the results. `arithmetic` computes speed-ups, `tables` and `charts` show a result. `growth` and
`streaming` measure something else, and `kinds` is the common interface. The names below are imported on first use,
because half of them need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.benchmark.records import Result
    from featcache.benchmark.run import run_benchmark
    from featcache.benchmark.scenarios import Scenario, scenario, scenario_names

__all__ = ["Result", "Scenario", "run_benchmark", "scenario", "scenario_names"]

_HOMES = {
    "Result": "records",
    "Scenario": "scenarios",
    "run_benchmark": "run",
    "scenario": "scenarios",
    "scenario_names": "scenarios",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
