"""Assembling: from donors' rows to one finished cache, streamed in blocks and published whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import row_checksums, table_digest
from featcache.cache.donors import Donor, Donors, Located
from featcache.cache.header import build_header
from featcache.cache.layout import SPLITS, FeatureAttributes, Header, arrays_of, checksums_name, features_name, is_table
from featcache.cache.manifest import root_texts
from featcache.cache.parts import Skipped, SplitTable
from featcache.cache.spec import Json, LayerSpec, Selection, Spec
from featcache.cache.splits import CachedSplit
from featcache.cache.trailer import Trailer
from featcache.errors import CacheDamaged, CacheForeign, CacheIncomplete, InvalidOption
from featcache.files import Draft, publishing, system

_BLOCK_BYTES = 8 << 20
_NO_DIGEST = "0" * 32
Progress = Callable[[int, int], None]


def assemble(
    path: Path,
    *,
    spec: Spec,
    selection: Selection,
    set_name: str,
    classes: Sequence[str],
    provenance: Mapping[str, Json],
    tables: Mapping[str, SplitTable],
    skipped: Sequence[Skipped] = (),
    donors: Donors,
    arrays: Mapping[str, tuple[float, float]] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the cache file `path` from rows that `donors` already have, and return the path.

    `tables` gives the rows of each split, in order; `arrays` the (scale, offset) of layers whose value is stored x
    scale + offset; `progress` is called with the bytes of features written so far and in all. Memory stays flat.
    The same arguments give the same bytes. What stood at `path` before is replaced in one step, or, after any
    error, untouched.

    Raises CacheIncomplete where a row is missing, CacheDamaged where a donor's row does not match its checksum,
    CacheForeign for a donor of another spec, InvalidOption for tables that do not fit together, CacheUnwritable
    where the disk refuses.
    """
    ordered = _ordered(tables)
    _require_same_spec(donors.donors, spec)
    for split, table in ordered.items():
        _require_labels(split, table, len(classes))
    if "train" in ordered:
        _require_views(ordered["train"], spec.views)
    ids = {split: encoded_ids(split, table.ids) for split, table in ordered.items()}
    located = {split: donors.locate(table.digests) for split, table in ordered.items()}
    _require_all(located)
    texts = root_texts(
        spec=spec,
        selection=selection,
        set_name=set_name,
        classes=classes,
        provenance=provenance,
        skipped=skipped,
    )
    header = _header(spec, ordered, ids, texts, arrays or {})
    about: dict[str, Json] = {
        "set_name": set_name,
        "spec": json.loads(texts["spec"]),
        "selection": json.loads(texts["selection"]),
        "rows": {split: len(table) for split, table in ordered.items()},
        "skipped": len(skipped),
        "created": provenance.get("created"),
    }
    return _Assembly(
        path=path,
        spec=spec,
        tables=ordered,
        ids=ids,
        located=located,
        donors=donors,
        header=header,
        about=about,
        progress=progress,
    ).write()


@dataclass(kw_only=True, eq=False)
class _Assembly:
    """One file on its way from donors to disk."""

    path: Path
    spec: Spec
    tables: Mapping[str, SplitTable]
    ids: Mapping[str, npt.NDArray[np.bytes_]]
    located: Mapping[str, Located]
    donors: Donors
    header: Header
    about: Mapping[str, Json]
    progress: Progress | None

    def __post_init__(self) -> None:
        places = self.header.arrays
        self.digests = {name: _NO_DIGEST for name in places if is_table(name)}
        end = max(place.offset + place.nbytes for place in places.values())
        self.trailer_offset = -(-end // 8) * 8
        self.written = 0
        self.total = sum(place.nbytes for name, place in places.items() if not is_table(name))

    def write(self) -> Path:
        size = self._size()
        with publishing(self.path, size) as draft:
            draft.write(self.header.data, 0)
            for split, table in self.tables.items():
                self._write_table(draft, f"{split}/labels", table.labels)
                self._write_table(draft, f"{split}/ids", self.ids[split])
                self._write_table(draft, f"{split}/digests", table.digests)
                for layer in self.spec.layers:
                    self._write_layer(draft, split, layer)
            draft.write(self._trailer(size).to_bytes(), self.trailer_offset)
            if not system.replaces_open_files:
                self._close_donors()
        return self.path

    def _close_donors(self) -> None:
        """An increment copies from the very file that it replaces."""
        for donor in self.donors.donors:
            if isinstance(donor, CachedSplit):
                donor.file.close()

    def _size(self) -> int:
        # Digests have a fixed length, so the size is known before a row is read; but its own digits count too.
        size, last = 0, -1
        while size != last:
            size, last = self.trailer_offset + len(self._trailer(size).to_bytes()), size
        return size

    def _trailer(self, size: int) -> Trailer:
        return Trailer(
            file_bytes=size,
            header_bytes=len(self.header.data),
            header_digest=table_digest(self.header.data),
            tables=self.digests,
            about=self.about,
        )

    def _write_table(self, draft: Draft, name: str, table: npt.NDArray[Any]) -> None:
        place = self.header.arrays[name]
        stored = np.ascontiguousarray(table, place.dtype)
        self.digests[name] = table_digest(stored)
        if stored.nbytes:
            draft.write(stored.reshape(-1).view(np.uint8).data, place.offset)

    def _write_layer(self, draft: Draft, split: str, layer: LayerSpec) -> None:
        place = self.header.arrays[features_name(split, layer.name)]
        located = self.located[split]
        rows = len(located.row)
        sums = self.donors.checksums(layer.name, located)
        row_bytes = place.nbytes // max(1, rows)
        at_once = max(1, _BLOCK_BYTES // max(1, row_bytes))
        for start in range(0, rows, at_once):
            block = self._block(layer, place.dtype, located.take(slice(start, start + at_once)))
            if not np.array_equal(row_checksums(block), sums[start : start + at_once]):
                raise CacheDamaged(f"{split}/{layer.name}: rows from {start} on changed while they were copied")
            draft.write(block.reshape(-1).view(np.uint8).data, place.offset + start * row_bytes)
            self._advance(block.nbytes)
        self._write_table(draft, checksums_name(split, layer.name), sums)

    def _block(self, layer: LayerSpec, dtype: str, located: Located) -> npt.NDArray[Any]:
        block = self.donors.gather(layer.name, located)
        if block.dtype != np.dtype(dtype) or block.shape[1:] != (layer.feature_dim,):
            raise InvalidOption(
                f"layer {layer.name}: expected rows of {layer.feature_dim} {np.dtype(dtype).name}, "
                f"got {block.shape[1:]} {block.dtype.name}"
            )
        return np.ascontiguousarray(block)

    def _advance(self, nbytes: int) -> None:
        self.written += nbytes
        if self.progress is not None:
            self.progress(self.written, self.total)


def encoded_ids(split: str, ids: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Ids as fixed-length UTF-8: (N,) bytes. File names that are no UTF-8 keep their bytes (surrogateescape).

    Raises InvalidOption for an id that would not come back as it went: empty, ending in NUL, lone surrogates.
    """
    # Twice, so that no more than the widest has to be known before they are kept.
    width = max((len(_encoded_id(split, one)) for one in ids), default=1)
    return np.fromiter((_encoded_id(split, one) for one in ids), f"|S{width}", len(ids))


def _encoded_id(split: str, one: str) -> bytes:
    try:
        data = one.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidOption(f"{split}: the id {one!r} is no text that UTF-8 can hold") from error
    if not data or data.endswith(b"\0") or data.decode("utf-8", "surrogateescape") != one:
        raise InvalidOption(f"{split}: expected an id that is neither empty nor ends in NUL, got {one!r}")
    return data


def _ordered(tables: Mapping[str, SplitTable]) -> dict[str, SplitTable]:
    unknown = [split for split in tables if split not in SPLITS]
    if unknown:
        raise InvalidOption(f"expected splits among {', '.join(SPLITS)}, got {', '.join(map(repr, unknown))}")
    if not any(len(table) for table in tables.values()):
        raise InvalidOption("expected at least one row, got none", hint="every image may have been skipped")
    return {split: tables[split] for split in SPLITS if split in tables}


def _require_labels(split: str, table: SplitTable, classes: int) -> None:
    low, high = (int(table.labels.min()), int(table.labels.max())) if len(table) else (0, -1)
    if low < -1 or high >= classes:
        raise InvalidOption(f"{split}: expected labels from -1 to {classes - 1}, got {low} to {high}")


def _require_views(table: SplitTable, views: int) -> None:
    """Rows are found by digest, so the views of one image must not share one."""
    if len(table) % views:
        raise InvalidOption(f"train: expected {views} rows for each image, got {len(table)} rows")
    groups = table.digests.reshape(-1, views, table.digests.shape[1])
    for one in range(views):
        for other in range(one + 1, views):
            if (groups[:, one] == groups[:, other]).all(axis=1).any():
                raise InvalidOption(
                    "train: views of one image have the same digest",
                    hint="featcache.cache.checksums.row_digests gives each view its own",
                )


def _require_all(located: Mapping[str, Located]) -> None:
    missing = {split: int((where.donor < 0).sum()) for split, where in located.items()}
    if any(missing.values()):
        told = ", ".join(f"{count} of {split}" for split, count in missing.items() if count)
        raise CacheIncomplete(
            f"rows are missing: {told}", hint="run the same extraction again: it computes what is missing"
        )


def _require_same_spec(donors: Sequence[Donor], spec: Spec) -> None:
    for donor in donors:
        theirs = getattr(donor, "spec", None)
        if donor.fingerprint == spec.fingerprint:
            continue
        if not isinstance(theirs, Spec) or not serves(theirs, spec):
            raise CacheForeign(
                f"a donor has fingerprint {donor.fingerprint[:8]}, expected {spec.fingerprint[:8]}",
                hint="only rows computed under the same spec can be copied",
            )


def serves(theirs: Spec, wanted: Spec) -> bool:
    """Whether rows of the first spec are rows of the second: equal but for further layers and the number of views.

    Rows are found by their digest, which tells the views of an image apart; plain rows are the same in all of them.
    """
    if not set(wanted.layer_names) <= set(theirs.layer_names):
        return False
    alike = theirs.restricted_to(wanted.layer_names)
    if 1 in (alike.views, wanted.views):
        return alike.without_views().fingerprint == wanted.without_views().fingerprint
    return replace(alike, views=wanted.views).fingerprint == wanted.fingerprint


def _header(
    spec: Spec,
    tables: Mapping[str, SplitTable],
    ids: Mapping[str, npt.NDArray[np.bytes_]],
    texts: Mapping[str, str],
    scaling: Mapping[str, tuple[float, float]],
) -> Header:
    unknown = set(scaling) - set(spec.layer_names)
    if unknown:
        raise InvalidOption(f"scale and offset were given for layers that are not stored: {sorted(unknown)}")
    rows = {split: len(table) for split, table in tables.items()}
    features: dict[str, FeatureAttributes] = {}
    for layer in spec.layers:
        scale, offset = scaling.get(layer.name, (1.0, 0.0))
        attributes = FeatureAttributes(shape=layer.shape, scale=float(scale), offset=float(offset))
        features |= {features_name(split, layer.name): attributes for split in tables}
    return build_header(arrays_of(spec, rows, {split: table.itemsize for split, table in ids.items()}), texts, features)
