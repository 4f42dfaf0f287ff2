"""Folders: links, loops, unreadable files, and stamps that detect changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from image_files import encode, images_at, write_folder
from image_source_contract import all_samples

from featcache.errors import ImageError, SourceError
from featcache.images import decode
from featcache.images.regular import MAX_FILE_BYTES
from featcache.images.sources.folder import FolderSource


def ids(source: FolderSource) -> list[str]:
    return [sample.id for sample in all_samples(source)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", images_at("cat/1.png", "dog/1.png"))


def test_links_to_files_and_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", images_at("3.png", "in/4.png"))
    (folder / "cat" / "2.png").symlink_to(folder / "dog" / "1.png")
    (folder / "emu").symlink_to(tmp_path / "elsewhere")
    source = FolderSource(folder)
    assert ids(source) == ["cat/1.png", "cat/2.png", "dog/1.png", "emu/3.png", "emu/in/4.png"]
    assert source.classes == ("cat", "dog", "emu")
    assert source.read(source.samples("train")[1]) == (folder / "dog" / "1.png").read_bytes()


def test_loops_of_links_are_cut(folder: Path) -> None:
    (folder / "cat" / "again").symlink_to(folder)
    (folder / "dog" / "up").symlink_to("..")
    (folder / "dog" / "self").symlink_to("self")
    assert ids(FolderSource(folder)) == ["cat/1.png", "dog/1.png"]


def test_a_link_between_class_folders_counts_in_both(folder: Path) -> None:
    (folder / "cat" / "more").symlink_to(folder / "dog")
    (folder / "dog" / "more").symlink_to(folder / "cat")
    assert ids(FolderSource(folder)) == [
        "cat/1.png",
        "cat/more/1.png",
        "dog/1.png",
        "dog/more/1.png",
    ]


@pytest.mark.parametrize("target", ["nowhere.png", "broken.png"])
def test_a_dangling_link_is_listed_and_unreadable(folder: Path, target: str) -> None:
    (folder / "cat" / "broken.png").symlink_to(target)
    source = FolderSource(folder)
    broken = next(sample for sample in source.samples("train") if "broken" in sample.id)
    with pytest.raises(ImageError, match=r"cat/broken\.png: cannot be read"):
        source.read(broken)
    assert source.stamp(broken) is None
    assert source.mtime_ns(broken) is None


def test_a_named_pipe_is_no_image_and_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "cat" / "pipe.png")
    source = FolderSource(folder)
    with pytest.raises(ImageError, match=r"cat/pipe\.png: not a regular file"):
        source.read(next(sample for sample in source.samples("train") if "pipe" in sample.id))


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", images_at("cat/1.png", "odd.jpg/2.png"))
    assert FolderSource(tmp_path / "set").classes == ("cat", "odd.jpg")


def test_a_folder_that_cannot_be_listed_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched, since root ignores permissions.
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"set/dog: the folder cannot be listed: Permission denied"):
        FolderSource(folder)


def test_a_deleted_file_is_an_image_error(folder: Path) -> None:
    source = FolderSource(folder)
    (folder / "cat" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"cat/1\.png: cannot be read: No such file"):
        source.read(source.samples("train")[0])


def test_a_file_beyond_the_limit_is_refused(folder: Path) -> None:
    source = FolderSource(folder)
    os.truncate(folder / "cat" / "1.png", MAX_FILE_BYTES + 1)
    with pytest.raises(
        ImageError, match=rf"cat/1\.png: {MAX_FILE_BYTES + 1:,} bytes, at most {MAX_FILE_BYTES:,} are read"
    ):
        source.read(source.samples("train")[0])


def test_a_name_that_is_not_utf8_is_an_error(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/cat/\xff.png")).write_bytes(encode(1))
    with pytest.raises(SourceError, match="not valid UTF-8") as caught:
        FolderSource(folder)
    caught.value.message.encode()


@pytest.mark.parametrize("name", ["new\nline.png", "tab\t.png", "  .png", "日本.png", "e\u0301.png", "é.png"])
def test_odd_names_are_kept_as_they_are(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "set", {f"cat/{name}": encode(1)})
    source = FolderSource(tmp_path / "set")
    assert ids(source) == [f"cat/{name}"]
    assert decode(source.read(source.samples("train")[0]), name).shape == (6, 8, 3)


def test_folders_without_images_are_no_classes(folder: Path) -> None:
    write_folder(folder, {"notes/readme.md": b"text"})
    (folder / "empty").mkdir()
    assert FolderSource(folder).classes == ("cat", "dog")


@pytest.mark.parametrize("files", [{}, {"readme.txt": b"text"}, {".hidden/1.png": b"x"}])
def test_the_error_for_a_folder_without_images_names_the_expected_layouts(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    (tmp_path / "set").mkdir()
    write_folder(tmp_path / "set", files)
    with pytest.raises(SourceError, match="set: no images found") as caught:
        FolderSource(tmp_path / "set")
    assert "class/image" in (caught.value.hint or "")


def test_a_stamp_changes_with_the_file(folder: Path) -> None:
    source = FolderSource(folder)
    sample, other = source.samples("train")
    path = folder / "cat" / "1.png"
    before, other_before = source.stamp(sample), source.stamp(other)
    assert source.mtime_ns(sample) == path.stat().st_mtime_ns
    os.utime(path, ns=(1, 1))
    touched = source.stamp(sample)
    path.write_bytes(encode(99))
    os.utime(path, ns=(1, 1))
    assert len({before, touched, source.stamp(sample)}) >= 2
    replacement = folder.parent / "new.png"
    replacement.write_bytes(path.read_bytes())
    os.utime(replacement, ns=(1, 1))
    same_size_and_time = source.stamp(sample)
    replacement.rename(path)
    assert source.stamp(sample) != same_size_and_time
    assert source.stamp(other) == other_before


def test_the_name_and_origin_come_from_the_folder(tmp_path: Path) -> None:
    source = FolderSource(write_folder(tmp_path / "Méine Bilder (2)", images_at("a/1.png")))
    assert source.name == "m-ine-bilder-2"
    assert source.origin == str(tmp_path / "Méine Bilder (2)")


def test_a_relative_path_is_made_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    source = FolderSource(".")
    assert (source.name, source.origin) == ("set", str(folder))
    monkeypatch.chdir("/")
    assert source.read(source.samples("train")[0])


def test_a_folder_that_is_not_there_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone: the folder cannot be listed"):
        FolderSource(tmp_path / "gone")
