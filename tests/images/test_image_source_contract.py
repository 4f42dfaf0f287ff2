"""Every kind of source fulfils the contract; a folder and archives of it are the same set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import SPLIT_SET, SPLIT_SET_IDS, encode, pixels, wrap, write_folder, write_tar, write_zip
from image_source_contract import ImageSourceContract, Open, all_samples, digests
from PIL import Image
from torchvision_layouts import LAYOUTS

from featcache.images import ArraySource, ImageSource, open_images


def make_folder(root: Path) -> Path:
    return write_folder(root / "folder", SPLIT_SET)


def make_wrapped_folder(root: Path) -> Path:
    return write_folder(root / "wrapped folder", wrap(SPLIT_SET))


def make_zip(root: Path) -> Path:
    return write_zip(root / "set.zip", SPLIT_SET)


def make_wrapped_zip(root: Path) -> Path:
    return write_zip(root / "wrapped.zip", wrap(SPLIT_SET))


def make_tar(root: Path) -> Path:
    return write_tar(root / "set.tar", wrap(SPLIT_SET))


def make_tar_of_dots(root: Path) -> Path:
    return write_tar(root / "dots.tar", {f"./{name}": content for name, content in SPLIT_SET.items()})


SAME_SET = [
    make_folder,
    make_wrapped_folder,
    make_zip,
    make_wrapped_zip,
    make_tar,
    make_tar_of_dots,
]


@pytest.mark.parametrize("make", SAME_SET)
class TestPaths(ImageSourceContract):
    @pytest.fixture
    def open_it(self, make: Callable[[Path], Path], tmp_path: Path) -> Open:
        path = make(tmp_path)
        return lambda: open_images(path, datasets_dir=tmp_path)

    def test_it_is_the_same_set_in_every_container(self, source: ImageSource, tmp_path: Path) -> None:
        folder = open_images(write_folder(tmp_path / "reference", SPLIT_SET), datasets_dir=tmp_path)
        assert {split: [s.id for s in source.samples(split)] for split in source.splits()} == SPLIT_SET_IDS
        assert source.classes == ("cat", "dog")
        assert all_samples(source) == all_samples(folder)
        assert digests(source) == digests(folder)


class TestDigits(ImageSourceContract):
    @pytest.fixture
    def open_it(self, tmp_path: Path) -> Open:
        return lambda: open_images("digits", datasets_dir=tmp_path)


class TestArray(ImageSourceContract):
    @pytest.fixture
    def open_it(self) -> Open:
        images = np.random.default_rng(0).integers(0, 256, (12, 5, 7, 3), dtype=np.uint8)
        return lambda: ArraySource(images, [n % 3 - 1 for n in range(12)], classes=["a", "b"])


class TestListOfArrays(ImageSourceContract):
    @pytest.fixture
    def open_it(self) -> Open:
        images = [pixels(number, 4 + number, 5) for number in range(5)]
        images[1] = images[1][:, :, :1]
        return lambda: ArraySource({"val": (images, None), "train": (images[:2], [0, 1])}, name="My Arrays!")


class PictureDataset:
    """A map-style dataset of PIL images, as torchvision's are."""

    classes = ("even", "odd")

    def __init__(self, count: int) -> None:
        self.targets = [number % 2 for number in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(pixels(index)), self.targets[index]


class TestTorchDataset(ImageSourceContract):
    @pytest.fixture
    def open_it(self) -> Open:
        datasets = {"train": PictureDataset(9), "test": PictureDataset(3)}
        return lambda: open_images(datasets)


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "svhn", "pets"])
class TestNamedSets(ImageSourceContract):
    @pytest.fixture
    def open_it(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
        LAYOUTS[name](tmp_path / name, monkeypatch)
        return lambda: open_images(name, datasets_dir=tmp_path)


class TestFlatFolder(ImageSourceContract):
    @pytest.fixture
    def open_it(self, tmp_path: Path) -> Open:
        path = write_folder(tmp_path / "flat", {f"{n}.jpg": encode(n, "JPEG") for n in range(4)})
        return lambda: open_images(path, datasets_dir=tmp_path)
