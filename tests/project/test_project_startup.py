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


def modules_after(statement: str, cwd: Path) -> set[str]:
    """Which of HEAVY a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport json, sys\njson.dump([name for name in {HEAVY!r} if name in sys.modules], sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stderr.splitlines()[-1]))


def command(*words: str) -> str:
    """A statement that runs a command of featcache."""
    return f"from featcache.cli.app import app\ntry:\n    app({list(words)!r})\nexcept SystemExit:\n    pass"


@pytest.mark.parametrize(
    "statement",
    [
        "import featcache",
        "import featcache.cli.app",
        "import featcache.images, featcache.backbones, featcache.extraction, featcache.rows, featcache.heads",
        command("--help"),
        command("extract", "--help"),
        command("train-head", "--help"),
        command("--version"),
        command("ls"),
        command("backbones"),
    ],
)
def test_nothing_heavy_is_loaded(statement: str, tmp_path: Path) -> None:
    assert modules_after(statement, tmp_path) == set()


@pytest.mark.parametrize("words", [("datasets",), ("datasets", "--json"), ("backbones", "--json")], ids=" ".join)
def test_what_there_is_is_listed_without_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    assert not modules_after(command(*words), tmp_path) & set(TORCH)


def test_public_names_are_loaded_when_they_are_used(tmp_path: Path) -> None:
    assert not modules_after("import featcache; featcache.FeatureCache", tmp_path) & set(TORCH)
    assert not modules_after("import featcache; featcache.train_head; featcache.predict", tmp_path) & set(TORCH)
    assert "torch" in modules_after("import featcache; featcache.read_batches; featcache.sweep", tmp_path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one complete cache in data/."""
    folder = tmp_path_factory.mktemp("project")
    words = ["extract", "--backbone", "pixels", "--dataset", "digits", "--limit", "10", "--quiet"]
    subprocess.run([sys.executable, "-m", "featcache", *words], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    "words", [("ls",), ("ls", "--json"), ("info", "digits"), ("verify", "digits"), ("gc",)], ids=" ".join
)
def test_commands_on_caches_never_load_torch(words: tuple[str, ...], project: Path) -> None:
    assert not modules_after(command(*words), project) & set(TORCH)


def test_ls_reads_caches_without_numpy_and_h5py(project: Path) -> None:
    assert modules_after(command("ls"), project) == set()


def name_of_run(project: Path, head: str) -> str:
    """The name of a run of a head on the cache of the project."""
    words = ["train-head", "--head", head, *STEPS.get(head, ()), "--quiet", "--json"]
    ran = subprocess.run([sys.executable, "-m", "featcache", *words], cwd=project, check=True, capture_output=True)
    return Path(json.loads(ran.stdout)["run"]).name


STEPS = dict.fromkeys(("linear", "mlp:4"), ("--max-epochs", "1"))


@pytest.mark.parametrize("head", ["ridge", "centroid", "knn", "logreg"])
def test_a_head_is_solved_without_torch(head: str, digits: Path) -> None:
    loaded = modules_after(command("train-head", "--head", head, "--quiet"), digits)
    assert not loaded & {"torch", "torchvision", "pytorch_lightning", "torchmetrics"}
    # Only one of them is scikit-learn's, which brings scipy and pandas along; few features need no scipy.
    assert head == "logreg" or not loaded & {"sklearn", "scipy", "pandas", "pyarrow"}


@pytest.mark.parametrize("head", ["ridge", "centroid", "knn", "logreg"])
def test_a_solved_run_on_pixels_predicts_without_torch(head: str, digits: Path) -> None:
    loaded = modules_after(command("predict", name_of_run(digits, head), "image.png", "--quiet"), digits)
    assert not loaded & {*TORCH, "h5py"}


@pytest.mark.parametrize("head", ["linear", "mlp:4"])
def test_training_by_steps_imports_torch_and_nothing_beside_it(head: str, digits: Path) -> None:
    loaded = modules_after(command("train-head", "--head", head, *STEPS[head], "--quiet"), digits)
    assert "torch" in loaded and not loaded & set(BESIDE_TORCH)


@pytest.mark.parametrize("head", ["linear", "mlp:4"])
def test_a_run_trained_by_steps_predicts_with_torch_and_nothing_beside_it(head: str, digits: Path) -> None:
    loaded = modules_after(command("predict", name_of_run(digits, head), "image.png", "--quiet"), digits)
    assert "torch" in loaded and not loaded & {*BESIDE_TORCH, "scipy", "h5py"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits' pixels in data/, and an image."""
    folder = tmp_path_factory.mktemp("digits")
    words = ["extract", "--backbone", "pixels", "--dataset", "digits", "--limit", "200", "--quiet"]
    subprocess.run([sys.executable, "-m", "featcache", *words], cwd=folder, check=True, capture_output=True)
    Image.new("RGB", (8, 8), "grey").save(folder / "image.png")
    return folder
