"""Small images and the folders, zips and tars of them that the tests of `images` read."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

Files = Mapping[str, bytes]


def pixels(seed: int, height: int = 6, width: int = 8) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(height, width, 3) uint8, different for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image | int, kind: str = "PNG", **options: object) -> bytes:
    """An image, or random pixels with that seed, as the bytes of a file."""
    if isinstance(image, int):
        image = Image.fromarray(pixels(image))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images_at(*paths: str) -> dict[str, bytes]:
    """A different PNG for every path."""
    return {path: encode(number) for number, path in enumerate(paths)}


def write_folder(root: Path, files: Files) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: Files, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Files) -> Path:
    """A plain tar, with any extension of the path."""
    with tarfile.open(path, mode="w:") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


SPLIT_SET = {
    **images_at("train/cat/b 1.png", "train/cat/a.PNG", "train/dog/ü.png", "test/dog/1.png", "valid/cat/1.png"),
    "train/cat/photo.JPG": encode(77, "JPEG"),
    "readme.txt": b"no image",
    "train/cat/Thumbs.db": b"no image",
    "train/cat/.hidden.png": b"no image",
    "__MACOSX/train/cat/1.png": b"no image",
}
"""Three splits, two classes, difficult names, and files that must be left out."""

SPLIT_SET_IDS = {
    "train": ["train/cat/a.PNG", "train/cat/b 1.png", "train/cat/photo.JPG", "train/dog/ü.png"],
    "val": ["valid/cat/1.png"],
    "test": ["test/dog/1.png"],
}


def wrap(files: Files, folder: str = "a set") -> dict[str, bytes]:
    """The same files inside one folder, as most archives have them."""
    return {f"{folder}/{name}": content for name, content in files.items()}
