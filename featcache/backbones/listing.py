"""The layers of a backbone as a table, as `featcache backbones NAME` shows them; kept as JSON for the next look."""

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
#: Rows that "MB per 10,000 images" counts, at two bytes a value.
_ROWS, _BYTES = 10_000, 2


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer.

    Args:
        name: As `--layer` takes it.
        kind: The type of the module whose output it is; "" for what goes into a module.
        shape: That of one image's output, unpooled.
        pooled: D with `--pool avg`; None where it cannot be pooled.
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
        """Of 10,000 images in float16, without pooling."""
        return self.flat * _ROWS * _BYTES / 1e6


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A backbone's layers in the order in which they are computed, and what its default layer costs.

    Args:
        name: The backbone's full name.
        image_size: Pixels a side.
        default: The default layer.
        feature_dim: D of the default layer.
        parameters: Frozen ones that the default layer depends on.
        gflops: For one image, two operations a multiply-add.
        source: Where its default weights come from; None where there are none, or it cannot be told here.
        own_pool: The authors' own pooling of tokens; None where there are no tokens, or it is another way.
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
    """The layers of a backbone of a zoo; from the table that was made before, where versions are the same.

    Raises:
        UnknownName, MissingExtra, InvalidOption.
    """
    name = full_name(name)
    path = data_dir / "backbones" / f"layers-{name.replace(':', '-').replace('/', '-')}-{image_size or 'own'}.json"
    if (known := _known(path)) is not None:
        return known
    found = _made(name, image_size)
    content = {"format": _FORMAT, "versions": versions(), "listing": asdict(found)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(path, json.dumps(content).encode())
    except (CacheUnwritable, OSError):
        # The next look takes as long as this one.
        return found
    return found


def _known(path: Path) -> Listing | None:
    try:
        content = json.loads(path.read_bytes())
        if (content["format"], content["versions"]) != (_FORMAT, versions()):
            return None
        values = content["listing"]
        layers = tuple(LayerRow(**{**layer, "shape": tuple(layer["shape"])}) for layer in values.pop("layers"))
        return Listing(layers=layers, **values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _made(name: str, image_size: int | None) -> Listing:
    from functools import partial

    from featcache.backbones.cutting import chosen_of, layer_of, probe_network

    zoo = zoo_of(name)
    zoo.check(name)
    size = image_size or zoo.transform(name).image_size
    build = partial(zoo.build, name)
    architecture, found = probe_network(name, build, size)
    chosen = chosen_of(name, architecture, found, size)

    def pooled(layer: str) -> int | None:
        try:
            return layer_of(architecture, found, layer, "avg").feature_dim
        except InvalidOption:
            return None

    usual = set(_usual({layer.name: layer.kind for layer in found.layers}, chosen.layers[0].name))
    tokens = architecture.tokens if found.layer(TOKENS) is not None else None
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
                pooled=pooled(layer.name),
                usual=layer.name in usual,
            )
            for layer in found.layers
        ),
    )


def _source(zoo: Zoo, name: str) -> str | None:
    try:
        return zoo.source_of(name, "default")
    except (UnknownName, DownloadError):
        return None


def _usual(kinds: Mapping[str, str], default: str) -> Iterator[str]:
    """The default layer, the tokens, and the top-level modules that are stages of the network."""
    yield default
    yield from (name for name in (PRE_LOGITS, TOKENS) if name in kinds)
    for name, kind in kinds.items():
        start = next((stage for stage in _STAGES if name.startswith(stage)), None)
        if start is not None and "." not in name.removeprefix(start) and kind not in _STEPS:
            yield name


_STAGES = ("layer", "stages.", "blocks.", "features.", "encoder.layers.", "Mixed_", "denseblock", "stage")
# Single operations, of which VGG's `features` consists.
_STEPS = ("Conv2d", "ReLU", "BatchNorm2d", "Dropout")
