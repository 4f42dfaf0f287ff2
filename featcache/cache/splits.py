"""What one reads of a cache: a split's ids, digests and targets, and the rows of each layer.

Tables are checked when they are first touched, rows against their checksums whenever they are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import Checksums, Digests, row_checksums
from featcache.cache.layout import checksums_name, features_name, ids_name, read_json, views_in
from featcache.cache.rows import as_rows
from featcache.cache.spec import Json, Spec
from featcache.cache.stored import StoredArrays
from featcache.cache.targets import Target, array_name, columns_of, label_in, stored_target
from featcache.cache.trailer import damaged
from featcache.columns import LABEL
from featcache.errors import CacheDamaged, UnknownName

# Checksums are kept once they were read, for rows come in any order, unless they would be a burden: those of ten
# million rows are 80 MB.
_LARGEST_KEPT_BYTES = 32 << 20
# From one run of neighbours in so many rows on, all are read: a call for each costs more.
_SCATTERED = 256


class CachedSplit:
    """One split of a cache. As a donor it gives its rows to other caches of the same spec."""

    def __init__(self, file: StoredArrays, spec: Spec, name: str) -> None:
        self.file = file
        self.spec = spec
        self.name = name
        self._loaded: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.file.place(ids_name(self.name)).shape[0]

    def __repr__(self) -> str:
        return f"<CachedSplit {self.name} of {self.file.path.name}: {len(self):,} rows>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (CachedSplit, (self.file, self.spec, self.name))

    @property
    def provenance(self) -> Mapping[str, Json]:
        """How the cache's rows were computed: versions, device, date."""
        return cast("Mapping[str, Json]", read_json(self.file.contents.texts, "provenance", dict))

    @property
    def ids(self) -> tuple[str, ...]:
        """The stable names of the images, row by row."""
        if "decoded" not in self._loaded:
            self._loaded["decoded"] = self.ids_at(slice(None))
        return cast("tuple[str, ...]", self._loaded["decoded"])

    def ids_at(self, rows: Any) -> tuple[str, ...]:
        """The names of these rows alone: of ten million, all would take a gigabyte."""
        some = self.encoded_ids[as_rows(rows, len(self))].tolist()
        return tuple(one.decode("utf-8", "surrogateescape") for one in some)

    @property
    def encoded_ids(self) -> npt.NDArray[np.bytes_]:
        """The same as they are stored: (N,) UTF-8 of fixed length. Read-only."""
        return self._table("ids")

    def target(self, name: str) -> Target:
        """One of the cache's targets with its values, a row each. They are read now and not kept.

        Raises UnknownName for one that there is not, CacheDamaged, and CacheForeign for values that lead beyond the
        target's names.
        """
        columns = {column.name: column for column in columns_of(self.file.contents.texts)}
        if name not in columns:
            raise UnknownName("target", name, columns)
        values = self.file.read_table(array_name(self.name, name))
        return stored_target(columns[name], values, f"{self.file.path}, {self.name}")

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) indices into the cache's classes, -1 for unlabelled. Read-only. Raises what `read_labels` raises."""
        if "labels" not in self._loaded:
            self._loaded["labels"] = self.read_labels()
        return cast("npt.NDArray[np.int64]", self._loaded["labels"])

    def read_labels(self) -> npt.NDArray[np.int64]:
        """The same, read now and not kept: of ten million rows they are 80 MB.

        They are the target `label`; where there is none, no row is labelled. Raises InvalidOption where it holds
        something else than classes.
        """
        column = label_in(columns_of(self.file.contents.texts))
        values = np.full(len(self), -1, np.int64) if column is None else self.target(LABEL).values
        values.flags.writeable = False
        return values

    @property
    def digests(self) -> Digests:
        """(N, 32) uint8: the SHA-256 of the image behind each row. Read-only."""
        return self._table("digests")

    @property
    def views(self) -> int:
        """How many views of each image there are: the plain one is 0, augmented ones follow (train only)."""
        return views_in(self.spec, self.name)

    @property
    def features(self) -> FeatureArray:
        """The rows of the first layer, of the plain images."""
        return self.layer()

    def layer(self, name: str | None = None, view: int = 0) -> FeatureArray:
        """The rows of one layer (None: the first) and of one view (0: the plain images). Raises UnknownName."""
        if name is None:
            name = self.spec.layer_names[0]
        if name not in self.spec.layer_names:
            raise UnknownName("layer", name, self.spec.layer_names)
        if not 0 <= view < self.views:
            raise UnknownName("view", str(view), [str(number) for number in range(self.views)])
        return FeatureArray(self, name, view)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the spec the rows were computed under."""
        return self.spec.fingerprint

    def gather(self, layer: str, rows: Any, view: int = 0) -> npt.NDArray[Any]:
        """(n, D) in the stored dtype, verified. As `layer(name, view).gather(rows)`."""
        return self.layer(layer, view).gather(rows)

    def checksums(self, layer: str, rows: Any, view: int = 0) -> Checksums:
        """The stored xxh3 of these rows: (n,) uint64."""
        name, numbers = checksums_name(self.name, layer, view), as_rows(rows, len(self))
        sums: Checksums
        if self.file.place(name).nbytes <= _LARGEST_KEPT_BYTES:
            sums = self._table(name.removeprefix(f"{self.name}/"))[numbers]
        elif (1 + np.count_nonzero(np.diff(numbers) != 1)) * _SCATTERED >= len(self):
            sums = self.file.read_table(name)[numbers]
        else:
            # Unchecked: a checksum that is damaged makes a sound row look damaged, never the other way round.
            sums = self.file.read(name, numbers)
        return sums

    def intact(self, layer: str, rows: Any, view: int = 0) -> npt.NDArray[np.bool_]:
        """Which of these rows match their checksum: (n,) bool. A layer that is not there or unreadable: none."""
        numbers = as_rows(rows, len(self))
        if layer not in self.spec.layer_names:
            return np.zeros(len(numbers), np.bool_)
        try:
            found = self.layer(layer, view).gather(numbers, verify=False)
            return np.equal(row_checksums(found), self.checksums(layer, numbers, view))
        except CacheDamaged:
            return np.zeros(len(numbers), np.bool_)

    def _table(self, name: str) -> npt.NDArray[Any]:
        # Two threads may both load it; they get the same.
        if name not in self._loaded:
            self._loaded[name] = self.file.read_table(f"{self.name}/{name}")
        return cast("npt.NDArray[Any]", self._loaded[name])


class FeatureArray:
    """The rows of one layer of one split, of one view of its images, on disk: (N, D) in the stored dtype.

    `array[i]`, `array[a:b]` and `array[index]` return NumPy arrays of stored values; value = stored x scale +
    offset. `feature_shape` is one image's feature before it was flattened.
    """

    ndim = 2

    def __init__(self, split: CachedSplit, layer: str, view: int = 0) -> None:
        self.split = split
        self.name = layer
        self.view = view
        self.path = features_name(split.name, layer, view)
        place, attributes = split.file.place(self.path), split.file.contents.features[self.path]
        self.shape: tuple[int, int] = (place.shape[0], place.shape[1])
        self.dtype = np.dtype(place.dtype)
        self.nbytes = place.nbytes
        self.feature_shape = attributes.shape
        self.scale = attributes.scale
        self.offset = attributes.offset

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<FeatureArray {self.path} {self.shape} {self.dtype.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (FeatureArray, (self.split, self.name, self.view))

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        if isinstance(index, int | np.integer):
            return cast("npt.NDArray[Any]", self.gather([index])[0])
        return self.gather(index)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        for _, block in self.blocks(max(1, (1 << 20) // (self.shape[1] * self.dtype.itemsize))):
            yield from block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("the rows lie on disk: expected copy to be True or None, got False")
        rows = self.gather(slice(None))
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def gather(self, rows: Any, out: npt.NDArray[Any] | None = None, verify: bool = True) -> npt.NDArray[Any]:
        """Rows in any order, duplicates and negative numbers welcome: (n, D) in the stored dtype.

        `out` is filled and returned where given (C-contiguous, that shape and dtype). Raises IndexError for a row
        that is not there, CacheDamaged where a row does not match its checksum (never with verify=False).
        """
        numbers = as_rows(rows, len(self))
        found = self.split.file.read(self.path, numbers, out)
        if verify:
            self._verify(found, numbers)
        return found

    def blocks(self, rows_per_block: int, verify: bool = True) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """All rows in order, in blocks: (first row, (n, D)). Memory stays at one or two blocks."""
        for start in range(0, len(self), rows_per_block):
            yield start, self.gather(slice(start, start + rows_per_block), verify=verify)

    def _verify(self, found: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> None:
        bad = row_checksums(found) != self.split.checksums(self.name, rows, self.view)
        if bad.any():
            others = f", nor do {int(bad.sum()) - 1} others of those asked for" if bad.sum() > 1 else ""
            raise damaged(
                self.split.file.path,
                f"{self.path}: row {int(rows[bad][0])} does not match its checksum{others}",
            )


@dataclass(frozen=True)
class CachedDataset:
    """A map-style dataset over one layer, for PyTorch's DataLoader, with fork and with spawn.

    An item is (features float32 (D,) with scale and offset applied, label int). A batch of indices is read in one
    sorted gather.
    """

    array: FeatureArray

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[npt.NDArray[np.float32], int]]:
        rows = as_rows(indices, len(self))
        values = self.array.gather(rows).astype(np.float32, copy=False)
        if (self.array.scale, self.array.offset) != (1.0, 0.0):
            values = values * np.float32(self.array.scale) + np.float32(self.array.offset)
        return list(zip(values, self.array.split.labels[rows].tolist(), strict=True))
