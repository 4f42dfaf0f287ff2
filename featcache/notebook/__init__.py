"""The notebook's nine experiments as recipes, and whether featcache agrees with the notebook.

    found = sweep_recipes(cache, [recipe("mlp")], seeds=3, runs_dir=Path("runs"))
    reproductions(found, [recipe("mlp")], cache)

`recipes` defines the experiments, `reproducing` trains their heads as one sweep, and `reproduction` compares the
results with the notebook's. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.notebook.recipes import Recipe, recipe, recipe_names
    from featcache.notebook.reproducing import reproductions, sweep_recipes
    from featcache.notebook.reproduction import Reproduction

__all__ = ["Recipe", "Reproduction", "recipe", "recipe_names", "reproductions", "sweep_recipes"]

_HOMES = {
    "Recipe": "recipes",
    "Reproduction": "reproduction",
    "recipe": "recipes",
    "recipe_names": "recipes",
    "reproductions": "reproducing",
    "sweep_recipes": "reproducing",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
