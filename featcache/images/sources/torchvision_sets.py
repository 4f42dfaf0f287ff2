"""The table of named data sets: digits, and some of torchvision's for image classification.

Sets of arrays are held in memory; their ids are "train/00012". Sets of files are read as encoded files, never through
torchvision's decoder, so that digests and pixels come from the same bytes; an id is split and path
("train/apple_pie/1005649.jpg"). Labels and the order of classes are torchvision's own.
Nothing here imports torch before a set of torchvision's is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from featcache.errors import SourceError, UnknownName
from featcache.images.location import ImagesArgument, Location, OpenOptions, refuse_columns, register
from featcache.images.source import ImageSource, Report
from featcache.images.sources.digits import CLASSES as DIGITS
from featcache.images.sources.digits import digits

PREFIX: Final = "torchvision:"
"""The prefix of the names of classes in torchvision.datasets."""


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A named data set, as published.

    Attributes:
        name: The name of the set.
        sizes: The number of images by split.
        class_count: The number of classes.
        classes: The class names, if they are known without a download.
        image_size: (H, W) in pixels if all images have one size.
        note: What a user should know, or "".
        dataset: The class in torchvision.datasets; "" for a set that needs no torchvision.
        arguments: By split, the arguments of that class.
        private: The private attributes of its instances with files and labels, if there are no public ones.
    """

    name: str
    sizes: Mapping[str, int]
    class_count: int
    classes: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    note: str = ""
    dataset: str = ""
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    private: tuple[str, str] | None = None


def dataset_names() -> tuple[str, ...]:
    """The names of all named data sets, sorted."""
    return tuple(sorted(NAMED_SETS))


def describe(name: str) -> NamedSet:
    """Describe a named data set without opening it.

    Args:
        name: One of `dataset_names()`.

    Returns:
        Its sizes, classes and image size as published.

    Raises:
        UnknownName: There is no such set; the message offers the nearest names.
    """
    try:
        return NAMED_SETS[name]
    except KeyError:
        raise UnknownName("data set", name, NAMED_SETS, listed_by="featcache datasets") from None


def is_local(named: NamedSet, datasets_dir: Path) -> bool:
    """Whether the set needs no download: it comes with a package, or its folder in `datasets_dir` is not empty."""
    from featcache.images.acquisition import has_files

    return not named.dataset or has_files(datasets_dir / named.name)


def open_named(name: str, datasets_dir: Path, report: Report | None = None, *, download: bool = True) -> ImageSource:
    """Open a named set; download it into `datasets_dir` if it is not on disk.

    Raises UnknownName for a name that is not in the table, and what `acquire` raises.
    """
    named = describe(name)
    if not named.dataset:
        return digits()
    # Imported only if a set may have to be downloaded.
    from featcache.images.acquisition import TorchvisionSet, acquire
    from featcache.images.torchvision_rows import classes_of, images_of

    data_set = TorchvisionSet(
        name=name, folder=name, dataset=named.dataset, arguments=named.arguments, has_digests=True
    )
    datasets = acquire(data_set, datasets_dir, report, download=download)
    found = classes_of(datasets, name, published=named.class_count)
    source = images_of(datasets, name, named.classes or found, private=named.private, native_size=named.image_size)
    if report:
        _report_sizes(named, source, report)
    return source


def torchvision_origin(dataset: str) -> str:
    """The origin of `torchvision:NAME`: the named set of that class, else NAME in lower case.

    Does not check that the class exists. Raises SourceError for a class of several named sets.
    """
    kind = dataset.removeprefix(PREFIX).lower()
    names = [named.name for named in _SETS if named.dataset and named.dataset.lower() == kind]
    if len(names) > 1:
        raise SourceError(f"{dataset} is the class of {len(names)} data sets", hint=f"give one of {', '.join(names)}")
    return names[0] if names else PREFIX + kind


def _report_sizes(named: NamedSet, source: ImageSource, report: Report) -> None:
    for split in source.splits():
        size, published = len(source.samples(split)), named.sizes[split]
        if size != published:
            report(f"{named.name}: {size:,} images in {split}, {published:,} are published")


_SPLITS = {1: ("train",), 2: ("train", "test"), 3: ("train", "val", "test")}
_BY_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_BY_SPLIT = {split: {"split": split} for split in _SPLITS[3]}
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL_OBJECTS = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_LAND_USE = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
)


def _set(
    name: str, dataset: str, sizes: Sequence[int], classes: tuple[str, ...] | int, size: int | None = None, **more: Any
) -> NamedSet:
    """One line of the table; `classes`: the names or the number of classes, `size`: height and width."""
    splits = _SPLITS[len(sizes)]
    arguments = more.pop("arguments", _BY_SPLIT)
    return NamedSet(
        name=name,
        dataset=dataset,
        sizes=dict(zip(splits, sizes, strict=True)),
        class_count=classes if isinstance(classes, int) else len(classes),
        classes=None if isinstance(classes, int) else classes,
        image_size=None if size is None else (size, size),
        arguments={split: arguments[split] for split in splits},
        **more,
    )


def _emnist(part: str, classes: int, train: int, test: int) -> NamedSet:
    return _set(
        *(f"emnist_{part}", "EMNIST", (train, test), classes, 28),
        note="letters lie on their side, as published",
        arguments={split: {"split": part, **how} for split, how in _BY_TRAIN.items()},
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
    _set("cifar10", "CIFAR10", (50_000, 10_000), _OBJECTS, 32, arguments=_BY_TRAIN),
    _set("cifar100", "CIFAR100", (50_000, 10_000), 100, 32, arguments=_BY_TRAIN),
    _set("stl10", "STL10", (5_000, 8_000), _STL_OBJECTS, 96, note="the labelled part"),
    _set("svhn", "SVHN", (73_257, 26_032), DIGITS, 32, note="without `extra`"),
    _set("mnist", "MNIST", (60_000, 10_000), DIGITS, 28, arguments=_BY_TRAIN),
    _set("fashion_mnist", "FashionMNIST", (60_000, 10_000), _CLOTHES, 28, arguments=_BY_TRAIN),
    _set("kmnist", "KMNIST", (60_000, 10_000), _KANA, 28, arguments=_BY_TRAIN),
    _set("qmnist", "QMNIST", (60_000, 60_000), DIGITS, 28, arguments=_BY_TRAIN),
    _emnist("balanced", 47, 112_800, 18_800),
    _emnist("byclass", 62, 697_932, 116_323),
    # torchvision's labels of the letters begin at 1; class 0 is its "N/A", without images.
    _emnist("letters", 27, 124_800, 20_800),
    _set("food101", "Food101", (75_750, 25_250), 101, private=("_image_files", "_labels")),
    _set("flowers102", "Flowers102", (1_020, 1_020, 6_149), 102, private=("_image_files", "_labels")),
    _set(
        *("pets", "OxfordIIITPet", (3_680, 3_669), 37),
        note="Oxford-IIIT; train is what is published as trainval",
        arguments={"train": {"split": "trainval"}, "test": {"split": "test"}},
        private=("_images", "_labels"),
    ),
    _set("eurosat", "EuroSAT", (27_000,), _LAND_USE, 64, arguments={"train": {}}),
)

NAMED_SETS: Mapping[str, NamedSet] = {named.name: named for named in _SETS}
"""All sets by name."""


def _locate(given: ImagesArgument) -> Location | None:
    # A name has precedence over a folder of the same name: "./cifar10" is the folder.
    is_name = isinstance(given.value, str) and given.text in NAMED_SETS
    return given.at("named set", given.text) if is_name else None


@register("named set", rank=20, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> ImageSource:
    refuse_columns(location, opening)
    return open_named(location.place, opening.datasets_dir, opening.report, download=opening.download)
