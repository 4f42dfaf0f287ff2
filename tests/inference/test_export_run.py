"""A run as one file: its outputs equal featcache's, or it is not written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from trained import CLASSES, Workspace

from featcache.errors import ExportError, ImageError, InvalidOption, MissingExtra, UnknownName, WeightsError
from featcache.inference import export_run, exporting, formats, predict
from featcache.runs.run import Run


def export(
    workspace: Workspace, run: Run, path: Path, format: str = "onnx", **options: object
) -> exporting.ExportedRun:
    return export_run(run, path, format, data_dir=workspace.root / "data", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backbone", "head", "format"),
    [
        ("resnet18", "mlp:8", "onnx"),
        ("pixels", "knn", "onnx"),
        ("pixels", "ridge", "pt2"),
    ],
)
def test_the_file_predicts_what_featcache_predicts_for_images_of_any_size(
    workspace: Workspace, backbone: str, head: str, format: str, tmp_path: Path
) -> None:
    run, seen = workspace.train(head, backbone), list[tuple[str, int, int]]()
    exported = export(workspace, run, tmp_path / f"head.{format}", format, progress=lambda *step: seen.append(step))
    assert {stage for stage, _, _ in seen} == {"predicting", "verifying images"}
    assert all(step in seen for step in (("predicting", 14, 14), ("verifying images", 14, 14)))
    assert (exported.images, exported.nbytes) == (14, exported.path.stat().st_size)
    assert exported.greatest_difference < 1e-5
    images = workspace.test_images()
    expected = predict(run, images).outputs
    predict_file = formats.NETWORK_FORMATS[format].open(exported.path)
    for path, row in zip(images, expected, strict=True):
        assert np.allclose(predict_file(np.asarray(Image.open(path))[None]), row, atol=1e-5)
    batch = np.stack([np.asarray(Image.open(images[0]))] * 5)
    assert np.allclose(predict_file(batch), np.stack([expected[0]] * 5), atol=1e-5)
    assert list(tmp_path.iterdir()) == [exported.path]


def test_the_file_contains_two_layers_and_a_crop(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.train("centroid", layers=("layer1", "pre_logits"), pool="avg", resize="crop")
    exported = export(workspace, run, tmp_path / "head.pt2", "pt2")
    assert exported.greatest_difference < 1e-5


def test_the_file_has_metadata(workspace: Workspace, pixel_run: Run, tmp_path: Path) -> None:
    export(workspace, pixel_run, tmp_path / "head.onnx", verify_limit=1)
    model = onnx.load(tmp_path / "head.onnx")
    onnx.checker.check_model(model)
    (metadata,) = [json.loads(entry.value) for entry in model.metadata_props if entry.key == "featcache"]
    assert metadata["classes"] == list(CLASSES)
    assert (metadata["run"], metadata["head"]) == (pixel_run.folder.name, "linear")
    (backbone,) = metadata["backbones"]
    assert (backbone["backbone"], backbone["fingerprint"]) == ("pixels", pixel_run.features.fingerprint)
    assert backbone["transform"]["image_size"] == 40
    (given,) = model.graph.input
    names = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert (given.name, names) == ("images", ["batch", "height", "width", 3])
    export(workspace, pixel_run, tmp_path / "head.pt2", "pt2", verify_limit=1)
    extra = {"featcache.json": ""}
    torch.export.load(tmp_path / "head.pt2", extra_files=extra)
    assert json.loads(extra["featcache.json"]) == metadata


def test_a_file_with_other_outputs_is_not_published(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "head.pt2"
    path.write_text("an older file")
    monkeypatch.setattr("featcache.inference.network.round_to_bytes", lambda sums: 0.9 * sums / (1 << 22))
    run = workspace.train("centroid", "pixels")
    with pytest.raises(ExportError, match=r"expected \w+ 0\.\d{4}, got \w+ 0\.\d{4}; the greatest difference is"):
        export(workspace, run, path, "pt2")
    assert (list(tmp_path.iterdir()), path.read_text()) == ([path], "an older file")


def test_another_most_probable_class_is_enough_to_refuse_a_file(
    workspace: Workspace, pixel_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", 10.0)
    open_file = formats.Pt2.open
    monkeypatch.setattr(
        formats.Pt2, "open", lambda self, path: lambda images: open_file(self, path)(images)[:, [1, 2, 0]]
    )
    with pytest.raises(ExportError, match="differ from featcache's: on image 1 of 14"):
        export(workspace, pixel_run, tmp_path / "head.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_writing_fails(
    workspace: Workspace, pixel_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: object, classifier: object, path: Path, *rest: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(formats.Pt2, "write", half)
    with pytest.raises(KeyboardInterrupt):
        export(workspace, pixel_run, tmp_path / "head.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_images_to_check_a_file_on_can_be_given(workspace: Workspace, pixel_run: Run, tmp_path: Path) -> None:
    gone = replace(pixel_run, features=replace(pixel_run.features, images=str(tmp_path / "gone")))
    with pytest.raises(ExportError, match=r"the images to check the file on cannot be read: .*gone") as caught:
        export(workspace, gone, tmp_path / "head.pt2", "pt2")
    assert "--verify-images" in str(caught.value.hint)
    some = workspace.pictures / "train" / "eel"
    assert export(workspace, gone, tmp_path / "head.pt2", "pt2", verify_images=some, verify_limit=3).images == 5
    (tmp_path / "note.png").write_text("no image")
    with pytest.raises(ImageError, match="not an image"):
        export(workspace, gone, tmp_path / "head.pt2", "pt2", verify_images=tmp_path / "note.png")


def test_no_data_set_is_downloaded_to_check_a_file(workspace: Workspace, pixel_run: Run, tmp_path: Path) -> None:
    named = replace(pixel_run, features=replace(pixel_run.features, images="cifar10"))
    with pytest.raises(ExportError, match="cifar10 is not in"):
        export_run(named, tmp_path / "head.pt2", "pt2", data_dir=tmp_path)


def test_a_missing_package_is_named_before_anything_is_computed(
    workspace: Workspace, pixel_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match="--format onnx needs the package onnxscript") as caught:
        export(workspace, pixel_run, tmp_path / "head.onnx")
    assert caught.value.hint == "pip install 'featcache[export]'"


def test_weights_that_fit_into_no_onnx_file_are_refused(
    workspace: Workspace, pixel_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_ONNX_BYTES", 1000)
    with pytest.raises(ExportError, match="one ONNX file holds at most 2 GB") as caught:
        export(workspace, pixel_run, tmp_path / "head.onnx")
    assert "pt2" in str(caught.value.hint)


def test_other_weights_are_refused(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="expected sha256"):
        export(workspace, run, tmp_path / "head.onnx", weights="random:2")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_an_error_with_a_suggestion(workspace: Workspace, pixel_run: Run, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown format of a run 'onxx'") as caught:
        export(workspace, pixel_run, tmp_path / "head.onxx", "onxx")
    assert caught.value.hint == "did you mean onnx?"
    with pytest.raises(InvalidOption, match="--verify-limit of at least 1"):
        export(workspace, pixel_run, tmp_path / "head.pt2", "pt2", verify_limit=0)
