"""Small images in a folder, and heads trained on fast backbones, for the tests of inference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from featcache.api import extract
from featcache.heads.metric_records import metrics_to_json
from featcache.heads.metrics import Outcome, measure, tune_on_val
from featcache.rows.target import HeadTarget, TargetKind
from featcache.runs.fit import train_head
from featcache.runs.run import Run

CLASSES = ("cat", "dog", "eel")
SIDE = 40


def write_pictures(root: Path, train: int = 12, test: int = 4) -> Path:
    """`split/class/NN.png` of many sizes; the class shows in the colour, and no two images are equal."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(24, 60, 2)
                # Classes overlap, because probabilities of 0 and 1 would hide differences.
                tint = random.integers(0, 60, 3, dtype=np.uint8)
                tint[label] += 30
                pixels = random.integers(0, 160, (height, width, 3), dtype=np.uint8) + tint
                Image.fromarray(pixels).save(root / split / name / f"{number:02d}.png")
    return root


def random_tensors(name: str, seed: int) -> dict[str, torch.Tensor]:
    """The tensors of a torchvision network with its own random initialisation."""
    from torchvision.models import get_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(get_model(name, weights=None).state_dict())


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder with `pictures/`, `data/` and `runs/` in it."""

    root: Path

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    def test_images(self) -> list[Path]:
        """The test images in the order in which a cache has them."""
        return sorted((self.pictures / "test").glob("*/*.png"))

    def train(
        self, head: str | Callable[..., Any], backbone: str = "resnet18", layers: Sequence[str] = (), **options: Any
    ) -> Run:
        """A new run on features in fp32, stored as float32, so that they are not rounded more than in prediction."""
        exact = {} if backbone == "pixels" else {"dtype": "float32", "precision": "fp32", "weights": "random:1"}
        cache = extract(
            self.pictures,
            backbone,
            layers=layers,
            image_size=SIDE,
            data_dir=self.root / "data",
            runner="eager",
            **exact | options,
        )
        epochs: dict[str, Any] = {"max_epochs": 3} if callable(head) or head.startswith(("mlp", "linear")) else {}
        with cache:
            return train_head(
                cache, head, layers=cache.layers, runs_dir=self.root / "runs", val_fraction=0.5, device="cpu", **epochs
            )


def with_target_kind(run: Run, folder: Path, kind: TargetKind) -> Run:
    """A copy of a run of three classes, changed to predict several classes per image, or three numbers."""
    shutil.copytree(run.folder, folder)
    config, metrics = (json.loads((folder / name).read_text()) for name in ("config.json", "metrics.json"))
    config["target"] = {**config["target"], "kind": kind}
    target = HeadTarget.from_json(config["target"])
    random = np.random.default_rng(0)
    targets = random.integers(0, 2, (20, 3)).astype(np.int8) if kind == "lists" else random.standard_normal((20, 3))
    outcome = Outcome(outputs=random.standard_normal((20, 3)).astype(np.float32), targets=targets, target=target)
    metrics["metrics"] = {"val": metrics_to_json(measure(outcome, tune_on_val(outcome), seed=0))}
    for name, content in (("config.json", config), ("metrics.json", metrics)):
        (folder / name).write_text(json.dumps(content))
    return Run.load(folder)
