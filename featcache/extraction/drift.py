"""How far features in a lower precision are from those in fp32, measured on some of the images.

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

# fp32 by another runner or on another device differs only by the order of rounding.
LEAST_IN_FP32 = 0.9999
# Below this the feature is mostly rounding noise: the hint does not suggest to accept it.
_WORTH_ACCEPTING = 0.95
MOST_IMAGES = 16
_LEAST, _SHARE = 8, 20


@dataclass(frozen=True, kw_only=True)
class LayerDrift:
    """One layer's error against fp32. A row's relative error is |row - exact| / |exact|, in Euclidean norms."""

    greatest: float
    median: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The error of a precision against fp32, per layer, measured on `images` images."""

    precision: str
    images: int
    layers: dict[str, LayerDrift]

    def to_json(self) -> dict[str, Any]:
        """The value of "drift" in the cache's provenance and in `featcache extract --json`."""
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
    """A hint how to accept small errors, with a bound that other images will probably satisfy too."""
    bound = math.floor(100 * (cosine - 0.001)) / 100
    return f", or accept it: --min-cosine {bound}" if bound >= _WORTH_ACCEPTING else ""


def sample_of(rows: int) -> npt.NDArray[np.int64]:
    """Indices of the images to measure on, ascending: evenly spaced, 5 % of `rows`, but at least 8 and at most 16."""
    count = min(rows, MOST_IMAGES, max(_LEAST, rows // _SHARE))
    return np.linspace(0, rows - 1, count).astype(np.int64)


def compare(
    precision: str, exact: Mapping[str, npt.NDArray[np.generic]], rounded: Mapping[str, npt.NDArray[np.generic]]
) -> Drift:
    """The error of `precision`: compares {layer: (n, D)} in fp32 (`exact`) and in `precision`, of the same images."""
    layers = {name: _of_rows(exact[name].astype(np.float64), rounded[name].astype(np.float64)) for name in exact}
    return Drift(precision=precision, images=len(next(iter(exact.values()))), layers=layers)


def _of_rows(exact: npt.NDArray[np.float64], rounded: npt.NDArray[np.float64]) -> LayerDrift:
    with np.errstate(all="ignore"):
        norms, others = np.linalg.norm(exact, axis=1), np.linalg.norm(rounded, axis=1)
        relative = np.linalg.norm(rounded - exact, axis=1) / np.where(norms > 0, norms, 1.0)
        # Two rows of zeros count as equal.
        both = np.where((norms == 0) & (others == 0), 1.0, (exact * rounded).sum(axis=1) / (norms * others))
        cosines = np.where((norms == 0) != (others == 0), 0.0, both)
    # NaN would be less than no bound, and so be accepted.
    wrong = ~np.isfinite(exact).all(axis=1) | ~np.isfinite(rounded).all(axis=1) | ~np.isfinite(cosines)
    relative, cosines = np.where(wrong, np.inf, relative), np.where(wrong, -1.0, cosines)
    return LayerDrift(greatest=float(relative.max()), median=float(np.median(relative)), cosine=float(cosines.min()))
