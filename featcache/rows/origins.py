"""Where a head's features came from, as a run records it. No torch here: runs are listed without it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.spec import Spec
from featcache.rows.scaling import scale_stored


@dataclass(frozen=True, kw_only=True)
class FeatureLayer:
    """One layer a head reads: `dim` values a row, stored as `dtype`; a value is stored x scale + offset."""

    name: str
    dim: int
    dtype: str
    scale: float
    offset: float

    def values(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Stored numbers of any type -> a float32 copy: what a head is given."""
        return scale_stored(np.array(stored, dtype=np.float32), self.scale, self.offset)


@dataclass(frozen=True, kw_only=True)
class FeatureOrigin:
    """Where a head's features came from: the cache as it was found, and the spec that determines them.

    `spec`: the spec's canonical JSON; `layers`: those the head reads, in the order in which they stand side by side.
    `beside`: further caches of the same images, whose layers follow.
    `weights`: where the backbone's weights came from; None for pixels, and in a run that did not write it down.
    `images`: what names the set of images, a name or a path. `probe`: what the backbone gave for two probe images.
    """

    cache: str
    cache_name: str
    backbone: str
    fingerprint: str
    spec: str
    layers: tuple[FeatureLayer, ...]
    beside: tuple[FeatureOrigin, ...] = ()
    weights: str | None = None
    images: str | None = None
    probe: Mapping[str, Any] | None = None

    @property
    def origins(self) -> tuple[FeatureOrigin, ...]:
        """This cache and those beside it, in the order of their features."""
        return (self, *self.beside)

    @property
    def columns(self) -> tuple[FeatureLayer, ...]:
        """The layers of all caches, in the order in which they stand side by side."""
        return tuple(layer for origin in self.origins for layer in origin.layers)

    @property
    def feature_dim(self) -> int:
        """Width D of the head's input."""
        return sum(layer.dim for layer in self.columns)

    @property
    def views_told(self) -> str:
        """What of augmentation the head has seen, for people."""
        return Spec.from_json(self.spec).views_told

    @property
    def label(self) -> str:
        """Backbones and layers, for messages: `vgg16/avgpool`."""
        return " + ".join(f"{one.backbone}/{'+'.join(layer.name for layer in one.layers)}" for one in self.origins)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, the spec as an object."""
        return asdict(self) | {
            "spec": json.loads(self.spec),
            "layers": [asdict(layer) for layer in self.layers],
            "beside": [origin.to_json() for origin in self.beside],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FeatureOrigin:
        """What `to_json` described. Raises KeyError or TypeError for anything else."""
        spec = json.dumps(values["spec"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        layers = tuple(FeatureLayer(**layer) for layer in values["layers"])
        # Runs from before several caches could be read say nothing of others.
        beside = tuple(cls.from_json(origin) for origin in values.get("beside", ()))
        return cls(**{**values, "spec": spec, "layers": layers, "beside": beside})
