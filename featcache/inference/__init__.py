"""inference: a run and images go in, classes come out; and a run leaves the house as one file.

    predicted = predict("latest", "photos/")

`classifier` rebuilds what a head was trained behind, backbone, weights and transform, and refuses other weights;
`pictures` are the images that were named; `prediction` brings the two together, and `nearest` shows the cached images
most like each. `exporting` writes a run as one file: `network` is all of it as one torch network, `resizing` Pillow's
resize inside it, `formats` how it becomes a file, and `witnesses` the images it is checked on.
Names are resolved when they are first used, because most of them need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.inference.classifier import Classifier
    from featcache.inference.exporting import ExportedRun, export_run
    from featcache.inference.prediction import predict
    from featcache.inference.records import Guess, ImagePrediction, NearImage, Predicted

__all__ = [
    "Classifier",
    "ExportedRun",
    "Guess",
    "ImagePrediction",
    "NearImage",
    "Predicted",
    "export_run",
    "predict",
]

_HOMES = {
    "Classifier": "classifier",
    "ExportedRun": "exporting",
    "Guess": "records",
    "ImagePrediction": "records",
    "NearImage": "records",
    "Predicted": "records",
    "export_run": "exporting",
    "predict": "prediction",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
