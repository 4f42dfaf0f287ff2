"""Read an untrusted HDF5 header: everything in it is checked before it is used.

Known attacks on HDF5 readers use external storage, virtual arrays, links into other files, filter plugins and shapes
larger than the file. So libhdf5 gets only the bytes of the header, and accepts only hard links to contiguous,
unfiltered arrays of an expected type inside the file. Data is never read through libhdf5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5t

from featcache.cache.layout import (
    ATTRIBUTES,
    SPLITS,
    ArrayPlace,
    Contents,
    FeatureAttributes,
    is_table,
    parse_name,
)
from featcache.cache.memory_file import MemoryFile, access
from featcache.cache.targets import STORED_TYPES
from featcache.cache.trailer import FORMAT_VERSION
from featcache.errors import CacheForeign

# The names of a split's groups, and the number types allowed in each.
_GROUPS = ("features", "checksums", "targets")
_TYPES = {
    "digests": ("|u1",),
    "checksums": ("<u8",),
    "features": ("<f2", "<f4", "|u1"),
    "targets": STORED_TYPES,
}


def read_header(data: bytes, end_of_data: int) -> Contents:
    """Read and check a header.

    Args:
        data: The first bytes of the file, up to the first array.
        end_of_data: The byte before which all arrays must end.

    Raises:
        CacheForeign: Anything unexpected is in it.
    """
    try:
        file = h5f.open(b"featcache", h5f.ACC_RDONLY, fapl=access(MemoryFile(data, end_of_data)))
    except Exception as error:
        raise CacheForeign(f"its HDF5 header cannot be read: {error}") from error
    try:
        contents = _read_contents(file, len(data))
    except CacheForeign:
        raise
    except Exception as error:
        # Any failure of libhdf5 or h5py is a reason not to trust the header.
        raise CacheForeign(f"its HDF5 header is not one of a cache: {error}") from error
    finally:
        file.close()
    _require_disjoint(contents.arrays, len(data), end_of_data)
    return contents


def _read_contents(file: h5f.FileID, header_bytes: int) -> Contents:
    root = h5g.open(file, b"/")
    form = _read_text(root, "format", header_bytes)
    version = int(_read_numbers(root, "format_version", "<i8", 0)[()])
    if form not in ATTRIBUTES or version != FORMAT_VERSION:
        raise CacheForeign(f"its format is {form!r}, version {version}")
    texts = {name: _read_text(root, name, header_bytes) for name in ATTRIBUTES[form]}
    arrays: dict[str, ArrayPlace] = {}
    features: dict[str, FeatureAttributes] = {}
    for split in _children(root, b"/"):
        if split not in SPLITS:
            raise CacheForeign(f"it holds {split!r}, expected only {', '.join(SPLITS)}")
        for name, dataset in _datasets(root, split):
            arrays[name] = _place(name, dataset)
            if not is_table(name):
                features[name] = _read_feature_attributes(dataset, arrays[name])
    return Contents(format=form, texts=texts, arrays=arrays, features=features)


def _datasets(root: h5g.GroupID, split: str) -> list[tuple[str, h5d.DatasetID]]:
    found = []
    for child in _children(root, split.encode()):
        if child in _GROUPS:
            found += _leaves(root, f"{split}/{child}")
        elif child == "views":
            for view in _children(root, f"{split}/views".encode()):
                for group in _children(root, f"{split}/views/{view}".encode()):
                    found += _leaves(root, f"{split}/views/{view}/{group}")
        else:
            found.append(f"{split}/{child}")
    return [(name, h5d.open(root, name.encode())) for name in found]


def _leaves(root: h5g.GroupID, group: str) -> list[str]:
    return [f"{group}/{child}" for child in _children(root, group.encode())]


def _children(root: h5g.GroupID, group_name: bytes) -> list[str]:
    group = h5g.open(root, group_name)
    names: list[str] = []
    for raw in group:
        if group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
            raise CacheForeign(f"{raw!r} in it is a soft or external link, expected hard links only")
        names.append(raw.decode())
    return names


def _place(name: str, dataset: h5d.DatasetID) -> ArrayPlace:
    creation = dataset.get_create_plist()
    if creation.get_layout() != h5d.CONTIGUOUS or creation.get_nfilters():
        raise CacheForeign(f"{name} in it is chunked, filtered or virtual, expected a contiguous array")
    if creation.get_external_count():
        raise CacheForeign(f"{name} in it keeps its data in another file, expected it inside")
    dtype = _dtype_of(name, dataset.get_type())
    shape = tuple(int(size) for size in dataset.shape)
    place = ArrayPlace(name=name, shape=shape, dtype=dtype, offset=int(dataset.get_offset() or 0))
    if place.nbytes and not place.offset:
        raise CacheForeign(f"{name} in it has no data")
    return place


def _dtype_of(name: str, kind: h5t.TypeID) -> str:
    leaf, _ = parse_name(name)
    if leaf in ("ids", "targets") and kind.get_class() == h5t.STRING and not kind.is_variable_str():
        return f"|S{kind.get_size()}"
    for dtype in _TYPES.get(leaf, ()):
        if kind.equal(h5t.py_create(np.dtype(dtype))):
            return dtype
    raise CacheForeign(f"{name} in it has a type that no cache holds")


def _read_feature_attributes(dataset: h5d.DatasetID, place: ArrayPlace) -> FeatureAttributes:
    present = {name for name in (b"shape", b"scale", b"offset") if h5a.exists(dataset, name)}
    shape: tuple[int, ...] = place.shape[1:]
    if b"shape" in present:
        shape = tuple(int(size) for size in _read_numbers(dataset, "shape", "<i8", 1))
    scale = float(_read_numbers(dataset, "scale", "<f8", 0)[()]) if b"scale" in present else 1.0
    offset = float(_read_numbers(dataset, "offset", "<f8", 0)[()]) if b"offset" in present else 0.0
    if not (math.isfinite(scale) and math.isfinite(offset)):
        raise CacheForeign(f"{place.name} in it has scale {scale} and offset {offset}")
    return FeatureAttributes(shape=shape, scale=scale, offset=offset)


def _read_text(owner: h5g.GroupID, name: str, most: int) -> str:
    attribute = h5a.open(owner, name.encode())
    kind = attribute.get_type()
    if kind.get_class() != h5t.STRING or kind.is_variable_str() or attribute.shape != () or kind.get_size() > most:
        raise CacheForeign(f"its attribute {name} is no fixed-length text")
    value = np.empty((), f"|S{kind.get_size()}")
    attribute.read(value, mtype=kind)
    return bytes(value[()]).decode()


def _read_numbers(owner: h5g.GroupID | h5d.DatasetID, name: str, dtype: str, ndim: int) -> np.ndarray[Any, Any]:
    attribute = h5a.open(owner, name.encode())
    shape = tuple(attribute.shape)
    if (
        not attribute.get_type().equal(h5t.py_create(np.dtype(dtype)))
        or len(shape) != ndim
        or max(shape, default=0) > 32
    ):
        raise CacheForeign(f"its attribute {name} is not of the expected type")
    values: np.ndarray[Any, Any] = np.empty(shape, dtype)
    attribute.read(values)
    return values


def _require_disjoint(arrays: Mapping[str, ArrayPlace], start: int, end: int) -> None:
    for place in sorted((place for place in arrays.values() if place.nbytes), key=lambda place: place.offset):
        if place.offset < start or place.offset + place.nbytes > end:
            raise CacheForeign(f"{place.name} in it lies outside the file or over another array")
        start = place.offset + place.nbytes
