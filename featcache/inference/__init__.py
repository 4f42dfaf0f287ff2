"""Predictions for images by a trained head, search for similar images, and exports of runs and caches.

    predicted = predict("latest", "photos/")

`options` are those of all functions. `classifier` opens the recorded backbones again, with the same weights and
transform; `pictures` opens images, `prediction` combines the two, and `similarity` finds the nearest cached images.
`exporting` writes a run and checks it: `network` is the whole classifier as one torch module, with Pillow's resize
inside, `formats` writes the file, and `finetuning` is the module that is written for training. `cache_export` writes a
cache's rows (`cache_rows`) as arrays, as a table, or for programs that show points (`viewers`). Names are imported when
they are first used, because most of them need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.inference.cache_export import ExportedCache, export_cache
    from featcache.inference.classifier import Classifier
    from featcache.inference.exporting import ExportedRun, export_run
    from featcache.inference.prediction import predict
    from featcache.inference.records import Found, Guess, ImagePrediction, NearImage, Predicted, SearchedImage
    from featcache.inference.similarity import search

__all__ = [
    "Classifier",
    "ExportedCache",
    "ExportedRun",
    "Found",
    "Guess",
    "ImagePrediction",
    "NearImage",
    "Predicted",
    "SearchedImage",
    "export_cache",
    "export_run",
    "predict",
    "search",
]

_MODULES = {
    "Classifier": "classifier",
    "ExportedCache": "cache_export",
    "ExportedRun": "exporting",
    "Found": "records",
    "Guess": "records",
    "ImagePrediction": "records",
    "NearImage": "records",
    "Predicted": "records",
    "SearchedImage": "records",
    "export_cache": "cache_export",
    "export_run": "exporting",
    "predict": "prediction",
    "search": "similarity",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
