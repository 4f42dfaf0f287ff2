"""Predictions for images by a trained head, and exports of runs and caches.

    predicted = predict("latest", "photos/")

`options` are those of predictions and exports. `classifier` opens a run's backbone again, with the same weights and
transform; `pictures` opens the images to classify; `prediction` combines the two, and `nearest` finds the most similar
cached images. `exporting` writes a run as one file: `network` is the whole classifier as one torch module, `resizing`
is Pillow's resize inside it, `formats` writes the file, and `verification_images` finds the images that it is checked
on. `cache_export` writes a cache's rows (`cache_rows`) as arrays, as a table, or for TensorBoard's projector. Names
are imported when they are first used, because most of them need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.inference.cache_export import ExportedCache, export_cache
    from featcache.inference.classifier import Classifier
    from featcache.inference.exporting import ExportedRun, export_run
    from featcache.inference.prediction import predict
    from featcache.inference.records import Guess, ImagePrediction, NearImage, Predicted

__all__ = [
    "Classifier",
    "ExportedCache",
    "ExportedRun",
    "Guess",
    "ImagePrediction",
    "NearImage",
    "Predicted",
    "export_cache",
    "export_run",
    "predict",
]

_MODULES = {
    "Classifier": "classifier",
    "ExportedCache": "cache_export",
    "ExportedRun": "exporting",
    "Guess": "records",
    "ImagePrediction": "records",
    "NearImage": "records",
    "Predicted": "records",
    "export_cache": "cache_export",
    "export_run": "exporting",
    "predict": "prediction",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
