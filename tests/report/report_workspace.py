"""A workspace for tests of reports: pictures that are identified by their colours, and runs on their pixels."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featcache.api import extract
from featcache.cache.reader import FeatureCache
from featcache.report import WrittenReport, write_report
from featcache.runs.fit import train_head
from featcache.runs.run import Run

# Class names that would be dangerous if a page did not escape them.
CLASSES = ("<img src=x onerror=alert(1)>", 'dog & "eel"', "emu")
SIDE = 12
Colour = tuple[int, int, int]


def write_pictures(root: Path, train: int = 16, test: int = 8) -> dict[str, Colour]:
    """Write `split/class/NN.png`, each with a unique colour; the colours by id.

    The colour shows the class, except for every fourth image, which looks like the next class, so that heads err.
    """
    random = np.random.default_rng(0)
    colours: dict[str, Colour] = {}
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                shade = random.integers(0, 110, 3)
                shade[(label + (number % 4 == 3)) % 3] += 140
                colour = (int(shade[0]), int(shade[1]), int(shade[2]))
                Image.new("RGB", (SIDE, SIDE), colour).save(root / split / name / f"{number:02d}.png")
                colours[f"{split}/{name}/{number:02d}.png"] = colour
    return colours


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder with `pictures/`, `data/` and `runs/` in it."""

    root: Path
    colours: dict[str, Colour]

    @classmethod
    def create(cls, root: Path) -> Workspace:
        """A workspace with pictures only."""
        return cls(root=root, colours=write_pictures(root / "pictures"))

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    def extract_pixels(self, **options: Any) -> FeatureCache:
        """The cache of the pictures' pixels."""
        return extract(self.pictures, "pixels", image_size=SIDE, data_dir=self.root / "data", **options)

    def train(self, head: str = "ridge", cache: FeatureCache | Path | None = None, **options: Any) -> Run:
        """A new run."""
        if cache is None:
            with self.extract_pixels() as pixels:
                return self.train(head, pixels, **options)
        options = {"max_epochs": 4, **options} if head.startswith(("linear", "mlp")) else options
        return train_head(cache, head, runs_dir=self.root / "runs", device="cpu", **options)

    def report(self, *runs: Run, path: Path, **options: Any) -> WrittenReport:
        """A page about runs."""
        here = {"data_dir": self.root / "data", "runs_dir": self.root / "runs"}
        return write_report(runs, path, **here | options)


def data_of(page: Path) -> dict[str, Any]:
    """The JSON that a page holds."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    content = json.loads(found[1])
    assert isinstance(content, dict)
    return content
