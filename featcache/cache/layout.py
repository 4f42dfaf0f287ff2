"""Names and shapes in the HDF5 file: which arrays a cache has, in which order, of which type.

docs/format.md says the same for people who read the file without featcache.
"""

from __future__ import annotations

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


def features_name(split: str, layer: str) -> str:
    """Where a layer's rows are: [N, D]."""
    return f"{split}/features/{layer}"


def checksums_name(split: str, layer: str) -> str:
    """Where the xxh3 of a layer's rows are: uint64 [N]."""
    return f"{split}/checksums/{layer}"


def arrays_of(spec: Spec, rows: Mapping[str, int], id_bytes: Mapping[str, int]) -> list[ArrayPlace]:
    """Every array of a cache, in the order of the file: all tables first, then the features."""
    tables, features = [], []
    for split, n in rows.items():
        tables += [
            ArrayPlace(name=f"{split}/labels", shape=(n,), dtype="<i8"),
            ArrayPlace(name=f"{split}/ids", shape=(n,), dtype=f"|S{id_bytes[split]}"),
            ArrayPlace(name=f"{split}/digests", shape=(n, DIGEST_BYTES), dtype="|u1"),
        ]
        for layer in spec.layers:
            tables.append(ArrayPlace(name=checksums_name(split, layer.name), shape=(n,), dtype="<u8"))
            features.append(
                ArrayPlace(
                    name=features_name(split, layer.name),
                    shape=(n, layer.feature_dim),
                    dtype=np.dtype(spec.dtype).newbyteorder("<").str,
                )
            )
    return tables + features


def is_table(name: str) -> bool:
    """Whether the array is small and digested whole: all but the features."""
    return "/features/" not in name


def read_json(texts: Mapping[str, str], name: str, kind: type[Any]) -> Any:
    """A JSON attribute, of the expected kind (list, dict). Raises CacheForeign."""
    try:
        value = json.loads(texts[name])
    except (ValueError, RecursionError) as error:
        raise CacheForeign(f"its attribute {name} is no JSON: {error}") from error
    if not isinstance(value, kind):
        raise CacheForeign(f"its attribute {name} is no {kind.__name__}")
    return value
