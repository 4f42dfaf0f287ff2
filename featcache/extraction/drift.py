"""How far features computed below fp32 are from those in fp32, measured on some of the images at hand.

It costs two forward passes of at most 16 images, one of them in fp32: about four seconds for VGG16 on 2 cores, next
to nothing on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import ExtractionError

# fp32 by another runner or on another device rounds in another order and no more.
LEAST_IN_FP32 = 0.9999
# Rounding noise, not a feature: nobody is invited to accept that.
_WORTH_ACCEPTING = 0.95
MOST_IMAGES = 16
_LEAST, _SHARE = 8, 20


@dataclass(frozen=True, kw_only=True)
class LayerDrift:
    """One layer's rows against fp32. A row's relative error is |row - exact| / |exact|, in Euclidean norms."""

    greatest: float
    median: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What a precision costs: per layer, over so many images."""

    precision: str
    images: int
    layers: dict[str, LayerDrift]

    def to_json(self) -> dict[str, Any]:
        """What the cache's provenance and `featcache extract --json` hold under "drift"."""
        return {
            "images": self.images,
            "layers": {
                name: {
                    "greatest_relative_error": float(f"{layer.greatest:.3g}"),
                    "median_relative_error": float(f"{layer.median:.3g}"),
                    "least_cosine": round(layer.cosine, 7),
                }
                for name, layer in self.layers.items()
            },
        }

    def require(self, least_cosine: float) -> None:
        """Raises ExtractionError where a layer's least cosine to fp32 is below `least_cosine`."""
        name, worst = min(self.layers.items(), key=lambda layer: layer[1].cosine)
        if worst.cosine < least_cosine:
            raise ExtractionError(
                f"layer {name} drifts too far in {self.precision}: its least cosine to fp32 is {worst.cosine:.5f} "
                f"over {self.images} images, expected at least {least_cosine}",
                hint=f"extract with --precision fp32{_acceptance(worst.cosine)}",
            )

    def __str__(self) -> str:
        least = ", ".join(f"{layer.cosine:.5f} ({name})" for name, layer in self.layers.items())
        return f"{self.precision} against fp32 on {self.images} images: least cosine {least}"


def _acceptance(cosine: float) -> str:
    """How to accept features that are a little off, with a bound that those of other images will pass too."""
    bound = math.floor(100 * (cosine - 0.001)) / 100
    return f", or accept it: --min-cosine {bound}" if bound >= _WORTH_ACCEPTING else ""


def sample_of(rows: int) -> npt.NDArray[np.int64]:
    """Which of `rows` images to measure on: spread evenly, a twentieth of them, but 8 at least and 16 at most."""
    count = min(rows, MOST_IMAGES, max(_LEAST, rows // _SHARE))
    return np.linspace(0, rows - 1, count).astype(np.int64)


def measured(
    precision: str, exact: Mapping[str, npt.NDArray[np.generic]], rounded: Mapping[str, npt.NDArray[np.generic]]
) -> Drift:
    """What `precision` costs: {layer: (n, D)} in fp32 and in `precision`, of the same images."""
    layers = {name: _of_rows(exact[name].astype(np.float64), rounded[name].astype(np.float64)) for name in exact}
    return Drift(precision=precision, images=len(next(iter(exact.values()))), layers=layers)


def _of_rows(exact: npt.NDArray[np.float64], rounded: npt.NDArray[np.float64]) -> LayerDrift:
    with np.errstate(all="ignore"):
        norms, others = np.linalg.norm(exact, axis=1), np.linalg.norm(rounded, axis=1)
        relative = np.linalg.norm(rounded - exact, axis=1) / np.where(norms > 0, norms, 1.0)
        # Two rows of nothing but zeros are the same.
        both = np.where((norms == 0) & (others == 0), 1.0, (exact * rounded).sum(axis=1) / (norms * others))
        cosines = np.where((norms == 0) != (others == 0), 0.0, both)
    return LayerDrift(greatest=float(relative.max()), median=float(np.median(relative)), cosine=float(cosines.min()))
