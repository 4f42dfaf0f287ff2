"""Malicious archives: each is a SourceError or an ImageError, quickly, and without the memory that it declares."""

from __future__ import annotations

import io
import os
import resource
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image_files import encode, images_at, write_tar, write_zip
from image_source_contract import all_samples

from featcache.errors import ImageError, SourceError
from featcache.images import ImageSource, open_images
from featcache.images.shared_file import SharedFile
from featcache.images.sources.webdataset import open_webdataset
from featcache.images.tar_headers import tar_headers

TWO = images_at("cat/1.png", "dog/1.png")
_CENTRAL = b"PK\x01\x02"


@pytest.fixture(autouse=True)
def _little_memory_and_time() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2**29


def header(name: str = "x", kind: bytes = tarfile.REGTYPE, size: bytes = b"0" * 11, link: str = "") -> bytes:
    """A tar header whose size field is `size`, with a correct checksum."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")[-512:])
    block[124:136] = size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base256(number: int) -> bytes:
    return ((1 << 95) | number if number >= 0 else (1 << 96) + number).to_bytes(12, "big")


def octal(number: int) -> bytes:
    return b"%011o" % number


def blocks(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(*records: tuple[str, bytes], kind: bytes = tarfile.XHDTYPE) -> bytes:
    body = b"".join(record(name, value) for name, value in records)
    return header("pax", kind, octal(len(body))) + blocks(body)


def record(name: str, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (name.encode(), value)
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return b"%d%s" % (length, rest)


def raw_pax(body: bytes) -> bytes:
    return header("pax", tarfile.XHDTYPE, octal(len(body))) + blocks(body)


def long_name(name: bytes = b"cat/2.png\0") -> bytes:
    return header("././@LongLink", tarfile.GNUTYPE_LONGNAME, octal(len(name))) + blocks(name)


IMAGE = blocks(encode(1))
MEMBER = header("cat/1.png", size=octal(len(encode(1)))) + IMAGE
MORE = b"\1" + bytes(511)

HOSTILE = {
    "3,000 long names in a row": long_name() * 3000 + MEMBER,
    "3,000 records in a row": pax(("path", b"a.png")) * 3000 + MEMBER,
    "3,000 global records in a row": pax(("comment", b"a"), kind=tarfile.XGLTYPE) * 3000 + MEMBER,
    "a size of 2^63": header("cat/2.png", size=base256(2**63)) + IMAGE,
    "a size of 2^88": header("cat/2.png", size=base256(2**88)) + IMAGE,
    "a long name of 2^62 bytes": header("x", tarfile.GNUTYPE_LONGNAME, base256(2**62)) + MEMBER,
    "records of 2^62 bytes": header("x", tarfile.XHDTYPE, base256(2**62)) + MEMBER,
    "a long name of 8 GiB, octal": header("x", tarfile.GNUTYPE_LONGNAME, b"7" * 11) + MEMBER,
    "a negative size": header("cat/2.png", size=base256(-512)) + IMAGE,
    "a negative size that leads back to itself": header("cat/2.png", size=base256(-1024)) + IMAGE,
    "a negative octal size": header("cat/2.png", size=b"-0000001000") + IMAGE,
    "a negative size of records": header("x", tarfile.XHDTYPE, base256(-512)) + MEMBER,
    "a record of size 2^70": pax(("size", b"%d" % 2**70)) + MEMBER,
    "a record of a negative size": pax(("size", b"-512")) + MEMBER,
    "a record of a size in letters": pax(("size", b"many")) + MEMBER,
    "a record of a size of 5,000 digits": pax(("size", b"9" * 5000)) + MEMBER,
    "a record longer than its header": raw_pax(b"999 path=a.png\n") + MEMBER,
    "a record of no length": raw_pax(b"0 path=a.png\n") + MEMBER,
    "a record of 4,300 digits": raw_pax(b"9" * 4301 + b" path=a.png\n") + MEMBER,
    "records of garbage": raw_pax(bytes(range(1, 256)) * 4) + MEMBER,
    "a name that is no UTF-8": header("cat/\udcff.png", size=octal(len(encode(1)))) + IMAGE,
    "a name that is no UTF-8 in a record": pax(("path", b"cat/\xff.png")) + MEMBER,
    "a name with a zero byte in a record": pax(("path", b"cat/\0.png")) + MEMBER,
    "a sparse map without end": header("x", tarfile.GNUTYPE_SPARSE)[:482] + MORE,
    "an old sparse member": pax() + header("cat/2.png", tarfile.GNUTYPE_SPARSE, octal(512)) + IMAGE,
    "a sparse map of 10^12 holes": pax(("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")) + MEMBER,
    "a sparse map in records": pax(("GNU.sparse.map", b"0,1," * 1000)) + MEMBER,
    "a size beyond the end": header("cat/2.png", size=octal(10**6)) + IMAGE,
    "links in a circle": header("cat/2.png", tarfile.SYMTYPE, link="2.png"),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("where", ["images", "webdataset"])
def test_a_hostile_tar_is_a_source_error(content: bytes, where: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(header("dog/9.png", size=octal(len(encode(1)))) + IMAGE + content + bytes(1024))
    with pytest.raises(SourceError, match=r"x\.tar|UTF-8"):
        open_images(path, datasets_dir=tmp_path) if where == "images" else open_webdataset(path)


def test_the_parts_that_hostile_tars_are_made_of_are_read_where_they_are_sound(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    sized = pax(("size", b"%d" % len(encode(1))), ("path", b"cat/" + b"n" * 300 + b".png"))
    parts = [
        pax(("comment", b"made by hand"), kind=tarfile.XGLTYPE),
        MEMBER,
        long_name() + header("short", size=base256(len(encode(1)))) + IMAGE,
        sized + header("short") + IMAGE,
        header("cat", tarfile.DIRTYPE, octal(12345)),
        header("cat/hard.png", tarfile.LNKTYPE, octal(10**9), link="cat/1.png"),
        header("other", b"V", octal(512)) + bytes(512),
        header("holes", tarfile.GNUTYPE_SPARSE, octal(512)) + bytes(512),
    ]
    path.write_bytes(b"".join(parts) + bytes(1024))
    source = open_images(path, datasets_dir=tmp_path)
    names = ["cat/1.png", "cat/2.png", "cat/hard.png", f"cat/{'n' * 300}.png"]
    assert [one.id for one in all_samples(source)] == names
    assert {source.read(one) for one in all_samples(source)} == {encode(1)}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_those_that_tarfile_finds(form: int, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:", format=form) as archive:
        for name in ("a", "folder/" * 20 + "b.png", "folder/" * 13 + "ü" * 40, "c"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
        info.type, info.size, info.linkname = (
            tarfile.SYMTYPE,
            0,
            "folder/" * (40 if form != tarfile.USTAR_FORMAT else 9),
        )
        archive.addfile(info)
    with tarfile.open(path) as archive:
        expected = [(one.name, one.type, one.linkname, one.offset_data, one.size) for one in archive]
    with path.open("rb") as file:
        assert [one[:5] for one in tar_headers(SharedFile(file), path)] == expected


def test_a_checksum_of_signed_bytes_is_right_as_well(tmp_path: Path) -> None:
    block = bytearray(header("cat/ü.png", size=octal(len(encode(1)))))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in block)
    (tmp_path / "x.tar").write_bytes(block + IMAGE + bytes(1024))
    assert [one.id for one in all_samples(open_images(tmp_path / "x.tar", datasets_dir=tmp_path))] == ["cat/ü.png"]
    block[0] ^= 1
    (tmp_path / "x.tar").write_bytes(block + IMAGE + bytes(1024))
    with pytest.raises(SourceError, match="neither a zip nor a tar"):
        open_images(tmp_path / "x.tar", datasets_dir=tmp_path)


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set" / name)
    for dataset in (f"wds:{tmp_path / 'set' / name}", str(tmp_path / "set" / name), f"wds:{tmp_path}/set/*.*"):
        with pytest.raises(SourceError, match="regular file"):
            open_images(dataset, datasets_dir=tmp_path)


# zip


def open_zip(path: Path) -> ImageSource:
    return open_images(path, datasets_dir=path.parent)


def test_a_zip_with_a_comment_of_64_kib_is_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", TWO)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"a comment " * 6553 + b"12345"
    assert path.read_bytes().endswith(b"comment 12345")
    assert [one.id for one in all_samples(open_zip(path))] == list(TWO)


def test_zip64_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    path = write_zip(tmp_path / "x.zip", TWO)
    assert b"PK\x06\x06" in path.read_bytes()
    source = open_zip(path)
    assert [source.read(one) for one in all_samples(source)] == list(TWO.values())


def bomb(path: Path, begin: bytes, size: int, method: int) -> Path:
    """A zip of one member of `size` bytes: `begin`, then zeros."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("cat/1.png", begin.ljust(size, b"\0"))
        archive.writestr("dog/1.png", encode(1))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_large_member_that_does_not_begin_as_an_image_is_not_unpacked(
    tmp_path: Path, method: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_zip(bomb(tmp_path / "x.zip", b"", 17 * 2**20, method))
    read: list[int] = []
    pread = os.pread

    def note(file: int, size: int, at: int) -> bytes:
        read.append(size)
        return pread(file, size, at)

    monkeypatch.setattr(os, "pread", note)
    with pytest.raises(ImageError, match=r"cat/1\.png: 17,825,792 bytes that do not begin like an image"):
        source.read(all_samples(source)[0])
    assert sum(read) < 2**16
    assert source.read(all_samples(source)[1]) == encode(1)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("begin", [encode(1), b"RIFF\0\0\0\0WEBP", b"\0\0\0\x1cftypavif", b"P6\n"])
def test_a_large_member_that_begins_as_an_image_is_read(tmp_path: Path, method: int, begin: bytes) -> None:
    source = open_zip(bomb(tmp_path / "x.zip", begin, 17 * 2**20, method))
    assert source.read(all_samples(source)[0]) == begin.ljust(17 * 2**20, b"\0")


@pytest.mark.parametrize("field", [20, 24])
def test_a_declared_size_beyond_the_limit_is_refused_unread(tmp_path: Path, field: int) -> None:
    content = bytearray(write_zip(tmp_path / "x.zip", TWO).read_bytes())
    start = content.index(_CENTRAL) + field
    content[start : start + 4] = struct.pack("<I", 2**31)
    (tmp_path / "x.zip").write_bytes(content)
    source = open_zip(tmp_path / "x.zip")
    with pytest.raises(ImageError, match=r"cat/1\.png: 2,147,483,648 bytes, at most"):
        source.read(all_samples(source)[0])


def test_members_that_overlap_are_read_each_within_its_own_bounds(tmp_path: Path) -> None:
    """One local member that many entries of the directory point to, as in the bomb 42.zip."""
    content = encode(1)
    packed = zlib.compress(content)[2:-4]
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, zlib.crc32(content), len(packed), len(content), 5, 0)
    entries = [
        struct.pack(
            *("<4s6H3I5H2I", _CENTRAL, 20, 20, 0, 8, 0, 0, zlib.crc32(content), len(packed), len(content)),
            *(len(name), 0, 0, 0, 0, 0, 0),
        )
        + name
        for name in (b"%03d/1.png" % number for number in range(100))
    ]
    directory, body = b"".join(entries), local + b"a.png" + packed
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    (tmp_path / "x.zip").write_bytes(body + directory + end)
    source = open_zip(tmp_path / "x.zip")
    assert {source.read(one) for one in all_samples(source)} == {content}


def huge_offset(entry: bytearray) -> None:
    entry[42:46] = struct.pack("<I", 2**32 - 2)


def extra_beyond_the_end(entry: bytearray) -> None:
    entry[30:32] = struct.pack("<H", 65535)


def name_that_is_no_utf8(entry: bytearray) -> None:
    entry[8:10], entry[46] = struct.pack("<H", 0x800), 0xFF


def unknown_version(entry: bytearray) -> None:
    entry[6:8] = struct.pack("<H", 99)


@pytest.mark.parametrize("harm", [huge_offset, extra_beyond_the_end, name_that_is_no_utf8, unknown_version])
def test_a_hostile_directory_is_a_typed_error(tmp_path: Path, harm: Callable[[bytearray], None]) -> None:
    path = write_zip(tmp_path / "x.zip", TWO)
    content = bytearray(path.read_bytes())
    start = content.index(_CENTRAL)
    entry = content[start : content.index(b"PK\5\6")]
    harm(entry)
    path.write_bytes(content[:start] + entry + content[start + len(entry) :])
    with pytest.raises(SourceError, match=r"x\.zip|cat/1\.png"):
        source = open_zip(path)
        for sample in all_samples(source):
            source.read(sample)


@pytest.mark.parametrize("sizes", [(2**62, 0), (0, 2**62), (2**63 - 1, 2**63 - 1)])
def test_a_zip64_directory_of_impossible_size_is_a_source_error(tmp_path: Path, sizes: tuple[int, int]) -> None:
    path = write_zip(tmp_path / "x.zip", TWO)
    content = path.read_bytes()
    end = content.index(b"PK\5\6")
    record64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2**62, 2**62, *sizes)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(content[:end] + record64 + locator + tail)
    with pytest.raises(SourceError, match=r"x\.zip"):
        open_zip(path)


def test_the_tar_that_these_tests_damage_is_valid(tmp_path: Path) -> None:
    assert len(all_samples(open_images(write_tar(tmp_path / "x.tar", TWO), datasets_dir=tmp_path))) == 2
