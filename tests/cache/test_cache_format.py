"""The format on disk: old files can always be opened, and docs/format.md describes them correctly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_samples import CLASSES, LAYERS, a_spec, digests_of, make_cache

from featcache.cache.catalog import describe
from featcache.cache.manifest import MANIFEST_VERSION
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import Selection, Spec
from featcache.cache.tables import Skipped
from featcache.cache.targets import Target, encode, label_column
from featcache.cache.trailer import FORMAT_VERSION
from featcache.cache.verification import verify

GOLDEN = Path(__file__).parent / "golden"
DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
CACHE = GOLDEN / "cache-2.h5"
SEGMENTS = GOLDEN / "segments-2"

GOLDEN_SPEC = Spec(
    backbone="golden",
    layers=(LAYERS[0],),
    transform={"size": 4, "mean": [0.5, 0.25], "resize": "squash"},
    decoder="pillow",
    precision="fp32",
    runner="eager",
    dtype="float16",
    views=2,
    view_seed=3,
)
GOLDEN_SELECTION = Selection(source="golden", splits=("train",), limit=4, select_seed=7)
GOLDEN_IDS = ("train/cat/1.jpg", "train/dog/ü.jpg", "train/frog/caf\udce9.jpg")
GOLDEN_TARGETS = {
    "label": Target(column=label_column(CLASSES), values=np.array([0, 1, -1])),
    "age": encode("age", ["3", "nan", "0.5"], origin="golden.csv"),
    "eats": encode("eats", ["fish;mice", "", "mice"], origin="golden.csv"),
    "owner": encode("owner", ["Ünal", "Ada", None], kind="groups", origin="golden.csv"),
    "note": encode("note", ["a", "", "ß"], kind="text", origin="golden.csv"),
}
GOLDEN_ROWS = (np.arange(48, dtype=np.float16).reshape(3, 16) - 20) / 8
GOLDEN_VIEW = GOLDEN_ROWS[::-1] + 1
GOLDEN_SKIPPED = Skipped(id="train/cat/2.jpg", split="train", reason="truncated", digest="ab" * 32)


def test_there_is_a_golden_file_for_every_version() -> None:
    assert {path.name for path in GOLDEN.glob("cache-*.h5")} == {f"cache-{n + 1}.h5" for n in range(FORMAT_VERSION)}
    assert {path.name for path in GOLDEN.glob("segments-*")} == {f"segments-{n + 1}" for n in range(MANIFEST_VERSION)}


@pytest.mark.parametrize("path", [CACHE, SEGMENTS], ids=lambda path: path.name)
def test_the_golden_cache_can_be_opened(path: Path) -> None:
    with FeatureCache.open(path) as cache:
        assert cache.spec == GOLDEN_SPEC
        assert cache.spec.fingerprint == "47e31dd07cb8e84077ac9986a7590608a8fb74bdad2266b0903652cdc337c406"
        assert cache.selection == GOLDEN_SELECTION
        assert cache.set_name == "golden"
        assert cache.classes == CLASSES
        assert cache.provenance == {"created": "2026-11-24T06:00:00+00:00", "torch": "2.14.1"}
        assert cache.skipped == (GOLDEN_SKIPPED,)
        split = cache["train"]
        assert split.ids == GOLDEN_IDS
        assert split.labels.tolist() == GOLDEN_TARGETS["label"].values.tolist()
        assert list(cache.targets) == list(GOLDEN_TARGETS)
        for name, target in GOLDEN_TARGETS.items():
            assert cache.targets[name] == target.column
            np.testing.assert_array_equal(split.target(name).values, target.values)
        np.testing.assert_array_equal(split.digests, digests_of(["one", "two", "three"]))
        np.testing.assert_array_equal(split.features[:], GOLDEN_ROWS)
        np.testing.assert_array_equal(split.layer(view=1)[:], GOLDEN_VIEW)
        assert split.features.feature_shape == (4, 2, 2)
        assert (split.features.scale, split.features.offset) == (0.5, -1.0)
    assert verify(path, full=True).sound
    assert describe(path).complete


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert "featcache" not in code.replace("FEATCAC", "")
    return str(code)


def test_the_documents_example_reads_the_golden_file() -> None:
    found: dict[str, Any] = {"path": CACHE}
    exec(compile(example(), str(DOCUMENT), "exec"), found)
    np.testing.assert_allclose(found["features"], GOLDEN_ROWS * 0.5 - 1)
    assert found["ids"] == list(GOLDEN_IDS)
    assert found["targets"] == {name: target.decode() for name, target in GOLDEN_TARGETS.items()}


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_the_documents_example_reads_a_new_file(tmp_path: Path, dtype: str) -> None:
    path = make_cache(tmp_path / "c.h5", a_spec(dtype=dtype))
    found: dict[str, Any] = {"path": str(path)}
    exec(compile(example(), str(DOCUMENT), "exec"), found)
    with FeatureCache.open(path) as cache:
        np.testing.assert_array_equal(found["features"], cache[found["split"]].features[:].astype(np.float32))


def test_the_document_names_every_array_and_attribute(tmp_path: Path) -> None:
    import h5py

    text = DOCUMENT.read_text(encoding="utf-8")
    path = make_cache(tmp_path / "c.h5", scaling={"avgpool": (2.0, 1.0)})
    with h5py.File(path) as file:
        names = {*file.attrs, *file["train"], *file["train/targets"], *file["train/features/avgpool"].attrs}
    assert [name for name in names if f"`{name}`" not in text and f"/{name}" not in text] == []
