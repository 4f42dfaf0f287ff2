"""Whatever has a name: where it is misspelt, the error offers the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import PIXELS, answer, complaint

EXTRACT = ("extract", "--dataset", "pictures", "--backbone", "resnet18", "--weights", "random:0", "--image-size", "32")
HEAD = ("train-head", "--max-epochs", "1")


def case_name(value: str | tuple[str, ...]) -> str:
    """The name of a case."""
    return value if isinstance(value, str) else " ".join(value)


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (("extract", "--dataset", "pictures", "--backbone", "resnet81"), "resnet18"),
        (("extract", "--dataset", "pictures", "--backbone", "timm:resnet81"), "timm:resnet18"),
        (("backbones", "inceptionv3"), "inception_v3"),
        (("backbones", "--like", "inceptionv3"), "inception_v3"),
        ((*EXTRACT, "--layer", "lyaer3"), "layer3"),
        (("extract", "--dataset", "pictures", "--weights", "IMAGNET1K_V1"), "IMAGENET1K_V1"),
        (("extract", "--dataset", "cifar01", "--backbone", "pixels"), "cifar10"),
        (("extract", *PIXELS, "--split", "tset"), "test"),
        (("extract", "--dataset", "pictuers", "--backbone", "pixels"), "pictures"),
        (("extract", "--dataset", "./pictuers", "--backbone", "pixels"), "pictures"),
        (("show", "mnits", "--output", "grid.png"), "mnist"),
        (("benchmark", "qiuck"), "quick"),
        (("reproduce", "mlp-wdie"), "mlp-wide"),
    ],
    ids=case_name,
)
def test_a_name_that_needs_no_cache(words: tuple[str, ...], nearest: str) -> None:
    # Choices that the command line knows are its own errors.
    assert nearest in complaint(*words, expect=2 if "tset" in words else 1)[1]


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ((*HEAD, "--head", "lgoreg"), "logreg"),
        ((*HEAD, "--recipe", "mlp-droput"), "mlp-dropout"),
        (("sweep", "--grid", "wieght_decay=0,1"), "weight_decay"),
        (("sweep", "--grid", "head=linaer"), "linear"),
        (("sweep", "--grid", "optimizer=admaw"), "adamw"),
    ],
    ids=case_name,
)
def test_a_name_of_a_head(words: tuple[str, ...], nearest: str, cache: Path) -> None:
    assert nearest in complaint(*words, expect=2)[1]


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        (("--activation", "leaky_rleu"), "leaky_relu"),
        (("--optimizer", "admaw"), "adamw"),
        (("--schedule", "cosin"), "cosine"),
        (("--class-weights", "balancd"), "balanced"),
    ],
    ids=case_name,
)
def test_a_choice_of_a_head(words: tuple[str, ...], choice: str, cache: Path) -> None:
    assert choice in complaint(*HEAD, *words, expect=2)[1]


@pytest.mark.parametrize("command", ["info", "verify", "rm", "train-head", "sweep", "audit"])
def test_a_cache(command: str, cache: Path) -> None:
    assert cache.stem in complaint(command, cache.stem.replace("pixels", "pixles"))[1]


def test_a_layer_or_a_split_of_what_is_exported(cache: Path) -> None:
    words = ("export", cache.stem, "--format", "npz", "--output", "out.npz")
    assert "pixels" in complaint(*words, "--layer", "pixel")[1]
    assert "train" in complaint(*words, "--split", "tarin")[1]
    assert "parquet" in complaint(*words[:2], "--format", "parqet", "--output", "out")[1]


def test_a_run(cache: Path) -> None:
    run = Path(answer("train-head", "--head", "centroid")["run"]).name
    misspelt = run.replace("centroid", "centriod")
    assert run in complaint("predict", misspelt, "pictures/test")[1]
    assert run in complaint("report", misspelt, "--output", "page.html")[1]
    assert "latest" in complaint("export", "latets", "--format", "onnx", "--output", "head.onnx")[1]
    assert "onnx" in complaint("export", run, "--format", "onxn", "--output", "head.onnx")[1]


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (("extrat",), "extract"),
        (("trainhead",), "train-head"),
        (("extract", "--backbon", "vgg16"), "--backbone"),
        (("train-head", "--optimiser", "adam"), "--optimizer"),
        (("extract", "--pool", "avgg"), "avg"),
        (("extract", "--precision", "fp61"), "fp16"),
        (("report", "--map", "tnse"), "tsne"),
    ],
    ids=case_name,
)
def test_a_command_an_option_or_a_choice(words: tuple[str, ...], nearest: str) -> None:
    assert nearest in complaint(*words, expect=2)[1]
