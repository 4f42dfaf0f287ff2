"""inference: a run and images go in, classes come out; and a run leaves the house as one file.

    predicted = predict("latest", "photos/")

`classifier` rebuilds what a head was trained behind, backbone, weights and transform, and refuses other weights;
`pictures` are the images that were named; `prediction` brings the two together, and `nearest` shows the cached images
most like each. Names are resolved when they are first used, because most of them need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.inference.classifier import Classifier
    from featcache.inference.prediction import predict
    from featcache.inference.records import Guess, ImagePrediction, NearImage, Predicted

__all__ = ["Classifier", "Guess", "ImagePrediction", "NearImage", "Predicted", "predict"]

_HOMES = {
    "Classifier": "classifier",
    "Guess": "records",
    "ImagePrediction": "records",
    "NearImage": "records",
    "Predicted": "records",
    "predict": "prediction",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
