"""`--format torch`: a module that begins with the head's predictions, and is trained end to end without featcache."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from trained import CLASSES, Workspace

import featcache
from featcache.errors import ExportError, InvalidOption
from featcache.inference import export_run, finetuning, predict
from featcache.runs.run import Run


def export(workspace: Workspace, run: Run, path: Path, **options: object) -> finetuning.ImageClassifier:
    export_run(run, path, "torch", data_dir=workspace.root / "data", **options)  # type: ignore[arg-type]
    return finetuning.load(path)


def batch(model: finetuning.ImageClassifier, paths: list[Path]) -> torch.Tensor:
    return torch.stack([model.transform(Image.open(path).convert("RGB")) for path in paths])


def test_the_module_begins_at_the_heads_accuracy_and_is_trained_end_to_end(
    workspace: Workspace, tmp_path: Path
) -> None:
    run = workspace.train("mlp:8", layers=("layer2", "pre_logits"), pool="avg")
    model = export(workspace, run, tmp_path / "model")
    paths = workspace.test_images()
    images, labels = batch(model, paths), torch.tensor([CLASSES.index(path.parent.name) for path in paths])
    assert torch.allclose(model.predict(images), torch.from_numpy(predict(run, paths).outputs), atol=1e-5)
    assert run.training.test is not None
    assert (model(images).argmax(1) == labels).float().mean().item() == pytest.approx(run.training.test.value)
    assert torch.allclose(model(images.float() / 255), model(images), atol=1e-5)
    before = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {
        name
        for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    # Every parameter is part of the function: what no layer needs was left out.
    assert changed == dict(model.named_parameters()).keys()
    assert not torch.equal(model.eval().predict(images), before.eval().predict(images))


def test_the_folder_needs_no_featcache(workspace: Workspace, pixel_run: Run, tmp_path: Path) -> None:
    export(workspace, pixel_run, tmp_path / "model")
    image = workspace.test_images()[0]
    code = (
        "import sys; sys.modules['featcache'] = None\n"
        f"sys.path.insert(0, {str(tmp_path / 'model')!r})\n"
        "from model import load\nfrom PIL import Image\n"
        f"model = load(); print(model.predict(model.transform(Image.open({str(image)!r}))[None]).tolist()[0])"
    )
    ran = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert np.allclose(json.loads(ran.stdout), predict(pixel_run, image).outputs[0], atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.py",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("squeezenet1_1", {"resize": "crop"}),
        ("timm:resnet18", {}),
        ("timm:vit_tiny_patch16_224", {"layers": ("tokens",), "pool": "cls+avg"}),
    ],
)
def test_networks_of_both_libraries_are_built_again(
    workspace: Workspace, backbone: str, options: dict[str, object], tmp_path: Path
) -> None:
    run = workspace.train("centroid", backbone, **options)  # type: ignore[arg-type]
    # Checked on images of many sizes when it is written.
    exported = export_run(run, tmp_path / "model", "torch", data_dir=workspace.root / "data")
    assert exported.greatest_difference < 1e-5 and exported.images == 14


def test_what_cannot_be_trained_further_is_refused(workspace: Workspace, pixel_run: Run, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="knn has no weights to train"):
        export(workspace, workspace.train("knn", "pixels"), tmp_path / "model")
    other = featcache.extract(workspace.pictures, "pixels", image_size=8, data_dir=tmp_path)
    with featcache.FeatureCache.open(pixel_run.features.cache) as cache:
        both = featcache.train_head(cache, "ridge", beside=[other], runs_dir=tmp_path / "runs", val_fraction=0.5)
    with pytest.raises(ExportError, match=r"one size of images, and the backbones have 2: 8 .*, 40"):
        export(workspace, both, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    export(workspace, pixel_run, tmp_path / "model")
    with pytest.raises(InvalidOption, match="exists already"):
        export(workspace, pixel_run, tmp_path / "model")
