"""A cache in other formats: the exported files contain the values of the cache."""

from __future__ import annotations

import csv
import errno
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from stored import Rows, write_cache
from trained import Workspace

from featcache.api import extract
from featcache.cache.reader import FeatureCache
from featcache.errors import CacheUnwritable, ExportError, InvalidOption, MissingExtra, UnknownName
from featcache.extraction.reporting import LogReporter
from featcache.inference import cache_rows, export_cache
from featcache.inference.options import CACHE_FORMATS

TEXT = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=8)


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """The contents of an exported file, read without featcache: names in place of numbers, arrays by layer."""

    ids: list[str]
    splits: list[str]
    labels: list[int]
    classes: list[str]
    features: dict[str, NDArray[Any]]


class WarningRecorder(LogReporter):
    """Records warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def of_arrays(path: Path, layers: tuple[str, ...]) -> Read:
    with np.load(path) as file:
        return Read(
            ids=file["ids"].tolist(),
            splits=file["split"].tolist(),
            labels=file["labels"].tolist(),
            classes=[file["classes"][label] if label >= 0 else "" for label in file["labels"]],
            features={layer: file[key] for layer, key in _keys(layers).items()},
        )


def of_folder(path: Path, layers: tuple[str, ...]) -> Read:
    files = {file.stem: np.load(file, mmap_mode="r") for file in path.iterdir()}
    return Read(
        ids=files["ids"].tolist(),
        splits=files["split"].tolist(),
        labels=files["labels"].tolist(),
        classes=[files["classes"][label] if label >= 0 else "" for label in files["labels"]],
        features={layer: np.array(files[key.replace("/", ".")]) for layer, key in _keys(layers).items()},
    )


def of_safetensors(path: Path, layers: tuple[str, ...]) -> Read:
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        classes, splits = json.loads(metadata["classes"]), json.loads(metadata["splits"])
        labels = file.get_tensor("labels").tolist()
        return Read(
            ids=[bytes(row).rstrip(b"\0").decode() for row in file.get_tensor("ids")],
            splits=[splits[number] for number in file.get_tensor("split")],
            labels=labels,
            classes=[classes[label] if label >= 0 else "" for label in labels],
            features={layer: file.get_tensor(key) for layer, key in _keys(layers).items()},
        )


def of_parquet(path: Path, layers: tuple[str, ...]) -> Read:
    table = pyarrow.parquet.read_table(path)
    columns = {layer: table[key].combine_chunks() for layer, key in _keys(layers).items()}
    return Read(
        ids=table["id"].to_pylist(),
        splits=table["split"].to_pylist(),
        labels=table["label"].to_pylist(),
        classes=table["class"].to_pylist(),
        features={layer: column.flatten().to_numpy().reshape(len(table), -1) for layer, column in columns.items()},
    )


def of_csv(path: Path, layers: tuple[str, ...]) -> Read:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    prefixes = {layer: "f" if len(layers) == 1 else f"{layer}." for layer in layers}
    names = {layer: [name for name in rows[0] if _is_number(name, prefix)] for layer, prefix in prefixes.items()}
    return Read(
        ids=[row["id"] for row in rows],
        splits=[row["split"] for row in rows],
        labels=[int(row["label"]) for row in rows],
        classes=[row["class"] for row in rows],
        features={layer: np.array([[float(row[name]) for name in names[layer]] for row in rows]) for layer in layers},
    )


def _is_number(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.removeprefix(prefix).isdecimal()


def _keys(layers: tuple[str, ...]) -> dict[str, str]:
    return {layer: "features" if len(layers) == 1 else f"features/{layer}" for layer in layers}


READERS: dict[str, Callable[[Path, tuple[str, ...]], Read]] = {
    "npz": of_arrays,
    "npy": of_folder,
    "safetensors": of_safetensors,
    "parquet": of_parquet,
    "csv": of_csv,
}


def values(cache: FeatureCache, split: str, layer: str) -> NDArray[Any]:
    """The cache's rows as the inputs of a head."""
    array = cache[split].layer(layer)
    stored = np.asarray(array)
    if (array.scale, array.offset) == (1.0, 0.0):
        return stored
    return stored.astype(np.float32) * np.float32(array.scale) + np.float32(array.offset)


# --- exported values are the stored values -----------------------------------------------------------------


@st.composite
def some_splits(draw: st.DrawFn, classes: int) -> dict[str, Rows]:
    dtype = draw(st.sampled_from(["float16", "float32", "uint8"]))
    dims = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    splits = {}
    for name in draw(st.lists(st.sampled_from(["train", "val", "test"]), min_size=1, max_size=3, unique=True)):
        ids = draw(st.lists(TEXT, min_size=1, max_size=6, unique=True))
        numbers = {f"layer{n}": random.standard_normal((len(ids), dim)) * 30 + 60 for n, dim in enumerate(dims)}
        splits[name] = Rows(
            ids=ids,
            labels=random.integers(-1, classes, len(ids)),
            layers={layer: rows.clip(0, 255).astype(dtype) for layer, rows in numbers.items()},
        )
    return splits


@pytest.mark.parametrize("format", READERS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_rows_come_back_as_they_are(format: str, data: st.DataObject) -> None:
    classes = tuple(data.draw(st.lists(TEXT, min_size=1, max_size=4, unique=True)))
    splits = data.draw(some_splits(len(classes)))
    scaled = next(iter(next(iter(splits.values())).layers.values())).dtype == np.uint8
    scaling = dict.fromkeys(next(iter(splits.values())).layers, (0.25, -1.0)) if scaled else None
    block = data.draw(st.sampled_from([1, 40, 1 << 20]))
    with tempfile.TemporaryDirectory() as name, mock.patch.object(cache_rows, "BLOCK_BYTES", block):
        folder = Path(name)
        with write_cache(folder, splits, classes=classes, scaling=scaling) as cache:
            exported = export_cache(cache, folder / "out", format)
            read = READERS[format](folder / "out", cache.layers)
            assert read.ids == [one for split in cache.splits for one in cache[split].ids]
            assert read.splits == [split for split in cache.splits for _ in cache[split].ids]
            assert read.labels == [label for split in cache.splits for label in cache[split].labels.tolist()]
            assert read.classes == [classes[label] if label >= 0 else "" for label in read.labels]
            for layer in cache.layers:
                expected = np.concatenate([values(cache, split, layer) for split in cache.splits])
                found = read.features[layer]
                assert np.array_equal(found.astype(expected.dtype), expected)
                assert format == "csv" or found.dtype == expected.dtype
            assert exported.rows == {split: len(cache[split]) for split in cache.splits}
            assert exported.nbytes > 0


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FeatureCache]:
    """Three splits of ten rows, two layers."""
    random = np.random.default_rng(0)
    splits = {
        split: Rows(
            ids=[f"{split}/{row}" for row in range(10)],
            labels=np.arange(10, dtype=np.int64) % 2,
            layers={
                "a": random.standard_normal((10, 3)).astype("f2"),
                "b": random.standard_normal((10, 5)).astype("f2"),
            },
        )
        for split in ("train", "val", "test")
    }
    with write_cache(tmp_path / "caches", splits, classes=("ant", "bee")) as opened:
        yield opened


@pytest.mark.parametrize("format", READERS)
def test_some_splits_and_layers_can_be_chosen(cache: FeatureCache, format: str, tmp_path: Path) -> None:
    exported = export_cache(cache, tmp_path / "out", format, splits=["test", "train"], layers=["b"])
    assert (exported.rows, exported.feature_dim) == ({"train": 10, "test": 10}, {"b": 5})
    read = READERS[format](tmp_path / "out", ("b",))
    assert read.splits == ["train"] * 10 + ["test"] * 10
    expected = np.concatenate([values(cache, split, "b") for split in ("train", "test")])
    assert np.array_equal(read.features["b"].astype("f2"), expected)


def cache_with_views(folder: Path) -> FeatureCache:
    """Three train images in three views and two test images, in two layers."""

    def layers(count: int, first: int) -> dict[str, NDArray[Any]]:
        numbers = np.arange(first, first + 5 * count, dtype="f2")
        return {"a": numbers[: 3 * count].reshape(count, 3), "b": numbers[3 * count :].reshape(count, 2)}

    train = Rows(
        ids=["t0", "t1", "t2"],
        labels=np.array([0, 1, 0]),
        layers=layers(3, 0),
        augmented=[layers(3, 100), layers(3, 200)],
    )
    test = Rows(ids=["e0", "e1"], labels=np.array([1, 0]), layers=layers(2, 300))
    return write_cache(folder, {"train": train, "test": test}, classes=("ant", "bee"))


ARRAYS: dict[str, Callable[[Path], dict[str, NDArray[Any]]]] = {
    "npz": lambda path: dict(np.load(path)),
    "npy": lambda path: {file.stem.replace(".", "/"): np.load(file) for file in path.iterdir()},
    "safetensors": load_file,
}


@pytest.mark.parametrize("layers", [None, ["b"]])
@pytest.mark.parametrize("format", ARRAYS)
def test_views_are_separate_arrays(
    format: str, layers: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_rows, "BLOCK_BYTES", 20)
    reporter = WarningRecorder()
    with cache_with_views(tmp_path) as cache:
        exported = export_cache(cache, tmp_path / "out", format, layers=layers, reporter=reporter)
        found = ARRAYS[format](tmp_path / "out")
        for layer in layers or ["a", "b"]:
            plain = found["features" if layers else f"features/{layer}"]
            assert np.array_equal(plain, np.concatenate([values(cache, split, layer) for split in cache.splits]))
            for view in (1, 2):
                assert np.array_equal(found[f"views/{view}/{layer}"], cache["train"].layer(layer, view)[:])
    assert exported.rows == {"train": 3, "test": 2}
    assert (exported.views, exported.to_json()["views"]) == (3, 3) and reporter.warnings == []
    assert {name for name in found if name.startswith("views")} == {
        f"views/{view}/{layer}" for view in (1, 2) for layer in layers or ["a", "b"]
    }


@pytest.mark.parametrize("format", ARRAYS)
def test_without_train_there_are_no_views(format: str, tmp_path: Path) -> None:
    with cache_with_views(tmp_path) as cache:
        exported = export_cache(cache, tmp_path / "out", format, splits=["test"])
    assert exported.views == 1
    assert not [name for name in ARRAYS[format](tmp_path / "out") if name.startswith("views")]


@pytest.mark.parametrize("format", ["parquet", "csv", "projector"])
def test_a_table_has_plain_rows_and_warns_about_left_out_views(format: str, tmp_path: Path) -> None:
    reporter = WarningRecorder()
    with cache_with_views(tmp_path) as cache:
        exported = export_cache(cache, tmp_path / "out", format, layers=["b"], reporter=reporter)
        expected = np.concatenate([values(cache, split, "b") for split in cache.splits])
        (warning,) = reporter.warnings
        assert f"2 augmented views of each train image are left out: {format} has one row per image" in warning
        export_cache(cache, tmp_path / "of test", format, splits=["test"], layers=["b"], reporter=reporter)
    assert reporter.warnings == [warning] and exported.views == 1
    if format == "projector":
        assert np.array_equal(np.loadtxt(tmp_path / "out" / "tensors.tsv", delimiter="\t"), expected)
    else:
        read = READERS[format](tmp_path / "out", ("b",))
        assert read.ids == ["t0", "t1", "t2", "e0", "e1"]
        assert np.array_equal(read.features["b"].astype("f2"), expected)


def test_blocks_are_limited_in_bytes(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    # 16 bytes a row.
    monkeypatch.setattr(cache_rows, "BLOCK_BYTES", 50)
    seen: list[tuple[int, int]] = []
    blocks = list(cache_rows.CacheRows.of(cache).blocks(lambda done, total: seen.append((done, total))))
    assert [len(block) for block in blocks] == [3, 3, 3, 1] * 3
    assert seen[-1] == (30, 30)


def test_parquet_has_classes_and_spec_in_its_metadata(cache: FeatureCache, tmp_path: Path) -> None:
    export_cache(cache, tmp_path / "out.parquet", "parquet")
    metadata = json.loads(pyarrow.parquet.read_schema(tmp_path / "out.parquet").metadata[b"featcache"])
    assert (metadata["classes"], metadata["spec"]["backbone"]) == (["ant", "bee"], "toy")


# --- the projector -----------------------------------------------------------------------------------------


def test_the_projector_gets_two_tables_and_a_description(cache: FeatureCache, tmp_path: Path) -> None:
    export_cache(cache, tmp_path / "out", "projector", layers=["a"])
    found = np.loadtxt(tmp_path / "out" / "tensors.tsv", delimiter="\t")
    expected = np.concatenate([values(cache, split, "a") for split in cache.splits])
    assert np.allclose(found, expected, rtol=1e-5)
    header, *lines = (tmp_path / "out" / "metadata.tsv").read_text().splitlines()
    assert header == "id\tclass\tsplit"
    assert lines[:2] == ["train/0\tant\ttrain", "train/1\tbee\ttrain"]
    assert len(lines) == 30


def test_tensorboard_reads_the_projectors_text(cache: FeatureCache, tmp_path: Path) -> None:
    # It has no type annotations.
    text_format = importlib.import_module("google.protobuf.text_format")
    from tensorboard.plugins.projector import projector_config_pb2

    export_cache(cache, tmp_path / "out", "projector", layers=["a"])
    config = projector_config_pb2.ProjectorConfig()
    text_format.Parse((tmp_path / "out" / "projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    assert (tmp_path / "out" / embedding.tensor_path).is_file()
    assert (tmp_path / "out" / embedding.metadata_path).is_file()


def test_a_sprite_shows_every_image_in_its_place(workspace: Workspace, tmp_path: Path) -> None:
    with extract(workspace.pictures, "pixels", image_size=8, data_dir=workspace.root / "data") as cache:
        export_cache(cache, tmp_path / "out", "projector", splits=["test"], images=True)
    assert "single_image_dim: 64" in (tmp_path / "out" / "projector_config.pbtxt").read_text()
    sheet = np.asarray(Image.open(tmp_path / "out" / "sprite.png"))
    # Twelve images, four across.
    assert sheet.shape == (3 * 64, 4 * 64, 3)
    sixth = np.asarray(Image.open(workspace.test_images()[5]).convert("RGB").resize((64, 64)))
    assert np.array_equal(sheet[64:128, 64:128], sixth)


def test_a_sprite_needs_the_images(cache: FeatureCache, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="toy"):
        export_cache(cache, tmp_path / "out", "projector", layers=["a"], images=True)
    pictures = tmp_path / "pictures"
    for name in ("cat", "dog"):
        (pictures / name).mkdir(parents=True)
        (pictures / name / "0.png").write_bytes(workspace.test_images()[0].read_bytes() + name.encode())
    with extract(pictures, "pixels", image_size=8, data_dir=tmp_path) as gone:
        (pictures / "dog" / "0.png").unlink()
        (pictures / "dog" / "1.png").write_bytes(workspace.test_images()[1].read_bytes())
        with pytest.raises(ExportError, match=r"1 images of .* are no longer in .* the first is dog/0\.png"):
            export_cache(gone, tmp_path / "out", "projector", images=True)
    assert not (tmp_path / "out").exists()


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ({"format": "nzp"}, "unknown format of a cache 'nzp'", "npz"),
        ({"format": "npz", "splits": ["tset"]}, "unknown split 'tset'", "test"),
        ({"format": "npz", "layers": ["c"]}, "unknown layer 'c'", "a, b"),
    ],
)
def test_an_unknown_name_is_an_error_with_suggestions(
    cache: FeatureCache, options: dict[str, Any], error: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(UnknownName, match=error) as caught:
        export_cache(cache, tmp_path / "out", **options)
    assert hint in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["npy", "projector"])
def test_a_folder_is_never_mixed_with_another(cache: FeatureCache, format: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InvalidOption, match="exists already"):
        export_cache(cache, tmp_path / "out", format, layers=["a"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(InvalidOption, match="is the name of one file"):
        export_cache(cache, tmp_path / "out.npy", format, layers=["a"])


def test_only_points_take_images_and_the_projector_only_one_layer(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="shows one layer, and toy has a, b"):
        export_cache(cache, tmp_path / "out", "projector")
    with pytest.raises(InvalidOption, match="--images belongs to projector and atlas, and the format is csv"):
        export_cache(cache, tmp_path / "out", "csv", images=True)
    with pytest.raises(InvalidOption, match="--map belongs to atlas, and the format is projector"):
        export_cache(cache, tmp_path / "out", "projector", map="pca")


@pytest.mark.parametrize("format", [format for format in CACHE_FORMATS if format != "atlas"])
def test_an_export_that_fails_leaves_nothing_and_keeps_an_existing_file(
    cache: FeatureCache, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_rows, "BLOCK_BYTES", 60)
    blocks = cache_rows.CacheRows.blocks

    def broken(self: cache_rows.CacheRows, advance: cache_rows.Advance, view: int = 0) -> Iterator[cache_rows.RowBlock]:
        for number, block in enumerate(blocks(self, advance, view)):
            if number == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield block

    folder = tmp_path / "here"
    folder.mkdir()
    is_folder = format in ("npy", "projector")
    if not is_folder:
        (folder / "out").write_text("an older file")
    monkeypatch.setattr(cache_rows.CacheRows, "blocks", broken)
    with pytest.raises(CacheUnwritable) as caught:
        export_cache(cache, folder / "out", format, layers=["a"])
    assert "free some space" in str(caught.value.hint)
    assert [path.name for path in folder.iterdir()] == ([] if is_folder else ["out"])
    assert is_folder or (folder / "out").read_text() == "an older file"


def test_a_missing_package_is_named(cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="--format parquet needs the package pyarrow"):
        export_cache(cache, tmp_path / "out.parquet", "parquet")
    assert not (tmp_path / "out.parquet").exists()
