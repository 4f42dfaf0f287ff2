"""Locations: text and objects are parsed once, and an origin opens the same images from everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import encode

import featcache
from featcache.cli.finding import CacheOptions
from featcache.errors import SourceError, UnknownName
from featcache.images import ArraySource, locate, open_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog", "cat", "dog")):
        path = tmp_path / "photos" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number))
    return tmp_path / "photos"


def test_a_home_folder_is_an_absolute_origin(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    assert locate("~/photos").origin == locate(photos).origin == str(photos)


def test_a_cache_is_found_after_its_images_were_deleted(photos: Path, tmp_path: Path) -> None:
    cache = featcache.extract(photos, "pixels", image_size=8, data_dir=tmp_path / "data")
    photos.rename(tmp_path / "moved")
    assert CacheOptions(dataset=str(photos)).find(tmp_path / "data" / "features", None).path == cache.path
    with pytest.raises(SourceError, match="photos: no such file or folder"):
        open_images(photos, datasets_dir=tmp_path)


def test_a_cache_of_named_split_folders_is_found_after_its_images_were_deleted(photos: Path, tmp_path: Path) -> None:
    arguments = {"split_by_folder": ("cat=train", "dog=test"), "image_size": 8, "data_dir": tmp_path / "data"}
    cache = featcache.extract(photos, "pixels", **arguments)  # type: ignore[call-overload]
    photos.rename(tmp_path / "moved")
    assert CacheOptions(dataset=str(photos)).find(tmp_path / "data" / "features", None).path == cache.path


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        locate("cifar11")
    assert "cifar10" in (caught.value.hint or "")


def test_which_folders_are_splits_is_a_part_of_the_origin(photos: Path, tmp_path: Path) -> None:
    place = locate(photos, split_by_folder=["cat=train", "dog=test"])
    assert place.origin.startswith(f"{photos}?split-by-folder=")
    for one in (place, locate(place.origin)):
        with one.open_and_close(datasets_dir=tmp_path) as source:
            assert source.splits() == ("train", "test")
            assert source.origin == place.origin


def test_options_that_a_kind_does_not_have_are_refused(photos: Path) -> None:
    with pytest.raises(SourceError, match="unknown option 'label'"):
        locate(f"{photos}?label=x")


def test_different_arrays_have_different_origins_and_the_same_one_keeps_its_own() -> None:
    first, second = np.zeros((3, 8, 8, 3), np.uint8), np.ones((3, 8, 8, 3), np.uint8)
    assert locate(first).origin == locate(first.copy()).origin != locate(second).origin


def test_images_from_python_cannot_be_opened_by_their_origin() -> None:
    origin = locate(np.zeros((3, 8, 8, 3), np.uint8)).origin
    with pytest.raises(SourceError, match="passed from Python") as caught:
        locate(origin)
    assert "featcache.extract" in (caught.value.hint or "")


def test_one_image_is_no_set() -> None:
    with pytest.raises(SourceError, match="is one image") as caught:
        locate(np.zeros((32, 32, 3), np.uint8))
    assert "images[None]" in (caught.value.hint or "")


def test_a_source_that_is_given_stays_open_also_where_extract_fails(tmp_path: Path) -> None:
    class Counting(ArraySource):
        closed = 0

        def close(self) -> None:
            Counting.closed += 1

    source = Counting(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1])
    featcache.extract(source, "pixels", image_size=8, data_dir=tmp_path)
    with pytest.raises(featcache.FeatcacheError):
        featcache.extract(source, "pixels", image_size=8, splits=("test",), data_dir=tmp_path)
    featcache.extract(source, "pixels", image_size=8, data_dir=tmp_path)
    assert Counting.closed == 0


@pytest.mark.parametrize("key", ["training", "Train", "train"])
def test_a_mapping_takes_splits_as_people_write_them(key: str, photos: Path, tmp_path: Path) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    source = open_images({key: photos, "dev": (images, ["dog", "bird"])}, datasets_dir=tmp_path)
    assert source.splits() == ("train", "val")
    assert source.classes == ("bird", "cat", "dog")
    assert [source.classes[one.label] for one in source.samples("val")] == ["dog", "bird"]


def test_columns_of_objects_are_chosen_and_unknown_ones_refused(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    labels = {"label": ["a", "b", "a", None], "weight": [1.5, None, 2.0, 3.0], "patient": ["p", "q", "p", "q"]}
    arguments = {"labels": labels, "image_size": 8, "data_dir": tmp_path}
    cache = featcache.extract(images, "pixels", **arguments)  # type: ignore[call-overload]
    assert {name: column.kind for name, column in cache.targets.items()} == {
        "label": "classes", "weight": "numbers", "patient": "groups",
    }  # fmt: skip
    assert cache["train"].target("weight").decode() == [1.5, None, 2.0, 3.0]
    assert cache["train"].labels.tolist() == [0, 1, 0, -1]
    with pytest.raises(UnknownName, match="wieght"):
        featcache.extract(images, "pixels", columns=["wieght"], **arguments)  # type: ignore[call-overload]
