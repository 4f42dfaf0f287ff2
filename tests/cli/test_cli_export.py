"""`featcache export`: a run as one file that was checked, a cache's rows in another format."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest
from command_line import CLASSES, answer, complaint, featcache

from featcache.cache.reader import FeatureCache


@pytest.fixture(autouse=True)
def run(cache: Path, here: Path) -> Path:
    """A nearest-mean head on the pixels of `pictures/`, the only run there is."""
    featcache("train-head", "--head", "centroid")
    (folder,) = (here / "runs").iterdir()
    return folder


def test_a_run_becomes_one_file_that_was_checked(run: Path, here: Path) -> None:
    output = answer("export", "latest", "-o", "head.pt2", "--verify-limit", "3")
    assert (output["path"], output["format"], output["classes"]) == ("head.pt2", "pt2", list(CLASSES))
    assert output["bytes"] == (here / "head.pt2").stat().st_size
    assert output["verified"]["images"] == 5
    assert output["verified"]["greatest_difference"] < 1e-5
    stdout = featcache("export", run.name, "-o", "again", "--format", "pt2", "--verify-images", "pictures/train").stdout
    assert "the same predicted class, probabilities within" in stdout
    assert sorted(path.name for path in here.iterdir() if path.is_file()) == ["again", "head.pt2"]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (("-o", "head"), "head does not say its format", "--format, one of onnx"),
        (("-o", "head.onx"), "unknown format 'onx'", "did you mean onnx?"),
        (("-o", "head.pt2", "--verify-images", "gone.png"), "gone.png: cannot be read", ""),
        (("-o", "/dev/null/head.pt2"), "cannot be written", ""),
    ],
)
def test_what_cannot_be_exported_is_explained(words: tuple[str, ...], error: str, hint: str, here: Path) -> None:
    output, advice = complaint("export", "latest", "--quiet", *words)
    assert error in output
    assert hint in advice
    assert not [path for path in here.iterdir() if path.is_file()]


def test_a_better_run_on_val_is_mentioned(run: Path) -> None:
    featcache("train-head", "--head", "linear", "--lr", "1e-6", "--max-epochs", "1")
    for words in (("predict", "latest", "pictures/test"), ("export", "latest", "-o", "head.pt2")):
        result = featcache(*words, "--json", "--quiet")
        assert json.loads(result.stdout)["better_run"] == str(Path("runs") / run.name)
        assert "warning: latest is 2" in result.stderr and f"{run.name} has" in result.stderr
        assert "`best` names it" in result.stderr
    for name in ("best", run.name):
        result = featcache("predict", name, "pictures/test", "--json")
        assert json.loads(result.stdout)["better_run"] is None and "warning" not in result.stderr


def test_how_near_numbers_are_is_called_relative(cache: Path, here: Path) -> None:
    with FeatureCache.open(cache) as opened:
        ids = [sample for split in opened.splits for sample in opened[split].ids]
    lines = [f"{sample},{number % 7 * 1e12}" for number, sample in enumerate(ids)]
    (here / "t.csv").write_text("\n".join(["id,mass", *lines]))
    featcache("label", cache, "t.csv")
    featcache("train-head", "--head", "ridge", "--target", "mass")
    stdout = " ".join(featcache("export", "latest", "-o", "head.pt2").stdout.split())
    assert "of featcache's, relative to the largest number of their column" in stdout


def test_a_run_becomes_a_module_to_train(here: Path) -> None:
    output = answer("export", "latest", "-o", "model", "--format", "torch", "--verify-limit", "2")
    assert (output["format"], output["better_run"]) == ("torch", None)
    files = sorted(path.name for path in (here / "model").iterdir())
    assert files == ["config.json", "model.py", "model.safetensors"]
    error, hint = complaint("export", "latest", "-o", "model", "--format", "torch")
    assert "model exists already" in error and "-o NEW_FOLDER" in hint


def test_the_atlas_of_a_run_has_its_predictions_and_that_of_a_cache_none(run: Path, cache: Path, here: Path) -> None:
    output = answer("export", "latest", "-o", "run.parquet", "--format", "atlas", "--split", "test")
    assert (output["run"], output["cache"], output["rows"]) == (str(Path("runs") / run.name), cache.stem, {"test": 12})
    assert output["map"] == "tsne"
    assert "prediction" in pyarrow.parquet.read_schema(here / "run.parquet").names
    output = answer("export", cache.stem, "-o", "cache.parquet", "--format", "atlas", "--map", "pca", "--images")
    assert (output["run"], output["map"]) == (None, "pca")
    names = pyarrow.parquet.read_schema(here / "cache.parquet").names
    assert names == ["id", "split", "x", "y", "neighbors", "image", "label"]


# --- of a cache --------------------------------------------------------------------------------------------


def test_a_cache_is_written_in_another_format(cache: Path, here: Path) -> None:
    output = answer("export", cache.stem, "-o", "rows.npz", "--split", "test")
    assert (output["format"], output["cache"], output["rows"]) == ("npz", cache.stem, {"test": 12})
    assert output["feature_dim"] == {"pixels": 192}
    assert output["bytes"] == (here / "rows.npz").stat().st_size
    stdout = featcache("export", "pictures", "-o", "points", "--format", "projector", "--images").stdout
    assert "rows      36 train, 12 test" in stdout
    assert sorted(path.name for path in (here / "points").iterdir()) == [
        "metadata.tsv",
        "projector_config.pbtxt",
        "sprite.png",
        "tensors.tsv",
    ]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (("pictures", "-o", "rows.npzz"), "unknown format 'npzz'", "npz"),
        (("pictres", "-o", "rows.npz"), "no cache in data/features is called 'pictres'", "pictures-pixels"),
        (("pictures", "-o", "pictures", "--format", "npy"), "pictures exists already", "-o NEW_FOLDER"),
        (("pictures", "-o", "rows.csv", "--split", "tst"), "unknown split 'tst'", "test"),
    ],
)
def test_what_cannot_be_written_is_explained(words: tuple[str, ...], error: str, hint: str, here: Path) -> None:
    output, advice = complaint("export", *words)
    assert error in output
    assert hint in advice
    assert not [path for path in here.iterdir() if path.is_file()]


@pytest.mark.parametrize(
    "words",
    [
        ("pictures", "-o", "rows.npz", "--verify-limit", "3"),
        # Its default, and given all the same.
        ("pictures", "-o", "rows.npz", "--verify-limit", "32"),
        ("pictures", "-o", "rows.npz", "--device", "auto"),
        ("latest", "-o", "head.pt2", "--split", "test"),
        ("latest", "--format", "onnx"),
        ("latest", "-o", "head.pt2", "--weights", "a=1", "--weights", "b"),
    ],
)
def test_options_of_the_other_kind_are_wrong_usage(words: tuple[str, ...]) -> None:
    assert featcache("export", *words, expect=2).stdout == ""
