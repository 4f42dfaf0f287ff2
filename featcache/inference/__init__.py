"""inference: a run and images go in, classes come out; and a run leaves the house as one file.

    predicted = predict("latest", "photos/")

`classifier` rebuilds what a head was trained behind, backbone, weights and transform, and refuses other weights;
`pictures` are the images that were named; `prediction` brings the two together, and `nearest` shows the cached images
most like each. `exporting` writes a run as one file: `network` is all of it as one torch network, `resizing` Pillow's
resize inside it, `formats` how it becomes a file, and `witnesses` the images it is checked on. `cache_export` writes
a cache's rows (`cache_rows`) as arrays, as a table, or for TensorBoard's projector.
Names are resolved when they are first used, because most of them need torch.
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

_HOMES = {
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
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
