"""Images in a plain tar archive, each read at its offset."""

from __future__ import annotations

import posixpath
import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from featcache.errors import ImageError, SourceError
from featcache.images.metadata import Tree
from featcache.images.regular import MAX_FILE_BYTES
from featcache.images.samples import Sample
from featcache.images.source import Stamp
from featcache.images.sources.archive import ArchiveSource, add_member, member_path
from featcache.images.tar_headers import BLOCK, TarHeader, parse_header, tar_headers

_MAX_LINK_HOPS = 40


class TarMember(NamedTuple):
    """The position and size of a member's bytes in the archive."""

    offset: int
    size: int


class TarSource(ArchiveSource[TarMember]):
    """A tar archive. Links to members of the same archive are followed, other links to images are refused."""

    def _list(self, tree: Tree) -> dict[str, TarMember]:
        images: dict[str, TarMember] = {}
        files: dict[str, TarMember] = {}
        links: dict[str, str] = {}
        for header in tar_headers(self._file, self._path):
            name = _clean(header.name)
            if header.is_link:
                links[name] = _target(header)
            elif header.is_file:
                path = member_path(header.name, self._path, tree)
                if header.has_holes:
                    refuse_holes(path, self._path)
                    continue
                files[name] = TarMember(header.offset, header.size)
                if path is not None:
                    add_member(images, path, files[name], self._path)
        if any(name.endswith(".cls") for name in files):
            raise SourceError(
                f"{self._path}: contains classes in .cls files, as WebDataset does", hint=f"use wds:{self._path}"
            )
        _add_links(images, files, links, self._path, tree)
        return images

    def _read(self, member: TarMember, sample_id: str) -> bytes:
        if member.size > MAX_FILE_BYTES:
            raise ImageError(f"{sample_id}: {member.size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        content = self._file.read_at(member.size, member.offset)
        if len(content) < member.size:
            raise ImageError(f"{sample_id}: truncated in {self._path.name}")
        return content

    def stamp(self, sample: Sample) -> Stamp | None:
        """("tar", archive's size, its mtime and ctime in ns, member's offset, its size): a tar has no digests."""
        return ("tar", *self._version, *self._member(sample))


def is_tar(head: bytes) -> bool:
    """Whether `head`, 512 bytes, is a tar header whose checksum is right."""
    if head == bytes(BLOCK):
        # An archive without members counts as a tar: its error "no images" is more helpful than "no archive".
        return True
    try:
        parse_header(head)
    except tarfile.HeaderError:
        return False
    return True


def refuse_holes(path: str | None, where: Path) -> None:
    """Raises SourceError for an image that is stored with holes: its bytes are not contiguous."""
    if path is not None:
        raise SourceError(f"{where}: {path} is stored with holes", hint="pack it again without `--sparse`")


def _add_links(
    images: dict[str, TarMember], files: dict[str, TarMember], links: dict[str, str], where: Path, tree: Tree
) -> None:
    folders = {str(folder) for path in images for folder in PurePosixPath(path).parents} if links else set()
    for name in links:
        path = member_path(name, where, tree)
        target = _follow(name, links)
        if path is None:
            _refuse_folder_link(name, target, folders, where)
        elif target in files:
            add_member(images, path, files[target], where)
        else:
            raise SourceError(f"{where}: the link {path} leads to a file that is not in the archive ({target})")


def _refuse_folder_link(name: str, target: str, folders: set[str], where: Path) -> None:
    if target in folders:
        raise SourceError(
            f"{where}: {name} is a link to the folder {target}", hint="pack it again with `tar --dereference`"
        )


def _clean(name: str) -> str:
    return posixpath.normpath(name)


def _target(link: TarHeader) -> str:
    """The path in the archive that a link leads to: a hard link names it, a symbolic link is relative to its folder."""
    if link.kind == tarfile.LNKTYPE:
        return _clean(link.link)
    return _clean(posixpath.join(posixpath.dirname(link.name), link.link))


def _follow(name: str, links: dict[str, str]) -> str:
    for _ in range(_MAX_LINK_HOPS):
        if name not in links:
            break
        name = links[name]
    return name
