"""Read the splits of a cache: ids, digests, targets, and the rows of each layer.

Tables are checked when they are first read, rows against their checksums each time they are read.
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
from featcache.cache.targets import Target, array_name, columns_of, label_in, target_from_file
from featcache.cache.trailer import damage_error
from featcache.columns import LABEL
from featcache.errors import CacheDamaged, UnknownName

# Checksums are kept in memory after the first read, because rows are read in any order, unless there are too many:
# those of ten million rows take 80 MB.
_LARGEST_KEPT_BYTES = 32 << 20
# From one range of adjacent rows per this many rows on, all checksums are read: one call for each range costs more.
_SCATTERED = 256


class CachedSplit:
    """One split of a cache. It is also a donor: other caches of the same spec can reuse its rows.

    `split.features` are the rows of the first layer, `split.labels` the labels, `split.ids` the sample ids; all three
    have one entry for each image, in the same order.
    """

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
        """The sample ids of the images, one for each row."""
        if "decoded" not in self._loaded:
            self._loaded["decoded"] = self.ids_at(slice(None))
        return cast("tuple[str, ...]", self._loaded["decoded"])

    def ids_at(self, rows: Any) -> tuple[str, ...]:
        """The sample ids of some rows. The ids of ten million rows would take a gigabyte."""
        some = self.encoded_ids[as_rows(rows, len(self))].tolist()
        return tuple(one.decode("utf-8", "surrogateescape") for one in some)

    @property
    def encoded_ids(self) -> npt.NDArray[np.bytes_]:
        """The sample ids as they are stored: (N,) UTF-8 of fixed length. Read-only."""
        return self._table("ids")

    def target(self, name: str) -> Target:
        """Read a target of the cache. Its values are not kept in memory.

        Args:
            name: The target's name.

        Returns:
            The target with one value for each row.

        Raises:
            UnknownName: The cache has no such target.
            CacheDamaged: The values do not match their digest.
            CacheForeign: A value is no index into the target's names.
        """
        columns = {column.name: column for column in columns_of(self.file.contents.texts)}
        if name not in columns:
            raise UnknownName("target", name, columns)
        values = self.file.read_table(array_name(self.name, name))
        return target_from_file(columns[name], values, f"{self.file.path}, {self.name}")

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 (N,): indices into the cache's classes, -1 for unlabelled. Read-only. Raises as `read_labels` does."""
        if "labels" not in self._loaded:
            self._loaded["labels"] = self.read_labels()
        return cast("npt.NDArray[np.int64]", self._loaded["labels"])

    def read_labels(self) -> npt.NDArray[np.int64]:
        """Read the labels without keeping them in memory: for ten million rows they take 80 MB.

        Returns:
            int64 (N,), the values of the target `label`; all -1 where there is no such target.

        Raises:
            InvalidOption: The target `label` does not hold classes.
            CacheDamaged: The labels do not match their digest.
        """
        column = label_in(columns_of(self.file.contents.texts))
        values = np.full(len(self), -1, np.int64) if column is None else self.target(LABEL).values
        values.flags.writeable = False
        return values

    @property
    def digests(self) -> Digests:
        """uint8 (N, 32): the SHA-256 of the image of each row. Read-only."""
        return self._table("digests")

    @property
    def views(self) -> int:
        """The number of views of each image: view 0 is the plain image, augmented views follow (train only)."""
        return views_in(self.spec, self.name)

    @property
    def features(self) -> FeatureArray:
        """The rows of the first layer, of the plain images."""
        return self.layer()

    def layer(self, name: str | None = None, view: int = 0) -> FeatureArray:
        """The rows of one layer and one view.

        Args:
            name: The layer's name; None for the first.
            view: 0 for the plain images.

        Returns:
            An array on disk: (N, D) in the stored dtype.

        Raises:
            UnknownName: The cache has no such layer or view.
        """
        if name is None:
            name = self.spec.layer_names[0]
        if name not in self.spec.layer_names:
            raise UnknownName("layer", name, self.spec.layer_names)
        if not 0 <= view < self.views:
            raise UnknownName("view", str(view), [str(number) for number in range(self.views)])
        return FeatureArray(self, name, view)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the spec of the rows."""
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
            # Unchecked: a damaged checksum makes an undamaged row look damaged, never the other way round.
            sums = self.file.read(name, numbers)
        return sums

    def intact(self, layer: str, rows: Any, view: int = 0) -> npt.NDArray[np.bool_]:
        """Which of these rows match their checksum: (n,) bool. All False for a layer that is missing or unreadable."""
        numbers = as_rows(rows, len(self))
        if layer not in self.spec.layer_names:
            return np.zeros(len(numbers), np.bool_)
        try:
            found = self.layer(layer, view).gather(numbers, verify=False)
            return np.equal(row_checksums(found), self.checksums(layer, numbers, view))
        except CacheDamaged:
            return np.zeros(len(numbers), np.bool_)

    def _table(self, name: str) -> npt.NDArray[Any]:
        # Two threads may both load it, with the same result.
        if name not in self._loaded:
            self._loaded[name] = self.file.read_table(f"{self.name}/{name}")
        return cast("npt.NDArray[Any]", self._loaded[name])


class FeatureArray:
    """The rows of one layer of a split, for one view of its images: an array (N, D) on disk, in the stored dtype.

    `array[i]`, `array[a:b]` and `array[index]` read rows as NumPy arrays of stored values; the value of a feature is
    stored x `scale` + `offset`. `feature_shape` is the shape of one image's feature before it was flattened.
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
            raise ValueError("the rows are on disk: expected copy to be True or None, got False")
        rows = self.gather(slice(None))
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def gather(self, rows: Any, out: npt.NDArray[Any] | None = None, verify: bool = True) -> npt.NDArray[Any]:
        """Read rows.

        Args:
            rows: Row numbers in any order, also repeated or negative; a mask (N,); or a slice.
            out: Filled and returned, if given: C-contiguous (n, D) in the stored dtype.
            verify: Whether rows are checked against their checksums.

        Returns:
            (n, D) in the stored dtype.

        Raises:
            IndexError: A row number is out of range.
            InvalidOption: `out` does not fit.
            CacheDamaged: A row does not match its checksum, or the file ends too early.
        """
        numbers = as_rows(rows, len(self))
        found = self.split.file.read(self.path, numbers, out)
        if verify:
            self._verify(found, numbers)
        return found

    def blocks(self, rows_per_block: int, verify: bool = True) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Read all rows in order, in blocks; at most two blocks are in memory.

        Args:
            rows_per_block: The number of rows of a block; the last one may be smaller.
            verify: Whether rows are checked against their checksums.

        Yields:
            (number of the first row, (n, D) in the stored dtype).
        """
        for start in range(0, len(self), rows_per_block):
            yield start, self.gather(slice(start, start + rows_per_block), verify=verify)

    def _verify(self, found: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> None:
        bad = row_checksums(found) != self.split.checksums(self.name, rows, self.view)
        if bad.any():
            others = f", nor do {int(bad.sum()) - 1} others of the requested rows" if bad.sum() > 1 else ""
            raise damage_error(
                self.split.file.path,
                f"{self.path}: row {int(rows[bad][0])} does not match its checksum{others}",
            )


@dataclass(frozen=True)
class CachedDataset:
    """A map-style dataset over one layer, for PyTorch's DataLoader; its workers may be forked or spawned.

    An item is (features float32 (D,) with scale and offset applied, label int). The rows of a batch are read together,
    in the order of the file.
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
