"""The tutorial's own task, VGG16 on CIFAR-10: the same commands on a few real images, with real weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from project_tree import ROOT

pytestmark = pytest.mark.shared


def commands() -> list[str]:
    """The commands of the page that need the notebook's images and weights, in order."""
    page = (ROOT / "docs" / "tutorial.md").read_text()
    return [line for line in re.findall(r"^\$ (featcache .*)$", page, re.MULTILINE) if "vgg16" in line]


def test_the_notebooks_task_runs_on_a_subset(cifar_zip: Path, vgg_weights: Path, tmp_path: Path) -> None:
    extract, *others = commands()
    assert extract == "featcache extract --backbone vgg16 --dataset cifar10" and others
    here = {"cifar10": str(cifar_zip), "cifar10-vgg16": f"{cifar_zip.stem}-vgg16"}
    printed = []
    for line in (extract, *others):
        words = [here.get(word, word) for word in line.split()[1:]]
        words += ["--weights", str(vgg_weights), "--limit", "12", "--runner", "eager"] if words[0] == "extract" else []
        ran = subprocess.run(
            [sys.executable, "-m", "featcache", *words, "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        printed.append(json.loads(ran.stdout))
    extracted, trained = printed
    assert (extracted["rows"], extracted["feature_dim"]) == ({"train": 12, "test": 12}, {"pre_logits": 25088})
    assert trained["head"] == "mlp:128,64"
    assert (trained["n"]["train"] + trained["n"]["val"], trained["n"]["test"]) == (12, 12)
