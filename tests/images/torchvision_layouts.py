"""Tiny copies of named sets in the layouts in which torchvision leaves them on disk.

Where torchvision compares digests, its own tables are given those of the copies.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from image_files import encoded, pixels
from PIL import Image

from featcache.images import describe
from featcache.images.sources.torchvision_sets import NAMED_SETS

Fabricate = Callable[[Path, pytest.MonkeyPatch], None]


def _names(count: int) -> list[str]:
    return [f"class_{number:03d}" for number in range(count)]


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _jpeg(path: Path, seed: int, kind: str = "JPEG") -> None:
    _write(path, encoded(seed, kind))


def _torchvision() -> Any:
    import torchvision.datasets

    return torchvision.datasets


def _cifar(kind: str, label_key: str, name_key: str, classes: int) -> Fabricate:
    def fabricate(root: Path, patch: pytest.MonkeyPatch) -> None:
        of_kind = getattr(_torchvision(), kind)
        tables: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
        for number, (table, name) in enumerate([("train_list", "one"), ("train_list", "two"), ("test_list", "three")]):
            rows = np.random.default_rng(number).integers(0, 256, (3, 3072), dtype=np.uint8)
            batch = {"data": rows, label_key: [number, 9, 5]}
            path = _write(root / of_kind.base_folder / name, pickle.dumps(batch))
            tables[table].append([name, _md5(path)])
        names = [f"class {number:02d}" for number in range(classes)]
        meta = _write(root / of_kind.base_folder / "names", pickle.dumps({name_key: names}))
        patch.setattr(of_kind, "train_list", tables["train_list"])
        patch.setattr(of_kind, "test_list", tables["test_list"])
        patch.setattr(of_kind, "meta", {"filename": "names", "key": name_key, "md5": _md5(meta)})

    return fabricate


def _idx(array: np.ndarray[Any, Any], code: int) -> bytes:
    header = struct.pack(">HBB", 0, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def _mnist(folder: str, prefixes: tuple[str, str] = ("train", "t10k"), first_label: int = 0) -> Fabricate:
    def fabricate(root: Path, patch: pytest.MonkeyPatch) -> None:
        for seed, prefix in enumerate(prefixes):
            images = np.random.default_rng(seed).integers(0, 256, (4, 28, 28), dtype=np.uint8)
            labels = (np.arange(4) + first_label).astype(np.uint8)
            _write(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", _idx(images, 8))
            _write(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", _idx(labels, 8))

    return fabricate


def _emnist(split: str) -> Fabricate:
    return _mnist("EMNIST", (f"emnist-{split}-train", f"emnist-{split}-test"), first_label=1)


def _qmnist(root: Path, patch: pytest.MonkeyPatch) -> None:
    for seed, split in enumerate(("train", "test")):
        images = np.random.default_rng(seed).integers(0, 256, (3, 28, 28), dtype=np.uint8)
        told = np.arange(24).reshape(3, 8) % 10
        _write(root / "QMNIST" / "raw" / f"qmnist-{split}-images-idx3-ubyte", _idx(images, 8))
        _write(root / "QMNIST" / "raw" / f"qmnist-{split}-labels-idx2-int", _idx(told.astype(">i4"), 12))


def _stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    of_kind = _torchvision().STL10
    folder = root / of_kind.base_folder
    files = {"unlabeled_X.bin": b""}
    for seed, split in enumerate(("train", "test")):
        files[f"{split}_X.bin"] = np.random.default_rng(seed).bytes(3 * 3 * 96 * 96)
        files[f"{split}_y.bin"] = bytes([1, 10, 3])
    for name, content in files.items():
        _write(folder / name, content)
    _write(folder / "class_names.txt", "\n".join(describe("stl10").classes or ()))
    for table in ("train_list", "test_list"):
        patch.setattr(of_kind, table, [[name, _md5(folder / name)] for name, _ in getattr(of_kind, table)])


def _svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    of_kind = _torchvision().SVHN
    table = dict(of_kind.split_list)
    for seed, split in enumerate(("train", "test")):
        path = root / f"{split}_32x32.mat"
        images = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(path, {"X": images, "y": np.array([[1], [10], [3], [9]], np.uint8)})
        table[split] = [of_kind.split_list[split][0], path.name, _md5(path)]
    patch.setattr(of_kind, "split_list", table)


def _usps(root: Path, patch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (3, 256))
    lines = [
        f"{label} " + " ".join(f"{column + 1}:{value:.4f}" for column, value in enumerate(row))
        for label, row in zip((1, 10, 4), values, strict=True)
    ]
    for name in ("usps.bz2", "usps.t.bz2"):
        _write(root / name, bz2.compress("\n".join(lines).encode()))


def _semeion(root: Path, patch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 2, (3, 256))
    table = np.hstack([rows, np.eye(10, dtype=int)[[0, 9, 4]]])
    path = _write(root / "semeion.data", "\n".join(" ".join(f"{value:.4f}" for value in row) for row in table))
    patch.setattr(_torchvision().SEMEION, "md5_checksum", _md5(path))


def _fer2013(root: Path, patch: pytest.MonkeyPatch) -> None:
    plane = " ".join(["7"] * 48 * 48)
    lines = ["emotion,pixels,Usage", *(f"{n},{plane},{use}" for n, use in enumerate(("Training", "PublicTest")))]
    path = _write(root / "fer2013" / "fer2013.csv", "\n".join(lines))
    resources = {**_torchvision().FER2013._RESOURCES, "fer": ("fer2013.csv", _md5(path))}
    patch.setattr(_torchvision().FER2013, "_RESOURCES", resources)


def _pcam(root: Path, patch: pytest.MonkeyPatch) -> None:
    for seed, files in enumerate(_torchvision().PCAM._FILES.values()):
        folder = root / "pcam"
        folder.mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / files["images"][0], "w") as file:
            file["x"] = np.random.default_rng(seed).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
        with h5py.File(folder / files["targets"][0], "w") as file:
            file["y"] = np.array([0, 1, 1], np.uint8).reshape(3, 1, 1, 1)


def _food101(root: Path, patch: pytest.MonkeyPatch) -> None:
    for split, number in (("train", 1), ("test", 2)):
        listed = {name: [f"{name}/{number}"] for name in ("apple_pie", *_names(100))}
        _write(root / "food-101" / "meta" / f"{split}.json", json.dumps(listed))
        for name in listed:
            _jpeg(root / "food-101" / "images" / name / f"{number}.jpg", number)


def _flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    of_kind = _torchvision().Flowers102
    folder = root / "flowers-102"
    for number in range(1, 7):
        _jpeg(folder / "jpg" / f"image_{number:05d}.jpg", number)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 102, 3, 4, 5, 6]])})
    scipy.io.savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[6, 5]]})
    table = dict(of_kind._file_dict)
    for key in ("label", "setid"):
        table[key] = (table[key][0], _md5(folder / table[key][0]))
    patch.setattr(of_kind, "_file_dict", table)


def _pets(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    for split, number in (("trainval", 1), ("test", 2)):
        lines = [f"{name}_{number} {label} 1 1" for label, name in enumerate(_names(37), 1)]
        _write(folder / "annotations" / f"{split}.txt", "\n".join(lines))
        for name in _names(37):
            _jpeg(folder / "images" / f"{name}_{number}.jpg", number)


def _eurosat(root: Path, patch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(describe("eurosat").classes or ()):
        image = Image.fromarray(pixels(seed, 64, 64))
        _write(root / "eurosat" / "2750" / name / f"{name}_1.jpg", encoded(image, "JPEG"))


def _dtd(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "dtd" / "dtd"
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{name}/{name}_{number}.jpg" for name in _names(47)]
        _write(folder / "labels" / f"{split}1.txt", "\n".join(names))
        for name in names:
            _jpeg(folder / "images" / name, number)


def _gtsrb(root: Path, patch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        _jpeg(root / "gtsrb" / "GTSRB" / "Training" / f"{number:05d}" / "1.ppm", number, "PPM")
        _jpeg(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / f"{number:05d}.ppm", number, "PPM")
    _write(root / "gtsrb" / "GT-final_test.csv", "Filename;ClassId\n00000.ppm;42\n00001.ppm;0\n")


def _imagenette(root: Path, patch: pytest.MonkeyPatch) -> None:
    for number, split in enumerate(("train", "val")):
        for wnid in _torchvision().Imagenette._WNID_TO_CLASS:
            _jpeg(root / "imagenette2" / split / wnid / f"{wnid}_{number}.JPEG", number)


def _cars(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    kind = np.dtype([("class", "O"), ("fname", "O")])
    annotations = np.array([(1, "00001.jpg"), (2, "00002.jpg")], dtype=kind)
    scipy.io.savemat(folder / "devkit" / "cars_train_annos.mat", {"annotations": annotations})
    scipy.io.savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": annotations})
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(_names(196), dtype="O")})
    for split in ("train", "test"):
        for number in (1, 2):
            _jpeg(folder / f"cars_{split}" / f"{number:05d}.jpg", number)


def _aircraft(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    _write(folder / "variants.txt", "\n".join(["707-320", "A300 B4", *_names(98)]))
    for number, split in enumerate(("train", "val", "test")):
        _write(folder / f"images_variant_{split}.txt", f"{number}0 707-320\n{number}1 A300 B4\n")
        for last in (0, 1):
            _jpeg(folder / "images" / f"{number}{last}.jpg", number)


def _caltech101(root: Path, patch: pytest.MonkeyPatch) -> None:
    for name in ("BACKGROUND_Google", *_names(101)):
        _jpeg(root / "caltech101" / "101_ObjectCategories" / name / "image_0001.jpg", 1)


def _caltech256(root: Path, patch: pytest.MonkeyPatch) -> None:
    for number in range(1, 258):
        name = f"{number:03d}.class"
        _jpeg(root / "caltech256" / "256_ObjectCategories" / name / f"{number:03d}_0001.jpg", number)


def _by_class(folder: str, splits: tuple[str, ...], classes: tuple[str, ...], suffix: str) -> Fabricate:
    def fabricate(root: Path, patch: pytest.MonkeyPatch) -> None:
        for number, split in enumerate(splits):
            for name in classes:
                kind = {"png": "PNG", "jpg": "JPEG"}[suffix]
                _jpeg(root / folder / split / name / f"{number}.{suffix}", number, kind)

    return fabricate


def _sun397(root: Path, patch: pytest.MonkeyPatch) -> None:
    names = ["b/bar/indoor", *(f"c/{name}" for name in _names(396))]
    _write(root / "SUN397" / "ClassName.txt", "".join(f"/{name}\n" for name in names))
    for number, name in enumerate(names[:3]):
        _jpeg(root / "SUN397" / name / f"sun_{number}.jpg", number)


def _places365(root: Path, patch: pytest.MonkeyPatch) -> None:
    of_kind = _torchvision().Places365
    names = [f"/c/{name}" for name in _names(365)]
    lines = [f"{name} {number}" for number, name in enumerate(names)]
    categories = _write(root / "categories_places365.txt", "\n".join(lines))
    train = _write(root / "places365_train_standard.txt", f"{names[0]}/1.jpg 0\n{names[1]}/2.jpg 1\n")
    val = _write(root / "places365_val.txt", "1.jpg 1\n")
    patch.setattr(of_kind, "_CATEGORIES_META", (categories.name, _md5(categories)))
    lists = {"train-standard": (train.name, _md5(train)), "val": (val.name, _md5(val))}
    patch.setattr(of_kind, "_FILE_LIST_META", lists)
    for name in (f"data_256_standard{names[0]}/1.jpg", f"data_256_standard{names[1]}/2.jpg", "val_256/1.jpg"):
        _write(root / name, encoded(Image.fromarray(pixels(1, 256, 256)), "JPEG"))


def _inaturalist(root: Path, patch: pytest.MonkeyPatch) -> None:
    known: Any = NAMED_SETS
    patch.setitem(known, "inaturalist_mini", replace(known["inaturalist_mini"], class_count=2))
    for version in ("2021_train_mini", "2021_valid"):
        for number in range(2):
            name = f"{number:05d}_Animalia_Chordata_Aves_Passeriformes_Corvidae_Pica_pica{number}"
            _jpeg(root / version / name / f"{number}.jpg", number)


def _clevr(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "clevr" / "CLEVR_v1.0"
    for split in ("train", "val", "test"):
        name = f"CLEVR_{split}_000000.png"
        _write(folder / "images" / split / name, encoded(Image.fromarray(pixels(1, 320, 480))))
        scenes = {"scenes": [{"image_filename": name, "objects": [{}, {}, {}]}]}
        _write(folder / "scenes" / f"CLEVR_{split}_scenes.json", json.dumps(scenes))


LAYOUTS: dict[str, Fabricate] = {
    "cifar10": _cifar("CIFAR10", "labels", "label_names", 10),
    "cifar100": _cifar("CIFAR100", "fine_labels", "fine_label_names", 100),
    "stl10": _stl10,
    "svhn": _svhn,
    "mnist": _mnist("MNIST"),
    "fashion_mnist": _mnist("FashionMNIST"),
    "kmnist": _mnist("KMNIST"),
    "qmnist": _qmnist,
    "emnist_balanced": _emnist("balanced"),
    "emnist_byclass": _emnist("byclass"),
    "emnist_letters": _emnist("letters"),
    "usps": _usps,
    "semeion": _semeion,
    "fer2013": _fer2013,
    "pcam": _pcam,
    "food101": _food101,
    "flowers102": _flowers102,
    "oxford_iiit_pet": _pets,
    "eurosat": _eurosat,
    "dtd": _dtd,
    "gtsrb": _gtsrb,
    "imagenette": _imagenette,
    "stanford_cars": _cars,
    "fgvc_aircraft": _aircraft,
    "caltech101": _caltech101,
    "caltech256": _caltech256,
    "country211": _by_class("country211", ("train", "valid", "test"), tuple(_names(211)), "jpg"),
    "rendered_sst2": _by_class("rendered-sst2", ("train", "valid", "test"), ("negative", "positive"), "png"),
    "sun397": _sun397,
    "places365": _places365,
    "inaturalist_mini": _inaturalist,
    "clevr_count": _clevr,
}
"""One for every named set but `digits`."""
