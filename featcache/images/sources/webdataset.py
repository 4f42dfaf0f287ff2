"""Images in WebDataset tars: `key.jpg` beside `key.cls`, in many archives. Members are read in place, never unpacked.

The layout is that of https://github.com/webdataset/webdataset: the files of one sample share all of their name
before its first dot. A class comes from `.cls` (a number or a name), else from `label`, `cls` or `class` in `.json`.
Which split a tar belongs to, its name or its folder says ("train/0001.tar", "imagenet-val-0001.tar").
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from featcache.errors import ImageError, SourceError
from featcache.images.class_names import ImageList
from featcache.images.layout import SPLIT_NAMES, is_image
from featcache.images.shared_file import SharedFile
from featcache.images.source import SPLITS, ImageSource, Listing, Report, Sample, Stamp, slug
from featcache.images.sources.archive import open_file, version_of
from featcache.images.sources.folder import MAX_FILE_BYTES
from featcache.images.sources.tar import member_headers, refuse_compressed

_CLASS_FIELDS = ("label", "cls", "class")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_CLASS_BYTES = 1 << 20
EXPECTED = "expected tars of key.jpg and key.cls: a folder of them, or wds:PATTERN such as wds:set/train-{000..099}.tar"


class WebDatasetSource(ImageSource):
    """Every image of some tars. `origin` is the folder or the pattern.

    Raises SourceError for a tar that is compressed, damaged, or holds a sample twice, and for no images at all.
    """

    def __init__(self, tars: Sequence[Path], *, origin: str, base: Path, report: Report | None = None) -> None:
        """`base`: the folder that ids are relative to."""
        self._tars = [path.resolve() for path in tars]
        self._versions: list[tuple[int, int]] = []
        images = ImageList()
        places = {split: (array("q"), array("q"), array("q")) for split in SPLITS}
        for number, path in enumerate(self._tars):
            split = _split_of(path.relative_to(base.resolve()))
            prefix = path.relative_to(base.resolve()).with_suffix("").as_posix()
            for member in self._members(path):
                images.add(split, f"{prefix}/{member.name}", member.class_name)
                for column, value in zip(places[split], (number, member.offset, member.size), strict=True):
                    column.append(value)
            if report and number % 100 == 99:
                report(f"listed {number + 1:,} of {len(self._tars):,} tars")
        listing = _require_images(images.listing(), origin)
        super().__init__(
            name=slug(re.sub(r"[{}*?.\[\]]+", "-", Path(origin).name.removesuffix(".tar"))),
            origin=origin,
            listing=listing,
        )
        # In the order of the listing: (tar, offset, size) of each sample.
        self._places = {
            split: np.stack([np.array(column, np.int64) for column in places[split]], axis=1)[samples.listed_rows]
            for split, samples in listing.samples.items()
        }

    def _members(self, path: Path) -> Iterator[_Member]:
        file = open_file(path)
        try:
            refuse_compressed(path)
            self._versions.append(version_of(file))
            yield from _members_of(file, path)
        finally:
            file.close()

    def read(self, sample: Sample) -> bytes:
        """The member's bytes. Raises ImageError where the tar is gone, has changed since it was listed, or is short."""
        number, offset, size = self._place(sample)
        if size > MAX_FILE_BYTES:
            raise ImageError(f"{sample.id}: {size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        path = self._tars[number]
        try:
            # Opened for each read: thousands of tars may be more than a process can hold open.
            file = SharedFile(path.open("rb", buffering=0))
            try:
                if version_of(file) != self._versions[number]:
                    raise ImageError(f"{sample.id}: {path.name} has changed since it was listed")
                content = file.read_at(size, offset)
            finally:
                file.close()
        except OSError as error:
            raise ImageError(f"{sample.id}: cannot be read from {path}: {error.strerror or error}") from error
        if len(content) < size:
            raise ImageError(f"{sample.id}: truncated in {path.name}")
        return content

    def stamp(self, sample: Sample) -> Stamp | None:
        """("tar", the tar's size, its mtime in ns, the member's offset, its size)."""
        number, offset, size = self._place(sample)
        return ("tar", *self._versions[number], offset, size)

    def modified_ns(self, sample: Sample) -> int | None:
        """The tar's mtime in ns."""
        return self._versions[self._place(sample)[0]][1]

    def _place(self, sample: Sample) -> tuple[int, int, int]:
        try:
            number, offset, size = self._places[sample.split][self._listing.samples[sample.split].find(sample.id)]
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None
        return int(number), int(offset), int(size)


class _Member:
    """One image of a tar, and its class once that is known."""

    __slots__ = ("class_name", "name", "offset", "size")

    def __init__(self, name: str, offset: int, size: int) -> None:
        self.name, self.offset, self.size = name, offset, size
        self.class_name: str | None = None


def open_webdataset(pattern: str | Path, report: Report | None = None) -> WebDatasetSource:
    """A folder of tars, one tar, or a pattern with `*`, `?` or `{000..099}`. Raises SourceError."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        return WebDatasetSource(tars_in(path), origin=str(path.resolve()), base=path, report=report)
    base = path.parent
    while re.search(r"[*?\[{]", base.name):
        base = base.parent
    tars = _matching(base, str(path.relative_to(base)))
    if not tars:
        raise SourceError(f"{pattern}: no such tar", hint=EXPECTED)
    return WebDatasetSource(tars, origin=f"{base.resolve()}/{path.relative_to(base)}", base=base, report=report)


def tars_in(folder: Path) -> list[Path]:
    """The tars of a folder and of its split folders, sorted."""
    found = sorted(folder.glob("*.tar")) + sorted(
        tar for inner in folder.glob("*/") if inner.name.lower() in SPLIT_NAMES for tar in inner.glob("*.tar")
    )
    return sorted(found)


def _matching(base: Path, pattern: str) -> list[Path]:
    braces = _BRACES.search(pattern)
    if braces is None:
        return sorted(base.glob(pattern))
    first, last = braces.groups()
    found: list[Path] = []
    for number in range(int(first), int(last) + 1):
        filled = f"{pattern[: braces.start()]}{number:0{len(first)}d}{pattern[braces.end() :]}"
        some = _matching(base, filled)
        if not some:
            raise SourceError(f"{base / filled} is missing", hint="every number of a pattern must be there")
        found += some
    return found


def _split_of(path: Path) -> str:
    words = {word for part in path.with_suffix("").parts for word in re.split(r"[^a-z]+", part.lower())}
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if len(found) > 1:
        raise SourceError(
            f"{path}: its name speaks of {' and '.join(sorted(found))}", hint="rename it: one split a tar"
        )
    return found.pop() if found else "train"


def _members_of(file: SharedFile, path: Path) -> Iterator[_Member]:
    """The images of one tar. The files of a sample stand together, as the format says; so one is held at a time."""
    seen: set[str] = set()
    key, image, name = None, None, None
    for info in member_headers(file, path):
        if not info.isreg():
            continue
        this, kind = _parts(info.name)
        if this != key:
            if image is not None:
                image.class_name = name
                yield image
            key, image, name = this, None, None
        if is_image(info.name):
            if image is not None or info.name in seen:
                raise SourceError(f"{path}: a second image of the sample {this}", hint="pack it again")
            seen.add(info.name)
            image = _Member(info.name.removeprefix("./"), info.offset_data, info.size)
        elif kind in ("cls", "json") and info.size <= _MOST_CLASS_BYTES:
            name = _class_name(kind, file.read_at(info.size, info.offset_data), f"{path}: {info.name}") or name
    if image is not None:
        image.class_name = name
        yield image


def _parts(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    key, _, kind = base.partition(".")
    return f"{folder}/{key}", kind.lower()


def _class_name(kind: str, content: bytes, where: str) -> str | None:
    try:
        text = content.decode().strip()
        if kind == "cls":
            return text
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} cannot be read: {error}") from error
    found = next((values[field] for field in _CLASS_FIELDS if isinstance(values, dict) and field in values), None)
    return None if found is None else str(found)


def _require_images(listing: Listing, origin: str) -> Listing:
    if not listing.samples:
        raise SourceError(f"{origin}: no images found", hint=EXPECTED)
    return listing


def is_pattern(dataset: str | os.PathLike[str]) -> bool:
    """Whether a text names tars by a pattern."""
    return str(dataset).endswith(".tar") and re.search(r"[*?{]", str(dataset)) is not None
