"""featcache: run the backbone once, train heads in seconds.

    cache = featcache.extract("photos/", backbone="vgg16")
    run = featcache.train_head(cache, head="mlp:128,64")
    featcache.predict(run, "photos/new/")

The public names are those of `__all__`. Each is imported at its first use, so that `import featcache` is fast and
never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from featcache.api import extract
    from featcache.backbones import load_backbone
    from featcache.backbones.zoos.modules import from_module
    from featcache.cache.reader import FeatureCache
    from featcache.errors import FeatcacheError
    from featcache.experiments.running import run_experiment
    from featcache.extraction.labelling import label
    from featcache.images.location import open_images
    from featcache.inference.prediction import predict
    from featcache.report.writing import WrittenReport, write_report
    from featcache.runs.fit import train_head
    from featcache.runs.resuming import resume_head
    from featcache.runs.run import Run
    from featcache.sharing.pulling import pull
    from featcache.sharing.pushing import push
    from featcache.sweeps.api import resume_sweep, sweep
    from featcache.training.reading import read_batches

__all__ = [
    "FeatcacheError",
    "FeatureCache",
    "Run",
    "WrittenReport",
    "extract",
    "from_module",
    "label",
    "load_backbone",
    "open_images",
    "predict",
    "pull",
    "push",
    "read_batches",
    "resume_head",
    "resume_sweep",
    "run_experiment",
    "sweep",
    "train_head",
    "write_report",
]

_HOMES = {
    "FeatcacheError": "featcache.errors",
    "FeatureCache": "featcache.cache.reader",
    "Run": "featcache.runs.run",
    "WrittenReport": "featcache.report.writing",
    "extract": "featcache.api",
    "from_module": "featcache.backbones.zoos.modules",
    "label": "featcache.extraction.labelling",
    "load_backbone": "featcache.backbones",
    "open_images": "featcache.images.location",
    "predict": "featcache.inference.prediction",
    "pull": "featcache.sharing.pulling",
    "push": "featcache.sharing.pushing",
    "read_batches": "featcache.training.reading",
    "resume_head": "featcache.runs.resuming",
    "resume_sweep": "featcache.sweeps.api",
    "run_experiment": "featcache.experiments.running",
    "sweep": "featcache.sweeps.api",
    "train_head": "featcache.runs.fit",
    "write_report": "featcache.report.writing",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("featcache")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
