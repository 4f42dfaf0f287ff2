"""Write a cache's rows as a table, CSV or Parquet: one row per image, with id, split, label and class.

A table contains only the plain images, because augmented views would be further rows of the same image.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import MissingExtra
from featcache.files import atomic_file
from featcache.inference.cache_rows import Advance, CacheRows, RowBlock

_COLUMNS = ("id", "split", "label", "class")


def write_csv(rows: CacheRows, path: Path, advance: Advance) -> None:
    """Write CSV in UTF-8, with a header and a column per number: `f0`, `f1`, ..., for several layers `LAYER.0`, ..."""
    with (
        atomic_file(path) as building,
        building.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_COLUMNS, *_feature_names(rows)])
        for block in rows.blocks(advance):
            writer.writerows(_cells(rows, block))


def _feature_names(rows: CacheRows) -> Iterator[str]:
    for layer in rows.layers:
        prefix = "f" if len(rows.layers) == 1 else f"{layer}."
        yield from (f"{prefix}{number}" for number in range(rows.dim(layer)))


def _cells(rows: CacheRows, block: RowBlock) -> Iterator[list[Any]]:
    # NumPy writes the fewest digits that give the same number of this type when they are read.
    texts = [block.features[layer].astype(np.str_) for layer in rows.layers]
    for row in range(len(block)):
        label = int(block.labels[row])
        numbers = [cell for text in texts for cell in text[row].tolist()]
        yield [block.ids[row], block.split, label, rows.class_name(label), *numbers]


def write_parquet(rows: CacheRows, path: Path, advance: Advance) -> None:
    """Write Parquet with the columns id, split, label, class and features (`features/LAYER` for several layers).

    Features are lists of fixed length. The entry `featcache` of the metadata contains classes and spec as JSON.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    pyarrow, parquet = import_pyarrow("parquet")
    schema = _schema(pyarrow, rows)
    with atomic_file(path) as building, parquet.ParquetWriter(building, schema, compression="zstd") as writer:
        for block in rows.blocks(advance):
            writer.write_table(pyarrow.table(_columns(pyarrow, rows, block), schema=schema))


def import_pyarrow(format: str) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. Raises MissingExtra, which names the format."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra(f"--format {format}", package="pyarrow", extra="export") from error
    return pyarrow, parquet


def _schema(pyarrow: Any, rows: CacheRows) -> Any:
    fields = [("id", pyarrow.string()), ("split", pyarrow.string()), ("label", pyarrow.int64())]
    fields.append(("class", pyarrow.string()))
    for layer in rows.layers:
        number = pyarrow.from_numpy_dtype(rows.dtype(layer))
        fields.append((rows.key(layer), pyarrow.list_(number, rows.dim(layer))))
    metadata = {"classes": rows.classes, "spec": json.loads(rows.cache.spec.to_json())}
    return pyarrow.schema(fields, metadata={"featcache": json.dumps(metadata)})


def _columns(pyarrow: Any, rows: CacheRows, block: RowBlock) -> Mapping[str, Any]:
    columns: dict[str, Any] = {
        "id": list(block.ids),
        "split": [block.split] * len(block),
        "label": block.labels,
        "class": [rows.class_name(label) for label in block.labels.tolist()],
    }
    for layer, values in block.features.items():
        columns[rows.key(layer)] = pyarrow.FixedSizeListArray.from_arrays(values.reshape(-1), rows.dim(layer))
    return columns
