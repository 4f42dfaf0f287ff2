"""`--format atlas`: the columns of embedding-atlas, and what is in them."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from stored import Rows, write_cache
from trained import Workspace

from featcache.api import extract
from featcache.errors import CacheNotFound, ExportError, InvalidOption, MissingExtra
from featcache.inference import export_cache
from featcache.runs.run import Run


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def test_a_run_gives_map_neighbours_targets_predictions_and_images(
    workspace: Workspace, run: Run, tmp_path: Path
) -> None:
    exported = export_cache(run, tmp_path / "out", "atlas", images=True, data_dir=workspace.root / "data")
    rows = read(tmp_path / "out")
    assert len(rows) == 48 and (exported.run, exported.map) == (str(run.folder), "tsne")
    assert len({(row["x"], row["y"]) for row in rows}) == 48
    kept = run.predictions("test")
    for row, outputs in zip(rows[36:], kept.outputs, strict=True):
        assert row["split"] == "test" and row["label"] == row["id"].split("/")[1]
        assert row["prediction"] == run.classes[outputs.argmax()]
        assert row["probability"] == pytest.approx(float(outputs.max()), abs=1e-5)
    picture = workspace.pictures / rows[40]["id"]
    assert rows[40]["image"] == {"bytes": picture.read_bytes(), "path": rows[40]["id"]}


def test_neighbours_are_row_numbers_of_other_images_with_cosine_distances(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((40, 6)).astype("f4")
    # More equal rows than neighbours.
    values[:20] = values[0]
    splits = {
        name: Rows(ids=[f"{name}/{row}" for row in range(20)], labels=np.arange(20) % 2, layers={"a": values[part]})
        for name, part in (("train", slice(20)), ("test", slice(20, 40)))
    }
    with write_cache(tmp_path, splits, classes=("ant", "bee")) as cache:
        export_cache(cache, tmp_path / "out", "atlas", map="pca")
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosines = unit @ unit.T
    for number, row in enumerate(read(tmp_path / "out")):
        ids, distances = row["neighbors"]["ids"], row["neighbors"]["distances"]
        assert len(ids) == 15 and number not in ids and distances == sorted(distances)
        others = np.delete(cosines[number], number)
        assert distances == pytest.approx((1 - np.sort(others)[::-1][:15]).clip(0).tolist(), abs=1e-5)


def test_large_images_become_thumbnails(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "pictures" / "cat" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (400, 200, 3), dtype=np.uint8)).save(path)
    with extract(tmp_path / "pictures", "pixels", image_size=8, data_dir=tmp_path) as cache:
        export_cache(cache, tmp_path / "out", "atlas", images=True)
        shutil.rmtree(tmp_path / "pictures" / "cat")
        (tmp_path / "pictures" / "cat").mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "cat" / "9.png")
        with pytest.raises(ExportError, match=r"6 images of .* are no longer in") as caught:
            export_cache(cache, tmp_path / "again", "atlas", images=True)
    assert "--images" in str(caught.value.hint) and not (tmp_path / "again").exists()
    shown = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in read(tmp_path / "out")]
    assert {(image.format, image.size) for image in shown} == {("JPEG", (128, 256))}


def test_what_cannot_be_an_atlas_is_explained(
    workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Rows(ids=["a", "b"], labels=np.zeros(2, np.int64), layers={"a": np.eye(2, dtype="f4")})
    with write_cache(tmp_path, {"train": few}, classes=("ant",)) as cache:
        with pytest.raises(InvalidOption, match="at least 5 images for a map, got 2"):
            export_cache(cache, tmp_path / "out", "atlas")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingExtra, match="--format atlas needs the package pyarrow"):
            export_cache(cache, tmp_path / "out", "atlas")
    with pytest.raises(InvalidOption, match="expected a cache for the format csv, got a run"):
        export_cache(run, tmp_path / "out", "csv")
    with pytest.raises(InvalidOption, match="--layer belongs to a cache"):
        export_cache(run, tmp_path / "out", "atlas", layers="layer2")
    moved = shutil.copytree(run.folder, tmp_path / "moved")
    text = (moved / "config.json").read_text().replace(run.features.cache, "/gone/cache.h5")
    (moved / "config.json").write_text(text)
    with pytest.raises(CacheNotFound, match="does not exist any more"):
        export_cache(Run.load(moved), tmp_path / "out", "atlas", data_dir=tmp_path)
    assert not (tmp_path / "out").exists()
