"""`featcache export` of a run: one file, checked before it is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CLASSES, answer, complaint, featcache


@pytest.fixture(autouse=True)
def run(cache: Path, here: Path) -> Path:
    """A nearest-mean head on the pixels of `pictures/`, the only run there is."""
    featcache("train-head", "--head", "centroid")
    (folder,) = (here / "runs").iterdir()
    return folder


def test_a_run_becomes_one_file_that_was_checked(run: Path, here: Path) -> None:
    said = answer("export", "latest", "-o", "head.pt2", "--verify-limit", "3")
    assert (said["path"], said["format"], said["classes"]) == ("head.pt2", "pt2", list(CLASSES))
    assert said["bytes"] == (here / "head.pt2").stat().st_size
    assert said["verified"]["images"] == 5
    assert said["verified"]["greatest_difference"] < 1e-5
    stdout = featcache("export", run.name, "-o", "again", "--format", "pt2", "--verify-images", "pictures/train").stdout
    assert "the same first class, probabilities within" in stdout
    assert sorted(path.name for path in here.iterdir() if path.is_file()) == ["again", "head.pt2"]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (("-o", "head"), "head does not say its format", "--format onnx"),
        (("-o", "head.onx"), "unknown format of a run 'onx'", "did you mean onnx?"),
        (("-o", "head.pt2", "--verify-images", "gone.png"), "gone.png: cannot be read", ""),
        (("-o", "/dev/null/head.pt2"), "cannot be written", ""),
    ],
)
def test_what_cannot_be_exported_is_explained(words: tuple[str, ...], error: str, hint: str, here: Path) -> None:
    said, advice = complaint("export", "latest", "--quiet", *words)
    assert error in said
    assert hint in advice
    assert not [path for path in here.iterdir() if path.is_file()]
