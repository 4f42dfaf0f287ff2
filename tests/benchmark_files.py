"""Files of `benchmarks/`, which is no package, as modules: what tests of the house and of the benchmark share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark_module(name: str) -> ModuleType:
    """`benchmarks/NAME.py` as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # They import each other as scripts do, from the folder in which they lie.
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    # A dataclass looks itself up there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
