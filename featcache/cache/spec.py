"""The spec of a cache: a frozen record of everything that determines a feature, and its fingerprint.

The spec does not include the bytes of the image. Two specs are equal exactly if their canonical JSON is, and the
SHA-256 of that text is the fingerprint. The selection (which images of which data set) is part of a cache's name but
not of the fingerprint, so that selections can share rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

from featcache.columns import is_target_name
from featcache.errors import CacheForeign, CacheOutdated, InvalidOption

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Record = TypeVar("Record")

# Raised only when features change, so that a new release does not invalidate caches.
SPEC_VERSION = 3
PRECISIONS = ("fp32", "bf16", "fp16", "uint8")
DTYPES = ("float16", "float32", "uint8")


class FrozenMap(Mapping[str, Json]):
    """An immutable mapping of JSON values: sorted keys, tuples for lists, hashable and picklable."""

    __slots__ = ("_items",)

    def __init__(self, values: Mapping[str, Json]) -> None:
        if not all(isinstance(key, str) for key in values):
            raise InvalidOption(f"expected text as keys, got {list(values)!r}")
        self._items: dict[str, Json] = {key: freeze(values[key], key) for key in sorted(values)}

    def __getitem__(self, key: str) -> Json:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        try:
            return canonical_json(self) == canonical_json(FrozenMap(other))
        except (InvalidOption, TypeError):
            return False

    def __hash__(self) -> int:
        return hash(canonical_json(self))

    def __repr__(self) -> str:
        return f"FrozenMap({_plain(self)!r})"


def freeze(value: object, where: str) -> Json:
    """Make a JSON value immutable, at all levels.

    Floats without a fraction become integers, so that equal numbers are written the same way.

    Args:
        value: The value.
        where: Its name, for the error.

    Raises:
        InvalidOption: JSON cannot represent it exactly (NaN, sets, arrays, float32 scalars).
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return _number(float(value), where)
    if isinstance(value, Mapping):
        return FrozenMap(value)
    if isinstance(value, list | tuple):
        return tuple(freeze(item, f"{where}[{index}]") for index, item in enumerate(value))
    raise InvalidOption(
        f"{where}: expected a JSON value, got {type(value).__name__}",
        hint="describe it with plain numbers, text, lists and mappings",
    )


def _number(value: float, where: str) -> int | float:
    if not math.isfinite(value):
        raise InvalidOption(f"{where}: expected a finite number, got {value}")
    return int(value) if value.is_integer() else value


def canonical_json(value: Json) -> str:
    """The canonical text of a JSON value: ASCII, sorted keys, no spaces, floats by repr."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Json) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One layer whose features are stored.

    Args:
        name: The layer's name, also of its array in the file: no slash, not `.` or `..`.
        weights: The SHA-256 of the tensors that the layer depends on; None where there are none, as for pixels.
        shape: The shape of one image's feature before flattening: `(2048,)`, `(512, 7, 7)`.
        pool: How the layer's output is pooled to that shape: none, avg, cls or cls+avg.

    Raises:
        InvalidOption: A value cannot be used.
    """

    name: str
    weights: str | None
    shape: tuple[int, ...]
    pool: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not (isinstance(self.name, str) and is_target_name(self.name)):
            raise InvalidOption(
                f"a layer cannot be called {self.name!r}",
                hint="use 1 to 200 printable characters, no slash, not `.` or `..`",
            )
        if not self.shape or not all(type(size) is int and size > 0 for size in self.shape):
            raise InvalidOption(f"layer {self.name}: expected a shape of positive integers, got {self.shape}")
        _require_text(f"layer {self.name}: its pooling", self.pool)
        if self.weights is not None:
            _require_text(f"layer {self.name}: the digest of its weights", self.weights)

    @property
    def feature_dim(self) -> int:
        """D, the length of one flattened row."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A field in which two specs differ: its dotted name, and its value in each (None: absent)."""

    field: str
    this: Json
    that: Json


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything that determines a feature, except the bytes of the image.

    Args:
        backbone: The network's name.
        layers: The layers whose features are stored.
        transform: The preprocessing, as resolved numbers, never as names of presets.
        decoder: The image decoder.
        precision: The precision of the forward pass.
        runner: The engine that computes: eager, compiled, openvino, ...
        dtype: The dtype of the stored rows.
        views: The number of rows of each train image: the plain one, then augmented ones.
        view_seed: The seed of the augmented views; `transform["augmentation"]` describes the augmentation.
        architecture: The arguments that the network is built with, besides its name.
        version: The version of the spec format.

    Raises:
        InvalidOption: A value cannot be described exactly.
    """

    backbone: str
    layers: tuple[LayerSpec, ...]
    transform: Mapping[str, Json]
    decoder: str
    precision: str
    runner: str
    dtype: str
    views: int = 1
    view_seed: int | None = None
    architecture: Mapping[str, Json] = field(default_factory=dict)
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "transform", FrozenMap(self.transform))
        object.__setattr__(self, "architecture", FrozenMap(self.architecture))
        for name in ("backbone", "decoder", "runner"):
            _require_text(f"spec: {name}", getattr(self, name))
        for name in ("views", "view_seed", "version"):
            _require_integer(f"spec: {name}", getattr(self, name), optional=name == "view_seed")
        _require_one_of("precision", self.precision, PRECISIONS)
        _require_one_of("dtype", self.dtype, DTYPES)
        if not self.layers or len(set(self.layer_names)) != len(self.layers):
            raise InvalidOption(f"spec: expected layers with different names, got {list(self.layer_names)}")
        if self.views < 1 or (self.views > 1 and self.view_seed is None):
            raise InvalidOption(f"spec: expected 1 view, or more with a seed; got {self.views} views")

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names of the layers, in the order in which they were requested."""
        return tuple(layer.name for layer in self.layers)

    def layer(self, name: str) -> LayerSpec:
        """The layer of that name. Raises KeyError where there is none."""
        return {layer.name: layer for layer in self.layers}[name]

    def to_json(self) -> str:
        """The canonical text, whose digest is the fingerprint."""
        return canonical_json(_fields_of(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Spec:
        """Read the text that `to_json` wrote.

        Raises:
            CacheOutdated: It has an earlier version.
            CacheForeign: It is another text.
        """
        return _parse("spec", text, _spec_from)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def with_layers(self, layer_names: Iterable[str]) -> Spec:
        """The same spec with only these layers, in this order. Raises KeyError for a layer that it does not have."""
        return replace(self, layers=tuple(self.layer(name) for name in layer_names))

    def without_views(self) -> Spec:
        """The same spec without augmented views."""
        if self.views == 1:
            return self
        plain = {key: value for key, value in self.transform.items() if key != "augmentation"}
        return replace(self, views=1, view_seed=None, transform=plain)

    @property
    def views_description(self) -> str:
        """The augmentation in these rows, as text for people."""
        if self.views == 1:
            return "each train image plain: there is no augmentation in this cache"
        augmentation = self.transform.get("augmentation")
        unmirrored = isinstance(augmentation, Mapping) and augmentation.get("flip") == 0
        return (
            f"{self.views} views of each train image: plain, and {self.views - 1} augmented with seed {self.view_seed}"
            f"{', none mirrored' if unmirrored else ''}"
        )

    def differences(self, other: Spec) -> list[Difference]:
        """The fields in which two specs differ: `transform.size`, `layers.avgpool.weights`, ..."""
        found = list(_differences("", _by_layer(self), _by_layer(other)))
        if not found and self.layer_names != other.layer_names:
            found.append(Difference(field="layers", this=self.layer_names, that=other.layer_names))
        return found


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The images chosen from a data set. Part of a cache's name, not of the fingerprint.

    Args:
        source: The data set: an absolute path, or a name.
        splits: The splits that were chosen; None for all.
        limit: The number of images of each split; None for all.
        select_seed: The seed of the choice.

    Raises:
        InvalidOption: A value cannot be used.
    """

    source: str
    splits: tuple[str, ...] | None
    limit: int | None
    select_seed: int

    def __post_init__(self) -> None:
        _require_text("selection: source", self.source)
        _require_integer("selection: limit", self.limit, optional=True)
        _require_integer("selection: select_seed", self.select_seed)
        if self.splits is not None:
            object.__setattr__(self, "splits", tuple(self.splits))
            for split in self.splits:
                _require_text("selection: split", split)

    def to_json(self) -> str:
        """The canonical text, whose digest is in the cache's name."""
        return canonical_json(_fields_of(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Selection:
        """Read the text that `to_json` wrote. Raises CacheForeign for another text."""
        return _parse("selection", text, lambda values: cls(**values))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def cache_name(set_name: str, spec: Spec, selection: Selection) -> str:
    """The name of a cache, its file's name without `.h5`: `<set>-<backbone>-<fingerprint[:8]>-<selection[:8]>`.

    Args:
        set_name: The short name of the data set.
        spec: How the features are computed.
        selection: The chosen images.

    Returns:
        The name, in lower case ASCII.
    """
    return f"{_slug(set_name)}-{_slug(spec.backbone)}-{spec.fingerprint[:8]}-{selection.digest[:8]}"


def _slug(name: str) -> str:
    # The digests make names unique; the words are for people. A file name has at most 255 bytes.
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).strip("-.")[:64] or "unnamed"


def _require_text(what: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidOption(f"{what}: expected some text, got {value!r}")


def _require_integer(what: str, value: object, *, optional: bool = False) -> None:
    # True is an integer in Python, but not in JSON.
    if type(value) is not int and not (optional and value is None):
        raise InvalidOption(f"{what}: expected an integer, got {value!r}")


def _require_one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidOption(f"spec: expected {field} to be one of {', '.join(allowed)}, got {value!r}")


def _fields_of(record: Spec | Selection | LayerSpec) -> dict[str, Json]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    if isinstance(record, Spec):
        values["layers"] = [_fields_of(layer) for layer in record.layers]
    return values


def _parse(what: str, text: str | bytes, build: Callable[[dict[str, Any]], Record]) -> Record:
    try:
        return build(json.loads(text))
    except CacheForeign:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidOption) as error:
        raise CacheForeign(f"this is not a {what} of this version of featcache: {error}") from error


def _spec_from(values: dict[str, Any]) -> Spec:
    if type(values["version"]) is int and 0 < values["version"] < SPEC_VERSION:
        raise CacheOutdated("this")
    if values["version"] != SPEC_VERSION:
        raise CacheForeign(
            f"its spec has version {values['version']}, this featcache knows version {SPEC_VERSION}",
            hint="update featcache, or extract again",
        )
    layers = tuple(LayerSpec(**layer) for layer in values.pop("layers"))
    return Spec(layers=layers, **values)


def _by_layer(spec: Spec) -> dict[str, Json]:
    layers: dict[str, Json] = {layer.name: _fields_of(layer) for layer in spec.layers}
    return {**_fields_of(spec), "layers": layers}


def _differences(prefix: str, this: Mapping[str, Json], that: Mapping[str, Json]) -> Iterator[Difference]:
    for key in [*this, *(key for key in that if key not in this)]:
        mine, yours = this.get(key), that.get(key)
        if isinstance(mine, Mapping) and isinstance(yours, Mapping):
            yield from _differences(f"{prefix}{key}.", mine, yours)
        elif key not in this or key not in that or canonical_json(mine) != canonical_json(yours):
            yield Difference(field=f"{prefix}{key}", this=mine, that=yours)
