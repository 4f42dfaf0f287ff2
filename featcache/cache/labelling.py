"""Add columns of a table to a cache as targets. Its rows are matched to images; no features are computed.

An image may be in several splits; a value of the table goes to all rows of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.carrying import bytes_to_write, rewrite, tables_of
from featcache.cache.label_options import LabelOptions
from featcache.cache.reader import FeatureCache
from featcache.cache.rows import Rows
from featcache.cache.targets import Target, encode
from featcache.cache.writer import Progress
from featcache.display import Shown
from featcache.errors import InvalidOption, UnknownName


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """The cells of a table that are used.

    Args:
        name: The table's name, for messages and as the origin of its columns.
        on, key: How, and by which column, its rows are matched to images.
        keys: The cells of that column.
        columns: The cells of the columns that become targets.
        kinds: The kinds of these columns, where they are given or known from the table's types.
        left_out: The other columns.
    """

    name: str
    on: str
    key: str
    keys: Sequence[str | None]
    columns: Mapping[str, Sequence[str | None]]
    kinds: Mapping[str, str]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Added:
    """A target that was added: its kind, its number of names, whether it replaced another, and rows without a value."""

    name: str
    kind: str
    names: int
    replaced: bool
    unlabelled: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Labelled(Shown):
    """The result of labelling a cache.

    Args:
        cache: The path of the cache.
        on, key: How, and by which column, rows were matched to images; None where targets were only removed.
        added: The targets that were added or replaced.
        removed: The names of the targets that were removed.
        rows: The number of rows of the cache.
        matched: How many of them have a row of the table.
        unmatched: The keys of table rows that match no image.
        repeated: The number of table rows that repeat another row.
        without_key: The number of table rows whose key is empty.
        left_out: Columns of the table that became no target.
        bytes: The number of bytes written.
    """

    cache: Path
    rows: int
    bytes: int
    on: str | None = None
    key: str | None = None
    added: tuple[Added, ...] = ()
    removed: tuple[str, ...] = ()
    matched: int = 0
    unmatched: tuple[str, ...] = ()
    repeated: int = 0
    without_key: int = 0
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `featcache label --json` prints."""
        return {
            "cache": str(self.cache),
            "on": self.on,
            "key": self.key,
            "added": [vars(one) for one in self.added],
            "removed": list(self.removed),
            "rows": self.rows,
            "matched": self.matched,
            "unmatched": list(self.unmatched),
            "repeated": self.repeated,
            "without_key": self.without_key,
            "left_out": list(self.left_out),
            "bytes": self.bytes,
        }


def label_cache(
    path: Path,
    cells: Cells | None,
    options: LabelOptions,
    *,
    report: Callable[[str], None],
    progress: Progress | None = None,
) -> Labelled:
    """Add columns to a cache, or remove targets of it. The caller holds its lock.

    Args:
        path: The file or the folder.
        cells: The columns; None: only remove `options.remove`.
        options: The kinds of the columns, and which targets are removed.
        report: Called with the number of bytes that will be written, as text.
        progress: Called with (bytes written, bytes in all).

    Raises:
        UnknownName: A target to remove does not exist.
        InvalidOption: No row of the table matches an image, two rows contradict each other, or a kind does not fit.
        CacheError: The cache cannot be read or written; it is unchanged.
    """
    with FeatureCache.open(path) as cache:
        for name in options.remove:
            if name not in cache.targets:
                raise UnknownName("target", name, cache.targets)
        before = cache.targets
        done = Labelled(cache=path, rows=sum(len(cache[split]) for split in cache), bytes=bytes_to_write(cache))
        added, done = ({}, done) if cells is None else _targets(cache, cells, options, done)
        size = f"{done.bytes:,} bytes are written"
        report(f"{size}: the whole file is written again" if path.is_file() else size)
        columns = {name: column for name, column in before.items() if name not in options.remove}
        columns |= {name: target.column for name, (target, _) in added.items()}
        tables = {}
        for split, table in tables_of(cache, tuple(name for name in columns if name not in added)).items():
            values = {name: target.at(images[split]).values for name, (target, images) in added.items()}
            tables[split] = replace(table, targets={**table.targets, **values})
        unlabelled = {
            name: sum(Target(column=columns[name], values=one.targets[name]).unlabelled for one in tables.values())
            for name in added
        }
        rewrite(cache, tuple(columns.values()), tables, progress=progress)
    return replace(
        done,
        removed=options.remove,
        added=tuple(
            Added(
                name=name,
                kind=target.kind,
                names=len(target.names),
                replaced=name in before and name not in options.remove,
                unlabelled=unlabelled[name],
            )
            for name, (target, _) in added.items()
        ),
    )


def _targets(
    cache: FeatureCache, cells: Cells, options: LabelOptions, done: Labelled
) -> tuple[dict[str, tuple[Target, Mapping[str, Rows]]], Labelled]:
    """Each new target with a value for each image, and the image of every row of each split."""
    images = Images.of(cache, cells.on)
    match = _match_rows(images, cells)
    if not (match.row >= 0).any():
        first = next((key for key in cells.keys if key), "")
        raise InvalidOption(
            f"no row of {cells.name} matches an image of {cache.name}: the first {cells.key} is {first!r}, the first "
            f"{cells.on} of the cache is {images.example!r}",
            hint="choose another --key, or --on id, filename or digest",
        )
    found = {}
    for name, column in cells.columns.items():
        values = [column[row] if row >= 0 else None for row in match.row.tolist()]
        found[name] = (encode(name, values, kind=cells.kinds.get(name), origin=cells.name), images.of_rows)
    matched = sum(int((match.row[some] >= 0).sum()) for some in images.of_rows.values())
    return found, replace(
        done,
        on=cells.on,
        key=cells.key,
        matched=matched,
        unmatched=match.unmatched,
        repeated=match.repeated,
        without_key=sum(not key for key in cells.keys),
        left_out=cells.left_out,
    )


# --- matching rows of the table to images ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """The images of a cache, split after split.

    Args:
        ids: Their sample ids.
        keys: What the table's keys are compared with: numbers of images by key. The first mapping with a key is used.
        of_rows: The image of each row of a split: (n,).
        example: One of the keys.
    """

    ids: Sequence[str]
    keys: Sequence[Mapping[str, Sequence[int]]]
    of_rows: Mapping[str, Rows]
    example: str

    @classmethod
    def of(cls, cache: FeatureCache, on: str) -> Images:
        """The images of a cache, by ids, file names or digests."""
        ids: list[str] = []
        digests: list[str] = []
        of_rows = {}
        for name in cache:
            split = cache[name]
            of_rows[name] = np.arange(len(ids), len(ids) + len(split))
            ids += split.ids
            digests += _hex(split.digests) if on == "digest" else []
        names = [one.rpartition("/")[2] for one in ids]
        by = {"id": [ids], "filename": [names, [_stem(one) for one in names]], "digest": [digests]}[on]
        return cls(ids=ids, keys=[_numbers(keys) for keys in by], of_rows=of_rows, example=by[0][0])

    def about(self, key: str, on: str) -> Sequence[int]:
        """The numbers of the images with a key. Raises InvalidOption where several images have the same file name."""
        wanted = {"filename": key.replace("\\", "/").rpartition("/")[2], "digest": key.lower()}.get(on, key)
        found = next((keys[wanted] for keys in self.keys if wanted in keys), ())
        different = list(dict.fromkeys(self.ids[number] for number in found))
        if on == "filename" and len(different) > 1:
            raise InvalidOption(
                f"{key!r} may be {different[0]} or {different[1]}: both have this file name",
                hint="match on the id: --on id",
            )
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Match:
    """The table row of each image (-1: none), the keys that match no image, and the number of repeated rows."""

    row: Rows
    unmatched: tuple[str, ...]
    repeated: int


def _match_rows(images: Images, cells: Cells) -> _Match:
    row: Rows = np.full(len(images.ids), -1, np.int64)
    unmatched, repeated = [], 0
    for number, key in enumerate(cells.keys):
        if not key:
            continue
        found = images.about(key, cells.on)
        if not found:
            unmatched.append(key)
        before = {int(row[image]) for image in found} - {-1}
        for other in before:
            _require_the_same(cells, number, other)
        repeated += bool(before)
        row[list(found)] = number
    return _Match(row=row, unmatched=tuple(unmatched), repeated=repeated)


def _require_the_same(cells: Cells, number: int, other: int) -> None:
    for name, column in cells.columns.items():
        if (column[number] or "").strip() != (column[other] or "").strip():
            raise InvalidOption(
                f"{cells.name} contradicts itself about {cells.keys[number]!r}: {name} is {column[other]!r} in one row "
                f"and {column[number]!r} in another",
                hint="keep one row for each image",
            )


def _numbers(keys: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    return found


def _stem(name: str) -> str:
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name


def _hex(digests: npt.NDArray[np.uint8]) -> list[str]:
    return [row.tobytes().hex() for row in digests]
