"""Regression tests: labels that were lost, shifted or mixed up, and different sets with the same origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import encode as encode_image
from image_files import images_at, pixels, write_folder

import featcache
from featcache.cache.targets import encode
from featcache.columns import ColumnOptions
from featcache.errors import InvalidOption, SourceError
from featcache.images.location import locate, open_images
from featcache.images.source import ImageSource


def photos(count: int, first: int = 0) -> np.ndarray[Any, Any]:
    return np.stack([pixels(first + number) for number in range(count)])


def class_names(source: ImageSource, split: str = "train") -> list[str | None]:
    return [source.classes[one.label] if one.label >= 0 else None for one in source.samples(split)]


def cells(source: ImageSource, name: str, split: str = "train") -> list[str | None]:
    (column,) = (one for one in source.columns if one.name == name)
    return list(column.cells[split])


def table(folder: Path, text: str) -> Path:
    write_folder(folder, images_at("a.png", "b.png", "c.png"))
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


# --- labels from Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, float("nan"), np.float64("nan")])
@pytest.mark.parametrize("as_objects", [False, True])
def test_a_missing_value_among_names_is_no_class(nothing: object, as_objects: bool) -> None:
    labels: Any = ["a", nothing, "b"]
    source = open_images(photos(3), labels=np.array(labels, object) if as_objects else labels)
    assert class_names(source) == ["a", None, "b"]


def test_labels_of_shape_n_1_are_classes_as_keras_has_them() -> None:
    source = open_images(photos(4), labels=np.array([[0], [1], [1], [0]]))
    assert (class_names(source), source.columns) == (["0", "1", "1", "0"], ())


def test_numbers_of_which_one_split_has_whole_ones_are_numbers_in_all() -> None:
    images = {"train": (photos(2), [0.5, 1.5]), "test": (photos(2, 5), [1.0, 2.0])}
    source = open_images(images)
    assert source.classes == ()
    assert (cells(source, "label"), cells(source, "label", "test")) == (["0.5", "1.5"], ["1", "2"])


def test_names_in_one_split_and_numbers_in_another_are_refused() -> None:
    with pytest.raises(SourceError, match="are numbers"):
        open_images({"train": (photos(2), ["a", "b"]), "test": (photos(2, 5), [0, 1])})


def test_class_numbers_of_paths_are_those_of_arrays(tmp_path: Path) -> None:
    write_folder(tmp_path, images_at("a.png", "b.png"))
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    source = open_images(paths, labels=[0, 2])
    assert source.classes == open_images(photos(2), labels=[0, 2]).classes == ("0", "1", "2")
    assert [one.label for one in source.samples("train")] == [0, 2]
    assert open_images(paths, labels=[0, 1], classes=["z", "y"]).classes == ("z", "y")


@pytest.mark.parametrize("label", [-2, 2])
def test_a_label_of_a_path_without_a_class_is_refused(tmp_path: Path, label: int) -> None:
    write_folder(tmp_path, images_at("a.png"))
    with pytest.raises(SourceError, match="expected a label from -1"):
        open_images([tmp_path / "a.png"], labels=[label], classes=["x", "y"])


@pytest.mark.parametrize("labels", [[0, 10**12], [0.0, float("inf")]])
def test_numbers_that_are_no_class_numbers_are_refused(labels: list[float]) -> None:
    with pytest.raises(SourceError, match="expected"):
        open_images(photos(2), labels=labels)


def test_one_image_is_not_taken_for_many_grey_ones() -> None:
    with pytest.raises(SourceError, match="one image"):
        locate(pixels(1, 32, 32))


# --- different sets ----------------------------------------------------------------------------------------


def test_arrays_that_differ_in_one_row_are_two_sets() -> None:
    one, other = photos(200), photos(200)
    other[1] += 1
    assert locate(one).origin != locate(other).origin


def test_folds_of_one_dataset_are_two_sets() -> None:
    from torch.utils.data import Subset

    items = [(row, number % 2) for number, row in enumerate(photos(100))]
    folds: list[Any] = [Subset(items, [n for n in range(100) if n // 10 != fold]) for fold in (1, 2)]  # type: ignore[arg-type]
    assert locate(folds[0]).origin != locate(folds[1]).origin


def test_the_order_in_which_splits_are_given_changes_no_set(tmp_path: Path) -> None:
    write_folder(tmp_path, images_at("b/cat/1.png", "a/cat/1.png"))
    here = locate(tmp_path, split_by_folder=["b=train", "a=test"])
    assert here == locate(here.origin) == locate(tmp_path, split_by_folder=["a=test", "b=train"])


def test_a_set_that_contains_a_copy_of_itself_is_refused(tmp_path: Path) -> None:
    paths = [f"{above}{name}/1.png" for above in ("", "flowers/") for name in ("daisy", "rose")]
    with pytest.raises(SourceError, match=r"contains the folders .* again"):
        open_images(write_folder(tmp_path, images_at(*paths)))


# --- tables ------------------------------------------------------------------------------------------------


def test_a_column_called_label_does_not_replace_the_chosen_label(tmp_path: Path) -> None:
    where = table(tmp_path, "path,label,species\na.png,1,cat\nb.png,0,dog\n")
    source = open_images(f"{where}?label=species", columns=ColumnOptions())
    assert (class_names(source), source.columns) == (["cat", "dog"], ())


def test_the_index_that_pandas_writes_is_no_target(tmp_path: Path) -> None:
    source = open_images(table(tmp_path, ",path,label\n0,a.png,cat\n1,b.png,dog\n"), columns=ColumnOptions())
    assert source.columns == ()


def test_a_column_with_an_invalid_target_name_is_ignored_or_renamed(tmp_path: Path) -> None:
    where = table(tmp_path, "path,label,kg/m2\na.png,cat,1.5\n")
    assert open_images(where, columns=ColumnOptions()).columns == ()
    assert cells(open_images(where, columns=ColumnOptions(columns=("bmi=kg/m2",))), "bmi") == ["1.5"]
    with pytest.raises(InvalidOption, match="cannot be called"):
        open_images(where, columns=ColumnOptions(columns=("kg/m2",)))


@pytest.mark.parametrize(
    "columns",
    [
        ColumnOptions(columns=("z=x_a", "z=x_b")),
        ColumnOptions(columns=("x_*",), kinds=("x=numbers",)),
    ],
)
def test_impossible_column_options_are_refused(tmp_path: Path, columns: ColumnOptions) -> None:
    with pytest.raises(InvalidOption):
        open_images(table(tmp_path, "path,label,x_a,x_b\na.png,cat,1,0\n"), columns=columns)


def test_one_image_under_two_names_is_detected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="listed twice"):
        open_images(table(tmp_path, "path,label\na.png,cat\n./a.png,dog\n"))


def test_rows_of_delimiters_alone_are_no_rows(tmp_path: Path) -> None:
    assert class_names(open_images(table(tmp_path, "path,label\r\na.png,cat\r\n,\r\n"))) == ["cat"]


# --- Parquet -----------------------------------------------------------------------------------------------


def parquet(path: Path, **columns: object) -> Path:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(arrow.table(columns), path)
    return path


def images(*seeds: int) -> list[dict[str, bytes | None]]:
    return [{"bytes": encode_image(seed), "path": None} for seed in seeds]


def test_labels_that_an_empty_cell_made_floats_are_classes(tmp_path: Path) -> None:
    where = parquet(tmp_path / "x.parquet", image=images(1, 2, 3), label=[1.0, None, 2.0])
    assert class_names(open_images(where, columns=ColumnOptions())) == ["1", None, "2"]


def test_a_file_without_labels_takes_none_from_others(tmp_path: Path) -> None:
    parquet(tmp_path / "test.parquet", image=images(1))
    parquet(tmp_path / "train.parquet", image=images(2, 3), label=["cat", "dog"], age=[1, 2])
    source = open_images(tmp_path, columns=ColumnOptions())
    assert (class_names(source), class_names(source, "test")) == (["cat", "dog"], [None])
    assert (cells(source, "age"), cells(source, "age", "test")) == (["1", "2"], [None])


def test_types_that_differ_between_files_are_ignored(tmp_path: Path) -> None:
    parquet(tmp_path / "test.parquet", image=images(1), age=[1.0])
    parquet(tmp_path / "train.parquet", image=images(2), age=["old"])
    assert [one.kind for one in open_images(tmp_path, columns=ColumnOptions()).columns] == [None]


def test_an_embedding_is_no_target(tmp_path: Path) -> None:
    where = parquet(tmp_path / "x.parquet", image=images(1, 2), vector=[[0.1, 0.2], [0.3, 0.4]], box=[[[1]], [[2]]])
    assert open_images(where, columns=ColumnOptions()).columns == ()


def test_lists_of_too_many_classes_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(InvalidOption, match="classes in lists"):
        encode("vector", [";".join(map(str, range(200_000)))], kind="lists")


# --- metadata beside images --------------------------------------------------------------------------------


def with_tables(folder: Path, *paths: str, **tables: str) -> Path:
    write_folder(folder, images_at(*paths))
    for name, text in tables.items():
        (folder / name.replace("_", "/") / "metadata.csv").write_text(text)
    return folder


def test_a_table_in_one_split_takes_no_labels_from_another(tmp_path: Path) -> None:
    text = "file_name,label\nb.png,dog\n"
    source = open_images(with_tables(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/b.png", test=text))
    assert (class_names(source), class_names(source, "test")) == (["cat", "dog"], ["dog"])


def test_an_empty_column_of_labels_takes_none_from_folders(tmp_path: Path) -> None:
    text = "file_name,label\ncat/a.png,\ndog/b.png,\n"
    source = open_images(with_tables(tmp_path, "train/cat/a.png", "train/dog/b.png", train=text))
    assert class_names(source) == ["cat", "dog"]


def test_a_column_that_one_table_lacks_may_be_requested(tmp_path: Path) -> None:
    root = with_tables(
        tmp_path, "train/a.png", "test/b.png", train="file_name,age\na.png,1\n", test="file_name,sex\nb.png,m\n"
    )
    source = open_images(root, columns=ColumnOptions(columns=("age",)))
    assert (cells(source, "age"), cells(source, "age", "test")) == (["1"], [None])


def test_a_kind_for_folder_names_is_used_and_one_for_another_column_refused(tmp_path: Path) -> None:
    folder = with_tables(tmp_path, "1/a.png")
    source = open_images(folder, columns=ColumnOptions(kinds=("label=numbers",)))
    assert [(one.name, one.kind, list(one.cells["train"])) for one in source.columns] == [("label", "numbers", ["1"])]
    with pytest.raises(SourceError, match="no column"):
        open_images(folder, columns=ColumnOptions(kinds=("age=numbers",)))


# --- splits and kinds --------------------------------------------------------------------------------------


def test_a_hit_has_no_target_that_is_no_longer_requested(tmp_path: Path) -> None:
    where = table(tmp_path, "path,label,age\na.png,cat,1\nb.png,dog,2\n")
    columns: dict[str, Any] = {"backbone": "pixels", "image_size": 8, "data_dir": tmp_path / "data"}
    featcache.extract(where, **columns).close()
    where.write_text("path,label\na.png,cat\nb.png,dog\n")
    with featcache.extract(where, **columns) as cache:
        assert list(cache.targets) == ["label"]


def test_an_image_in_two_splits_is_noted(tmp_path: Path) -> None:
    source = open_images(table(tmp_path, "path,label,split\na.png,cat,train\na.png,cat,test\n"))
    assert any("a.png" in one for one in source.omissions.sentences())


def test_a_table_called_test_is_the_test_split(tmp_path: Path) -> None:
    write_folder(tmp_path, images_at("a.png"))
    (tmp_path / "test.csv").write_text("path,label\na.png,cat\n")
    assert open_images(tmp_path / "test.csv").splits() == ("test",)


def test_a_column_called_set_is_the_split(tmp_path: Path) -> None:
    assert open_images(table(tmp_path, "path,label,set\na.png,cat,test\n")).splits() == ("test",)


def test_a_kind_for_named_classes_is_refused(tmp_path: Path) -> None:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    noted = b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}'
    rows = arrow.table({"image": images(1), "label": [1]}).replace_schema_metadata({b"huggingface": noted})
    files.write_table(rows, tmp_path / "x.parquet")
    with pytest.raises(InvalidOption):
        open_images(tmp_path / "x.parquet", columns=ColumnOptions(kinds=("label=numbers",)))
