"""`BackboneSpec`: the description of a backbone as plain data, without weights and without torch.

It contains the network, its layers, transform and weights, and the network's outputs for two probe images, so that any
change of what the network computes is detected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from featcache.backbones.pooling import Pooling
from featcache.backbones.transforms import Transform

#: The beginning of `source` for a module of the caller's own.
OWN_MODULE = "module:"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer whose features are computed.

    Args:
        name: A module's path, or a standard name.
        shape: The shape of one image's features before they are flattened, after pooling: (512, 7, 7) or (2048,).
        pooling: How the output becomes a row.
        weights: SHA-256 over the tensors it depends on; None if there are none.
    """

    name: str
    shape: tuple[int, ...]
    pooling: Pooling = field(default_factory=Pooling)
    weights: str | None = None

    @property
    def feature_dim(self) -> int:
        """D, the length of one flattened row."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ProbeOutputs:
    """A network's outputs for the two probe images, in fp32 on the CPU, and the environment.

    Args:
        sketches: By layer, for each of the two images: at most 64 sums that approximately preserve the lengths and
            angles of rows (see `checks.sketch`).
        environment: Versions, processor and threads.
    """

    sketches: Mapping[str, Sequence[Sequence[float]]]
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Both fields as JSON values."""
        sketches = {name: [list(row) for row in rows] for name, rows in self.sketches.items()}
        return {"sketches": sketches, "environment": dict(self.environment)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ProbeOutputs:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for other values."""
        sketches = {
            str(name): [[float(value) for value in row] for row in rows] for name, rows in values["sketches"].items()
        }
        return cls(sketches=sketches, environment=dict(values["environment"]))


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """The description of a frozen network with chosen layers.

    Args:
        name: `vgg16`, `timm:resnet18`, ..., or the name of a module of the caller's own.
        layers: In the order in which they were requested.
        pool: The requested pooling; None for each layer's default.
        transform: From a decoded image to the network's input.
        source: The source of the weights: `torchvision:VGG16_Weights.IMAGENET1K_V1`, `file:/abs/path`, `random:0`,
            `module:NAME`, ...; None if there are no weights.
        arguments: Further JSON values that determine the architecture; part of a cache's identity.
        parameters: The number of parameters that the layers depend on.
        flops_per_image: Floating-point operations, two per multiply-add; 0 if they could not be counted.
        probe: The outputs for the probe images; None for `pixels`.
        scaling: For `pixels`: value = byte * scale + offset. None for networks.
        notes, warnings: Messages for the user.
    """

    name: str
    layers: tuple[Layer, ...]
    pool: str | None
    transform: Transform
    source: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    flops_per_image: int = 0
    probe: ProbeOutputs | None = None
    scaling: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers' names, in order."""
        return tuple(layer.name for layer in self.layers)

    @property
    def feature_dims(self) -> dict[str, int]:
        """D of each layer."""
        return {layer.name: layer.feature_dim for layer in self.layers}

    @property
    def stores_bytes(self) -> bool:
        """Whether features are bytes regardless of the requested precision and dtype: only for `pixels`."""
        return self.scaling is not None

    @property
    def is_own_module(self) -> bool:
        """Whether the network is a module of the caller's own, which cannot be built from its name."""
        return self.source is not None and self.source.startswith(OWN_MODULE)

    def to_json(self) -> str:
        """The description as the text of one JSON object."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {
            "layers": [asdict(layer) for layer in self.layers],
            "transform": self.transform.to_json(),
            "probe": None if self.probe is None else self.probe.to_json(),
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> BackboneSpec:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError or InvalidOption for other text."""
        values = json.loads(text)
        layers = tuple(_layer(layer) for layer in values.pop("layers"))
        transform = Transform.from_json(values.pop("transform"))
        probe, scaling = values.pop("probe"), values.pop("scaling")
        return cls(
            layers=layers,
            transform=transform,
            probe=None if probe is None else ProbeOutputs.from_json(probe),
            scaling=None if scaling is None else (scaling[0], scaling[1]),
            notes=tuple(values.pop("notes")),
            warnings=tuple(values.pop("warnings")),
            **values,
        )


def _layer(values: Mapping[str, Any]) -> Layer:
    pooling = Pooling(
        name=values["pooling"]["name"],
        positions=tuple(values["pooling"]["positions"]),
        prefix=values["pooling"]["prefix"],
    )
    return Layer(name=values["name"], shape=tuple(values["shape"]), pooling=pooling, weights=values["weights"])


def outputs_in(provenance: Mapping[str, Any]) -> ProbeOutputs | None:
    """The outputs for the probe images in a provenance; None if it has none."""
    try:
        probe = provenance.get("probe")
        return None if probe is None else ProbeOutputs.from_json(probe)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
