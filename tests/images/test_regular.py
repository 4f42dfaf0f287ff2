"""Only regular files are opened, and not more is read than an image can need."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from image_files import encode

from featcache.errors import ImageError, SourceError
from featcache.images.formats import HEAD_BYTES
from featcache.images.regular import UNSEEN_BYTES, looks_like_image, open_regular, read_regular
from featcache.images.sources.folder import FolderSource

posix = pytest.mark.skipif(os.name != "posix", reason="pipes, sockets and devices have other names elsewhere")


def make_socket(path: Path) -> None:
    # The path of a socket has at most about a hundred characters, so it is bound under a short relative name.
    bound = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        bound.bind(path.name)
    finally:
        os.chdir(here)
        bound.close()


IRREGULAR: dict[str, tuple[str, Callable[[Path], object]]] = {
    "folder": ("a folder", Path.mkdir),
    "pipe": ("a pipe", os.mkfifo),
    "socket": ("a socket", make_socket),
    "device": ("a device", lambda path: path.symlink_to("/dev/zero")),
    "link to a folder": ("a folder", lambda path: path.symlink_to(path.parent)),
    "empty device": ("a device", lambda path: path.symlink_to("/dev/null")),
}


@posix
@pytest.mark.parametrize("what", IRREGULAR)
def test_anything_but_a_regular_file_is_refused_at_once(tmp_path: Path, what: str) -> None:
    words, make = IRREGULAR[what]
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(ImageError, match=rf"^cat/x\.png: not a regular file but {words}"):
        read_regular(path, "cat/x.png")
    with pytest.raises(SourceError, match=r"^list: not a regular file") as caught:
        open_regular(path, "list", error=SourceError)
    assert type(caught.value) is SourceError


@posix
def test_a_descriptor_is_not_inherited_by_other_programs(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode(1))
    descriptor = open_regular(tmp_path / "x.png", "x")
    try:
        assert not os.get_inheritable(descriptor)
        assert os.read(descriptor, 4) == b"\x89PNG"
    finally:
        os.close(descriptor)


def next_descriptor() -> int:
    """The number of the next file descriptor, which grows with every one that stays open."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


@posix
@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_no_descriptor_stays_open_after_a_refusal(tmp_path: Path, what: str) -> None:
    IRREGULAR[what][1](tmp_path / "x.png")
    before = next_descriptor()
    for _ in range(20):
        with pytest.raises(ImageError):
            read_regular(tmp_path / "x.png", "x")
    assert next_descriptor() == before


def test_a_file_is_read_completely(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode(1))
    assert read_regular(tmp_path / "x.png", "x") == encode(1)
    (tmp_path / "empty.png").write_bytes(b"")
    assert read_regular(tmp_path / "empty.png", "x") == b""


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode(1))
    (tmp_path / "y.png").symlink_to("x.png")
    assert read_regular(tmp_path / "y.png", "y") == encode(1)


@pytest.mark.parametrize("path", ["gone.png", "x.png/inside.png", "loop.png"])
def test_the_error_for_an_unreadable_file_has_the_reason(tmp_path: Path, path: str) -> None:
    (tmp_path / "x.png").write_bytes(encode(1))
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(ImageError, match=r"^cat/1: cannot be read: \w+"):
        read_regular(tmp_path / path, "cat/1")


def test_the_size_is_checked_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(bytes(101))
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ImageError, match=r"^x: 101 bytes, at most 100 are read"):
        read_regular(tmp_path / "x.png", "x", 100)


def sparse(path: Path, head: bytes, size: int) -> Path:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "not an image (first bytes 00 00 00 00 00 00 00 00)"),
        (b"SQLite format 3\0", "not an image (first bytes 53 51 4c 69 74 65 20 66)"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "not an image (first bytes 00 00 00 20 66 74 79 70)"),
    ],
)
def test_a_large_file_that_begins_like_no_image_is_not_read(
    tmp_path: Path, head: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, sizes = os.read, list[int]()

    def note(descriptor: int, size: int) -> bytes:
        sizes.append(size)
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", note)
    path = sparse(tmp_path / "x.png", head, 200 * 2**20)
    with pytest.raises(ImageError, match=r"^x: 209,715,200 bytes and not an image") as caught:
        read_regular(path, "x")
    assert reason in caught.value.message
    assert sum(sizes) < 1000


def test_half_a_gibibyte_of_zeros_is_not_read(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ImageError, match="536,870,912 bytes, at most 268,435,456 are read"):
        read_regular(sparse(tmp_path / "x.png", b"", 512 * 2**20), "x")
    assert time.monotonic() - start < 0.5


def test_a_large_image_is_read_whole(tmp_path: Path) -> None:
    content = encode(1, "TIFF") + os.urandom(UNSEEN_BYTES)
    (tmp_path / "x.tif").write_bytes(content)
    assert read_regular(tmp_path / "x.tif", "x") == content


def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "x.png", os.read
    path.write_bytes(encode(1))

    def grow(descriptor: int, size: int) -> bytes:
        with path.open("ab") as file:
            file.write(b"more")
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", grow)
    with pytest.raises(ImageError, match=r"^x: grows while it is read"):
        read_regular(path, "x")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "x.png", os.read
    path.write_bytes(encode(1))

    def shrink(descriptor: int, size: int) -> bytes:
        os.truncate(path, 10)
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", shrink)
    with pytest.raises(ImageError, match=r"^x: shrinks while it is read: expected [\d,]+ bytes, got 10"):
        read_regular(path, "x")


def test_a_file_that_comes_in_pieces_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(encode(1))
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 7)))
    assert read_regular(tmp_path / "x.png", "x") == encode(1)


def test_a_failing_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    (tmp_path / "x.png").write_bytes(encode(1))
    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(ImageError, match=r"^x: cannot be read: Input/output error"):
        read_regular(tmp_path / "x.png", "x")


@posix
def test_a_folder_of_images_refuses_other_files_with_such_names(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    make_socket(tmp_path / "cat" / "x.png")
    source = FolderSource(tmp_path)
    with pytest.raises(ImageError, match=r"^cat/x\.png: not a regular file but a socket"):
        source.read(source.samples("train")[0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000"])
def test_every_format_is_known_by_its_first_bytes(kind: str) -> None:
    assert looks_like_image(encode(1, kind)[:HEAD_BYTES])


@pytest.mark.parametrize("brands", [b"heic", b"heix", b"mif1\0\0\0\0mif1heic", b"mif1\0\0\0\0avif", b"avis", b"msf1"])
def test_a_container_is_known_by_its_brands(brands: bytes) -> None:
    assert looks_like_image((8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"P",
        b"P7 1",
        b"P5x",
        b"PK\3\4",
        b"\xff\xd8",
        b"RIFF\0\0\0\0WAVE",
        b"%PDF-1.7",
        b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
    ],
)
def test_other_first_bytes_are_no_image(head: bytes) -> None:
    assert not looks_like_image(head)


def test_a_listing_without_decoding_imports_no_pil() -> None:
    modules = ("regular", "pixels", "sources.folder", "sources.arrays", "sources.torch_dataset", "sources.table")
    imports = ", ".join(f"featcache.images.{module}" for module in modules)
    code = f"import sys, {imports}, featcache.images.location; assert 'PIL' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
