"""The HDF5 header: where arrays are, that it is always the same, and that plain h5py can read it."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from cache_samples import CLASSES, a_spec, make_cache, rows_for, tables, trailer_of
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.cache.header import build_header
from featcache.cache.inspection import read_header
from featcache.cache.layout import FeatureAttributes, arrays_of, features_name, is_table
from featcache.cache.memory_file import ALIGNMENT
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import LayerSpec
from featcache.cache.tables import Skipped
from featcache.cache.trailer import FORMAT_VERSION

names = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=30).filter(
    lambda name: name.isprintable() and "/" not in name and name not in (".", "..")
)


def test_plain_h5py_reads_every_array_and_attribute(tmp_path: Path) -> None:
    spec, made = a_spec(), tables()
    skipped = [Skipped(id="train/x.jpg", split="train", reason="truncated")]
    path = make_cache(tmp_path / "c.h5", spec, made, skipped=skipped, scaling={"features.30": (0.5, -1.0)})
    with h5py.File(path) as file:
        for split, table in made.items():
            for layer, rows in rows_for(spec, table.digests).items():
                np.testing.assert_array_equal(file[f"{split}/features/{layer}"][:], rows)
            assert tuple(file[f"{split}/ids"].asstr()[:]) == table.ids
            np.testing.assert_array_equal(file[f"{split}/targets/label"][:], table.targets["label"])
            np.testing.assert_array_equal(file[f"{split}/digests"][:], table.digests)
        assert file.attrs["format"] == b"featcache"
        assert file.attrs["format_version"] == FORMAT_VERSION
        assert file.attrs["set_name"] == b"cifar10"
        assert json.loads(file.attrs["spec"]) == json.loads(spec.to_json())
        assert [one["names"] for one in json.loads(file.attrs["targets"])] == [list(CLASSES)]
        assert json.loads(file.attrs["skipped"])[0]["reason"] == "truncated"
        assert list(file["train/features/avgpool"].attrs["shape"]) == [4, 2, 2]
        assert "shape" not in file["train/features/features.30"].attrs
        assert file["train/features/features.30"].attrs["scale"] == 0.5
        assert file["train/features/features.30"].attrs["offset"] == -1.0


def test_metadata_comes_first_then_tables_then_features_each_on_a_page(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5")
    trailer = trailer_of(path)
    with FeatureCache.open(path) as cache:
        places = sorted(cache.file.contents.arrays.values(), key=lambda place: place.offset)
    assert places[0].offset == trailer.header_bytes
    assert [is_table(place.name) for place in places] == sorted((is_table(p.name) for p in places), reverse=True)
    assert all(place.offset % ALIGNMENT == 0 for place in places)
    assert path.stat().st_size == trailer.file_bytes


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = make_cache(tmp_path / "a.h5"), make_cache(tmp_path / "elsewhere" / "b.h5")
    assert one.read_bytes() == other.read_bytes()


def test_twenty_one_thousand_class_names_fit(tmp_path: Path) -> None:
    classes = [f"class number {number:05d}, or something like it" for number in range(21_000)]
    path = make_cache(tmp_path / "c.h5", classes=classes)
    with FeatureCache.open(path) as cache:
        assert cache.classes == tuple(classes)
    with h5py.File(path) as file:
        assert json.loads(file.attrs["targets"])[0]["names"] == classes
        assert file["train/features/avgpool"].id.get_offset() > len(json.dumps(classes))


@settings(max_examples=25, deadline=None)
@given(st.lists(names, min_size=1, max_size=4, unique=True), st.integers(0, 3), st.integers(1, 3))
def test_any_layer_name_and_length_is_found_where_it_was_placed(layers: list[str], train: int, test: int) -> None:
    spec = a_spec(layers=[LayerSpec(name=name, weights=None, shape=(2, 3)) for name in layers])
    rows = {"train": train, "test": test}
    texts = {
        "set_name": "s",
        "spec": spec.to_json(),
        "selection": "{}",
        "targets": "[]",
        "provenance": "{}",
        "skipped": "[]",
    }
    attributes = {
        features_name(split, name): FeatureAttributes(shape=(2, 3), scale=2.0) for split in rows for name in layers
    }
    arrays = arrays_of(spec, rows, {"train/ids": 1, "test/ids": 7})
    header = build_header(arrays, texts, attributes)
    end = max(place.offset + place.nbytes for place in header.arrays.values())
    contents = read_header(header.data, end)
    assert contents.arrays == header.arrays
    assert contents.features == attributes
    assert all(contents.texts[name] == text for name, text in texts.items())


def test_a_huge_cache_takes_no_memory_to_lay_out() -> None:
    spec = a_spec(layers=[LayerSpec(name="l", weights=None, shape=(25088,))])
    arrays = arrays_of(spec, {"train": 20_000_000}, {"train/ids": 80})
    header = build_header(arrays, {"set_name": "s"}, {features_name("train", "l"): FeatureAttributes(shape=(25088,))})
    assert len(header.data) < 20_000
    assert header.arrays["train/features/l"].nbytes == 20_000_000 * 25088 * 2


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_every_dtype_is_stored_as_it_is(tmp_path: Path, dtype: str) -> None:
    path = make_cache(tmp_path / "c.h5", a_spec(dtype=dtype))
    with h5py.File(path) as file:
        assert file["train/features/avgpool"].dtype == np.dtype(dtype)
