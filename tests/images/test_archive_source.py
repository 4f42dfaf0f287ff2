"""Archives are read in place; damage is detected, and nothing is written to disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import stat
import struct
import subprocess
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_files import encode, images_at, write_tar, write_zip
from image_source_contract import all_samples, digests

from featcache.errors import ImageError, SourceError
from featcache.images import ImageSource, open_images
from featcache.images.shared_file import SharedFile

TWO = images_at("cat/1.png", "dog/1.png")
_CENTRAL, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def open_file(path: Path) -> ImageSource:
    return open_images(path, datasets_dir=path.parent)


def ids(source: ImageSource) -> list[str]:
    return [sample.id for sample in all_samples(source)]


def patch_header(path: Path, header: bytes, offset: int, value: bytes) -> Path:
    """Write `value` at `offset` of the first header of that kind."""
    content = bytearray(path.read_bytes())
    start = content.index(header) + offset
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "set.zip", TWO)


@pytest.fixture
def tarred(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "set.tar", TWO)


# zip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated_members_are_read(tmp_path: Path, method: int) -> None:
    source = open_file(write_zip(tmp_path / "set.zip", TWO, method))
    assert [source.read(sample) for sample in all_samples(source)] == list(TWO.values())


def test_a_zip_behind_other_bytes_is_read(zipped: Path) -> None:
    zipped.write_bytes(b"#!/bin/sh\nexit\n" * 10 + zipped.read_bytes())
    source = open_file(zipped)
    assert [source.read(sample) for sample in all_samples(source)] == list(TWO.values())


def test_a_long_extra_field_costs_a_second_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        info = zipfile.ZipInfo("cat/1.png")
        info.extra = struct.pack("<2H", 0x9999, 4000) + bytes(4000)
        archive.writestr(info, TWO["cat/1.png"])
    source = open_file(tmp_path / "set.zip")
    assert source.read(source.samples("train")[0]) == TWO["cat/1.png"]


def test_a_stamp_of_a_zip_member_is_its_digest_and_its_archive(zipped: Path) -> None:
    source = open_file(zipped)
    cat, dog = source.samples("train")
    found = zipped.stat()
    assert source.stamp(cat) == (
        *("zip", zlib.crc32(TWO["cat/1.png"]), len(TWO["cat/1.png"])),
        *(found.st_size, found.st_mtime_ns, found.st_ctime_ns),
    )
    assert source.stamp(cat) != source.stamp(dog)
    assert source.mtime_ns(cat) == found.st_mtime_ns


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_replacing_an_archive_by_one_of_equal_size_and_mtime_changes_the_stamp(
    tmp_path: Path, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    path = write(tmp_path / ("set.zip" if write is write_zip else "set.tar"), TWO)
    source, before = open_file(path), path.stat()
    cat = source.samples("train")[0]
    # Times advance in steps of some milliseconds.
    time.sleep(0.05)
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert open_file(path).stamp(cat) != source.stamp(cat)


@pytest.mark.parametrize("name", ["cat/1.png", "./cat//1.png"])
def test_a_member_twice_is_an_error(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        warnings.simplefilter("ignore")
        for written in ("cat/1.png", name):
            archive.writestr(written, encode(1))
    with pytest.raises(SourceError, match=r"contains cat/1\.png twice"):
        open_file(tmp_path / "set.zip")


@pytest.mark.parametrize("name", ["../1.png", "cat/../../1.png", "/etc/1.png", "C:/cat/1.png"])
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_names_that_lead_out_of_the_archive_are_refused(
    tmp_path: Path, name: str, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    path = write(tmp_path / ("set.zip" if write is write_zip else "set.tar"), {**TWO, name: encode(1)})
    with pytest.raises(SourceError, match="leads out of the archive"):
        open_file(path)


def test_an_encrypted_image_is_refused(zipped: Path) -> None:
    patch_header(zipped, _CENTRAL, 8, b"\x01\x00")
    with pytest.raises(SourceError, match=r"cat/1\.png is encrypted") as caught:
        open_file(zipped)
    assert "without a password" in (caught.value.hint or "")


def test_encrypted_members_that_are_no_images_are_ignored(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"notes.txt": b"secret", **TWO})
    assert ids(open_file(patch_header(path, _CENTRAL, 8, b"\x01\x00"))) == ["cat/1.png", "dog/1.png"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(SourceError, match=f"compressed by method {method}"):
        open_file(write_zip(tmp_path / "set.zip", TWO, method))


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        info = zipfile.ZipInfo("cat/1.png")
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(SourceError, match=r"cat/1\.png is a link"):
        open_file(tmp_path / "set.zip")


def test_a_member_larger_than_declared_is_refused_unread(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"cat/1.png": bytes(50_000_000), "dog/1.png": encode(1)})
    assert path.stat().st_size < 100_000
    source = open_file(patch_header(path, _CENTRAL, 24, struct.pack("<I", 100)))
    bomb, good = all_samples(source)
    with pytest.raises(ImageError, match=r"cat/1\.png: unpacks to more than the 100 bytes"):
        source.read(bomb)
    assert source.read(good) == encode(1)


def test_a_member_beyond_the_limit_is_refused(zipped: Path, tarred: Path) -> None:
    size = struct.pack("<I", 600 * 2**20)
    source = open_file(patch_header(zipped, _CENTRAL, 24, size))
    with pytest.raises(ImageError, match=r"cat/1\.png: 629,145,600 bytes, at most 268,435,456 are read"):
        source.read(source.samples("train")[0])


def test_a_tar_member_beyond_the_limit_is_refused(tarred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.images.sources.tar.MAX_FILE_BYTES", 100)
    source = open_file(tarred)
    with pytest.raises(ImageError, match=r"cat/1\.png: [\d,]+ bytes, at most 100 are read"):
        source.read(source.samples("train")[0])


@pytest.mark.parametrize("offset", [0, 60, 100])
def test_every_damaged_byte_of_a_member_is_detected(tmp_path: Path, offset: int) -> None:
    path = write_zip(tmp_path / "set.zip", TWO, zipfile.ZIP_STORED)
    source = open_file(path)
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"cat/1\.png: damaged in set\.zip"):
        source.read(source.samples("train")[0])


def test_a_zip_that_lost_its_end_is_damaged(zipped: Path) -> None:
    zipped.write_bytes(zipped.read_bytes()[:-30])
    with pytest.raises(SourceError, match="damaged zip archive"):
        open_file(zipped)


def test_a_zip_cut_short_while_it_is_open_gives_image_errors(zipped: Path) -> None:
    source = open_file(zipped)
    os.truncate(zipped, 200)
    for sample in source.samples("train"):
        with pytest.raises(ImageError, match=sample.id):
            source.read(sample)


def rename_in_zip(path: Path, old: bytes, new: bytes) -> Path:
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def test_utf8_names_without_a_flag_are_read_where_unix_wrote_them(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"cat/xx.png": encode(1)})
    patch_header(path, _CENTRAL, 5, b"\x03")
    assert ids(open_file(rename_in_zip(path, b"xx", "é".encode()))) == ["cat/é.png"]


def test_names_in_code_page_437_are_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"cat/x.png": encode(1)})
    assert ids(open_file(rename_in_zip(path, b"cat/x", b"cat/\x82"))) == ["cat/é.png"]


def test_the_unicode_path_field_is_read(tmp_path: Path) -> None:
    plain, real = b"cat/x.png", "cat/日本.png"
    field = struct.pack("<BI", 1, zlib.crc32(plain)) + real.encode()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        info = zipfile.ZipInfo(plain.decode())
        info.extra = struct.pack("<2H", 0x9999, 2) + b"ab" + struct.pack("<2H", 0x7075, len(field)) + field
        archive.writestr(info, encode(1))
    source = open_file(tmp_path / "set.zip")
    assert ids(source) == [real]
    assert source.read(source.samples("train")[0]) == encode(1)


def test_backslashes_of_windows_tools_are_separators(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"train_cat_1.png": encode(1)})
    patch_header(path, _CENTRAL, 5, b"\x00")
    assert ids(open_file(rename_in_zip(path, b"train_cat_1", b"train\\cat\\1"))) == ["train/cat/1.png"]


# tar


def member(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def test_links_inside_a_tar_are_followed(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "set.tar",
        member("./blobs/ab12", encode(1)),
        member("cat/1.png", type=tarfile.SYMTYPE, linkname="../blobs/ab12"),
        member("cat/2.png", type=tarfile.LNKTYPE, linkname="./blobs/ab12"),
        member("cat/3.png", type=tarfile.SYMTYPE, linkname="2.png"),
        member("dog/4.png", encode(4)),
    )
    source = open_file(path)
    assert ids(source) == ["cat/1.png", "cat/2.png", "cat/3.png", "dog/4.png"]
    assert [source.read(s) for s in source.samples("train")] == [encode(1)] * 3 + [encode(4)]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside.png", "missing.png", "1.png"])
def test_links_out_of_a_tar_or_in_circles_are_refused(tmp_path: Path, target: str) -> None:
    link = member("cat/1.png", type=tarfile.SYMTYPE, linkname=target)
    with pytest.raises(SourceError, match=r"the link cat/1\.png leads to a file that is not in the archive"):
        open_file(tar_of(tmp_path / "set.tar", link, member("dog/1.png", encode(1))))


def test_a_link_to_a_folder_in_a_tar_is_not_silently_dropped(tmp_path: Path) -> None:
    link = member("dog", type=tarfile.SYMTYPE, linkname="cat")
    with pytest.raises(SourceError, match="dog is a link to the folder cat"):
        open_file(tar_of(tmp_path / "set.tar", member("cat/1.png", encode(1)), link))


def test_links_to_other_files_and_devices_are_ignored(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "set.tar",
        member("cat/1.png", encode(1)),
        member("latest", type=tarfile.SYMTYPE, linkname="/var/log"),
        member("cat/disk.png", type=tarfile.BLKTYPE, devmajor=8),
        member("cat/pipe.png", type=tarfile.FIFOTYPE),
    )
    assert ids(open_file(path)) == ["cat/1.png"]


def test_a_member_twice_in_a_tar_is_an_error(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "set.tar", member("cat/1.png", encode(1)), member("./cat/1.png", encode(2)))
    with pytest.raises(SourceError, match=r"contains cat/1\.png twice"):
        open_file(path)


def test_long_and_foreign_names_in_a_tar_are_read(tmp_path: Path) -> None:
    names = ["cat/" + "long" * 60 + ".png", "cat/日本 ü.png"]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "set.tar", "w:", format=form) as archive:
            for name in names:
                info, content = member(name, encode(1))
                archive.addfile(info, io.BytesIO(content))
        assert ids(open_file(tmp_path / "set.tar")) == sorted(names)


def test_a_tar_truncated_anywhere_is_an_error_or_complete(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", TWO)
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in range(512, end + 1, 256):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError, match=r"damaged or truncated tar|neither"):
            open_file(path)
    path.write_bytes(whole[: end + 512])
    assert len(ids(open_file(path))) == 2


def test_a_damaged_header_does_not_end_a_tar_silently(tarred: Path) -> None:
    content = bytearray(tarred.read_bytes())
    content[content.index(b"dog/1.png")] ^= 1
    tarred.write_bytes(content)
    with pytest.raises(
        SourceError, match=r"damaged or truncated tar archive at byte [\d,]+: neither a member nor an end mark"
    ):
        open_file(tarred)


def test_a_tar_stamp_changes_with_the_archive(tarred: Path) -> None:
    source = open_file(tarred)
    first, second = source.samples("train")
    assert source.stamp(first) != source.stamp(second)
    assert source.mtime_ns(first) == tarred.stat().st_mtime_ns
    os.utime(tarred, ns=(5, 5))
    assert open_file(tarred).stamp(first) != source.stamp(first)


def test_a_tar_cut_short_while_it_is_open_gives_image_errors(tarred: Path) -> None:
    source = open_file(tarred)
    os.truncate(tarred, 520)
    with pytest.raises(ImageError, match=r"cat/1\.png: truncated in set\.tar"):
        source.read(source.samples("train")[0])


def test_members_with_holes_are_refused(tmp_path: Path) -> None:
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "cat/1.png"}
    holes = member("cat/1.png", b"1\n0\n5\n".ljust(512, b"\0") + b"bytes", pax_headers=headers)
    with pytest.raises(SourceError, match=r"cat/1\.png is stored with holes"):
        open_file(tar_of(tmp_path / "set.tar", holes, member("dog/1.png", encode(1))))


# compressed tar


@pytest.mark.parametrize(
    ("suffix", "compress", "command"),
    [
        (".gz", gzip.compress, "gzip -dk"),
        (".bz2", bz2.compress, "bzip2 -dk"),
        (".xz", lzma.compress, "xz -dk"),
        (".zst", lambda content: b"\x28\xb5\x2f\xfd" + content, "zstd -d"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "wds:"])
def test_a_compressed_tar_is_refused_with_the_command_that_unpacks_it(
    tmp_path: Path, tarred: Path, suffix: str, compress: Callable[[bytes], bytes], command: str, prefix: str
) -> None:
    path = tmp_path / f"my photos.tar{suffix}"
    path.write_bytes(compress(tarred.read_bytes()))
    with pytest.raises(SourceError, match="expected a plain tar") as caught:
        open_images(f"{prefix}{path}", datasets_dir=tmp_path)
    assert f"`{command} '{path}'`" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["photos.tar.gz", "photos.tgz", "photos"])
def test_the_command_for_a_compressed_tar_works(tmp_path: Path, tarred: Path, name: str) -> None:
    path = tmp_path / "packed" / name
    path.parent.mkdir()
    path.write_bytes(gzip.compress(tarred.read_bytes()))
    with pytest.raises(SourceError) as caught:
        open_file(path)
    subprocess.run((caught.value.hint or "").split("`")[1], shell=True, check=True)
    (unpacked,) = path.parent.glob("*.tar")
    assert ids(open_file(unpacked)) == list(TWO)
    assert path.exists()


@pytest.mark.parametrize("name", ["set.zip", "set.tar"])
def test_no_file_is_left_beside_the_archive_or_in_the_temporary_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = write_zip(tmp_path / name, TWO) if name.endswith("zip") else write_tar(tmp_path / name, TWO)
    source = open_file(path)
    digests(source)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [name, "temporary"]
    assert list((tmp_path / "temporary").iterdir()) == []
    source.close()


def test_an_archive_that_cannot_be_opened_is_a_source_error(zipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched, since root ignores permissions.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceError, match=r"set\.zip: cannot be read: Permission denied"):
        open_file(zipped)


def test_an_input_error_is_an_image_error(zipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    source = open_file(zipped)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(ImageError, match=r"cat/1\.png: cannot be read from .*Input/output error"):
        source.read(source.samples("train")[0])
    with pytest.raises(SourceError, match=r"set\.zip: cannot be read: Input/output error"):
        open_file(zipped)


# all of them


@pytest.mark.parametrize("name", ["set.zip", "set.tar"])
def test_a_closed_archive_reads_nothing(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / name, TWO) if name.endswith("zip") else write_tar(tmp_path / name, TWO)
    with open_file(path) as source:
        sample = source.samples("train")[0]
    with pytest.raises(ImageError, match=r"cat/1\.png: cannot be read .* closed"):
        source.read(sample)


@pytest.mark.parametrize("name", ["set.zip", "set.tar"])
def test_an_archive_that_changed_is_not_taken_for_the_one_listed(tmp_path: Path, name: str) -> None:
    write: Callable[[Path, dict[str, bytes]], Path] = write_zip if name.endswith("zip") else write_tar
    pickled = pickle.dumps(open_file(write(tmp_path / name, TWO)))
    write(tmp_path / name, {**TWO, "emu/1.png": encode(5)})
    with pytest.raises(SourceError, match="has changed since it was listed"):
        pickle.loads(pickled)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"plain text", bytes(512), b"\x1f\x8b", b"BZh", encode(1), os.urandom(2000)]
)
def test_anything_but_an_archive_of_images_is_a_source_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"set\.zip"):
        open_file(path)


def test_the_kind_of_archive_is_in_its_bytes_not_its_name(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.tar.gz", TWO)
    assert ids(open_file(path)) == ["cat/1.png", "dog/1.png"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("cifar10-images.zip", "cifar10-images"),
        ("Set.TAR.GZ", "set"),
        ("a.b.tgz", "a.b"),
        ("ü.zip", "images"),
        ("two words.tar", "two-words"),
    ],
)
def test_the_short_name_of_an_archive(tmp_path: Path, name: str, short: str) -> None:
    assert open_file(write_zip(tmp_path / name, TWO)).name == short


def test_without_pread_a_lock_guards_the_position(zipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    source = open_file(zipped)
    expected = digests(source)
    monkeypatch.delattr(os, "pread")
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: tuple(digests(source)), range(40))) == {tuple(expected)}


def test_short_reads_are_continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 7), offset))
    shared = SharedFile(path.open("rb", buffering=0))
    assert shared.read_at(50, 10) == bytes(range(10, 60))
    assert shared.read_at(50, 90) == bytes(range(90, 100))
    shared.close()
