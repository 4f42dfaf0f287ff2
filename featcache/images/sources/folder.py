"""Images as files on disk: in a folder, or listed elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from featcache.columns import ColumnOptions
from featcache.errors import ImageError, SourceError
from featcache.images.image_paths import EXTENSIONS, folder_left_out, is_image, reason_left_out
from featcache.images.listing import Listing
from featcache.images.location import SPLIT_BY_FOLDER, ImagesArgument, Location, OpenOptions, register
from featcache.images.metadata import Tree, is_metadata, list_tree
from featcache.images.regular import read_regular
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, Stamp, name_of, stamp_of

Ancestors = tuple[tuple[int, int], ...]


class FilesSource(ImageSource):
    """One file per sample. `paths` maps ids to files."""

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
        """Read the file. Raises ImageError if it is missing, unreadable, not a regular file or too large."""
        try:
            path = self._path(sample)
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None
        return read_regular(path, sample.id)

    def stamp(self, sample: Sample) -> Stamp | None:
        """("file", size, mtime and ctime in ns, inode); None if the file is not accessible."""
        status = self._stat(sample)
        return ("file", *stamp_of(status)) if status else None

    def mtime_ns(self, sample: Sample) -> int | None:
        """The mtime of the file in ns."""
        status = self._stat(sample)
        return status.st_mtime_ns if status else None

    def _stat(self, sample: Sample) -> os.stat_result | None:
        try:
            return Path(self._path(sample)).stat()
        except (OSError, ValueError, KeyError):
            return None


class FolderSource(FilesSource):
    """A folder with a layout as in `layout`, perhaps with a table that describes its images (`metadata`).

    Links are followed, except those that lead back to a parent folder.

    Raises:
        SourceError: The folder contains no images, cannot be listed, or its layout is ambiguous.
    """

    def __init__(
        self, path: str | Path, *, split_by_folder: Sequence[str] = (), columns: ColumnOptions | None = None
    ) -> None:
        root = Path(path).resolve()
        tree = Tree()
        _walk_into(tree, str(root), "", (_identity(str(root)),))
        prefix, listing = list_tree(
            tree,
            str(root),
            split_by_folder=split_by_folder,
            columns=columns,
            read_table=lambda inside: root / inside,
        )
        super().__init__(name=name_of(root), origin=str(root), listing=listing, paths={})
        self._base = f"{root}/{prefix}"

    def _path(self, sample: Sample) -> str:
        return self._base + sample.id


def image_files(folder: Path) -> list[str]:
    """The POSIX paths of all images under a folder, relative to it and sorted, whatever its layout.

    Raises SourceError if there are none, or a folder cannot be listed.
    """
    root = str(folder)
    found = sorted(_walk(root, "", (_identity(root),)))
    if not found:
        raise SourceError(f"{folder}: no images found", hint="images are " + ", ".join(sorted(EXTENSIONS)))
    return found


def has_images(folder: Path) -> bool:
    """Whether a folder contains an image, directly or in subfolders. Raises SourceError if it cannot be listed."""
    root = str(folder.resolve())
    return next(_walk(root, "", (_identity(root),)), None) is not None


def _walk(folder: str, prefix: str, ancestors: Ancestors) -> Iterator[str]:
    """Iterate over the paths of the images below a folder."""
    for path, entry, inner in _files_below(folder, prefix, ancestors):
        if inner is not None:
            yield from _walk(entry.path, f"{path}/", inner)
        elif not _is_folder(entry) and is_image(path):
            yield path


def _walk_into(tree: Tree, folder: str, prefix: str, ancestors: Ancestors) -> None:
    """Add everything below a folder to `tree`."""
    for path, entry, inner in _files_below(folder, prefix, ancestors):
        if inner is not None:
            tree.folders.append(path)
            _walk_into(tree, entry.path, f"{path}/", inner)
        elif _is_folder(entry):
            reason = folder_left_out(entry.name)
            if reason is not None:
                tree.omissions.add(f"{path}/", reason)
        elif is_metadata(path):
            tree.tables.append(path)
        elif (reason := reason_left_out(path)) is not None:
            tree.omissions.add(path, reason)
        else:
            tree.images.append(path)


def _files_below(
    folder: str, prefix: str, ancestors: Ancestors
) -> Iterator[tuple[str, os.DirEntry[str], Ancestors | None]]:
    """(path, entry, ancestors) of all entries of a folder; ancestors is None except for folders to descend into."""
    for entry in _entries(folder):
        inner = None
        if _is_folder(entry) and folder_left_out(entry.name) is None:
            identity = _identity(entry.path)
            # A link back to a folder that contains this one: its images are listed anyway.
            if identity in ancestors:
                continue
            inner = (*ancestors, identity)
        yield prefix + entry.name, entry, inner


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
        # A link that leads to itself; if it is named like an image, reading it will raise the error.
        return False


def _identity(folder: str) -> tuple[int, int]:
    try:
        found = Path(folder).stat()
    except OSError as error:
        raise SourceError(f"{folder}: the folder cannot be listed: {error.strerror or error}") from error
    return (found.st_dev, found.st_ino)


def _locate(given: ImagesArgument) -> Location | None:
    return given.at("folder", options=(SPLIT_BY_FOLDER,)) if given.is_text and given.is_folder else None


@register("folder", rank=60, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> FolderSource:
    return FolderSource(location.place, split_by_folder=location.values(SPLIT_BY_FOLDER), columns=opening.columns)
