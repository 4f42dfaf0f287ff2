"""Small undamaged files of every kind that featcache reads, the same at every call. `mutations.py` damages them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A kind of file: its name, a function that makes its bytes in a folder, and whether it is a set or one image."""

    name: str
    make: Callable[[Path], bytes]
    is_set: bool = True


def image(number: int, kind: str = "PNG", **options: object) -> bytes:
    """A small image as a file's bytes."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _images(names: str = "cat/1 cat/2 dog/3") -> dict[str, bytes]:
    return {f"{name}.png": image(number) for number, name in enumerate(names.split())}


def _zip(_: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, (name, content) in enumerate(_images().items()):
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED if number else zipfile.ZIP_STORED
            archive.writestr(info, content)
    return file.getvalue()


def _tar(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _tar_of_images(_: Path) -> bytes:
    # A long name needs an extended header; both formats are used.
    long_names = _tar({f"cat/{'long' * 40}.png": image(7), **_images()}, tarfile.GNU_FORMAT).rstrip(b"\0")
    long_names += bytes(-len(long_names) % 512)
    return long_names + _tar({f"dog/{'ü' * 80}.png": image(8)})


def _webdataset(_: Path) -> bytes:
    files: dict[str, bytes] = {}
    for number in range(3):
        fields = {"caption": "a cat", "size": [12, 16.5], "label": number, "nested": {"a": [1]}, "none": None}
        files |= {
            f"{number}.png": image(number),
            f"{number}.cls": str(number).encode(),
            f"{number}.json": json.dumps(fields).encode(),
            f"{number}.txt": "a caption, ü".encode(),
        }
    return _tar(files)


_COLUMNS = ("path", "label", "split")


def _rows(folder: Path) -> list[dict[str, str]]:
    for name, content in _images("a b c").items():
        (folder / name).write_bytes(content)
    return [
        dict(zip(_COLUMNS, row, strict=True))
        for row in (("a.png", "cat", "train"), ("b.png", "dog", "val"), ("c.png", "", ""))
    ]


def _csv(folder: Path, delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(_rows(folder))
    return text.getvalue().encode()


def _jsonl(folder: Path) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in _rows(folder)).encode()


def _parquet(columns: dict[str, list[object]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    # Its threads would use address space, which is limited.
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def _parquet_of_paths(folder: Path) -> bytes:
    rows = _rows(folder)
    return _parquet({name: [row[name] for row in rows] for name in _COLUMNS})


def _parquet_of_images(_: Path) -> bytes:
    return _parquet({"image": [{"bytes": image(n), "path": f"{n}.png"} for n in range(3)], "label": [0, 1, 0]})


def _one(name: str, kind: str, **options: object) -> Sound:
    return Sound(name=name, make=lambda _: image(1, kind, **options), is_set=False)


def _palette(kind: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.open(io.BytesIO(image(number))).quantize(16) for number in (1, 2)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


SOUND = {
    "zip": Sound(name="x.zip", make=_zip),
    "tar": Sound(name="x.tar", make=_tar_of_images),
    "webdataset": Sound(name="x.tar", make=_webdataset),
    "csv": Sound(name="x.csv", make=_csv),
    "tsv": Sound(name="x.tsv", make=lambda folder: _csv(folder, "\t")),
    "jsonl": Sound(name="x.jsonl", make=_jsonl),
    "parquet of paths": Sound(name="paths.parquet", make=_parquet_of_paths),
    "parquet of images": Sound(name="images.parquet", make=_parquet_of_images),
    "png": _one("x.png", "PNG"),
    "jpeg": _one("x.jpg", "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    "progressive jpeg": _one("x.jpg", "JPEG", progressive=True),
    "gif": Sound(name="x.gif", make=lambda _: _palette("GIF"), is_set=False),
    "tiff": _one("x.tif", "TIFF"),
    "compressed tiff": _one("x.tif", "TIFF", compression="tiff_lzw"),
    "ppm": _one("x.ppm", "PPM"),
    "bmp": _one("x.bmp", "BMP"),
    "webp": _one("x.webp", "WEBP", lossless=True),
    "avif": _one("x.avif", "AVIF"),
    "jp2": _one("x.jp2", "JPEG2000"),
}
