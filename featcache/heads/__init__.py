"""heads: a cache goes in, a trained and tested head comes out.

    run = train_head(cache, head="mlp:128,64", activation="leaky_relu")

The way of the data: `cuts` says which rows train, choose and test; `batches` brings their features to the device;
`architectures` builds the head; `lightning` trains it, or `solvers` solves it; `metrics` says how good it is; `runs`
keeps it, and `comparison` sets two of them side by side. `fit` is the sentence that joins them, `resuming` says it
again from where it was cut off, and `sweep` for many heads at once.
Heads know the cache and nothing of images. Names are resolved when they are first used, because half of them
need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.heads.architectures import head_names
    from featcache.heads.comparison import Comparison, compare_predictions, compare_runs
    from featcache.heads.config import HeadConfig
    from featcache.heads.fit import fit_head, train_head
    from featcache.heads.reading import read_batches
    from featcache.heads.recipes import Recipe, recipe, recipe_names
    from featcache.heads.records import EpochRecord, Metrics, Predictions, Score
    from featcache.heads.resuming import resume_head
    from featcache.heads.runs import Run
    from featcache.heads.sweep_records import Sweep
    from featcache.heads.sweeping import sweep

__all__ = [
    "Comparison",
    "EpochRecord",
    "HeadConfig",
    "Metrics",
    "Predictions",
    "Recipe",
    "Run",
    "Score",
    "Sweep",
    "compare_predictions",
    "compare_runs",
    "fit_head",
    "head_names",
    "read_batches",
    "recipe",
    "recipe_names",
    "resume_head",
    "sweep",
    "train_head",
]

_HOMES = {
    "Comparison": "comparison",
    "EpochRecord": "records",
    "HeadConfig": "config",
    "Metrics": "records",
    "Predictions": "records",
    "Recipe": "recipes",
    "Run": "runs",
    "Score": "records",
    "Sweep": "sweep_records",
    "compare_predictions": "comparison",
    "compare_runs": "comparison",
    "fit_head": "fit",
    "head_names": "architectures",
    "read_batches": "reading",
    "recipe": "recipes",
    "recipe_names": "recipes",
    "resume_head": "resuming",
    "sweep": "sweeping",
    "train_head": "fit",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
