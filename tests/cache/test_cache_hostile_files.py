"""Malicious files with a correct seal are refused before any data is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cache_samples import (
    a_spec,
    assert_whole,
    make_cache,
    make_segments,
    reseal,
    seal,
    tables,
    trailer_of,
)

from featcache.cache import inspection
from featcache.cache.header import build_header
from featcache.cache.inspection import read_header
from featcache.cache.layout import arrays_of
from featcache.cache.memory_file import MemoryFile
from featcache.cache.reader import FeatureCache
from featcache.cache.verification import verify
from featcache.errors import CacheDamaged, CacheForeign

Twist = Callable[[h5py.File, Path], None]
NAME = "train/features/avgpool"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("sound") / "c.h5")


def foreign_file(path: Path, sound: Path, twist: Twist) -> Path:
    """A file that h5py wrote, with the contents of a sound cache but one change, and the seal of a cache."""
    secret = path.with_name("secret.bin")
    secret.write_bytes(bytes(range(256)) * 64)
    with h5py.File(sound) as source, h5py.File(path, "w", libver=("v108", "latest")) as file:
        for name, value in source.attrs.items():
            file.attrs.create(name, value, dtype=source.attrs.get_id(name).dtype)
        arrays: dict[str, h5py.Dataset] = {}
        source.visititems(lambda name, node: arrays.update({name: node}) if isinstance(node, h5py.Dataset) else None)
        for name, array in arrays.items():
            file.create_dataset(name, array.shape, array.dtype)
            for key, value in array.attrs.items():
                file[name].attrs.create(key, value)
        twist(file, secret)
        file.flush()
        for name, array in arrays.items():
            mine = file.get(name)
            if (
                isinstance(mine, h5py.Dataset)
                and not mine.is_virtual
                and mine.shape == array.shape
                and mine.dtype == array.dtype
            ):
                mine[...] = array[...]
    seal(path, trailer_of(sound))
    return path


def _nothing(file: h5py.File, secret: Path) -> None:
    pass


def test_an_unchanged_file_of_h5py_opens(tmp_path: Path, sound: Path) -> None:
    assert_whole(foreign_file(tmp_path / "c.h5", sound, _nothing), a_spec(), tables())


def _replace(file: h5py.File, name: str, **arguments: Any) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, **{"shape": shape, "dtype": dtype, **arguments})


def _external_storage(file: h5py.File, secret: Path) -> None:
    _replace(file, NAME, external=[(str(secret), 0, 40 * 32)])


def _external_link(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_name("other.h5"), "w") as other:
        other["rows"] = np.zeros((40, 16), np.float16)
    del file[NAME]
    file[NAME] = h5py.ExternalLink(str(secret.with_name("other.h5")), "rows")


def _soft_link(file: h5py.File, secret: Path) -> None:
    del file[NAME]
    file[NAME] = h5py.SoftLink("/test/features/avgpool")


def _soft_group(file: h5py.File, secret: Path) -> None:
    del file["test"]
    file["test"] = h5py.SoftLink("/train")


def _external_group(file: h5py.File, secret: Path) -> None:
    del file["test"]
    file["test"] = h5py.ExternalLink("other.h5", "/")


def _virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=(40, 16), dtype=np.float16)
    layout[:] = h5py.VirtualSource(str(secret.with_name("other.h5")), "rows", shape=(40, 16))
    del file[NAME]
    file.create_virtual_dataset(NAME, layout)


def _unknown_filter(file: h5py.File, secret: Path) -> None:
    del file[NAME]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((8, 16))
    creation.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
    space = h5py.h5s.create_simple((40, 16))
    h5py.h5d.create(file.id, NAME.encode(), h5py.h5t.IEEE_F16LE, space, dcpl=creation)


def _compact(file: h5py.File, secret: Path) -> None:
    del file["train/targets/label"]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.id, b"train/targets/label", h5py.h5t.STD_I64LE, h5py.h5s.create_simple((40,)), dcpl=creation)


def _group_for_an_array(file: h5py.File, secret: Path) -> None:
    del file["train/targets/label"]
    file.create_group("train/targets/label")


def _array_for_a_group(file: h5py.File, secret: Path) -> None:
    del file["test"]
    file["test"] = np.zeros(3)


def _circle(file: h5py.File, secret: Path) -> None:
    del file["train/features"]
    file["train/features"] = file["train"]


def _use_named_type(file: h5py.File, secret: Path) -> None:
    file["kind"] = np.dtype("<f2")


def _text(file: h5py.File, name: str, value: str) -> None:
    file.attrs.create(name, np.bytes_(value), dtype=h5py.string_dtype("utf-8", len(value)))


def _spec(file: h5py.File, **changes: Any) -> None:
    _text(file, "spec", json.dumps({**json.loads(file.attrs["spec"]), **changes}))


def _targets(file: h5py.File, **changes: Any) -> None:
    (label,) = json.loads(file.attrs["targets"])
    _text(file, "targets", json.dumps([{**label, **changes}]))


def _soft_target(file: h5py.File, secret: Path) -> None:
    del file["train/targets/label"]
    file["train/targets/label"] = h5py.SoftLink("/test/targets/label")


def _external_targets(file: h5py.File, secret: Path) -> None:
    del file["train/targets"]
    file["train/targets"] = h5py.ExternalLink(str(secret.with_name("other.h5")), "/")


def _target_out_of_its_group(file: h5py.File, secret: Path) -> None:
    """An array outside the group, to which the name of a target would lead."""
    _targets(file, name="../more")
    for split in ("train", "test"):
        file.move(f"{split}/targets/label", f"{split}/more")


TWISTS: dict[str, Twist] = {
    "a target that leads out of its group": _target_out_of_its_group,
    "a target that nothing describes": lambda file, _: file.create_dataset("train/targets/more", (40,), "<i8") and None,
    "a target in one split only": lambda file, _: file.__delitem__("test/targets/label"),
    "no targets in a split": lambda file, _: file.__delitem__("test/targets"),
    "a target without values": lambda file, _: _targets(file, name="age"),
    "a target of an unknown kind": lambda file, _: _targets(file, kind="colours"),
    "a target of another kind": lambda file, _: _targets(file, kind="lists"),
    "a target of another type": lambda file, _: _targets(file, kind="numbers", names=[]),
    "a target with a surprise": lambda file, _: _targets(file, more=1),
    "names that are no texts": lambda file, _: _targets(file, names=[1, 2]),
    "names that are no list": lambda file, _: _targets(file, names=3),
    "a target that is text": lambda file, _: _replace(file, "train/targets/label", dtype="S5"),
    "variable-length text for a target": lambda file, _: _replace(
        file, "train/targets/label", dtype=h5py.string_dtype()
    ),
    "soft link for a target": _soft_target,
    "external link for targets": _external_targets,
    "deep JSON for targets": lambda file, _: _text(file, "targets", "[" * 50_000),
    "a thousand and more targets": lambda file, _: _text(
        file, "targets", json.dumps([{"name": str(one), "kind": "numbers"} for one in range(1001)])
    ),
    "external storage": _external_storage,
    "external link": _external_link,
    "soft link": _soft_link,
    "soft link for a split": _soft_group,
    "external link for a split": _external_group,
    "virtual array": _virtual,
    "chunks": lambda file, _: _replace(file, NAME, chunks=(8, 16)),
    "gzip": lambda file, _: _replace(file, NAME, compression="gzip"),
    "fletcher32": lambda file, _: _replace(file, NAME, fletcher32=True),
    "unknown filter": _unknown_filter,
    "compact array": _compact,
    "resizable": lambda file, _: _replace(file, NAME, maxshape=(None, 16)),
    "more rows than the file holds": lambda file, _: _replace(file, NAME, shape=(2**40, 16)),
    "no bytes at all": lambda file, _: _replace(file, NAME, shape=(0, 16)),
    "scalar": lambda file, _: _replace(file, "train/targets/label", shape=()),
    "no space": lambda file, _: _replace(file, "train/targets/label", data=h5py.Empty("i8"), shape=None),
    "three axes": lambda file, _: _replace(file, NAME, shape=(40, 4, 4)),
    "fewer labels": lambda file, _: _replace(file, "train/targets/label", shape=(39,)),
    "float labels": lambda file, _: _replace(file, "train/targets/label", dtype="<f8"),
    "big-endian labels": lambda file, _: _replace(file, "train/targets/label", dtype=">i8"),
    "variable-length ids": lambda file, _: _replace(file, "train/ids", dtype=h5py.string_dtype()),
    "compound": lambda file, _: _replace(file, "train/targets/label", dtype=[("a", "<i4"), ("b", "<i4")]),
    "references": lambda file, _: _replace(file, "train/targets/label", dtype=h5py.ref_dtype),
    "vlen": lambda file, _: _replace(file, "train/targets/label", dtype=h5py.vlen_dtype(np.int64)),
    "enum": lambda file, _: _replace(file, "train/targets/label", dtype=h5py.enum_dtype({"a": 1}, "i8")),
    "another float": lambda file, _: _replace(file, NAME, dtype="<f4"),
    "double": lambda file, _: _replace(file, NAME, dtype="<f8"),
    "no checksums": lambda file, _: file.__delitem__("train/checksums/avgpool"),
    "one more array": lambda file, _: file.create_dataset("train/more", (3,), "<i8") and None,
    "one more layer": lambda file, _: file.create_dataset("train/features/fc", (40, 3), "<f2") and None,
    "one more split": lambda file, _: file.create_group("extra") and None,
    "group for an array": _group_for_an_array,
    "array for a group": _array_for_a_group,
    "a circle": _circle,
    "named type": _use_named_type,
    "variable-length text": lambda file, _: file.attrs.__setitem__("spec", file.attrs["spec"].decode()),
    "array of texts": lambda file, _: file.attrs.__setitem__("spec", np.array([b"a", b"b"])),
    "number for a text": lambda file, _: file.attrs.__setitem__("targets", 3),
    "no targets": lambda file, _: file.attrs.__delitem__("targets"),
    "no JSON": lambda file, _: _text(file, "provenance", "{"),
    "deep JSON": lambda file, _: _text(file, "provenance", "[" * 50_000),
    "targets are no list": lambda file, _: _text(file, "targets", "{}"),
    "skipped are no records": lambda file, _: _text(file, "skipped", "[1]"),
    "another format": lambda file, _: _text(file, "format", "zarr"),
    "another version": lambda file, _: file.attrs.create("format_version", 7),
    "another spec": lambda file, _: _spec(file, backbone="vgg19"),
    "a spec of other layers": lambda file, _: _spec(file, layers=[{"name": "x", "weights": None, "shape": [4]}]),
    "a spec with more": lambda file, _: _spec(file, surprise=1),
    "another shape": lambda file, _: file[NAME].attrs.create("shape", np.array([2, 2, 4])),
    "a shape bomb": lambda file, _: file[NAME].attrs.create("shape", np.ones(1000, np.int64)),
    "not-a-number scale": lambda file, _: file[NAME].attrs.create("scale", np.nan),
    "integer scale": lambda file, _: file[NAME].attrs.create("scale", 3),
    "bytes that are no UTF-8": lambda file, _: file.attrs.create(
        "set_name", np.bytes_(b"\xff\xfe"), dtype=h5py.string_dtype("utf-8", 2)
    ),
}


@pytest.mark.parametrize("twist", TWISTS.values(), ids=TWISTS.keys())
def test_a_changed_file_is_refused(tmp_path: Path, sound: Path, twist: Twist) -> None:
    path = foreign_file(tmp_path / "c.h5", sound, twist)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    with pytest.raises(CacheForeign, match="cannot be trusted"):
        FeatureCache.open(path)
    assert not verify(path, full=True).sound
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


@pytest.mark.parametrize("make", [make_cache, make_segments])
def test_labels_that_are_no_class_are_refused_when_they_are_read(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (split, table), *_ = tables().items()
    wrong = {split: replace(table, targets={"label": np.full(len(table), 3)})}
    with monkeypatch.context() as patch:
        patch.setattr("featcache.cache.targets.require_codes", lambda column, values: None)
        path = make(tmp_path / ("c.h5" if make is make_cache else "c"), split_tables=wrong)
    with FeatureCache.open(path) as cache, pytest.raises(CacheForeign, match="expected values from -1 to 2, got 3"):
        _ = cache["train"].labels
    (finding,) = verify(path).findings
    assert finding.where == "train/targets/label"


@pytest.mark.parametrize(
    "change",
    [
        {"about": {}},
        {"about": {"rows": {"train": 10**12}}},
        {"tables": {}},
        {"tables": {"train/targets/label": "0" * 32}},
        {"header_bytes": 0},
        {"header_bytes": 2**62},
        {"header_bytes": -1},
    ],
)
def test_a_wrong_trailer_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = make_cache(tmp_path / "c.h5")
    reseal(path, change)
    with pytest.raises((CacheForeign, CacheDamaged)):
        FeatureCache.open(path)


def test_an_array_outside_the_file_or_over_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = arrays_of(a_spec(), {"train": 40}, {"train/ids": 9})
    texts = {
        "set_name": "s",
        "spec": a_spec().to_json(),
        "selection": "{}",
        "targets": "[]",
        "provenance": "{}",
        "skipped": "[]",
    }
    header = build_header(arrays, texts, {})
    end = max(place.offset + place.nbytes for place in header.arrays.values())
    read_header(header.data, end)
    with pytest.raises(CacheForeign):
        read_header(header.data, end - 1)
    with pytest.raises(CacheForeign, match="outside"):
        read_header(header.data + bytes(1), end)
    with pytest.raises(CacheForeign):
        read_header(header.data[:100], end)
    # A superblock may claim a longer file than there is; libhdf5 then sees nothing wrong.
    monkeypatch.setattr(inspection, "MemoryFile", lambda data, size: MemoryFile(data, size + 100))
    with pytest.raises(CacheForeign, match="outside"):
        read_header(header.data, end - 1)


def test_filter_plugins_are_switched_off() -> None:
    assert os.environ["HDF5_PLUGIN_PRELOAD"] == "::"
