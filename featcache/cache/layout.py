"""Names and shapes in the HDF5 file: which arrays a cache has, in which order, of which type.

docs/format.md says the same for people who read the file without featcache.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.cache.checksums import DIGEST_BYTES
from featcache.cache.spec import Spec
from featcache.errors import CacheForeign

SPLITS = ("train", "val", "test")
JSON_ATTRIBUTES = ("spec", "selection", "classes", "provenance", "skipped")


@dataclass(frozen=True, kw_only=True)
class ArrayPlace:
    """One array of the file: its name, shape, dtype (numpy's text) and the byte it begins at."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes it occupies."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class FeatureAttributes:
    """What stands beside a feature array: the shape of one image's feature, and value = stored x scale + offset."""

    shape: tuple[int, ...]
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Header:
    """The HDF5 header: its bytes, and where it places each array."""

    data: bytes
    arrays: Mapping[str, ArrayPlace]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a header says: the root attributes (texts), the arrays by name, the feature arrays' attributes."""

    texts: Mapping[str, str]
    arrays: Mapping[str, ArrayPlace]
    features: Mapping[str, FeatureAttributes]


def features_name(split: str, layer: str, view: int = 0) -> str:
    """Where a layer's rows are, of the plain images (0) or of an augmented view: [N, D]."""
    return f"{_view_name(split, view)}/features/{layer}"


def checksums_name(split: str, layer: str, view: int = 0) -> str:
    """Where the xxh3 of these rows are: uint64 [N]."""
    return f"{_view_name(split, view)}/checksums/{layer}"


def _view_name(split: str, view: int) -> str:
    return f"{split}/views/{view}" if view else split


def parse_name(name: str) -> tuple[str, str]:
    """What an array holds: (`features`, the layer), (`checksums`, the layer), or (`ids`, ""), ... of any view."""
    parts = name.split("/")
    kind, *rest = parts[3:] if parts[1] == "views" else parts[1:]
    return kind, "/".join(rest)


def views_in(spec: Spec, split: str) -> int:
    """How many views an image of a split has, the plain one among them: only train has augmented ones."""
    return spec.views if split == "train" else 1


def arrays_of(spec: Spec, rows: Mapping[str, int], id_bytes: Mapping[str, int]) -> list[ArrayPlace]:
    """Every array of a cache, in the order of the file: all tables first, then the features."""
    tables, features = [], []
    for split, n in rows.items():
        tables += [
            ArrayPlace(name=f"{split}/labels", shape=(n,), dtype="<i8"),
            ArrayPlace(name=f"{split}/ids", shape=(n,), dtype=f"|S{id_bytes[split]}"),
            ArrayPlace(name=f"{split}/digests", shape=(n, DIGEST_BYTES), dtype="|u1"),
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


def is_table(name: str) -> bool:
    """Whether the array is small and digested whole: all but the features."""
    return parse_name(name)[0] != "features"


def read_json(texts: Mapping[str, str], name: str, kind: type[Any]) -> Any:
    """A JSON attribute, of the expected kind (list, dict). Raises CacheForeign."""
    try:
        value = json.loads(texts[name])
    except (ValueError, RecursionError) as error:
        raise CacheForeign(f"its attribute {name} is no JSON: {error}") from error
    if not isinstance(value, kind):
        raise CacheForeign(f"its attribute {name} is no {kind.__name__}")
    return value
