"""featcache: run the backbone once, train heads in seconds.

    cache = featcache.extract("photos/", backbone="vgg16")
    run = featcache.train_head(cache, head="mlp:128,64")
    featcache.predict(run, "photos/new/")

The public names are those of `__all__`; they are resolved when they are first used, so that `import featcache`
costs next to nothing and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.api import extract
    from featcache.backbones import load_backbone
    from featcache.backbones.zoos.modules import from_module
    from featcache.cache.reader import FeatureCache
    from featcache.errors import FeatcacheError
    from featcache.extraction.labelling import label
    from featcache.heads.fit import train_head
    from featcache.heads.reading import read_batches
    from featcache.heads.resuming import resume_head
    from featcache.heads.runs import Run
    from featcache.heads.sweeping import sweep
    from featcache.images.location import open_images
    from featcache.inference.prediction import predict
    from featcache.report.writing import write_report

__all__ = [
    "FeatcacheError",
    "FeatureCache",
    "Run",
    "extract",
    "from_module",
    "label",
    "load_backbone",
    "open_images",
    "predict",
    "read_batches",
    "resume_head",
    "sweep",
    "train_head",
    "write_report",
]

_HOMES = {
    "FeatcacheError": "featcache.errors",
    "FeatureCache": "featcache.cache.reader",
    "Run": "featcache.heads.runs",
    "extract": "featcache.api",
    "from_module": "featcache.backbones.zoos.modules",
    "label": "featcache.extraction.labelling",
    "load_backbone": "featcache.backbones",
    "open_images": "featcache.images.location",
    "predict": "featcache.inference.prediction",
    "read_batches": "featcache.heads.reading",
    "resume_head": "featcache.heads.resuming",
    "sweep": "featcache.heads.sweeping",
    "train_head": "featcache.heads.fit",
    "write_report": "featcache.report.writing",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
