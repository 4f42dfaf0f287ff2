"""Parts: runs of rows that were extracted, written and published as one file each.

A part is a safetensors file. It counts row by row: only where the fingerprint fits and the row matches its own
checksum.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import DIGEST_BYTES, Checksums, Digests, as_digests, row_checksums, table_digest
from featcache.cache.donors import Donor, Donors, Located
from featcache.cache.plan import PartsPlan, covered_rows, discard_parts, part_paths, read_plan, write_plan
from featcache.cache.rows import Rows, as_rows, read_rows
from featcache.cache.spec import Json, canonical_json
from featcache.errors import CacheDamaged, CacheForeign, CacheNotFound, InvalidOption
from featcache.files import ReadableFile, publishing

__all__ = [
    "Donor",
    "Donors",
    "Located",
    "Part",
    "PartsPlan",
    "Skipped",
    "SplitTable",
    "covered_rows",
    "discard_parts",
    "open_parts",
    "part_paths",
    "read_plan",
    "write_part",
    "write_plan",
]

PART_FORMAT = "featcache-part"
PART_VERSION = "1"
_LARGEST_HEADER = 100 << 20
_SAFETENSORS = {"<f2": "F16", "<f4": "F32", "|u1": "U8", "<u8": "U64"}
_NUMPY = {name: dtype for dtype, name in _SAFETENSORS.items()}
# Axes and types of each kind of tensor.
_KINDS = {"digests": (2, ("|u1",)), "checksums": (1, ("<u8",)), "features": (2, ("<f2", "<f4", "|u1"))}
_NO_DIGEST = "0" * 32


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An image that could not be used: its id and split, why, and its digest (hex) where its bytes were read."""

    id: str
    split: str
    reason: str
    digest: str | None = None

    def as_json(self) -> dict[str, Json]:
        """The plain mapping that is stored."""
        return {"id": self.id, "split": self.split, "reason": self.reason, "digest": self.digest}


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitTable:
    """The rows of one split, in order.

    `ids` are stable names, `labels` int64 (N,) with -1 for unlabelled, `digests` uint8 (N, 32): the SHA-256 of
    the image behind each row. Raises InvalidOption where these do not fit together.
    """

    ids: Sequence[str]
    labels: npt.NDArray[np.int64]
    digests: Digests

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or (labels.dtype.kind not in "iu" and labels.size):
            raise InvalidOption(f"labels: expected integers (N,), got {labels.dtype} {labels.shape}")
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))
        object.__setattr__(self, "digests", as_digests(self.digests))
        if not len(self.ids) == len(self.labels) == len(self.digests):
            raise InvalidOption(
                f"a split: expected as many labels and digests as ids, "
                f"got {len(self.ids)} ids, {len(self.labels)} labels, {len(self.digests)} digests"
            )

    def __len__(self) -> int:
        return len(self.ids)


# --- writing a part ----------------------------------------------------------------------------------------


def write_part(
    folder: Path,
    *,
    fingerprint: str,
    first_row: int,
    digests: Digests,
    features: Mapping[str, npt.NDArray[Any]],
    skipped: Sequence[Skipped] = (),
    provenance: Mapping[str, Json] | None = None,
) -> Path:
    """Publish rows as `part-<first>-<n>-<digest8>.safetensors` and return its path.

    `features` maps each layer to (n, D) float16, float32 or uint8, `digests` is uint8 (n, 32); `skipped` rows
    belong to the same run of the plan, so the part stands for n + len(skipped) rows from `first_row` on. The same
    rows get the same name, so doing a part twice is harmless. Raises InvalidOption where shapes do not fit,
    CacheUnwritable where the disk refuses.
    """
    digests = as_digests(digests)
    tensors = _tensors(digests, features)
    lost = canonical_json([one.as_json() for one in skipped])
    metadata = {
        "format": PART_FORMAT,
        "format_version": PART_VERSION,
        "fingerprint": fingerprint,
        "first_row": str(first_row),
        "rows": str(len(digests)),
        "skipped": lost,
        "provenance": canonical_json(dict(provenance or {})),
        "header_digest": _NO_DIGEST,
    }
    header = _sealed(_header_text(metadata, tensors))
    covered = len(digests) + len(skipped)
    name = f"part-{first_row:09d}-{covered}-{table_digest(digests.tobytes() + lost.encode())[:8]}.safetensors"
    with publishing(folder / name, len(header) + sum(array.nbytes for array in tensors.values())) as draft:
        draft.write(header, 0)
        offset = len(header)
        for array in tensors.values():
            if array.nbytes:
                draft.write(array.reshape(-1).view(np.uint8).data, offset)
            offset += array.nbytes
    return folder / name


def _tensors(digests: Digests, features: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    rows: dict[str, npt.NDArray[Any]] = {}
    for layer, array in features.items():
        stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        if stored.ndim != 2 or len(stored) != len(digests) or stored.dtype.str not in ("<f2", "<f4", "|u1"):
            raise InvalidOption(
                f"layer {layer}: expected float16, float32 or uint8 ({len(digests)}, D), "
                f"got {array.dtype} {array.shape}"
            )
        rows[layer] = stored
    sums = {f"checksums/{layer}": row_checksums(array) for layer, array in rows.items()}
    return {**sums, "digests": digests, **{f"features/{layer}": array for layer, array in rows.items()}}


def _header_text(metadata: Mapping[str, str], tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, array in tensors.items():
        entries[name] = {
            "dtype": _SAFETENSORS[array.dtype.str],
            "shape": array.shape,
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    # The format asks for data that begins at a multiple of 8.
    return text.ljust(-(-len(text) // 8) * 8)


def _sealed(text: bytes) -> bytes:
    """The header with its own digest in the place kept for it, after its length."""
    digest = table_digest(text)
    return struct.pack("<Q", len(text)) + _with_digest(text, _NO_DIGEST, digest)


def _with_digest(text: bytes, old: str, new: str) -> bytes:
    key = b'"header_digest":"'
    return text.replace(key + old.encode(), key + new.encode(), 1)


# --- reading a part ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A published part. Its rows are read from the file when they are asked for, and checked.

    `first_row` is where its run begins in the plan.
    """

    path: Path
    fingerprint: str
    first_row: int
    skipped: tuple[Skipped, ...]
    provenance: Mapping[str, Json]
    _tensors: Mapping[str, _Tensor] = field(repr=False)
    _checksums: Mapping[str, Checksums] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Part:
        """Read a part's header and checksums.

        Raises CacheNotFound, CacheForeign for another kind of file, CacheDamaged for one that was changed.
        """
        try:
            with ReadableFile(path) as file:
                return _open_part(cls, file)
        except FileNotFoundError as error:
            raise CacheNotFound(f"there is no part {path}") from error
        except OSError as error:
            raise CacheForeign(f"{path} cannot be opened: {error.strerror}") from error

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers it holds."""
        return tuple(self._checksums)

    def __len__(self) -> int:
        return self._tensors["digests"].shape[0]

    @property
    def digests(self) -> Digests:
        """The SHA-256 of the image behind each row, uint8 (n, 32), read now and kept by nobody.

        Raises CacheDamaged where the file is gone or cannot be read.
        """
        try:
            with ReadableFile(self.path) as file:
                return as_digests(_table(file, self._tensors["digests"]))
        except OSError as error:
            raise CacheDamaged(f"{self.path} cannot be read any more: {error.strerror}") from error

    def gather(self, layer: str, rows: Rows) -> npt.NDArray[Any]:
        """(len(rows), D) in the stored dtype. Raises CacheDamaged where a row does not match its checksum."""
        found = self._read(layer, rows)
        bad = row_checksums(found) != self.checksums(layer, rows)
        if bad.any():
            raise CacheDamaged(
                f"{self.path} is damaged: layer {layer}, row {int(np.asarray(rows)[bad][0])} "
                "does not match its checksum",
                hint="run the extraction again: the row is computed once more",
            )
        return found

    def checksums(self, layer: str, rows: Rows) -> Checksums:
        """The stored xxh3 of these rows: (len(rows),) uint64."""
        return self._checksums[layer][as_rows(rows, len(self))]

    def intact(self, layer: str, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of these rows match their checksum: (len(rows),) bool. A layer that is not there: none."""
        if layer not in self._checksums:
            return np.zeros(len(rows), np.bool_)
        return np.equal(row_checksums(self._read(layer, rows)), self.checksums(layer, rows))

    def _read(self, layer: str, rows: Rows) -> npt.NDArray[Any]:
        tensor = self._tensors.get(f"features/{layer}")
        if tensor is None:
            raise CacheDamaged(f"{self.path} has no layer {layer}, expected it among {', '.join(self.layers)}")
        with ReadableFile(self.path) as file:
            return read_rows(file, tensor.offset, as_rows(rows, len(self)), tensor.shape[1:], tensor.dtype)


def _open_part(cls: type[Part], file: ReadableFile) -> Part:
    try:
        text = _header_of(file)
        entries: dict[str, Any] = json.loads(text)
        metadata: dict[str, str] = entries.pop("__metadata__")
        if metadata["format"] != PART_FORMAT or metadata["format_version"] != PART_VERSION:
            raise CacheForeign(f"{file.path} is no part of this version of featcache")
        digest = metadata["header_digest"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheForeign(f"{file.path} is no part of a feature cache") from error
    if table_digest(_with_digest(text, digest, _NO_DIGEST)) != digest:
        raise CacheDamaged(f"{file.path} is damaged: its header does not match its digest")
    try:
        tensors = _placed(entries, 8 + len(text), file.size)
        return _part_from(cls, file, metadata, tensors)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidOption) as error:
        raise CacheDamaged(f"{file.path} is damaged: {error}") from error


def _header_of(file: ReadableFile) -> bytes:
    if file.size < 8:
        raise CacheDamaged(f"{file.path} is damaged: it has {file.size} bytes")
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > min(file.size - 8, _LARGEST_HEADER):
        raise CacheDamaged(f"{file.path} is damaged: its header would have {length:,} bytes")
    return bytes(file.read(8, length))


def _placed(entries: Mapping[str, Any], start: int, size: int) -> dict[str, _Tensor]:
    tensors, end = {}, start
    for name, entry in entries.items():
        tensor = _Tensor(
            dtype=_NUMPY[entry["dtype"]],
            shape=tuple(int(length) for length in entry["shape"]),
            offset=start + int(entry["data_offsets"][0]),
        )
        nbytes = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        behind = start + int(entry["data_offsets"][1])
        if min(tensor.shape, default=0) < 0 or (tensor.offset, tensor.offset + nbytes) != (end, behind):
            raise ValueError(f"{name} has no place in it")
        tensors[name], end = tensor, end + nbytes
    if end != size:
        raise ValueError(f"it has {size:,} bytes, expected {end:,}")
    return tensors


def _part_from(
    cls: type[Part], file: ReadableFile, metadata: Mapping[str, str], tensors: Mapping[str, _Tensor]
) -> Part:
    rows = int(metadata["rows"])
    checksums = {}
    for name, tensor in tensors.items():
        kind, _, layer = name.partition("/")
        axes, dtypes = _KINDS[kind]
        if tensor.shape[:1] != (rows,) or len(tensor.shape) != axes or tensor.dtype not in dtypes:
            raise ValueError(f"{name} has shape {tensor.shape} and type {tensor.dtype}, expected {rows} rows")
        if kind == "checksums":
            checksums[layer] = _table(file, tensor)
    if tensors["digests"].shape[1:] != (DIGEST_BYTES,):
        raise ValueError(f"digests has shape {tensors['digests'].shape}, expected {DIGEST_BYTES} bytes a row")
    return cls(
        path=file.path,
        fingerprint=metadata["fingerprint"],
        first_row=int(metadata["first_row"]),
        skipped=tuple(Skipped(**one) for one in json.loads(metadata["skipped"])),
        provenance=json.loads(metadata["provenance"]),
        _tensors=tensors,
        _checksums=checksums,
    )


def _table(file: ReadableFile, tensor: _Tensor) -> npt.NDArray[Any]:
    return read_rows(file, tensor.offset, np.arange(tensor.shape[0]), tensor.shape[1:], tensor.dtype)


def open_parts(
    folder: Path, report: Callable[[str], None] | None = None, *, fingerprint: str | None = None
) -> list[Part]:
    """All readable parts in a folder, by name, or only those with a fingerprint.

    What cannot be read counts as absent, and `report` is told of it.
    """
    parts = []
    for path in part_paths(folder):
        try:
            part = Part.open(path)
        except (CacheDamaged, CacheForeign, CacheNotFound) as error:
            if report is not None:
                report(f"{error.message}; its rows are computed again")
        else:
            if fingerprint in (None, part.fingerprint):
                parts.append(part)
    return parts
