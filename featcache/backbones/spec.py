"""What a backbone is, as plain data: no weight in memory, no torch.

A `BackboneSpec` says which network, cut at which layers, with which transform, and which weights; and what the network
answered on two probe images, so that a change of what it computes is noticed whatever caused it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from featcache.backbones.pooling import Pooling
from featcache.backbones.transforms import Transform

#: What `source` begins with for a module of the caller's own.
OWN_MODULE = "module:"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer whose features are computed.

    Args:
        name: A module's path, or a standard name.
        shape: The shape of one image's features before they are flattened, after pooling: (512, 7, 7) or (2048,).
        pooling: How the output becomes a row.
        weights: SHA-256 over the tensors it depends on; None where there are none.
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
    """What a network computed for the two probe images, in fp32 on the CPU, and with what.

    Args:
        sketches: By layer, for each of the two images: its row as at most 64 sums, of the same length and angles as
            the row itself (see `checks.sketch`).
        environment: Versions, processor and threads.
    """

    sketches: Mapping[str, Sequence[Sequence[float]]]
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Both as JSON values."""
        sketches = {name: [list(row) for row in rows] for name, rows in self.sketches.items()}
        return {"sketches": sketches, "environment": dict(self.environment)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ProbeOutputs:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        sketches = {
            str(name): [[float(value) for value in row] for row in rows] for name, rows in values["sketches"].items()
        }
        return cls(sketches=sketches, environment=dict(values["environment"]))


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A frozen network, cut at its layers.

    Args:
        name: `vgg16`, `timm:resnet18`, ..., or the name of a module of the caller's own.
        layers: In the order in which they were asked for.
        pool: The pooling that was asked for; None for each layer's default.
        transform: From a decoded image to the network's input.
        source: Where the weights came from: `torchvision:VGG16_Weights.IMAGENET1K_V1`, `file:/abs/path`, `random:0`,
            `module:NAME`, ...; None where there are no weights.
        arguments: What else determines the architecture, as JSON values; part of a cache's identity.
        parameters: How many frozen parameters the layers depend on.
        flops_per_image: Two for a multiply-add; 0 where they could not be counted.
        probe: None for `pixels`.
        scaling: For `pixels`: value = byte * scale + offset. None for networks.
        notes, warnings: Sentences for people.
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
        """Whether features are bytes, whatever precision and storage type are asked for: only of `pixels`."""
        return self.scaling is not None

    @property
    def is_own_module(self) -> bool:
        """Whether the network is a module of the caller's own, which no name can build again."""
        return self.source is not None and self.source.startswith(OWN_MODULE)

    def to_json(self) -> str:
        """One JSON object."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {
            "layers": [asdict(layer) for layer in self.layers],
            "transform": self.transform.described(),
            "probe": None if self.probe is None else self.probe.to_json(),
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> BackboneSpec:
        """What `to_json` wrote. Raises KeyError, TypeError, ValueError or InvalidOption for anything else."""
        values = json.loads(text)
        layers = tuple(_layer(layer) for layer in values.pop("layers"))
        transform = Transform.of(values.pop("transform"))
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
    """The outputs on the probe images in a provenance; None where it has none."""
    try:
        found = provenance.get("probe")
        return None if found is None else ProbeOutputs.from_json(found)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
