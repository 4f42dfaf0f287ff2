"""Commands that compute nothing do not import torch: a hit, `why`, `ls`, the layers of a known backbone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_images

from featcache.backbones.listing import listing
from featcache.extraction.request import Request
from featcache.extraction.run import extract

HEAVY = ("torch", "torchvision", "timm", "transformers", "pytorch_lightning", "torchmetrics", "sklearn", "scipy")
NETWORK = ("--backbone", "squeezenet1_1", "--weights", "random:0", "--image-size", "64", "--dataset", "pictures")
PIXELS = ("--backbone", "pixels", "--dataset", "pictures", "--image-size", "8")
RUN = f"""
import json, sys
from featcache.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, two caches of them, and a stored list of the network's layers."""
    folder = tmp_path_factory.mktemp("here")
    write_images(folder / "pictures", train=3, test=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        extract(Request(dataset="pictures", backbone="squeezenet1_1", weights="random:0", image_size=64))
        extract(Request(dataset="pictures", backbone="pixels", image_size=8))
        listing("squeezenet1_1", data_dir=Path("data"))
    return folder


def run(here: Path, *words: str) -> tuple[str, list[str]]:
    """The output of a command in a new process, and which of HEAVY it has imported."""
    ran = subprocess.run(
        [sys.executable, "-c", RUN, *words], cwd=here, capture_output=True, text=True, check=False, timeout=300
    )
    code, loaded = json.loads(ran.stderr.splitlines()[-1])
    assert code == 0, ran.stderr
    return ran.stdout, loaded


@pytest.mark.parametrize("backbone", [NETWORK, PIXELS], ids=lambda words: words[1])
def test_a_hit_of_extract(backbone: tuple[str, ...], here: Path) -> None:
    stdout, loaded = run(here, "extract", *backbone, "--json")
    result = json.loads(stdout)
    assert (result["computed"], result["reused"], result["complete"]) == (0, 12, True)
    assert loaded == []


def test_why_it_is_a_hit(here: Path) -> None:
    stdout, loaded = run(here, "why", *NETWORK, "--json")
    assert json.loads(stdout)["state"] == "hit"
    assert loaded == []


@pytest.mark.parametrize(
    "words",
    [("ls",), ("info", "pictures-squeezenet1_1"), ("verify", "pictures-squeezenet1_1"), ("backbones", "squeezenet1_1")],
    ids=" ".join,
)
def test_other_commands_that_only_read(words: tuple[str, ...], here: Path) -> None:
    stdout, loaded = run(here, *words)
    assert "squeezenet1_1" in stdout or words[0] in ("backbones", "verify")
    assert loaded == []


def test_images_that_are_missing_are_computed_with_torch(here: Path, tmp_path: Path) -> None:
    """Without this the tests above would prove nothing."""
    stdout, loaded = run(here, "extract", *NETWORK, "--data-dir", str(tmp_path), "--limit", "1", "--json")
    assert json.loads(stdout)["computed"] == 2
    assert "torch" in loaded
