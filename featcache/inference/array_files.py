"""Write a cache's rows as arrays: an npz file, a folder of npy files, or a safetensors file.

They contain `features` (for several layers `features/LAYER`, in the folder `features.LAYER.npy`), `labels`, `ids`,
`split` and `classes`, and for each augmented view k of the train images `views/k/LAYER` (`views.k.LAYER.npy`), with a
row for each train image. No array needs pickle. Features are read and written in blocks, so memory does not grow with
the cache.
"""

from __future__ import annotations

import itertools
import json
import struct
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from featcache.errors import InvalidOption
from featcache.files import atomic_file, atomic_folder, fsync_file, publishing
from featcache.inference.cache_rows import Advance, CacheRows

_SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32", "int64": "I64", "uint8": "U8"}


def write_npz(rows: CacheRows, path: Path, advance: Advance) -> None:
    """Write one file for `numpy.load`; not compressed, because features hardly shrink."""
    with atomic_file(path) as building, zipfile.ZipFile(building, "w", zipfile.ZIP_STORED) as archive:
        for name, table in _tables(rows).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy.write_array(file, table, allow_pickle=False)
        for view, layer in itertools.product(range(rows.views), rows.layers):
            # A zip's members are written one after the other: with several layers the cache is read once for each.
            with archive.open(f"{rows.key(layer, view)}.npy", "w", force_zip64=True) as file:
                _write_header(file, rows, layer, view)
                for block in CacheRows.of(rows.cache, rows.splits, [layer]).blocks(advance, view):
                    file.write(np.ascontiguousarray(block.features[layer]).data)


def _write_header(file: IO[bytes], rows: CacheRows, layer: str, view: int) -> None:
    shape = (rows.count(view), rows.dim(layer))
    described = {"descr": npy.dtype_to_descr(rows.dtype(layer)), "fortran_order": False, "shape": shape}
    npy.write_array_header_2_0(file, described)


def write_npy(rows: CacheRows, path: Path, advance: Advance) -> None:
    """Write a folder of npy files, which `numpy.load(..., mmap_mode="r")` maps into memory."""
    require_new_folder("npy", path)
    with atomic_folder(path) as folder:
        for name, table in _tables(rows).items():
            np.save(folder / f"{name}.npy", table, allow_pickle=False)
        for view in range(rows.views):
            _write_view(rows, view, folder, advance)
        for path_inside in folder.iterdir():
            fsync_file(path_inside)


def _write_view(rows: CacheRows, view: int, folder: Path, advance: Advance) -> None:
    with ExitStack() as opened:
        # Not through a memory map: its dirty pages would count as this process's memory.
        files = {
            layer: opened.enter_context((folder / f"{rows.key(layer, view).replace('/', '.')}.npy").open("wb"))
            for layer in rows.layers
        }
        for layer, file in files.items():
            _write_header(file, rows, layer, view)
        for block in rows.blocks(advance, view):
            for layer, values in block.features.items():
                files[layer].write(np.ascontiguousarray(values).data)


def require_new_folder(format: str, path: Path) -> None:
    """Raise InvalidOption where the path exists: the files would be mixed with those of another export."""
    if path.exists() or path.suffix == ".npy":
        what = "exists already" if path.exists() else "is the name of one file"
        raise InvalidOption(
            f"{format} is a folder of several files, and {path} {what}", hint=f"-o NEW_FOLDER --format {format}"
        )


def bytes_of(path: Path) -> int:
    """The size of a file, or of the files in a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def write_safetensors(rows: CacheRows, path: Path, advance: Advance) -> None:
    """Write one safetensors file. It has no text: `ids` are UTF-8 bytes (N, W) padded with 0, `split` a number (N,).

    The metadata contain the names, `classes` and `splits`, as JSON lists, and `spec`, the spec of the features.
    """
    tables = _as_numbers(rows)
    types = {name: (table.dtype, table.shape) for name, table in tables.items()}
    types |= {
        rows.key(layer, view): (rows.dtype(layer), (rows.count(view), rows.dim(layer)))
        for view, layer in itertools.product(range(rows.views), rows.layers)
    }
    header, offsets, size = _safetensors_header(rows, types)
    with publishing(path, size) as draft:
        draft.write(header, 0)
        for name, table in tables.items():
            draft.write(table.tobytes(), offsets[name])
        for view in range(rows.views):
            for block in rows.blocks(advance, view):
                for layer, values in block.features.items():
                    row_bytes = rows.dim(layer) * rows.dtype(layer).itemsize
                    draft.write(values.tobytes(), offsets[rows.key(layer, view)] + block.first * row_bytes)


def _safetensors_header(
    rows: CacheRows, types: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> tuple[bytes, dict[str, int], int]:
    """The file's first bytes, where each array begins in it, and its whole size."""
    header_entries: dict[str, Any] = {
        "__metadata__": {
            "classes": json.dumps(rows.classes),
            "splits": json.dumps(rows.splits),
            "spec": rows.cache.spec.to_json(),
        }
    }
    end = 0
    begins: dict[str, int] = {}
    for name, (dtype, shape) in types.items():
        begins[name], end = end, end + dtype.itemsize * int(np.prod(shape))
        header_entries[name] = {
            "dtype": _SAFETENSORS_TYPES[dtype.name],
            "shape": list(shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(header_entries).encode()
    # Arrays begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: len(header) + begin for name, begin in begins.items()}, len(header) + end


def _tables(rows: CacheRows) -> dict[str, NDArray[Any]]:
    """All arrays but the features, without pickled objects."""
    names = np.array(rows.splits)
    return {
        "labels": rows.labels(),
        "ids": np.array(rows.ids()),
        "split": names[rows.split_numbers()],
        "classes": np.array(rows.classes, dtype=np.str_),
    }


def _as_numbers(rows: CacheRows) -> dict[str, NDArray[Any]]:
    ids = np.array([one.encode("utf-8", "surrogateescape") for one in rows.ids()], dtype=np.bytes_)
    width = ids.dtype.itemsize
    # The bytes come last: arrays after them would not begin at a multiple of 8.
    return {
        "labels": rows.labels(),
        "split": rows.split_numbers(),
        "ids": ids.view(np.uint8).reshape(len(ids), width),
    }
