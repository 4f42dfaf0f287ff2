"""Loads scripts of `benchmarks/`, which is not a package, as modules, for tests."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark_module(name: str) -> ModuleType:
    """Import `benchmarks/NAME.py` as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # The scripts import each other from their own folder.
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    # It adds the folders of what tests and measurements share.
    importlib.import_module("measure")
    # Dataclasses look up their module there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
