"""Tiny copies of named sets in the layouts that torchvision has on disk.

Where torchvision compares digests, its tables are patched with the digests of the copies.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from image_files import encode, pixels
from PIL import Image

from featcache.images import describe

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
    _write(path, encode(seed, kind))


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
        numbers = np.arange(24).reshape(3, 8) % 10
        _write(root / "QMNIST" / "raw" / f"qmnist-{split}-images-idx3-ubyte", _idx(images, 8))
        _write(root / "QMNIST" / "raw" / f"qmnist-{split}-labels-idx2-int", _idx(numbers.astype(">i4"), 12))


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
        _write(root / "eurosat" / "2750" / name / f"{name}_1.jpg", encode(image, "JPEG"))


def _country211(root: Path, patch: pytest.MonkeyPatch) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        for name in _names(3):
            _jpeg(root / "country211" / split / name / f"{number}.jpg", number)


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
    "food101": _food101,
    "flowers102": _flowers102,
    "pets": _pets,
    "eurosat": _eurosat,
}
"""One for every named set except `digits`."""

OTHERS: dict[str, Fabricate] = {"Country211": _country211, "SEMEION": _semeion, "USPS": _usps}
"""For classes of torchvision.datasets that are not named sets."""
