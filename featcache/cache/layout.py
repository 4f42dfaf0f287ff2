"""Names and shapes in the HDF5 file: which arrays a cache has, in which order, of which type.

docs/format.md documents the same for reading the file without featcache.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.cache.checksums import DIGEST_BYTES
from featcache.cache.spec import Spec
from featcache.cache.targets import Column, array_name
from featcache.cache.trailer import FORMAT, TARGETS_FORMAT
from featcache.errors import CacheForeign

SPLITS = ("train", "val", "test")
#: The root attributes of a file of each format, besides `format` and `format_version`.
ATTRIBUTES = {
    FORMAT: ("set_name", "spec", "selection", "targets", "provenance", "skipped"),
    TARGETS_FORMAT: ("set_name", "targets", "provenance"),
}


@dataclass(frozen=True, kw_only=True)
class ArrayPlace:
    """One array of the file: its name, shape, dtype (as NumPy writes it) and the offset of its first byte."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class FeatureAttributes:
    """The attributes of a feature array: the shape of one image's feature, and value = stored x scale + offset."""

    shape: tuple[int, ...]
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Header:
    """The HDF5 header: its bytes, and the place of each array."""

    data: bytes
    arrays: Mapping[str, ArrayPlace]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a header: format and other root attributes, the arrays by name, and the feature attributes."""

    format: str
    texts: Mapping[str, str]
    arrays: Mapping[str, ArrayPlace]
    features: Mapping[str, FeatureAttributes]


def features_name(split: str, layer: str, view: int = 0) -> str:
    """The name of the array of a layer's rows, for the plain images (view 0) or an augmented view: [N, D]."""
    return f"{_view_name(split, view)}/features/{layer}"


def checksums_name(split: str, layer: str, view: int = 0) -> str:
    """The name of the array of the xxh3 checksums of these rows: uint64 [N]."""
    return f"{_view_name(split, view)}/checksums/{layer}"


def _view_name(split: str, view: int) -> str:
    return f"{split}/views/{view}" if view else split


def parse_name(name: str) -> tuple[str, str]:
    """The kind of an array and its layer, of any view: ("features", layer), ("checksums", layer), ("ids", ""), ..."""
    parts = name.split("/")
    kind, *rest = parts[3:] if parts[1] == "views" else parts[1:]
    return kind, "/".join(rest)


def views_in(spec: Spec, split: str) -> int:
    """The number of views of each image of a split, the plain one included: only train has augmented views."""
    return spec.views if split == "train" else 1


def ids_name(split: str) -> str:
    """The name of the array of a split's sample ids: UTF-8 [N]."""
    return f"{split}/ids"


def rows_in(arrays: Iterable[ArrayPlace]) -> dict[str, int]:
    """The number of rows of each split: that of its ids."""
    return {
        place.name.split("/")[0]: (*place.shape, 0)[0]
        for place in arrays
        if place.name == ids_name(place.name.split("/")[0])
    }


def text_bytes_in(arrays: Iterable[ArrayPlace]) -> dict[str, int]:
    """The length in bytes of the longest text of each text array."""
    return {place.name: np.dtype(place.dtype).itemsize for place in arrays if place.dtype.startswith("|S")}


def arrays_of(
    spec: Spec, rows: Mapping[str, int], text_bytes: Mapping[str, int], columns: Sequence[Column] = ()
) -> list[ArrayPlace]:
    """Every array of a cache, in the order of the file: all tables first, then the features.

    Args:
        spec: How the rows were computed.
        rows: The number of rows of each split.
        text_bytes: The length of the longest text of each text array, by the array's name; 1 where it is not given.
        columns: The targets.
    """
    tables, features = [], []
    for split, n in rows.items():
        tables += [
            _ids(split, n, text_bytes),
            ArrayPlace(name=f"{split}/digests", shape=(n, DIGEST_BYTES), dtype="|u1"),
            *_targets(split, n, text_bytes, columns),
        ]
        for view, layer in itertools.product(range(views_in(spec, split)), spec.layers):
            tables.append(ArrayPlace(name=checksums_name(split, layer.name, view), shape=(n,), dtype="<u8"))
            features.append(
                ArrayPlace(
                    name=features_name(split, layer.name, view),
                    shape=(n, layer.feature_dim),
                    dtype=np.dtype(spec.dtype).newbyteorder("<").str,
                )
            )
    return tables + features


def arrays_of_targets(
    rows: Mapping[str, int], text_bytes: Mapping[str, int], columns: Sequence[Column]
) -> list[ArrayPlace]:
    """Every array of the targets file of a cache in segments, in order. The arguments are those of `arrays_of`."""
    return [
        place
        for split, n in rows.items()
        for place in (_ids(split, n, text_bytes), *_targets(split, n, text_bytes, columns))
    ]


def _ids(split: str, rows: int, text_bytes: Mapping[str, int]) -> ArrayPlace:
    return ArrayPlace(name=ids_name(split), shape=(rows,), dtype=f"|S{text_bytes.get(ids_name(split), 1)}")


def _targets(split: str, rows: int, text_bytes: Mapping[str, int], columns: Sequence[Column]) -> list[ArrayPlace]:
    names = [array_name(split, column.name) for column in columns]
    return [
        ArrayPlace(name=name, shape=column.shape(rows), dtype=column.dtype(text_bytes.get(name, 1)))
        for name, column in zip(names, columns, strict=True)
    ]


def is_table(name: str) -> bool:
    """Whether the array is a table: small, with one digest of the whole. All arrays but the features are."""
    return parse_name(name)[0] != "features"


def read_json(texts: Mapping[str, str], name: str, kind: type[Any]) -> Any:
    """A JSON attribute of the expected type (list, dict). Raises CacheForeign."""
    try:
        value = json.loads(texts[name])
    except (ValueError, RecursionError) as error:
        raise CacheForeign(f"its attribute {name} is no JSON: {error}") from error
    if not isinstance(value, kind):
        raise CacheForeign(f"its attribute {name} is no {kind.__name__}")
    return value
