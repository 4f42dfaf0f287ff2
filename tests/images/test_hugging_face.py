"""Hugging Face data sets, from the Hub and as Parquet files of images: all fulfil the contract of sources."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from image_files import encode
from image_source_contract import ImageSourceContract, Open, all_samples

from featcache.errors import DownloadError, ImageError, MissingExtra, SourceError
from featcache.images import ImageSource, decode, open_images

datasets = pytest.importorskip("datasets")
pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

Columns = Mapping[str, Sequence[Any]]
CLASSES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def table(first: int, count: int, **more: Sequence[Any]) -> Any:
    """A datasets.Dataset of `count` images in the three classes."""
    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=CLASSES)}
        | {name: datasets.Value("int64") for name in more}
    )
    rows = {
        "img": [{"bytes": encode(first + n), "path": f"{n}.png"} for n in range(count)],
        "kind": [n % 3 for n in range(count)],
    }
    return datasets.Dataset.from_dict(rows | more, features=features)


def write_parquet(path: Path, first: int = 0, count: int = 25) -> Path:
    """As the Hub publishes it: features in the metadata, several row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table(first, count).to_parquet(path, batch_size=10)
    return path


def write_plain(path: Path, columns: Columns) -> Path:
    """Without the metadata of the package datasets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_folder(root: Path) -> Path:
    write_parquet(root / "data" / "train-00000-of-00002.parquet", 0, 25)
    write_parquet(root / "data" / "train-00001-of-00002.parquet", 25, 8)
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", 40, 5)
    return root


class TestParquetFile(ImageSourceContract):
    @pytest.fixture
    def open_it(self, tmp_path: Path) -> Open:
        path = write_parquet(tmp_path / "photos.parquet")
        return lambda: open_images(path, datasets_dir=tmp_path)

    def test_rows_are_images_with_their_labels(self, source: ImageSource) -> None:
        assert (source.name, source.classes, source.splits()) == ("photos", tuple(CLASSES), ("train",))
        samples = source.samples("train")
        assert [sample.id for sample in samples[:2]] == ["train/00000", "train/00001"]
        assert [sample.label for sample in samples[:4]] == [0, 1, 2, 0]
        assert [source.read(sample) for sample in samples] == [encode(n) for n in range(25)]


class TestParquetFolder(ImageSourceContract):
    @pytest.fixture
    def open_it(self, tmp_path: Path) -> Open:
        folder = write_folder(tmp_path / "a set")
        return lambda: open_images(f"hf:{folder}", datasets_dir=tmp_path)

    def test_files_of_a_split_follow_each_other(self, source: ImageSource) -> None:
        assert {split: len(source.samples(split)) for split in source.splits()} == {"train": 33, "val": 5}
        assert source.read(source.samples("train")[24]) == encode(24)
        assert source.read(source.samples("train")[25]) == encode(25)
        assert source.read(source.samples("val")[4]) == encode(44)


class TestHub(ImageSourceContract):
    """What the package datasets loads, here from files instead of the Hub."""

    @pytest.fixture
    def open_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
        folder = write_folder(tmp_path / "published")
        on_the_hub(monkeypatch, lambda name, config, **more: datasets.load_dataset(str(folder), **more))
        return lambda: open_images("hf:ana/Pictures", datasets_dir=tmp_path / "sets")

    def test_it_is_the_same_set_as_its_files(self, source: ImageSource, tmp_path: Path) -> None:
        files = open_images(f"hf:{tmp_path / 'published'}", datasets_dir=tmp_path)
        assert (source.name, source.origin) == ("pictures", "hf:ana/Pictures")
        assert all_samples(source) == all_samples(files)
        assert [source.read(s) for s in all_samples(source)] == [files.read(s) for s in all_samples(files)]
        assert source.stamp(source.samples("train")[3]) != source.stamp(source.samples("train")[4])
        assert source.classes == tuple(CLASSES)


def on_the_hub(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    """Replace `load_dataset` by `load`, except for existing paths."""
    real = datasets.load_dataset

    def load_dataset(name: str, config: str | None = None, **more: Any) -> Any:
        return real(name, config, **more) if os.sep in name and Path(name).exists() else load(name, config, **more)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


# --- columns -----------------------------------------------------------------------------------------------


def test_images_are_found_without_metadata(tmp_path: Path) -> None:
    cells = [{"bytes": encode(n), "path": None} for n in range(4)]
    path = write_plain(tmp_path / "a.parquet", {"picture": cells, "label": ["b", "a", None, "b"]})
    source = open_images(path, datasets_dir=tmp_path)
    assert source.classes == ("a", "b")
    assert [sample.label for sample in source.samples("train")] == [1, 0, -1, 1]


def test_a_column_of_bytes_is_enough(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.parquet", {"content": [encode(n) for n in range(3)], "number": [7, 8, 9]})
    source = open_images(path, datasets_dir=tmp_path)
    assert source.classes == ()
    assert source.read(source.samples("train")[2]) == encode(2)


def test_numbers_as_labels_become_classes_in_their_order(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.parquet", {"content": [encode(n) for n in range(3)], "Label": [10, 2, 10]})
    source = open_images(path, datasets_dir=tmp_path)
    assert source.classes == ("2", "10")
    assert [sample.label for sample in source.samples("train")] == [1, 0, 1]


def test_a_parquet_table_of_paths_is_read_as_paths(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encode(1))
    path = write_plain(tmp_path / "a.parquet", {"path": ["1.png"], "label": ["a"], "digest": [b"\1" * 20]})
    source = open_images(path, datasets_dir=tmp_path)
    assert [sample.id for sample in source.samples("train")] == ["1.png"]


def test_two_possible_label_columns_are_listed(tmp_path: Path) -> None:
    names = ["fine", "coarse"]
    rows = table(0, 6, left=range(6))
    for name in names:
        rows = rows.add_column(name, [n % 2 for n in range(6)]).cast_column(name, datasets.ClassLabel(names=["x", "y"]))
    path = tmp_path / "a.parquet"
    rows.remove_columns(["kind"]).to_parquet(path)
    with pytest.raises(SourceError, match="the columns fine, coarse could all be the label") as caught:
        open_images(path, datasets_dir=tmp_path)
    assert caught.value.hint == f"choose one of them: {path}?label=fine"
    source = open_images(f"hf:{path}?label=coarse", datasets_dir=tmp_path)
    assert source.classes == ("x", "y")
    assert open_images(source.origin, datasets_dir=tmp_path).origin == source.origin


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("?label=colour", "no column 'colour'; it has img, kind"),
        ("?image=colour", "no column 'colour'; it has img, kind"),
        ("?size=3", "unknown option 'size'"),
    ],
)
def test_columns_in_options_must_exist(options: str, expected: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=expected):
        open_images(f"hf:{path}{options}", datasets_dir=tmp_path)


def test_the_error_for_a_table_without_images_lists_its_columns(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.parquet", {"text": ["a"], "label": [1]})
    with pytest.raises(SourceError, match="no column names or holds images; it has text, label"):
        open_images(f"hf:{path}", datasets_dir=tmp_path)


# --- bad input ---------------------------------------------------------------------------------------------


def test_a_row_without_an_image_is_an_image_error(tmp_path: Path) -> None:
    cells = [
        {"bytes": encode(0), "path": None},
        {"bytes": None, "path": None},
        {"bytes": None, "path": "/nowhere.png"},
    ]
    source = open_images(write_plain(tmp_path / "a.parquet", {"picture": cells}), datasets_dir=tmp_path)
    first, empty, gone = source.samples("train")
    assert decode(source.read(first), first.id).shape == (6, 8, 3)
    with pytest.raises(ImageError, match="train/00001: the row contains no image"):
        source.read(empty)
    with pytest.raises(ImageError, match=r"train/00002: /nowhere\.png: cannot be read"):
        source.read(gone)


def test_a_file_that_changes_under_the_source_is_an_image_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    source = open_images(path, datasets_dir=tmp_path)
    sample = source.samples("train")[0]
    before = source.stamp(sample)
    path.write_bytes(b"PAR1 no more")
    assert source.stamp(sample) != before
    with pytest.raises(ImageError, match=r"train/00000: .* cannot be read"):
        source.read(sample)
    path.unlink()
    assert source.stamp(sample) is None


def test_an_invalid_parquet_file_is_a_source_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(SourceError, match="not a Parquet file"):
        open_images(tmp_path / "a.parquet", datasets_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no Parquet files found"):
        open_images(f"hf:{tmp_path / 'empty'}", datasets_dir=tmp_path)


def test_a_label_without_a_class_is_a_source_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", count=4)
    content = pq.read_table(path)
    wrong = content.set_column(1, "kind", pa.array([0, 1, 2, 3], pa.int64())).replace_schema_metadata(
        content.schema.metadata
    )
    pq.write_table(wrong, path)
    with pytest.raises(SourceError, match="expected labels from -1 to 2, got 3"):
        open_images(path, datasets_dir=tmp_path)


def test_files_of_other_columns_are_a_source_error(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_parquet(folder / "train.parquet")
    write_plain(folder / "test.parquet", {"content": [encode(0)]})
    with pytest.raises(SourceError, match=r"no column 'img'; it has content|no column 'content'; it has img, kind"):
        open_images(f"hf:{folder}", datasets_dir=tmp_path)


def test_splits_that_are_left_out_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = {"train": table(0, 3), "unsupervised": table(5, 3)}
    on_the_hub(monkeypatch, lambda name, config, **more: loaded)
    source = open_images("hf:photos", datasets_dir=tmp_path)
    assert source.splits() == ("train",)
    assert source.omissions.notes == ("left out: the splits unsupervised",)
    loaded.pop("train")
    with pytest.raises(SourceError, match="has the splits unsupervised, expected train, validation or test"):
        open_images("hf:photos", datasets_dir=tmp_path)


def test_a_failed_download_from_the_hub_is_a_download_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def unreachable(name: str, config: str | None, **more: Any) -> Any:
        calls.append((name, config, more["cache_dir"], more["download_config"].local_files_only))
        raise ConnectionError("Couldn't reach the Hub")

    on_the_hub(monkeypatch, unreachable)
    for download in (True, False):
        with pytest.raises(DownloadError, match="hf:ana/photos cannot be loaded: Couldn't reach the Hub"):
            open_images("hf:ana/photos?config=small", datasets_dir=tmp_path, download=download)
    assert calls == [("ana/photos", "small", str(tmp_path / "huggingface"), local) for local in (False, True)]


def test_the_error_for_a_missing_package_has_the_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert open_images(path, datasets_dir=tmp_path).splits() == ("train",)
    with pytest.raises(MissingExtra, match="needs the package datasets") as caught:
        open_images("hf:photos", datasets_dir=tmp_path)
    assert caught.value.hint == "pip install 'featcache[hf]'"
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match="needs the package pyarrow") as caught:
        open_images(path, datasets_dir=tmp_path)
    assert caught.value.hint == "pip install 'featcache[parquet]'"
