"""Regression tests for reading images, each with similar cases: splits, classes, columns, files that are left out."""

from __future__ import annotations

import io
import json
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encode, images_at, pixels, write_folder, write_tar, write_zip
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import ImageFolder
from typer.testing import CliRunner

from featcache.backbones.weights import is_path
from featcache.cli.app import app
from featcache.columns import ColumnOptions
from featcache.errors import FeatcacheError, ImageError, SourceError
from featcache.images import ImageSource, decode, open_images

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def classes_by_split(source: ImageSource) -> dict[str, list[str | None]]:
    """By split the class of each sample, in order."""
    return {
        split: [source.classes[one.label] if one.label >= 0 else None for one in source.samples(split)]
        for split in source.splits()
    }


def open_set(path: Path, **columns: Any) -> ImageSource:
    return open_images(path, columns=ColumnOptions(**columns))


def output_of_extract(folder: Path, *words: str) -> str:
    """The output of `featcache extract`, with single blanks between words."""
    command = ["extract", "--backbone", "pixels", "--image-size", "4", "--data-dir", str(folder.parent / "data")]
    result = CliRunner().invoke(app, [*command, "--dataset", str(folder), *words])
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split())


# --- splits as people write them ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("chest_xray_train", "chest_xray_val", "val"),
        ("01-TRAIN", "02-Evaluation", "test"),
    ],
)
def test_folders_that_are_called_like_splits_are_splits_and_extract_names_the_classes(
    tmp_path: Path, train: str, other: str, split: str
) -> None:
    paths = [f"{part}/{name}/1.png" for part in (train, other) for name in ("glioma", "notumor")]
    folder = write_folder(tmp_path / "scans", images_at(*paths))
    source = open_images(folder)
    assert classes_by_split(source) == {"train": ["glioma", "notumor"], split: ["glioma", "notumor"]}
    assert "classes 2: glioma, notumor" in output_of_extract(folder)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (("Fold1", "Fold2"), ("glioma", "notumor")),
        (("scannerA", "scannerB", "scannerC"), ("benign", "malignant")),
        (("2023", "2024"), ("ok", "defect", "unsure")),
    ],
)
def test_folders_that_all_hold_the_same_folders_are_refused_with_both_readings(
    tmp_path: Path, outer: Sequence[str], inner: Sequence[str]
) -> None:
    archive = write_zip(tmp_path / "set.zip", images_at(*(f"{one}/{two}/1.png" for one in outer for two in inner)))
    with pytest.raises(SourceError, match="two ways") as caught:
        open_images(archive)
    assert all(name in str(caught.value) for name in (*outer, *inner))
    assert "--split-by-folder none" in (caught.value.hint or "")


def test_classes_are_named_where_a_split_lacks_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", images_at("train/a/1.png", "train/b/1.png", "dev/b/2.png"))
    output = output_of_extract(folder)
    assert "classes 2: a, b" in output
    assert "val lacks a" in output


# --- labels of torch datasets ------------------------------------------------------------------------------


class Numbered(Dataset[Any]):
    """A dataset of pictures with class numbers, and optionally class names."""

    def __init__(self, numbers: Sequence[int], classes: Sequence[str] | None = None) -> None:
        self.numbers = numbers
        if classes is not None:
            self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index >= len(self.numbers):
            raise IndexError(index)
        return Image.fromarray(pixels(self.numbers[index] * 100 + index)), self.numbers[index]


AB, BC = Numbered([0, 1], ["a", "b"]), Numbered([0, 1, 1], ["b", "c"])


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"train": AB, "test": ConcatDataset([BC])}, {"train": ["a", "b"], "test": ["b", "c", "c"]}),
        (
            {"train": ConcatDataset([AB, Subset(BC, [2, 0])]), "val": Subset(BC, [1])},
            {"train": ["a", "b", "c", "b"], "val": ["c"]},
        ),
        (ConcatDataset([Subset(ConcatDataset([BC, AB]), [4, 0]), AB]), {"train": ["b", "b", "a", "b"]}),
    ],
)
def test_class_numbers_mean_the_names_of_their_own_dataset_in_all_wrappers(
    images: Any, expected: dict[str, list[str]]
) -> None:
    assert classes_by_split(open_images(images)) == expected


@pytest.mark.parametrize(
    "images",
    [
        ConcatDataset([AB, Numbered([0, 1])]),
        {"train": AB, "test": Numbered([0, 1])},
        {"train": Subset(Numbered([0, 1]), [1]), "val": ConcatDataset([AB, BC])},
        {"train": (np.zeros((2, 5, 5), np.uint8), ["a", "b"]), "test": (np.zeros((2, 5, 5), np.uint8), [0, 1])},
    ],
)
def test_numbers_beside_names_are_refused(images: Any) -> None:
    with pytest.raises(SourceError, match="number") as caught:
        open_images(images)
    assert "classes" in (caught.value.hint or "")


def test_numbers_beside_names_are_read_if_their_names_are_given(tmp_path: Path) -> None:
    images = {"train": AB, "test": Numbered([0, 1])}
    assert classes_by_split(open_images(images, classes=["a", "b"])) == {"train": ["a", "b"], "test": ["a", "b"]}


class Noisy(ImageFolder):  # type: ignore[misc]
    """Changes the labels of three items."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = super().__getitem__(index)
        return image, 1 - label if index in (5, 40, 70) else label


class Mixin:
    """The same as a mixin, before torchvision's class."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = super().__getitem__(index)  # type: ignore[misc]
        return image, 1 - label if index == 33 else label


class Mixed(Mixin, ImageFolder):  # type: ignore[misc]
    """torchvision's class with the mixin."""


class Reversed:
    """A wrapper with the attributes of the wrapped dataset, but with the items in reverse order."""

    def __init__(self, dataset: ImageFolder) -> None:
        self.dataset, self.targets, self.classes = dataset, dataset.targets, dataset.classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        item: tuple[Any, Any] = self.dataset[len(self.dataset) - 1 - index]
        return item


@pytest.mark.parametrize("make", [Noisy, Mixed, lambda root: Reversed(ImageFolder(root))])
def test_the_label_is_that_of_the_item(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    paths = [f"{name}/{number:02}.png" for name in "ab" for number in range(30 if name == "a" else 60)]
    dataset = make(write_folder(tmp_path / "set", dict.fromkeys(paths, encode(1))))
    expected = [dataset[number][1] for number in range(len(dataset))]
    assert [sample.label for sample in open_images(dataset).samples("train")] == expected


# --- columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("t.csv", "path, label, split\n1.png, cat, train\n2.png, dog, test\n"),
        ("t.csv", "File_Name ; Category ; Subset\n1.png;cat;Training\n2.png;dog;eval\n"),
        ("t.tsv", "image\tclass \t partition\n1.png\tcat\ttrain\n2.png\t dog\tTEST\n"),
        (
            "t.jsonl",
            '{"filename": "1.png", "target": "cat"}\n{"filename": "2.png", "target": "dog", "split": "test"}\n',
        ),
        ("t.csv", "\ufeffimg_path,labels,SPLIT\n1.png,cat,\n2.png,dog,testing\n"),
    ],
)
def test_columns_are_found_however_their_names_are_written(tmp_path: Path, name: str, table: str) -> None:
    write_folder(tmp_path, images_at("1.png", "2.png") | {name: table.encode()})
    assert classes_by_split(open_images(tmp_path / name)) == {"train": ["cat"], "test": ["dog"]}


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", b"file_name,label\n1.png,cat\n2.png,dog\n"),
        ("Metadata.CSV", b"file_name;class\n1.png;cat\n2.png;dog\n"),
        ("metadata.jsonl", b'{"file_name": "1.png", "label": "cat"}\n{"file_name": "2.png", "label": "dog"}\n'),
    ],
)
def test_a_table_next_to_images_in_a_flat_folder_labels_them(tmp_path: Path, name: str, table: bytes) -> None:
    folder = write_folder(tmp_path / "set", images_at("1.png", "2.png") | {name: table})
    assert classes_by_split(open_images(folder)) == {"train": ["cat", "dog"]}
    archive = write_zip(tmp_path / "set.zip", images_at("1.png", "2.png") | {name: table})
    assert classes_by_split(open_images(archive)) == {"train": ["cat", "dog"]}


def test_a_table_in_each_split_labels_that_split(tmp_path: Path) -> None:
    tables = {f"{split}/metadata.csv": f"file_name,label\n1.png,{split}s\n".encode() for split in ("train", "test")}
    folder = write_folder(tmp_path / "set", images_at("train/1.png", "test/1.png") | tables)
    assert classes_by_split(open_images(folder)) == {"train": ["trains"], "test": ["tests"]}


def test_a_tar_whose_classes_stand_at_its_end_is_labelled(tmp_path: Path) -> None:
    files = images_at("1.png", "2.png") | {"1.cls": b"cat", "2.cls": b"dog"}
    path = write_tar(tmp_path / "set.tar", files)
    assert classes_by_split(open_images(f"wds:{path}")) == {"train": ["cat", "dog"]}
    with pytest.raises(SourceError, match="WebDataset") as caught:
        open_images(path)
    assert "wds:" in (caught.value.hint or "")


@pytest.mark.parametrize("order", ["first", "apart"])
def test_a_tar_whose_classes_stand_elsewhere_is_labelled(tmp_path: Path, order: str) -> None:
    classes = {"1.cls": b"cat", "2.json": json.dumps({"label": "dog"}).encode()}
    pictures = images_at("1.png", "2.png")
    files = {**classes, **pictures} if order == "first" else {"2.json": classes["2.json"], **pictures, "1.cls": b"cat"}
    assert classes_by_split(open_images(f"wds:{write_tar(tmp_path / 'set.tar', files)}")) == {"train": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("write", "ignored"),
    [
        (lambda root: _csv(root, ["path", "label", *(f"c{n:02}" for n in range(13))]), "13 columns are ignored: c00"),
        (lambda root: write_folder(root / "s", images_at("a/1.png") | {"a/notes.txt": b"x"}), "a/notes.txt"),
        (lambda root: write_zip(root / "s.zip", images_at("a/1.png") | {"labels.csv": b"a,b"}), "labels.csv"),
    ],
)
def test_ignored_columns_are_noted(tmp_path: Path, write: Callable[[Path], Path], ignored: str) -> None:
    path = write(tmp_path)
    assert any(ignored in sentence for sentence in open_set(path).omissions.sentences())
    assert f"left out {'left out: 1 file' if '13' not in ignored else ignored}" in output_of_extract(path)


def _csv(root: Path, columns: Sequence[str]) -> Path:
    write_folder(root, images_at("1.png"))
    (root / "t.csv").write_text(",".join(columns) + "\n" + ",".join(["1.png", *["x"] * (len(columns) - 1)]) + "\n")
    return root / "t.csv"


# --- files that are left out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".avif", "AVIF"), (".jp2", "JPEG2000"), (".JPX", "JPEG2000"), (".HIF", "HEIF")]
)
def test_a_class_of_newer_formats_is_a_class(tmp_path: Path, suffix: str, kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    picture = encode(Image.fromarray(pixels(1, 16, 16)), kind)
    source = open_images(write_folder(tmp_path / "set", images_at("cat/1.png") | {f"dog/1{suffix}": picture}))
    assert classes_by_split(source) == {"train": ["cat", "dog"]}
    assert decode(source.read(source.samples("train")[1]), "dog").shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"dog": b""}, "no images in 1 class folder: dog"),
        ({"dog/readme": b"x", "eel/list.txt": b"x"}, "no images in 2 class folders: dog, eel"),
        ({"cat/2": b"x", "cat/IMG_0003": b"x"}, "left out: 2 files that are no images by their extension (2 without)"),
        ({"cat/a.svg": b"x", "cat/b.CR2": b"x", "cat/c.cr2": b"x"}, "(2 .cr2, 1 .svg), the first is cat/a.svg"),
    ],
)
def test_other_files_are_counted_and_an_empty_class_is_named(
    tmp_path: Path, files: Mapping[str, bytes], expected: str
) -> None:
    folder = write_folder(tmp_path / "set", images_at("cat/1.png", "cow/1.png"))
    for name, content in files.items():
        if content:
            write_folder(folder, {name: content})
        else:
            (folder / name).mkdir()
    sentences = open_images(folder).omissions.sentences()
    assert any(expected in sentence for sentence in sentences), sentences


@pytest.mark.parametrize(
    ("one", "other"), [("Cat", "cat"), ("hot dog", "hot_dog"), ("Straße", "STRASSE"), ("type-A", "Type A"), ("7", "07")]
)
def test_classes_that_look_alike_are_refused_across_splits(tmp_path: Path, one: str, other: str) -> None:
    folder = write_folder(tmp_path / "set", images_at(f"train/{one}/1.png", "train/x/1.png", f"test/{other}/1.png"))
    with pytest.raises(SourceError, match="look alike") as caught:
        open_images(folder)
    assert repr(one) in str(caught.value)
    assert repr(other) in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"), [("cat", "cat "), ("café", unicodedata.normalize("NFD", "café")), ("cat", "\u200bcat")]
)
def test_classes_that_differ_only_in_blanks_or_composition_are_one(tmp_path: Path, one: str, other: str) -> None:
    rows = f'path,label,split\n1.png,{one},train\n2.png,"{other}",test\n'
    write_folder(tmp_path, images_at("1.png", "2.png") | {"t.csv": rows.encode()})
    assert classes_by_split(open_images(tmp_path / "t.csv")) == {"train": [one], "test": [one]}
    archive = write_zip(tmp_path / "s.zip", images_at(f"train/{one}/1.png", f"test/{other}/1.png"))
    source = open_images(archive)
    assert source.classes == (one,)
    assert any("are read as one" in note for note in source.omissions.notes)


@pytest.mark.parametrize(
    "thumbnail",
    [
        "cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
        "cat/.@__thumb/default0.jpg",
        "cat/.ipynb_checkpoints/0-checkpoint.png",
        "#recycle/cat/0.png",
        "@Recycle/0.png",
        "cat/._0.jpg",
        "lost+found/0.png",
    ],
)
@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_copies_that_systems_make_are_no_images(
    tmp_path: Path, thumbnail: str, write: Callable[[Path, Mapping[str, bytes]], Path]
) -> None:
    source = open_images(write(tmp_path / "set", images_at("cat/0.png", "dog/0.png", thumbnail)))
    assert [sample.id for sample in source.samples("train")] == ["cat/0.png", "dog/0.png"]
    assert source.omissions.sentences() != []


# --- pictures ----------------------------------------------------------------------------------------------


def _pgm(maximum: int, top: int) -> bytes:
    return b"P5 2 1 %d\n" % maximum + struct.pack(">2H", top, 0)


@pytest.mark.parametrize("maximum", [1023, 16383, 4095, 65535])
def test_gray_of_any_depth_is_white_at_its_maximum(maximum: int) -> None:
    assert decode(_pgm(maximum, maximum), "x.pgm")[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("bits", [8, 16])
def test_gray_with_transparency_means_the_same_in_both_depths(bits: int) -> None:
    pixel = struct.pack(">2H", 128 << 8, 65535) if bits == 16 else bytes((128, 255))
    assert decode(_png(2, bits, 4, pixel), "x.png").ravel().tolist() == [128, 128, 128] * 2


def _png(width: int, bits: int, colour: int, pixel: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    rows = zlib.compress(b"\0" + pixel * width)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("wrapped", ["plain", "subset", "splits"])
def test_ignored_exif_orientation_of_torch_datasets_is_noted(tmp_path: Path, wrapped: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = encode(Image.fromarray(pixels(1, 4, 8)), "JPEG", exif=exif)
    folder = write_folder(tmp_path / "set", {"a/1.jpg": picture, "a/2.jpg": picture})
    dataset: Any = ImageFolder(folder)
    images = {"plain": dataset, "subset": Subset(dataset, [0]), "splits": {"val": dataset}}[wrapped]
    source = open_images(images)
    assert any("EXIF" in note for note in source.omissions.notes)
    sample = source.samples(source.splits()[0])[0]
    assert decode(source.read(sample), sample.id).shape == (4, 8, 3)
    of_files = open_images(folder)
    assert decode(of_files.read(of_files.samples("train")[0]), "1.jpg").shape == (8, 4, 3)


# --- objects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (np.zeros((3, 4, 5), np.uint8), (4, 5)),
        (torch.zeros(3, 3, 4, 5, dtype=torch.uint8), (4, 5, 3)),
        ([np.zeros((4, 5, 3), np.uint8), np.zeros((6, 2), np.uint8)], (4, 5, 3)),
        ((np.zeros((4, 5, 4), np.uint8),), (4, 5, 4)),
    ],
)
def test_arrays_of_any_kind_are_images(images: Any, shape: tuple[int, ...]) -> None:
    source = open_images(images)
    first = source.read(source.samples("train")[0])
    assert isinstance(first, np.ndarray)
    assert first.shape == shape


@pytest.mark.parametrize("kind", ["texts", "paths", "pairs", "generator of one folder", "mapping"])
def test_paths_in_any_list_are_images(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path, images_at("a/1.png", "b/2.png"))
    paths = [tmp_path / "a" / "1.png", tmp_path / "b" / "2.png"]
    images: Any = {
        "texts": [str(path) for path in paths],
        "paths": tuple(paths),
        "pairs": list(zip(paths, ["x", "y"], strict=True)),
        "generator of one folder": sorted(tmp_path.glob("*/*.png")),
        "mapping": {"train": paths},
    }[kind]
    source = open_images(images)
    assert [sample.id for sample in source.samples("train")] == ["a/1.png", "b/2.png"]
    assert source.classes == (("x", "y") if kind == "pairs" else ())


@pytest.mark.parametrize(
    "images",
    [
        42,
        None,
        b"photos",
        [],
        {},
        {"train": []},
        [1, 2],
        {"trainset": np.zeros((2, 4, 4), np.uint8)},
        [Image.new("RGB", (4, 4))],
        np.array(["a.png", "b.png"]),
        iter(["a.png"]),
        [("a.png", 0), "b.png"],
        np.zeros((2, 4, 4)),
        np.zeros((0, 4, 4), np.uint8),
        torch.zeros(2, 3, 4, 4),
        {"train": None},
        object(),
        ["a\0b.png"],
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_object_without_images_is_a_typed_error(images: Any) -> None:
    with pytest.raises(FeatcacheError) as caught:
        open_images(images)
    assert str(caught.value)


# --- hostile and damaged files -----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["http://[", "https://exa mple.org/[::1", "http://a:port/x.png", "HTTP://"])
def test_a_place_that_is_no_url_is_an_error_that_names_it(tmp_path: Path, place: str) -> None:
    pq.write_table(pa.table({"url": [place]}), tmp_path / "t.parquet")
    source = open_images(tmp_path / "t.parquet")
    with pytest.raises(ImageError):
        source.read(source.samples("train")[0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "path,label\n1.png,é\n".encode("latin-1")),
        ("t.tsv", "path\tlabel\n1.png\tx\n".encode("utf-16")),
        ("t.csv", b"path,label\n" + b'"' + b"x" * 200_000 + b'",a\n'),
        ("t.jsonl", b'{"path": ' + b"[" * 100_000),
        ("t.jsonl", b'{"path": "\xff.png"}\n'),
        ("t.jsonl", b"[1]\n"),
        ("t.csv", b"path,label\n\x00.png,a\n"),
        ("t.csv", b""),
        ("t.parquet", b"PAR1"),
        ("t.parquet", b"PAR1" + b"\xff" * 40 + b"PAR1"),
    ],
)
def test_invalid_tables_are_typed_errors(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FeatcacheError):
        open_images(tmp_path / name)


def test_parquet_damaged_anywhere_is_read_or_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = {"image": [encode(number) for number in range(20)], "label": [f"c{number % 3}" for number in range(20)]}
    pq.write_table(pa.table(rows), path, row_group_size=5)
    sound = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(sound)
        for place in random.integers(4, len(sound), 3):
            damaged[place] = int(random.integers(256))
        path.write_bytes(damaged)
        try:
            source = open_images(path)
            for sample in source.samples(source.splits()[0]):
                decode(source.read(sample), sample.id)
        except FeatcacheError:
            continue


@pytest.mark.parametrize("pattern", ["x-{a,b}.tar", "x-{a..b}.tar", "x-{,a,b}.tar"])
def test_braces_are_read_as_shells_do(tmp_path: Path, pattern: str) -> None:
    for name in ("x-a", "x-b", "x-"):
        write_tar(tmp_path / f"{name}.tar", images_at("1.png") | {"1.cls": b"0"})
    assert len(open_images(f"wds:{tmp_path}/{pattern}").samples("train")) == (3 if pattern.count(",") == 2 else 2)


def test_zeros_in_an_archive_need_neither_time_nor_memory(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/1.png", "w") as member:
        for _ in range(60):
            member.write(bytes(2**20))
    source = open_images(path)
    with pytest.raises(ImageError, match="do not begin like an image"):
        source.read(source.samples("train")[0])


def test_a_cell_of_parquet_has_the_limit_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.images.sources.parquet.MAX_FILE_BYTES", 1000)
    pq.write_table(pa.table({"image": [bytes(1001), encode(1)]}), tmp_path / "t.parquet")
    source = open_images(tmp_path / "t.parquet")
    large, sound = source.samples("train")
    assert source.read(sound) == encode(1)
    with pytest.raises(ImageError, match="1,001 bytes, at most 1,000"):
        source.read(large)


# --- smaller ones ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_large_colour_profile_is_no_error(kind: str) -> None:
    # Not larger than a JPEG can contain; the same size for PNG.
    profile = bytes(np.random.default_rng(1).integers(0, 256, 2_000_000, np.uint8))
    picture = Image.fromarray(pixels(3))
    file = io.BytesIO()
    picture.save(file, kind, icc_profile=profile, **({"lossless": True} if kind == "WEBP" else {}))
    assert decode(file.getvalue(), "x").shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test-00000-of-00001.parquet", "test"),
        ("validation-00000-of-00001.parquet", "val"),
        ("my_dev_set.parquet", "val"),
        ("photos.parquet", "train"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_parquet_file_is_the_split_in_its_name(tmp_path: Path, name: str, split: str, alone: bool) -> None:
    write_folder(tmp_path / "set" / "data", {})
    (tmp_path / "set" / "data").mkdir(parents=True)
    pq.write_table(pa.table({"image": [encode(1)], "label": ["a"]}), tmp_path / "set" / "data" / name)
    path = tmp_path / "set" / "data" / name if alone else tmp_path / "set"
    assert open_images(path).splits() == (split,)


@pytest.mark.parametrize("name", ["default", "pypi"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_folder_named_like_a_source_of_weights_is_not_one(
    tmp_path: Path, name: str, is_folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir() if is_folder else (tmp_path / name).write_bytes(b"none")
    assert not is_path(name)


def test_a_folder_is_no_file_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("IMAGENET1K_V1").mkdir()
    assert not is_path("IMAGENET1K_V1")
    Path("mine").write_bytes(b"weights")
    assert is_path("mine")
