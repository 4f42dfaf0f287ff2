"""Build the HDF5 header in memory.

libhdf5 never writes the file on disk: a file that grows while it is written survives neither a kill nor a full disk.
It lays out all arrays in a sparse file in memory. The bytes before the first array are the header, and the offsets of
the arrays are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5p, h5s, h5t

from featcache.cache.layout import ArrayPlace, FeatureAttributes, Header
from featcache.cache.memory_file import ALIGNMENT, MemoryFile, access
from featcache.cache.trailer import FORMAT, FORMAT_VERSION


def build_header(
    arrays: Sequence[ArrayPlace],
    texts: Mapping[str, str],
    features: Mapping[str, FeatureAttributes],
    format: str = FORMAT,
) -> Header:
    """The header that places these arrays, with `format` and `texts` as root attributes.

    The same arguments give the same bytes.
    """
    memory = MemoryFile()
    with closing(h5f.create(b"featcache", h5f.ACC_TRUNC, fcpl=_creation(), fapl=access(memory))) as file:
        root = h5g.open(file, b"/")
        _write_text(root, "format", format)
        _write_numbers(root, "format_version", np.array(FORMAT_VERSION, "<i8"))
        for name, text in texts.items():
            _write_text(root, name, text)
        for place in arrays:
            dataset = _create(file, place)
            if place.name in features:
                _write_feature_attributes(dataset, features[place.name])
    # Opened again so that only the arrays are aligned; the metadata before them stays compact.
    aligned = access(memory, alignment=ALIGNMENT)
    with closing(h5f.open(b"featcache", h5f.ACC_RDWR, fapl=aligned)) as file:
        placed = {place.name: _allocate(h5d.open(file, place.name.encode()), place) for place in arrays}
    first = min((place.offset for place in placed.values() if place.nbytes), default=memory.size)
    return Header(data=memory.start(first), arrays=placed)


def _creation() -> h5p.PropFCID:
    creation = h5p.create(h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    return creation


def _create(file: h5f.FileID, place: ArrayPlace) -> h5d.DatasetID:
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_layout(h5d.CONTIGUOUS)
    creation.set_alloc_time(h5d.ALLOC_TIME_LATE)
    creation.set_fill_time(h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    link = h5p.create(h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    link.set_char_encoding(h5t.CSET_UTF8)
    space = h5s.create_simple(place.shape)
    return h5d.create(file, place.name.encode(), _type_of(place.dtype), space, dcpl=creation, lcpl=link)


def _type_of(dtype: str) -> h5t.TypeID:
    if dtype.startswith("|S"):
        return h5t.py_create(h5py.string_dtype("utf-8", int(dtype[2:])), logical=True)
    return h5t.py_create(np.dtype(dtype))


def _allocate(dataset: h5d.DatasetID, place: ArrayPlace) -> ArrayPlace:
    """Write the first element of an array, which makes libhdf5 fix its offset; returns the array with that offset."""
    if not place.nbytes:
        return place
    one = h5s.create_simple((1,))
    where = dataset.get_space()
    where.select_hyperslab((0,) * len(place.shape), (1,) * len(place.shape))
    dataset.write(one, where, np.zeros(1, place.dtype), mtype=_type_of(place.dtype))
    return replace(place, offset=int(dataset.get_offset()))


def _write_text(owner: h5g.GroupID, name: str, text: str) -> None:
    data = text.encode()
    kind = h5t.py_create(h5py.string_dtype("utf-8", max(1, len(data))), logical=True)
    attribute = h5a.create(owner, name.encode(), kind, h5s.create(h5s.SCALAR))
    attribute.write(np.array(data, f"|S{max(1, len(data))}"), mtype=kind)


def _write_numbers(owner: h5g.GroupID | h5d.DatasetID, name: str, values: np.ndarray[Any, Any]) -> None:
    space = h5s.create_simple(values.shape) if values.shape else h5s.create(h5s.SCALAR)
    h5a.create(owner, name.encode(), h5t.py_create(values.dtype), space).write(values)


def _write_feature_attributes(dataset: h5d.DatasetID, attributes: FeatureAttributes) -> None:
    if len(attributes.shape) > 1:
        _write_numbers(dataset, "shape", np.array(attributes.shape, "<i8"))
    if (attributes.scale, attributes.offset) != (1.0, 0.0):
        _write_numbers(dataset, "scale", np.array(attributes.scale, "<f8"))
        _write_numbers(dataset, "offset", np.array(attributes.offset, "<f8"))
