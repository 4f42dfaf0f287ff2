"""The data sets that have a name: one table of what torchvision has for image classification, and digits.

Two kinds. Sets of arrays are held in memory; their rows are "train/00012". Sets of files are read as the encoded
files they are, never through torchvision's decoder, so that a digest is of the bytes that were decoded; an id is
split and path ("train/apple_pie/1005649.jpg"). Labels and the order of classes are torchvision's own.
Nothing here imports torch; `acquisition` does, once such a set is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.images.sources.digits import CLASSES as DIGITS
from featcache.images.sources.torchvision_rows import (
    Extract,
    arrays,
    caltech,
    channels_first,
    fer2013,
    files,
    gtsrb,
    inaturalist,
    pairs,
    pcam,
    qmnist,
)


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """One set with a name, as published.

    Attributes:
        sizes: images by split.
        class_count: how many classes there are; `classes` names them where they are known without a download.
        image_size: (H, W) where all images have one size.
        downloads: whether torchvision can still download it; if not, it must be put in place by hand.
        note: what a user should know, or "".
        dataset: the class in torchvision.datasets, or "".
        arguments: by split, what that class is called with.
        extract: one split's rows of an instance of it; None for a set that needs no torchvision.
        digests: whether torchvision knows digests of the archives, so that an interrupted download of one shows.
    """

    name: str
    sizes: Mapping[str, int]
    class_count: int
    classes: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    downloads: bool = True
    note: str = ""
    dataset: str = ""
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extract: Extract | None = None
    digests: bool = True


def _by(argument: str, **of_split: Any) -> dict[str, dict[str, Any]]:
    return {split: {argument: value} for split, value in of_split.items()}


_TRAIN_TEST = _by("train", train=True, test=False)
_SPLITS_2 = _by("split", train="train", test="test")
_SPLITS_3 = _by("split", train="train", val="val", test="test")
_WHOLE: dict[str, dict[str, Any]] = {"train": {}}
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL_OBJECTS = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_LAND_USE = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
_IMAGENETTE = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)
_EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def _emnist(split: str, classes: int, train: int, test: int) -> NamedSet:
    return NamedSet(
        name=f"emnist_{split}",
        sizes={"train": train, "test": test},
        class_count=classes,
        image_size=(28, 28),
        note="letters lie on their side, as published",
        dataset="EMNIST",
        arguments={"train": {"split": split, "train": True}, "test": {"split": split, "train": False}},
        extract=arrays("data", "targets"),
    )


_SETS = (
    NamedSet(
        name="digits",
        sizes={"train": 1442, "test": 355},
        class_count=10,
        classes=DIGITS,
        image_size=(8, 8),
        note="scikit-learn's handwritten digits, no download",
    ),
    NamedSet(
        name="cifar10",
        sizes={"train": 50_000, "test": 10_000},
        class_count=10,
        classes=_OBJECTS,
        image_size=(32, 32),
        dataset="CIFAR10",
        arguments=_TRAIN_TEST,
        extract=arrays("data", "targets"),
    ),
    NamedSet(
        name="cifar100",
        sizes={"train": 50_000, "test": 10_000},
        class_count=100,
        image_size=(32, 32),
        dataset="CIFAR100",
        arguments=_TRAIN_TEST,
        extract=arrays("data", "targets"),
    ),
    NamedSet(
        name="stl10",
        sizes={"train": 5_000, "test": 8_000},
        class_count=10,
        classes=_STL_OBJECTS,
        image_size=(96, 96),
        note="the labelled part",
        dataset="STL10",
        arguments=_SPLITS_2,
        extract=channels_first,
    ),
    NamedSet(
        name="svhn",
        sizes={"train": 73_257, "test": 26_032},
        class_count=10,
        classes=DIGITS,
        image_size=(32, 32),
        note="without `extra`",
        dataset="SVHN",
        arguments=_SPLITS_2,
        extract=channels_first,
    ),
    NamedSet(
        name="mnist",
        sizes={"train": 60_000, "test": 10_000},
        class_count=10,
        classes=DIGITS,
        image_size=(28, 28),
        dataset="MNIST",
        arguments=_TRAIN_TEST,
        extract=arrays("data", "targets"),
    ),
    NamedSet(
        name="fashion_mnist",
        sizes={"train": 60_000, "test": 10_000},
        class_count=10,
        classes=_CLOTHES,
        image_size=(28, 28),
        dataset="FashionMNIST",
        arguments=_TRAIN_TEST,
        extract=arrays("data", "targets"),
    ),
    NamedSet(
        name="kmnist",
        sizes={"train": 60_000, "test": 10_000},
        class_count=10,
        classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        image_size=(28, 28),
        dataset="KMNIST",
        arguments=_TRAIN_TEST,
        extract=arrays("data", "targets"),
    ),
    NamedSet(
        name="qmnist",
        sizes={"train": 60_000, "test": 60_000},
        class_count=10,
        classes=DIGITS,
        image_size=(28, 28),
        dataset="QMNIST",
        arguments=_TRAIN_TEST,
        extract=qmnist,
    ),
    _emnist("balanced", 47, 112_800, 18_800),
    _emnist("byclass", 62, 697_932, 116_323),
    # torchvision's labels of the letters begin at 1; class 0 is its "N/A", without images.
    _emnist("letters", 27, 124_800, 20_800),
    NamedSet(
        name="usps",
        sizes={"train": 7_291, "test": 2_007},
        class_count=10,
        classes=DIGITS,
        image_size=(16, 16),
        dataset="USPS",
        arguments=_TRAIN_TEST,
        extract=arrays("data", "targets"),
        # A file that is there is taken without looking at its digest.
        digests=False,
    ),
    NamedSet(
        name="semeion",
        sizes={"train": 1_593},
        class_count=10,
        classes=DIGITS,
        image_size=(16, 16),
        dataset="SEMEION",
        arguments=_WHOLE,
        extract=arrays("data", "labels"),
    ),
    NamedSet(
        name="fer2013",
        sizes={"train": 28_709, "test": 7_178},
        class_count=7,
        classes=_EMOTIONS,
        image_size=(48, 48),
        downloads=False,
        note="from Kaggle: fer2013.csv or icml_face_data.csv in fer2013/",
        dataset="FER2013",
        arguments=_SPLITS_2,
        extract=fer2013,
    ),
    NamedSet(
        name="pcam",
        sizes={"train": 262_144, "val": 32_768, "test": 32_768},
        class_count=2,
        classes=("normal", "tumor"),
        image_size=(96, 96),
        note="downloading needs the package gdown",
        dataset="PCAM",
        arguments=_SPLITS_3,
        extract=pcam,
    ),
    NamedSet(
        name="food101",
        sizes={"train": 75_750, "test": 25_250},
        class_count=101,
        dataset="Food101",
        arguments=_SPLITS_2,
        extract=files("_image_files", "_labels", lambda data: data._images_folder),
    ),
    NamedSet(
        name="flowers102",
        sizes={"train": 1_020, "val": 1_020, "test": 6_149},
        class_count=102,
        dataset="Flowers102",
        arguments=_SPLITS_3,
        extract=files("_image_files", "_labels", lambda data: data._images_folder),
    ),
    NamedSet(
        name="oxford_iiit_pet",
        sizes={"train": 3_680, "test": 3_669},
        class_count=37,
        note="train is what is published as trainval",
        dataset="OxfordIIITPet",
        arguments=_by("split", train="trainval", test="test"),
        extract=files("_images", "_labels", lambda data: data._images_folder),
    ),
    NamedSet(
        name="eurosat",
        sizes={"train": 27_000},
        class_count=10,
        classes=_LAND_USE,
        image_size=(64, 64),
        dataset="EuroSAT",
        arguments=_WHOLE,
        extract=pairs("samples", lambda data: data._data_folder),
    ),
    NamedSet(
        name="dtd",
        sizes={"train": 1_880, "val": 1_880, "test": 1_880},
        class_count=47,
        note="partition 1",
        dataset="DTD",
        arguments=_SPLITS_3,
        extract=files("_image_files", "_labels", lambda data: data._images_folder),
    ),
    NamedSet(
        name="gtsrb",
        sizes={"train": 26_640, "test": 12_630},
        class_count=43,
        classes=tuple(f"{number:05d}" for number in range(43)),
        dataset="GTSRB",
        arguments=_SPLITS_2,
        extract=gtsrb,
    ),
    NamedSet(
        name="imagenette",
        sizes={"train": 9_469, "val": 3_925},
        class_count=10,
        classes=_IMAGENETTE,
        dataset="Imagenette",
        arguments=_by("split", train="train", val="val"),
        extract=pairs("_samples", lambda data: data._image_root),
    ),
    NamedSet(
        name="stanford_cars",
        sizes={"train": 8_144, "test": 8_041},
        class_count=196,
        downloads=False,
        note="no longer published; needs cars_train, cars_test, devkit and cars_test_annos_withlabels.mat",
        dataset="StanfordCars",
        arguments=_SPLITS_2,
        extract=pairs("_samples", lambda data: data._images_base_path),
    ),
    NamedSet(
        name="fgvc_aircraft",
        sizes={"train": 3_334, "val": 3_333, "test": 3_333},
        class_count=100,
        note="classes are variants; torchvision knows no digest of the archive",
        dataset="FGVCAircraft",
        arguments=_SPLITS_3,
        extract=files("_image_files", "_labels", lambda data: Path(data._data_path, "data", "images")),
        digests=False,
    ),
    NamedSet(
        name="caltech101",
        sizes={"train": 8_677},
        class_count=101,
        note="without the background class",
        dataset="Caltech101",
        arguments=_WHOLE,
        extract=caltech("101_ObjectCategories", lambda _, number: f"image_{number:04d}.jpg"),
    ),
    NamedSet(
        name="caltech256",
        sizes={"train": 30_607},
        class_count=257,
        note="with the clutter class",
        dataset="Caltech256",
        arguments=_WHOLE,
        extract=caltech("256_ObjectCategories", lambda label, number: f"{label + 1:03d}_{number:04d}.jpg"),
    ),
    NamedSet(
        name="country211",
        sizes={"train": 31_650, "val": 10_550, "test": 21_100},
        class_count=211,
        dataset="Country211",
        arguments=_by("split", train="train", val="valid", test="test"),
        extract=pairs("samples", lambda data: data._base_folder / data._split),
    ),
    NamedSet(
        name="rendered_sst2",
        sizes={"train": 6_920, "val": 872, "test": 1_821},
        class_count=2,
        classes=("negative", "positive"),
        dataset="RenderedSST2",
        arguments=_SPLITS_3,
        extract=pairs("_samples", lambda data: data._base_folder / data._split_to_folder[data._split]),
    ),
    NamedSet(
        name="sun397",
        sizes={"train": 108_754},
        class_count=397,
        dataset="SUN397",
        arguments=_WHOLE,
        extract=files("_image_files", "_labels", lambda data: data._data_dir),
    ),
    NamedSet(
        name="places365",
        sizes={"train": 1_803_460, "val": 36_500},
        class_count=365,
        image_size=(256, 256),
        note="the small images",
        dataset="Places365",
        arguments={
            "train": {"split": "train-standard", "small": True},
            "val": {"split": "val", "small": True},
        },
        extract=pairs("imgs", lambda data: data.images_dir),
    ),
    NamedSet(
        name="inaturalist_mini",
        sizes={"train": 500_000, "val": 100_000},
        class_count=10_000,
        note="iNaturalist 2021, the small train split",
        dataset="INaturalist",
        arguments=_by("version", train="2021_train_mini", val="2021_valid"),
        extract=inaturalist,
    ),
    NamedSet(
        name="clevr_count",
        sizes={"train": 70_000, "val": 15_000, "test": 15_000},
        class_count=11,
        classes=tuple(str(number) for number in range(11)),
        image_size=(320, 480),
        note="a class is the number of objects, 3 to 10; test is unlabelled",
        dataset="CLEVRClassification",
        arguments=_SPLITS_3,
        extract=files("_image_files", "_labels", lambda data: data._data_folder / "images" / data._split),
    ),
)

NAMED_SETS: Mapping[str, NamedSet] = {named.name: named for named in _SETS}
"""All sets by name."""
