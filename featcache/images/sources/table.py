"""Images named one by one in a table, CSV or Parquet: a path or a URL a row, with label, split and digest if known.

    path,label,split
    photos/0001.jpg,cat,train

The table is read row by row and kept as columns, so one of ten million rows costs what its names take. Paths are
relative to the table's folder. A URL is read when its image is; with a column `sha256` it need not be read again.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from array import array
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from featcache.errors import ImageError, SourceError
from featcache.images.class_names import ImageList
from featcache.images.layout import SPLIT_NAMES
from featcache.images.source import SPLITS, Sample, Stamp, digest, slug
from featcache.images.sources.folder import MAX_FILE_BYTES, FilesSource
from featcache.images.tables import Row, column_names, table_rows

EXPECTED = "expected a column path or url, and perhaps label, split (train, val, test) and sha256"
_PLACES = ("path", "url")
_COLUMNS = (*_PLACES, "label", "split", "sha256")
_SCHEMES = ("http", "https")
_TRIES, _TIMEOUT_S = 3, 30.0
_DIGEST_BYTES = 32


class TableSource(FilesSource):
    """The images that a table lists. `origin` is the table's path.

    Raises SourceError for a table without a column of places, an unknown split, a row without a place, a digest that
    is none, or an image that is listed twice. `wait` sleeps between tries to read a URL.
    """

    def __init__(self, path: Path, *, wait: Callable[[float], None] = time.sleep) -> None:
        self._file = path.resolve()
        self._wait = wait
        images = ImageList()
        digests = {split: array("B") for split in SPLITS}
        for number, row in enumerate(_rows(self._file), start=2):
            where = f"{self._file} row {number}"
            split = _split(row, where)
            images.add(split, _place(row, where), row.get("label"))
            digests[split].frombytes(_digest(row, where))
        listing = images.listing()
        if not listing.samples:
            raise SourceError(f"{self._file}: no rows", hint=EXPECTED)
        super().__init__(name=slug(self._file.stem), origin=str(self._file), listing=listing, paths={})
        self._digests = {
            split: np.frombuffer(digests[split], np.uint8).reshape(-1, _DIGEST_BYTES)[samples.listed_rows]
            for split, samples in listing.samples.items()
        }

    def _path(self, sample: Sample) -> str:
        self._row(sample)
        return str(self._file.parent / sample.id)

    def read(self, sample: Sample) -> bytes:
        """The file's bytes, or what the URL gives. Raises ImageError, also where they lack the digest in the table."""
        content = self._fetched(sample) if _is_url(sample.id) else super().read(sample)
        said = self._said_digest(sample)
        if said is not None and digest(content) != said:
            raise ImageError(
                f"{sample.id}: expected sha256 {said.hex()[:12]}.. as {self._file.name} says, "
                f"got {digest(content).hex()[:12]}.."
            )
        return content

    def stamp(self, sample: Sample) -> Stamp | None:
        """("sha256", digest) where the table says it, a file's own stamp, None for a URL without digest."""
        said = self._said_digest(sample)
        if said is not None and _is_url(sample.id):
            return ("sha256", said.hex())
        return None if _is_url(sample.id) else super().stamp(sample)

    def modified_ns(self, sample: Sample) -> int | None:
        """A file's mtime in ns."""
        return None if _is_url(sample.id) else super().modified_ns(sample)

    def _fetched(self, sample: Sample) -> bytes:
        self._row(sample)
        for number in range(1, _TRIES + 1):
            try:
                return _get(sample.id)
            except urllib.error.HTTPError as error:
                # What the server refuses it will refuse again.
                if error.code < 500 or number == _TRIES:
                    raise ImageError(f"{sample.id}: the server answers {error.code} {error.reason}") from error
            except (OSError, HTTPException, ValueError) as error:
                if number == _TRIES:
                    raise ImageError(f"{sample.id}: cannot be read: {error}") from error
            self._wait(2.0**number)
        raise AssertionError("unreachable")

    def _row(self, sample: Sample) -> int:
        try:
            return self._listing.samples[sample.split].find(sample.id)
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None

    def _said_digest(self, sample: Sample) -> bytes | None:
        said = self._digests[sample.split][self._row(sample)] if sample.split in self._digests else None
        return None if said is None or not said.any() else said.tobytes()


def _rows(path: Path) -> Iterator[Row]:
    try:
        _require_places(column_names(path), path)
        yield from table_rows(path, _COLUMNS)
    except SourceError as error:
        raise SourceError(error.message, hint=error.hint or EXPECTED) from error


def _require_places(names: Sequence[str], path: Path) -> None:
    if not any(place in names for place in _PLACES):
        raise SourceError(f"{path}: has the columns {', '.join(names) or 'none'}", hint=EXPECTED)


def _place(row: Row, where: str) -> str:
    place = next((row[name] for name in _PLACES if row.get(name)), None)
    if not place:
        raise SourceError(f"{where}: neither path nor url is given", hint=EXPECTED)
    scheme = urlsplit(place).scheme if "://" in place else None
    if scheme is not None and scheme not in _SCHEMES:
        raise SourceError(f"{where}: expected http or https, got {scheme}://", hint="download it, and give its path")
    return place


def _split(row: Row, where: str) -> str:
    text = row.get("split") or "train"
    try:
        return SPLIT_NAMES[text.strip().lower()]
    except KeyError:
        raise SourceError(f"{where}: expected the split train, val or test, got {text!r}") from None


def _digest(row: Row, where: str) -> bytes:
    text = row.get("sha256")
    if not text:
        return bytes(_DIGEST_BYTES)
    try:
        said = bytes.fromhex(text.strip())
    except ValueError:
        said = b""
    if len(said) != _DIGEST_BYTES:
        raise SourceError(f"{where}: expected a sha256 of 64 hexadecimal digits, got {text!r}")
    return said


def _is_url(place: str) -> bool:
    return "://" in place


def _get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "featcache"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        content: bytes = answer.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"{url}: more than {MAX_FILE_BYTES:,} bytes, which is the most that is read")
    return content
