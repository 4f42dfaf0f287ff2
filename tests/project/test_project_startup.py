"""What is quick stays quick: torch is imported by those commands only that compute, and nothing beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

HEAVY = (
    "torch",
    "torchvision",
    "pytorch_lightning",
    "torchmetrics",
    "torch._dynamo",
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow",
    "h5py",
    "numpy",
    "PIL",
    "rich",
)
TORCH = ("torch", "torchvision", "pytorch_lightning", "torchmetrics", "sklearn", "scipy")
# What training by steps does without.
BESIDE_TORCH = ("torchvision", "pytorch_lightning", "torchmetrics", "torch._dynamo", "sklearn", "pandas", "pyarrow")


def heavy_modules_after(statements: dict[str, str], cwd: Path) -> dict[str, set[str]]:
    """Which of HEAVY a fresh interpreter has loaded after each of some statements, which it runs one after another."""
    code = f"""
import json, sys
loaded = {{}}
for name, statement in {statements!r}.items():
    exec(statement)
    loaded[name] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
json.dump(loaded, sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, list[str]] = json.loads(ran.stderr.splitlines()[-1])
    return {name: set(loaded) for name, loaded in found.items()}


def commands(*lines: str) -> dict[str, str]:
    """Statements that run commands of featcache, by their words."""
    return {line: RUN.format(words=line.split()) for line in lines}


RUN = """
from featcache.cli.app import app
try:
    app({words!r})
except SystemExit as end:
    assert not end.code, end.code
"""


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    imports = (
        "import featcache",
        "import featcache.cli.app",
        "import featcache.images, featcache.backbones, featcache.extraction, featcache.rows, featcache.heads",
    )
    words = commands("--help", "extract --help", "train-head --help", "--version", "ls", "backbones")
    loaded = heavy_modules_after({line: line for line in imports} | words, tmp_path)
    assert set().union(*loaded.values()) == set(), loaded


def test_what_there_is_is_listed_without_torch(tmp_path: Path) -> None:
    loaded = heavy_modules_after(commands("datasets", "datasets --json", "backbones --json"), tmp_path)
    assert not set().union(*loaded.values()) & set(TORCH), loaded


def test_public_names_are_loaded_when_they_are_used(tmp_path: Path) -> None:
    names = ("FeatureCache", "train_head", "predict", "read_batches", "sweep")
    loaded = heavy_modules_after({name: f"import featcache; featcache.{name}" for name in names}, tmp_path)
    assert not loaded["predict"] & set(TORCH)
    assert "torch" in loaded["sweep"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits' pixels in data/, and an image."""
    folder = tmp_path_factory.mktemp("digits")
    words = ["extract", "--backbone", "pixels", "--dataset", "digits", "--limit", "200", "--quiet"]
    subprocess.run([sys.executable, "-m", "featcache", *words], cwd=folder, check=True, capture_output=True)
    Image.new("RGB", (8, 8), "grey").save(folder / "image.png")
    return folder


def test_commands_on_caches_never_load_torch(digits: Path) -> None:
    loaded = heavy_modules_after(commands("ls", "ls --json", "info digits", "verify digits", "gc"), digits)
    # A list needs neither NumPy nor h5py.
    assert loaded["ls"] == loaded["ls --json"] == set()
    assert not loaded["gc"] & set(TORCH)


def train(project: Path, *heads: str) -> dict[str, set[str]]:
    """What is loaded after each training of a fresh interpreter, by head."""
    lines = {head: f"train-head --head {head} --quiet{' --max-epochs 1' * (head in STEPS)}" for head in heads}
    loaded = heavy_modules_after(commands(*lines.values()), project)
    return {head: loaded[line] for head, line in lines.items()}


def predict(project: Path, *heads: str) -> set[str]:
    """What a fresh interpreter has loaded after predictions by runs of these heads."""
    runs = [next((project / "runs").glob(f"*-{head.replace(':', '-')}-*")).name for head in heads]
    lines = [f"predict {run} image.png --quiet" for run in runs]
    return set().union(*heavy_modules_after(commands(*lines), project).values())


STEPS = ("linear", "mlp:4")


def test_a_head_is_solved_without_torch_and_predicts_pixels_without_it(digits: Path) -> None:
    # Only the last is scikit-learn's, which brings scipy and pandas along; few features need no scipy.
    loaded = train(digits, "ridge", "centroid", "knn", "logreg")
    assert not loaded["knn"] & {*TORCH, "pandas", "pyarrow"}
    assert not loaded["logreg"] & {"torch", "torchvision", "pytorch_lightning", "torchmetrics"}
    assert not predict(digits, *loaded) & {*TORCH, "h5py"}


def test_training_by_steps_and_its_predictions_import_torch_and_nothing_beside_it(digits: Path) -> None:
    loaded = train(digits, *STEPS)
    assert "torch" in loaded["linear"] and not loaded["mlp:4"] & set(BESIDE_TORCH)
    predicted = predict(digits, *STEPS)
    assert "torch" in predicted and not predicted & {*BESIDE_TORCH, "scipy", "h5py"}
