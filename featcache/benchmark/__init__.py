"""benchmark: end to end against cached, measured, on anybody's images and machine.

    result = run_benchmark(scenario("quick"), data_dir=Path("data"), command="...")
    result.to_json()["summary"]

`scenarios` says what is measured; `ways` measures it, each way in a process of its own (`processes`), with
`end_to_end` in the backbone's place in every step and `training` as the one training for all. `twins` train the same
heads from a cache, and `agreement` says whether both end at the same head. `arithmetic` makes speed-ups of times,
`tables` and `charts` show a result; `growth` and `streaming` ask something else, and `kinds` is the face of all three.
It reads from all the rooms above. Names are resolved when they are first used, for half of them need torch.
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
