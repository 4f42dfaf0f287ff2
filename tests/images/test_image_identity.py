"""Regression tests for the origin of images and for detecting changes, each with similar cases."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encode, images_at, pixels, write_folder, write_tar, write_zip
from image_source_contract import all_samples
from PIL import Image
from torchvision.datasets import ImageFolder

import featcache
from featcache.errors import FeatcacheError, ImageError, InvalidOption, SourceError
from featcache.images import ImageSource, digest, locate, open_images

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

LONG_AGO_NS = 1_500_000_000 * 10**9


def gray(value: int, kind: str = "BMP") -> bytes:
    """A picture of one gray value; as BMP, files of all values have the same length."""
    return encode(Image.fromarray(np.full((4, 4, 3), value, np.uint8)), kind)


def write_old(path: Path, content: bytes) -> None:
    """Write in place, with an mtime long ago: files that old are trusted to be unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def extract_features(images: Any, data: Path, **options: Any) -> dict[str, list[int]]:
    """The first feature of each image, by split."""
    with featcache.extract(images, backbone="pixels", data_dir=data, **{"image_size": 4} | options) as cache:
        return {split: cache[split].features[:][:, 0].tolist() for split in cache}


# --- detecting changes -------------------------------------------------------------------------------------


def _all_paths(folder: Path) -> list[dict[str, Any]]:
    return [{"bytes": None, "path": f"{number}.bmp"} for number in range(3)]


def _some_paths(folder: Path) -> list[dict[str, Any]]:
    return [{"bytes": gray(0), "path": "a.bmp"}, {"bytes": None, "path": "1.bmp"}, {"bytes": gray(2), "path": None}]


def _absolute_paths(folder: Path) -> list[dict[str, Any]]:
    return [{"bytes": None, "path": str(folder / f"{number}.bmp")} for number in range(3)]


@pytest.mark.parametrize("cells", [_all_paths, _some_paths, _absolute_paths])
def test_files_that_parquet_rows_name_are_read_again_when_they_change(
    tmp_path: Path, cells: Callable[[Path], list[dict[str, Any]]]
) -> None:
    folder = tmp_path / "set"
    for number in range(3):
        write_old(folder / f"{number}.bmp", gray(number))
    pq.write_table(pa.table({"image": cells(folder), "label": ["a", "b", "a"]}), folder / "t.parquet")
    os.utime(folder / "t.parquet", ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert extract_features(folder / "t.parquet", tmp_path / "data") == {"train": [0, 1, 2]}
    write_old(folder / "1.bmp", gray(200))
    assert extract_features(folder / "t.parquet", tmp_path / "data") == {"train": [0, 200, 2]}


def test_a_file_behind_a_changed_link_is_read(tmp_path: Path) -> None:
    write_old(tmp_path / "one.bmp", gray(1))
    write_old(tmp_path / "two.bmp", gray(2))
    (tmp_path / "link.bmp").symlink_to(tmp_path / "one.bmp")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "link.bmp"}]}), tmp_path / "t.parquet")
    os.utime(tmp_path / "t.parquet", ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert extract_features(tmp_path / "t.parquet", tmp_path / "data") == {"train": [1]}
    (tmp_path / "link.bmp").unlink()
    (tmp_path / "link.bmp").symlink_to(tmp_path / "two.bmp")
    assert extract_features(tmp_path / "t.parquet", tmp_path / "data") == {"train": [2]}


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return "pipe"


def _inner(folder: Path) -> str:
    (folder / "inner").mkdir()
    return "inner"


@pytest.mark.parametrize(
    "name", [_pipe, _inner, lambda _: "/dev/zero", lambda _: "/dev/stdin", lambda _: "gone.png", lambda _: "a\0b"]
)
@pytest.mark.parametrize("is_table", [True, False])
def test_a_row_that_names_no_regular_file_is_an_image_error_at_once(
    tmp_path: Path, name: Callable[[Path], str], is_table: bool
) -> None:
    place = name(tmp_path)
    if place == "/dev/stdin" and Path(place).is_file():
        pytest.skip("standard input is a regular file here")
    cells = [place] if is_table else [{"bytes": None, "path": place}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet")
    with pytest.raises(FeatcacheError):
        source = open_images(tmp_path / "t.parquet")
        source.stamp(source.samples("train")[0])
        source.read(source.samples("train")[0])


def test_a_table_of_the_hub_that_names_files_in_its_middle_trusts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    write_old(tmp_path / "1.bmp", gray(1))
    cells = [{"bytes": gray(0), "path": None}, {"bytes": None, "path": str(tmp_path / "1.bmp")}]
    cells.append({"bytes": gray(2), "path": None})
    table = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": table})
    source = open_images("hf:ana/photos", datasets_dir=tmp_path)
    assert [digest(source.read(one)) for one in source.samples("train")] == [digest(gray(n)) for n in range(3)]
    assert [source.stamp(one) for one in source.samples("train")] == [None] * 3


def with_crc(content: bytes, wanted: int) -> bytes:
    """The content with four bytes at its end that give it this CRC-32."""
    table = [_entry(one) for one in range(256)]
    by_top = {entry >> 24: index for index, entry in enumerate(table)}
    state = wanted ^ 0xFFFFFFFF
    for _ in range(4):
        index = by_top[state >> 24]
        state = ((state ^ table[index]) << 8 | index) & 0xFFFFFFFF
    return content + (state ^ zlib.crc32(content) ^ 0xFFFFFFFF).to_bytes(4, "little")


def _entry(index: int) -> int:
    for _ in range(8):
        index = index >> 1 ^ (0xEDB88320 if index & 1 else 0)
    return index


def equal_crc_pictures(kind: str) -> tuple[bytes, bytes]:
    """Two pictures with the same length and CRC-32; decoders ignore the bytes after the end of a picture."""
    one, other = gray(10, kind), gray(200, kind)
    length = max(len(one), len(other))
    first = one.ljust(length + 4, b"\0")
    second = with_crc(other.ljust(length, b"\0"), zlib.crc32(first))
    assert (len(first), zlib.crc32(first)) == (len(second), zlib.crc32(second))
    return first, second


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_replaced_by_one_of_equal_size_and_checksum_is_read(
    tmp_path: Path, kind: str, compression: int
) -> None:
    first, second = equal_crc_pictures(kind)
    path = tmp_path / "set.zip"
    write_old(path, write_zip(tmp_path / "one.zip", {"a/1.img.jpg": first}, compression).read_bytes())
    old = extract_features(path, tmp_path / "data")["train"][0]
    write_old(path, write_zip(tmp_path / "two.zip", {"a/1.img.jpg": second}, compression).read_bytes())
    new = extract_features(path, tmp_path / "data")["train"][0]
    assert (round(old, -1), round(new, -1)) == (10, 200)


def _as_folder(path: Path, value: int) -> Path:
    write_old(path / "a" / "1.bmp", gray(value))
    return path


def _as_tar(path: Path, value: int) -> Path:
    write_old(path.with_suffix(".tar"), write_tar(path.with_suffix(".new"), {"a/1.bmp": gray(value)}).read_bytes())
    return path.with_suffix(".tar")


def _as_samples(path: Path, value: int) -> str:
    members = {"1.bmp": gray(value), "1.cls": b"a"}
    write_old(path.with_suffix(".tar"), write_tar(path.with_suffix(".new"), members).read_bytes())
    return f"wds:{path.with_suffix('.tar')}"


def _as_table(path: Path, value: int) -> Path:
    write_old(path / "a" / "1.bmp", gray(value))
    write_old(path / "t.csv", b"path,label\na/1.bmp,a\n")
    return path / "t.csv"


def _as_parquet(path: Path, value: int) -> Path:
    path.mkdir(exist_ok=True)
    # Not compressed, so of equal size.
    pq.write_table(pa.table({"image": [gray(value)]}), path / "new", compression="none", write_statistics=False)
    write_old(path / "t.parquet", (path / "new").read_bytes())
    return path / "t.parquet"


def _as_list(path: Path, value: int) -> list[Path]:
    return [_as_folder(path, value) / "a" / "1.bmp"]


def _as_array(path: Path, value: int) -> Any:
    # In a row that is not one of those whose digest is part of the name.
    images = np.zeros((200, 5, 5), np.uint8)
    images[101] = value
    return images


def _as_dataset(path: Path, value: int) -> ImageFolder:
    return ImageFolder(_as_folder(path, value))


@pytest.mark.parametrize(
    "make", [_as_folder, _as_tar, _as_samples, _as_table, _as_parquet, _as_list, _as_array, _as_dataset]
)
def test_an_image_edited_in_place_with_its_old_time_is_read_again(
    tmp_path: Path, make: Callable[[Path, int], Any]
) -> None:
    assert max(extract_features(make(tmp_path / "set", 1), tmp_path / "data")["train"]) == 1
    assert max(extract_features(make(tmp_path / "set", 1), tmp_path / "data")["train"]) == 1
    assert max(extract_features(make(tmp_path / "set", 250), tmp_path / "data")["train"]) == 250


# --- origins -----------------------------------------------------------------------------------------------


def _places(root: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Texts that a user may give in the folder `root`, and the options to open them."""
    write_folder(root / "photos", images_at("cat/1.png", "dog/2.png"))
    write_folder(root / "two words", images_at("cat/1.png", "dog/2.png"))
    write_folder(root / "why?", images_at("cat/1.png"))
    write_folder(root / "why?a=b", images_at("cat/1.png"))
    write_folder(root / "50%25 #1 & more", images_at("cat/1.png"))
    write_folder(root / "~", images_at("cat/1.png"))
    write_folder(root / "~ana", images_at("cat/1.png"))
    write_folder(root / "parts", images_at("one=1/cat/1.png", "b, c/cat/1.png"))
    write_zip(root / "set.zip", images_at("x/1.png", "y/1.png"))
    write_tar(root / "set?.tar", images_at("x/1.png", "y/1.png"))
    (root / "t a.csv").write_text("path,kind of,other\nphotos/cat/1.png,x,\nphotos/dog/2.png,y,z\n")
    pq.write_table(pa.table({"a b": [encode(1)], "other": [encode(2)], "label": ["x"]}), root / "two.parquet")
    (root / "hub?x=y").mkdir()
    pq.write_table(pa.table({"image": [encode(1)], "l/1": ["x"]}), root / "hub?x=y" / "test-0.parquet")
    for number in range(3):
        samples = {"k.png": encode(number), "k.seg.png": encode(9), "k.cls": b"0"}
        (root / "tars").mkdir(exist_ok=True)
        write_tar(root / "tars" / f"train-{number}.tar", samples)
    return {
        "folder": ("photos", {}),
        "dots": ("./tars/../photos/", {}),
        "blank": ("two words", {}),
        "question mark": ("why?", {}),
        "question mark and sign": ("why?a=b", {}),
        "signs": ("50%25 #1 & more", {}),
        "called tilde": ("./~", {}),
        "tilde in a name": ("./~ana", {}),
        "home": ("~/photos", {}),
        "splits": ("parts", {"split_by_folder": ("one=1=train", "b, c=test")}),
        "no splits": ("photos", {"split_by_folder": ("none",)}),
        "zip": ("set.zip", {}),
        "zip with splits": ("set.zip", {"split_by_folder": ("x=val",)}),
        "tar": ("set?.tar", {}),
        "table": ("t a.csv?label=kind of", {}),
        "table, quoted": ("t a.csv?label=kind%20of", {}),
        "Parquet": ("two.parquet?image=a b", {}),
        "Parquet, hf:": ("hf:two.parquet?image=a+b&label=label", {}),
        "folder of Parquet": ("hub?x=y?label=l/1", {}),
        "hf: folder": ("hf:hub?x=y", {}),
        "hf: folder, options": ("hf:./hub?x=y?label=l/1", {}),
        "tars": ("tars", {}),
        "wds: folder": ("wds:tars?image=seg.png", {}),
        "wds: braces": ("wds:tars/train-{0..1}.tar", {}),
        "wds: stars": ("wds:~/tars/train-*.tar?image=.seg.png", {}),
        "wds: any letter": ("wds:tars/train-?.tar", {}),
        "pattern": ("tars/train-{0,2}.tar", {}),
        "named": ("digits", {}),
    }


PLACES = [
    *("folder", "dots", "blank", "question mark", "question mark and sign", "signs", "called tilde"),
    *("tilde in a name", "home", "splits", "no splits", "zip", "zip with splits", "tar", "table", "table, quoted"),
    *("Parquet", "Parquet, hf:", "folder of Parquet", "hf: folder", "hf: folder, options", "tars", "wds: folder"),
    *("wds: braces", "wds: stars", "wds: any letter", "pattern", "named"),
]


def content_of(source: ImageSource) -> list[tuple[str, str, int, bytes]]:
    """All samples of a source, with their digests."""
    with source:
        return [(one.id, one.split, one.label, digest(source.read(one))) for one in all_samples(source)]


@pytest.mark.parametrize("name", PLACES)
def test_an_origin_opens_the_same_images_from_anywhere(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "home"
    places = _places(root)
    assert list(places) == PLACES
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.chdir(root)
    text, options = places[name]
    location = locate(text, **options)
    expected = content_of(location.open(datasets_dir=tmp_path))
    assert expected
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    assert str(root) in location.origin or name == "named"
    again = locate(location.origin)
    assert (again, again.origin) == (location, location.origin)
    source = again.open(datasets_dir=tmp_path)
    assert source.origin == location.origin
    assert content_of(source) == expected


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("hf:ana/photos", "hf:ana/photos"),
        ("hf:ana/photos?label=fine_label&config=big", "hf:ana/photos?config=big&label=fine_label"),
        ("torchvision:usps", "torchvision:usps"),
        ("torchvision:CIFAR10", "cifar10"),
    ],
)
def test_a_name_has_the_same_origin_in_every_spelling(text: str, origin: str) -> None:
    location = locate(text)
    assert location.origin == origin
    assert locate(location.origin) == location


def test_one_folder_has_one_origin_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "photos", images_at("cat/1.png", "dog/2.png"))
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings: Mapping[str, str] = {"photos": ".", "../photos": "other", "~/photos": "other", "../link/": "other"}
    found = set()
    for text, current in spellings.items():
        monkeypatch.chdir(tmp_path / current)
        with featcache.extract(text, backbone="pixels", image_size=4, data_dir=tmp_path / "data") as cache:
            found.add((cache.path, cache["train"].features[:].tobytes()))
        monkeypatch.chdir(tmp_path)
    assert len(found) == 1


# --- objects, and closing them -----------------------------------------------------------------------------


def _folder(root: Path) -> Path:
    return write_folder(root, images_at("a/1.png", "b/2.png"))


@pytest.mark.parametrize(
    "make",
    [
        lambda root: np.stack([pixels(1), pixels(2)]),
        lambda root: torch.zeros(2, 3, 5, 5, dtype=torch.uint8),
        lambda root: ImageFolder(_folder(root)),
        lambda root: sorted(_folder(root).glob("*/*.png")),
        lambda root: [(str(path), path.parent.name) for path in sorted(_folder(root).glob("*/*.png"))],
        lambda root: {"train": (np.stack([pixels(1), pixels(2)]), ["a", "b"]), "test": ImageFolder(_folder(root))},
        lambda root: {"train": _folder(root)},
    ],
)
def test_extract_takes_objects_and_finds_them_again(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    images = make(tmp_path / "set")
    paths = set()
    for _ in range(2):
        with featcache.extract(images, backbone="pixels", image_size=4, data_dir=tmp_path / "data") as cache:
            assert len(cache["train"].ids) == 2
            paths.add(cache.path)
    assert len(paths) == 1


def test_images_from_python_cannot_be_opened_by_their_origin_in_extract(tmp_path: Path) -> None:
    origins = [locate(np.zeros((2, 5, 5), np.uint8)).origin, locate(ImageFolder(_folder(tmp_path))).origin]
    origins += [locate([tmp_path / "a" / "1.png"]).origin, locate({"val": np.ones((2, 5, 5), np.uint8)}).origin]
    for origin in origins:
        with pytest.raises(SourceError, match="not stored"):
            locate(origin)


def _write_damaged(root: Path) -> Path:
    return write_zip(root, images_at("a/1.png", "a/2.png") | {"a/3.png": b"\x89PNG\r\n\x1a\nnone"})


@pytest.mark.parametrize(
    ("options", "error"), [({}, ImageError), ({"image_size": 0}, InvalidOption), ({"splits": ("val",)}, FeatcacheError)]
)
def test_a_callers_source_stays_open_where_extract_raises(
    tmp_path: Path, options: dict[str, Any], error: type[FeatcacheError]
) -> None:
    with open_images(_write_damaged(tmp_path / "set.zip")) as source:
        for images in (source, {"test": source}, locate(source)):
            with pytest.raises(error):
                extract_features(images, tmp_path / "data", **options)
            assert source.read(source.samples("train")[0])


def test_a_callers_source_stays_open_after_extract(tmp_path: Path) -> None:
    with open_images(write_zip(tmp_path / "set.zip", images_at("a/1.png", "a/2.png"))) as source:
        for images in (source, source, {"test": source}, locate(source)):
            assert list(extract_features(images, tmp_path / "data"))
            assert source.read(source.samples("train")[0])
        with locate(source).open_and_close(datasets_dir=tmp_path) as same:
            assert same is source
        assert source.read(source.samples("train")[0])
    with pytest.raises(ImageError):
        source.read(source.samples("train")[0])
