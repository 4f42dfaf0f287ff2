"""The origin of a head's features, as a run records it. Does not import torch: runs are listed without it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.spec import Spec
from featcache.display import Shown
from featcache.rows.scaling import scale_stored


@dataclass(frozen=True, kw_only=True)
class FeatureLayer:
    """One layer that a head reads: `dim` values per row, stored as `dtype`; value = stored x scale + offset."""

    name: str
    dim: int
    dtype: str
    scale: float
    offset: float

    def values(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Stored numbers of any dtype, (n, dim) -> the values a head takes: a float32 copy of the same shape."""
        return scale_stored(np.array(stored, dtype=np.float32), self.scale, self.offset)


@dataclass(frozen=True, kw_only=True, repr=False)
class FeatureOrigin(Shown):
    """Where a head's features came from: the cache, and the spec that determines the features.

    Attributes:
        cache: Path of the cache.
        cache_name: Name of the cache.
        backbone: Name of the backbone.
        fingerprint: Fingerprint of the spec.
        spec: Canonical JSON of the spec.
        layers: The layers that the head reads, in the order of its input.
        beside: Further caches of the same images, whose layers follow in the head's input.
        weights: Origin of the backbone's weights; None for pixels, and in runs that did not record it.
        images: Name or path of the image set.
        probe: The backbone's outputs for two probe images.
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
        """This cache and those in `beside`, in the order of the head's input."""
        return (self, *self.beside)

    @property
    def columns(self) -> tuple[FeatureLayer, ...]:
        """The layers of all caches, in the order of the head's input."""
        return tuple(layer for origin in self.origins for layer in origin.layers)

    @property
    def feature_dim(self) -> int:
        """Width D of the head's input."""
        return sum(layer.dim for layer in self.columns)

    @property
    def layers_spec(self) -> Spec:
        """The spec with only the layers that the head reads. Raises CacheForeign for a spec of another version."""
        return Spec.from_json(self.spec).with_layers(layer.name for layer in self.layers)

    @property
    def views_description(self) -> str:
        """The augmented views that the features come from, as text for the user."""
        return Spec.from_json(self.spec).views_description

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
        """Read what `to_json` wrote. Raises KeyError or TypeError for anything else."""
        spec = json.dumps(values["spec"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        layers = tuple(FeatureLayer(**layer) for layer in values["layers"])
        # Runs from before several caches could be joined have no `beside`.
        beside = tuple(cls.from_json(origin) for origin in values.get("beside", ()))
        return cls(**{**values, "spec": spec, "layers": layers, "beside": beside})
