"""The same images in every supported form have the same labels by name, the same bytes and the same pixels."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.images import ImageSource, decode, digest, open_images

pytestmark = pytest.mark.shared

IMAGES_A_CLASS = 30
Make = Callable[["Images", Path], Any]


class Images:
    """300 images of CIFAR-10 as (class, name, bytes), also written to a folder."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.rows: list[tuple[str, str, bytes]] = []
        self.folder = folder
        with zipfile.ZipFile(archive) as packed:
            names = sorted(
                name for name in packed.namelist() if name.startswith("cifar10/test/") and name.endswith(".jpg")
            )
            for kind in sorted({name.split("/")[2] for name in names}):
                for name in [one for one in names if one.split("/")[2] == kind][:IMAGES_A_CLASS]:
                    self.rows.append((kind, name.rsplit("/", 1)[1], packed.read(name)))
        for kind, name, content in self.rows:
            path = folder / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    @property
    def paths(self) -> list[str]:
        return [str(self.folder / kind / name) for kind, name, _ in self.rows]

    @property
    def labels(self) -> list[str]:
        return [kind for kind, _, _ in self.rows]


@pytest.fixture(scope="module")
def images(cifar_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(cifar_zip, tmp_path_factory.mktemp("images") / "set")


def content_of(source: ImageSource) -> list[tuple[str, bytes, bytes]]:
    """For each image the class and the digests of its bytes and its pixels, in the order of the latter."""
    found = []
    for sample in source.samples("train"):
        payload = source.read(sample)
        pixels = decode(payload, sample.id)
        found.append((source.classes[sample.label], digest(payload), digest(pixels)))
    return sorted(found, key=lambda one: one[2])


def as_folder(images: Images, folder: Path) -> Path:
    return images.folder


def as_zip(images: Images, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for kind, name, content in images.rows:
            packed.writestr(f"set/{kind}/{name}", content)
    return folder / "set.zip"


def as_tar(images: Images, folder: Path) -> Path:
    with tarfile.open(folder / "set.tar", "w") as packed:
        for kind, name, content in images.rows:
            _add(packed, f"{kind}/{name}", content)
    return folder / "set.tar"


def as_webdataset(images: Images, folder: Path) -> str:
    for part in range(2):
        with tarfile.open(folder / f"set-{part:02d}.tar", "w") as packed:
            for number, (kind, _, content) in enumerate(images.rows[part::2]):
                _add(packed, f"{number:05d}.jpg", content)
                _add(packed, f"{number:05d}.cls", kind.encode())
    return f"wds:{folder}/set-{{00..01}}.tar"


def as_webdataset_json(images: Images, folder: Path) -> Path:
    with tarfile.open(folder / "set-000.tar", "w") as packed:
        for number, (kind, _, content) in enumerate(images.rows):
            _add(packed, f"{number:05d}.jpg", content)
            _add(packed, f"{number:05d}.json", json.dumps({"label": kind}).encode())
    return folder


def as_csv(images: Images, folder: Path) -> Path:
    with (folder / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *zip(images.paths, images.labels, strict=True)])
    return folder / "set.csv"


def as_parquet_of_bytes(images: Images, folder: Path) -> Path:
    return _parquet(folder, image=[content for _, _, content in images.rows], label=images.labels)


def as_parquet_of_structs(images: Images, folder: Path) -> Path:
    return _parquet(
        folder, image=[{"bytes": content, "path": name} for _, name, content in images.rows], label=images.labels
    )


def as_parquet_of_paths(images: Images, folder: Path) -> Path:
    return _parquet(folder, path=images.paths, label=images.labels)


def as_parquet_of_files(images: Images, folder: Path) -> Path:
    """Rows that contain no bytes, only the paths of their images."""
    import pyarrow as pa

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return _parquet(
        folder, image=pa.array([{"bytes": None, "path": path} for path in images.paths], kind), label=images.labels
    )


def as_metadata_csv(images: Images, folder: Path) -> Path:
    return _metadata(images, folder, "metadata.csv")


def as_metadata_parquet(images: Images, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = _flat(images, folder)
    table = {"file_name": [name for name, _ in flat], "label": [kind for _, kind in flat]}
    pq.write_table(pa.table(table), folder / "set" / "metadata.parquet")
    return folder / "set"


def as_metadata_jsonl(images: Images, folder: Path) -> Path:
    lines = [json.dumps({"file_name": name, "label": kind}) for name, kind in _flat(images, folder)]
    (folder / "set" / "metadata.jsonl").write_text("\n".join(lines))
    return folder / "set"


def as_hf_folder(images: Images, folder: Path) -> str:
    (folder / "hub").mkdir()
    half = len(images.rows) // 2
    for number, rows in enumerate((images.rows[:half], images.rows[half:])):
        path = _parquet(
            folder,
            image=[{"bytes": content, "path": name} for _, name, content in rows],
            label=[kind for kind, _, _ in rows],
        )
        shutil.move(path, folder / "hub" / f"train-{number:05d}-of-00002.parquet")
    return f"hf:{folder / 'hub'}"


def as_paths(images: Images, folder: Path) -> dict[str, Any]:
    return {"images": images.paths, "labels": images.labels}


def as_pairs(images: Images, folder: Path) -> list[tuple[str, str]]:
    return list(zip(images.paths, images.labels, strict=True))


def as_torch_dataset(images: Images, folder: Path) -> Any:
    from torchvision.datasets import ImageFolder

    return ImageFolder(str(images.folder))


def as_array(images: Images, folder: Path) -> dict[str, Any]:
    return {"images": np.stack([decode(content, name) for _, name, content in images.rows]), "labels": images.labels}


FILES: list[Make] = [
    as_zip, as_tar, as_webdataset, as_webdataset_json, as_csv, as_parquet_of_bytes, as_parquet_of_structs,
    as_parquet_of_paths, as_parquet_of_files, as_metadata_csv, as_metadata_parquet, as_metadata_jsonl, as_hf_folder,
    as_paths, as_pairs,
]  # fmt: skip
PIXELS: list[Make] = [as_torch_dataset, as_array]


def open_made(made: Any, folder: Path) -> ImageSource:
    arguments = made if isinstance(made, dict) else {"images": made}
    return open_images(**arguments, datasets_dir=folder)


@pytest.mark.parametrize("make", FILES)
def test_the_same_files_have_the_same_labels_and_bytes(make: Make, images: Images, tmp_path: Path) -> None:
    with open_made(images.folder, tmp_path) as folder, open_made(make(images, tmp_path), tmp_path) as other:
        assert content_of(other) == content_of(folder)
        assert len(content_of(folder)) == 300


@pytest.mark.parametrize("make", PIXELS)
def test_the_same_pixels_have_the_same_labels(make: Make, images: Images, tmp_path: Path) -> None:
    with open_made(images.folder, tmp_path) as folder, open_made(make(images, tmp_path), tmp_path) as other:
        assert [(name, pixels) for name, _, pixels in content_of(other)] == [
            (name, pixels) for name, _, pixels in content_of(folder)
        ]


def test_features_are_identical_in_every_bit(images: Images, tmp_path: Path) -> None:
    import featcache

    def rows(made: Any) -> set[tuple[str, bytes]]:
        arguments = made if isinstance(made, dict) else {"images": made}
        cache = featcache.extract(
            **arguments, backbone="resnet18", weights="random", image_size=64, precision="fp32", runner="eager",
            device="cpu", data_dir=tmp_path / "data",
        )  # fmt: skip
        split = cache["train"]
        return {
            (cache.classes[n], row.tobytes()) for n, row in zip(split.labels, split.layer("pre_logits")[:], strict=True)
        }

    expected = rows(images.folder)
    for make in (as_zip, as_parquet_of_bytes, as_paths, as_torch_dataset, as_array):
        folder = tmp_path / make.__name__
        folder.mkdir()
        assert rows(make(images, folder)) == expected


# --- how they are written ----------------------------------------------------------------------------------


def _add(packed: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    packed.addfile(info, io.BytesIO(content))


def _parquet(folder: Path, **columns: Any) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), folder / "set.parquet", row_group_size=70)
    return folder / "set.parquet"


def _flat(images: Images, folder: Path) -> list[tuple[str, str]]:
    (folder / "set").mkdir()
    flat = []
    for number, (kind, _, content) in enumerate(images.rows):
        (folder / "set" / f"{number:04d}.jpg").write_bytes(content)
        flat.append((f"{number:04d}.jpg", kind))
    return flat


def _metadata(images: Images, folder: Path, name: str) -> Path:
    flat = _flat(images, folder)
    with (folder / "set" / name).open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "label"], *flat])
    return folder / "set"
