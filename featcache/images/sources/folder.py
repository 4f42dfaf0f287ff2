"""Images as files on disk: a folder of them, or files that somebody else has listed."""

from __future__ import annotations

import os
import stat as file_kind
from collections.abc import Iterator, Mapping
from pathlib import Path

from featcache.errors import ImageError, SourceError
from featcache.images.layout import EXTENSIONS, arrange, is_image
from featcache.images.source import ImageSource, Listing, Sample, Stamp, name_of

MAX_FILE_BYTES = 512 * 2**20
"""Larger encoded files are refused: nothing that `decoding.MAX_PIXELS` allows needs as much."""

# Without O_NONBLOCK a named pipe called x.jpg would be waited for. Windows has only O_BINARY of these.
_OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


class FilesSource(ImageSource):
    """One file per sample, read whole. `paths` maps ids to files."""

    def __init__(
        self,
        *,
        name: str,
        origin: str,
        listing: Listing,
        paths: Mapping[str, str],
        native_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(name=name, origin=origin, listing=listing, native_size=native_size)
        self._paths = paths

    def _path(self, sample: Sample) -> str:
        return self._paths[sample.id]

    def read(self, sample: Sample) -> bytes:
        """The file's bytes. Raises ImageError for what is missing, unreadable, no regular file or too large."""
        try:
            return _read_whole(self._path(sample), sample.id)
        except OSError as error:
            raise ImageError(f"{sample.id}: cannot be read: {error.strerror or error}") from error
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None

    def stamp(self, sample: Sample) -> Stamp | None:
        """("file", size, mtime in ns, inode); None where the file cannot be looked at."""
        found = self._look(sample)
        return ("file", found.st_size, found.st_mtime_ns, found.st_ino) if found else None

    def modified_ns(self, sample: Sample) -> int | None:
        """The file's mtime in ns."""
        found = self._look(sample)
        return found.st_mtime_ns if found else None

    def _look(self, sample: Sample) -> os.stat_result | None:
        try:
            return Path(self._path(sample)).stat()
        except (OSError, KeyError):
            return None


def _read_whole(path: str, sample_id: str) -> bytes:
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        found = os.fstat(descriptor)
        if not file_kind.S_ISREG(found.st_mode):
            raise ImageError(f"{sample_id}: not a regular file")
        if found.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{sample_id}: {found.st_size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        return _read_to_end(descriptor, found.st_size, sample_id)
    finally:
        os.close(descriptor)


def _read_to_end(descriptor: int, size: int, sample_id: str) -> bytes:
    chunks: list[bytes] = []
    total = 0
    while chunk := os.read(descriptor, size + 1):
        chunks.append(chunk)
        total += len(chunk)
        if total > MAX_FILE_BYTES:
            raise ImageError(f"{sample_id}: grows while it is read")
    return b"".join(chunks)


class FolderSource(FilesSource):
    """A folder laid out as `layout` says. Links are followed, loops of them cut.

    Raises SourceError for a folder without images, one that cannot be listed, or an ambiguous layout.
    """

    def __init__(self, path: str | Path) -> None:
        root = Path(path).resolve()
        layout = arrange(_walk(str(root), "", (_identity(str(root)),)), str(root))
        super().__init__(name=name_of(root), origin=str(root), listing=layout.listing, paths={})
        self._base = f"{root}/{layout.prefix}"

    def _path(self, sample: Sample) -> str:
        return self._base + sample.id


def image_files(folder: Path) -> list[str]:
    """The POSIX paths of all images under a folder, relative to it and sorted, whatever its layout.

    Raises SourceError where there are none, or a folder cannot be listed.
    """
    root = str(folder)
    found = sorted(_walk(root, "", (_identity(root),)))
    if not found:
        raise SourceError(f"{folder}: no images found", hint="images are " + ", ".join(sorted(EXTENSIONS)))
    return found


def has_images(folder: Path) -> bool:
    """Whether an image lies in a folder or below it. Raises SourceError where it cannot be listed."""
    root = str(folder.resolve())
    return next(_walk(root, "", (_identity(root),)), None) is not None


def _walk(folder: str, prefix: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
    for entry in _entries(folder):
        path = prefix + entry.name
        if not _is_folder(entry):
            if is_image(path):
                yield path
        elif not entry.name.startswith(".") and entry.name != "__MACOSX":
            identity = _identity(entry.path)
            # A link back to a folder that we are in: all its images are listed already.
            if identity not in ancestors:
                yield from _walk(entry.path, f"{path}/", (*ancestors, identity))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise SourceError(f"{folder}: the folder cannot be listed: {error.strerror or error}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads in a circle: where it is named like an image, reading it says so.
        return False


def _identity(folder: str) -> tuple[int, int]:
    try:
        found = Path(folder).stat()
    except OSError as error:
        raise SourceError(f"{folder}: the folder cannot be listed: {error.strerror or error}") from error
    return (found.st_dev, found.st_ino)
