"""The table of a backbone's layers for `featcache backbones NAME`; stored as JSON for the next call."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from featcache.backbones.devices import versions
from featcache.backbones.zoos import PRE_LOGITS, TOKENS, Zoo, zoo_of
from featcache.backbones.zoos.names import full_name
from featcache.errors import CacheUnwritable, DownloadError, InvalidOption, UnknownName
from featcache.files import publish_bytes

_FORMAT = 2
#: Images, and bytes per value, of "MB per 10,000 images".
_ROWS, _BYTES = 10_000, 2


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer.

    Args:
        name: The name for `--layer`.
        kind: The type of the module whose output it is; "" for the input of a module.
        shape: The shape of one image's output, without pooling.
        pooled: D with `--pool avg`; None if it cannot be pooled.
        usual: Whether it is one of the usual choices.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    pooled: int | None
    usual: bool

    @property
    def flat(self) -> int:
        """D without pooling."""
        width = 1
        for size in self.shape:
            width *= size
        return width

    @property
    def megabytes(self) -> float:
        """The size of the features of 10,000 images in float16, without pooling, in MB (10^6 bytes)."""
        return self.flat * _ROWS * _BYTES / 1e6


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A backbone's layers in the order of computation, and the cost of its default layer.

    Args:
        name: The backbone's full name.
        image_size: Pixels a side.
        default: The default layer.
        feature_dim: D of the default layer.
        parameters: The number of parameters that the default layer depends on.
        gflops: 10^9 operations for one image, two operations per multiply-add.
        source: The source of the default weights; None if there are none, or the source is not available offline.
        own_pool: The network's own pooling of tokens; None if there are no tokens, or it uses another method.
        layers: All layers.
    """

    name: str
    image_size: int
    default: str
    feature_dim: int
    parameters: int
    gflops: float
    source: str | None
    own_pool: str | None
    layers: tuple[LayerRow, ...]


def listing(name: str, *, image_size: int | None = None, data_dir: Path) -> Listing:
    """The layers of a backbone, from the stored table if it was made with the same versions.

    Raises:
        UnknownName, MissingExtra, InvalidOption.
    """
    name = full_name(name)
    path = data_dir / "backbones" / f"layers-{name.replace(':', '-').replace('/', '-')}-{image_size or 'own'}.json"
    if (known := _read(path)) is not None:
        return known
    table = _compute(name, image_size)
    content = {"format": _FORMAT, "versions": versions(), "listing": asdict(table)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(path, json.dumps(content).encode())
    except (CacheUnwritable, OSError):
        # Without the stored table the next call computes it again.
        return table
    return table


def _read(path: Path) -> Listing | None:
    try:
        content = json.loads(path.read_bytes())
        if (content["format"], content["versions"]) != (_FORMAT, versions()):
            return None
        values = content["listing"]
        layers = tuple(LayerRow(**{**layer, "shape": tuple(layer["shape"])}) for layer in values.pop("layers"))
        return Listing(layers=layers, **values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _compute(name: str, image_size: int | None) -> Listing:
    from functools import partial

    from featcache.backbones.cutting import choose_layers, layer_of, probe_network

    zoo = zoo_of(name)
    zoo.check(name)
    size = image_size or zoo.transform(name).image_size
    build = partial(zoo.build, name)
    architecture, probe_result = probe_network(name, build, size)
    chosen = choose_layers(name, architecture, probe_result, size)

    def average_dim(layer: str) -> int | None:
        try:
            return layer_of(architecture, probe_result, layer, "avg").feature_dim
        except InvalidOption:
            return None

    usual = set(_usual({layer.name: layer.kind for layer in probe_result.layers}, chosen.layers[0].name))
    tokens = architecture.tokens if probe_result.layer(TOKENS) is not None else None
    return Listing(
        name=name,
        image_size=size,
        default=chosen.layers[0].name,
        feature_dim=chosen.layers[0].feature_dim,
        parameters=chosen.parameters,
        gflops=round(chosen.flops_per_image / 1e9, 2),
        source=_source(zoo, name),
        own_pool=tokens.own_pool if tokens is not None else None,
        layers=tuple(
            LayerRow(
                name=layer.name,
                kind=layer.kind,
                shape=layer.shape[1:],
                pooled=average_dim(layer.name),
                usual=layer.name in usual,
            )
            for layer in probe_result.layers
        ),
    )


def _source(zoo: Zoo, name: str) -> str | None:
    try:
        return zoo.source_of(name, "default")
    except (UnknownName, DownloadError):
        return None


def _usual(kinds: Mapping[str, str], default: str) -> Iterator[str]:
    """The names of the usual layers: the default layer, the tokens, and the stages of the network."""
    yield default
    yield from (name for name in (PRE_LOGITS, TOKENS) if name in kinds)
    for name, kind in kinds.items():
        start = next((stage for stage in _STAGES if name.startswith(stage)), None)
        if start is not None and "." not in name.removeprefix(start) and kind not in _STEPS:
            yield name


_STAGES = ("layer", "stages.", "blocks.", "features.", "encoder.layers.", "Mixed_", "denseblock", "stage")
# Types of single operations, which are not stages (VGG's `features` consists of them).
_STEPS = ("Conv2d", "ReLU", "BatchNorm2d", "Dropout")
