"""Exports of each kind of target: onnxruntime and the script of docs/export.md give what `predict` gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from elsewhere import outputs_elsewhere
from odd_images import write_odd_images
from PIL import Image
from trained import CLASSES, Workspace

from featcache.api import extract
from featcache.errors import ImageError
from featcache.extraction.labelling import label
from featcache.inference import export_run, predict
from featcache.inference.exporting import ExportedRun
from featcache.runs.fit import train_head
from featcache.runs.run import Run

TARGETS = {"classes": "label", "lists": "tags", "numbers": ["weight", "height"]}


@pytest.fixture(scope="module")
def runs(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """A head on pixels for each kind of target."""
    folder = tmp_path_factory.mktemp("kinds")
    with extract(workspace.pictures, "pixels", image_size=16, data_dir=folder) as cache:
        path, ids = cache.path, [name for split in cache.values() for name in split.ids]
    lines = ["id,tags,weight,height"]
    for name in ids:
        brightness = float(np.asarray(Image.open(workspace.pictures / name)).mean())
        tags = [
            tag for tag, there in (("bright", brightness > 90), ("狗", "dog" in name), ("c", "cat" in name)) if there
        ]
        lines.append(f"{name},{';'.join(tags)},{brightness * 1000},{brightness / 1e6}")
    (folder / "targets.csv").write_text("\n".join(lines), encoding="utf-8")
    label(path, folder / "targets.csv", kinds=["tags=lists"])
    options: dict[str, Any] = {"val_fraction": 0.5, "max_epochs": 4, "runs_dir": folder / "runs", "device": "cpu"}
    return {kind: train_head(path, "mlp:8", target=target, **options) for kind, target in TARGETS.items()}


@pytest.fixture(scope="module")
def onnx_files(
    runs: Mapping[str, Run], workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, ExportedRun]:
    """Each run as an ONNX file."""
    folder, images = tmp_path_factory.mktemp("onnx"), workspace.test_images()
    return {kind: export_run(run, folder / f"{kind}.onnx", verify_images=images) for kind, run in runs.items()}


@pytest.mark.parametrize("kind", TARGETS)
def test_onnxruntime_alone_predicts_15_odd_images_as_predict_does(
    runs: Mapping[str, Run], onnx_files: Mapping[str, ExportedRun], kind: str, tmp_path: Path
) -> None:
    paths = write_odd_images(tmp_path / "odd")
    assert len(paths) == 15
    assert runs[kind].target.kind == kind
    found = outputs_elsewhere(onnx_files[kind].path, paths, tmp_path)
    expected = predict(runs[kind], paths)
    assert found["names"] == list(expected.target.names)
    assert np.allclose(found["rows"], expected.outputs, rtol=1e-3, atol=0 if kind == "numbers" else 1e-4)
    # Three files hold the same 16-bit picture, and two the same palette; of all others each differs.
    assert len(np.unique(expected.outputs, axis=0)) >= 12


@pytest.mark.parametrize("kind", TARGETS)
def test_the_record_and_the_metadata_name_the_outputs(onnx_files: Mapping[str, ExportedRun], kind: str) -> None:
    record = onnx_files[kind].to_json()
    assert record["target"]["kind"] == kind and ("same_top1" in record["verified"]) == (kind == "classes")
    names = {"classes": list(CLASSES), "lists": ["bright", "c", "狗"], "numbers": []}
    assert record["classes"] == names[kind]
    model = onnx.load(onnx_files[kind].path)
    output = "values" if kind == "numbers" else "probabilities"
    assert [one.name for one in model.graph.output] == [output]
    (metadata,) = [json.loads(entry.value) for entry in model.metadata_props if entry.key == "featcache"]
    assert metadata["output"].startswith(output) and ("thresholds" in metadata) == (kind == "lists")


def test_the_script_of_the_page_refuses_what_predict_refuses(
    runs: Mapping[str, Run], onnx_files: Mapping[str, ExportedRun], tmp_path: Path
) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(path)
    with pytest.raises(ImageError, match="mode F"):
        predict(runs["classes"], path)
    with pytest.raises(Exception, match="non-zero exit status"):
        outputs_elsewhere(onnx_files["classes"].path, [path], tmp_path)


@pytest.mark.parametrize("kind", ["lists", "numbers"])
@pytest.mark.parametrize("format", ["pt2", "torch"])
def test_other_kinds_are_exported_to_torch(runs: Mapping[str, Run], kind: str, format: str, tmp_path: Path) -> None:
    exported = export_run(runs[kind], tmp_path / "head", format)
    assert exported.greatest_difference < 1e-4
    assert exported.target.names != CLASSES


def test_small_numbers_are_checked_relative_to_their_column(
    runs: Mapping[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.errors import ExportError
    from featcache.inference import formats

    open_file = formats.Pt2.open
    # The second column has numbers of about 1e-4.
    changed = np.array([1, 1.1], np.float32)
    monkeypatch.setattr(
        formats.Pt2,
        "open",
        lambda self, path: lambda images: open_file(self, path)(images) * changed,
    )
    with pytest.raises(ExportError, match="differ from featcache's"):
        export_run(runs["numbers"], tmp_path / "head.pt2", "pt2")
