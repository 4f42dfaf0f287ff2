"""What a cache was computed from: one frozen, canonical record, and its fingerprint.

A spec holds everything that determines a feature except the image's own bytes. Two specs are equal exactly
when their canonical JSON is, and the SHA-256 of that text is the fingerprint. The selection (which images of
which set) names a cache but is no part of the fingerprint, so that rows are shared between selections.
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

# Rises only when features change, so that a new release does not throw caches away.
SPEC_VERSION = 3
PRECISIONS = ("fp32", "bf16", "fp16", "uint8")
DTYPES = ("float16", "float32", "uint8")


class FrozenMap(Mapping[str, Json]):
    """A mapping of JSON values that cannot change: sorted keys, tuples for lists, hashable and picklable."""

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
    """The same JSON value, immutable all the way down; `where` names it in the error.

    Integral floats become integers, so that numbers that are equal have one spelling.
    Raises InvalidOption for what JSON cannot say exactly (NaN, sets, arrays, float32 scalars).
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
    """The one spelling of a JSON value: ASCII, sorted keys, no spaces, floats by repr."""
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

    `name` is what the user calls it and how the file names its array: no slash, not `.` or `..`.
    `weights` is the SHA-256 over the tensors it needs (None: it needs none, as for pixels).
    `shape` is that of one image's feature before flattening: `(2048,)`, `(512, 7, 7)`. `pool` is how the layer's
    output becomes that: none, avg, cls or cls+avg.
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
    """One field in which two specs differ: its dotted name, and the value on each side (None: absent)."""

    field: str
    this: Json
    that: Json


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything that determines a feature, except the bytes of the image.

    `transform` holds resolved numbers, never names of presets. `precision` is that of the forward pass,
    `dtype` that of the stored rows. `views` above 1 means that many rows per train image: the plain one, then
    augmented ones drawn from `view_seed`; `transform["augmentation"]` says how. Raises InvalidOption for
    anything that cannot be described exactly.
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
        """The layers' names, in the order they were asked for."""
        return tuple(layer.name for layer in self.layers)

    def layer(self, name: str) -> LayerSpec:
        """The layer of that name; KeyError where there is none."""
        return {layer.name: layer for layer in self.layers}[name]

    def to_json(self) -> str:
        """The canonical text that is digested."""
        return canonical_json(_fields_of(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Spec:
        """The spec that `to_json` wrote. CacheOutdated for an earlier version, CacheForeign for anything else."""
        return _parsed("spec", text, _spec_from)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def restricted_to(self, layer_names: Iterable[str]) -> Spec:
        """The same spec with only these layers, in this order. KeyError names a layer that is not there."""
        return replace(self, layers=tuple(self.layer(name) for name in layer_names))

    def without_views(self) -> Spec:
        """The spec of the plain rows alone."""
        if self.views == 1:
            return self
        plain = {key: value for key, value in self.transform.items() if key != "augmentation"}
        return replace(self, views=1, view_seed=None, transform=plain)

    @property
    def views_told(self) -> str:
        """What a head trained on these rows has seen of augmentation, for people."""
        if self.views == 1:
            return "each train image plain: there is no augmentation in this cache"
        augmentation = self.transform.get("augmentation")
        unmirrored = isinstance(augmentation, Mapping) and augmentation.get("flip") == 0
        return (
            f"{self.views} views of each train image: plain, and {self.views - 1} augmented with seed {self.view_seed}"
            f"{', none mirrored' if unmirrored else ''}"
        )

    def differences(self, other: Spec) -> list[Difference]:
        """Field by field, where the two differ: `transform.size`, `layers.avgpool.weights`, ..."""
        found = list(_differences("", _by_layer(self), _by_layer(other)))
        if not found and self.layer_names != other.layer_names:
            found.append(Difference(field="layers", this=self.layer_names, that=other.layer_names))
        return found


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images of which set: it names a cache and is no part of the fingerprint.

    `splits` and `limit` are None where all were taken; `limit` counts images per split.
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
        """The canonical text that is digested."""
        return canonical_json(_fields_of(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Selection:
        """The selection that `to_json` wrote; CacheForeign for anything else."""
        return _parsed("selection", text, lambda values: cls(**values))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def cache_name(set_name: str, spec: Spec, selection: Selection) -> str:
    """`<set>-<backbone>-<fingerprint[:8]>-<selection[:8]>`: what a cache's file is called, without `.h5`."""
    return f"{_slug(set_name)}-{_slug(spec.backbone)}-{spec.fingerprint[:8]}-{selection.digest[:8]}"


def _slug(name: str) -> str:
    # The digests tell caches apart; the words are for people, and a file name has 255 bytes.
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).strip("-.")[:64] or "unnamed"


def _require_text(what: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidOption(f"{what}: expected some text, got {value!r}")


def _require_integer(what: str, value: object, *, optional: bool = False) -> None:
    # True is an integer to Python, but not to JSON.
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


def _parsed(what: str, text: str | bytes, build: Callable[[dict[str, Any]], Record]) -> Record:
    try:
        return build(json.loads(text))
    except CacheForeign:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidOption) as error:
        raise CacheForeign(f"this is no {what} of this version of featcache: {error}") from error


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
