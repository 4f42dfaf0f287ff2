"""`featcache predict`: a table, one JSON object, or comma-separated values."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import CLASSES, answer, complaint, featcache

TEST = Path("pictures/test")


@pytest.fixture(autouse=True)
def run(cache: Path, here: Path) -> Path:
    """A nearest-mean head on the pixels of `pictures/`, the only run there is."""
    featcache("train-head", "--head", "centroid")
    (folder,) = (here / "runs").iterdir()
    return folder


def test_json_has_the_images_in_the_order_in_which_they_were_named(run: Path) -> None:
    names = [f"pictures/test/{name}/00.png" for name in ("eel", "cat", "dog")]
    output = answer("predict", run.name, *names)
    assert output["run"] == str(Path("runs") / run.name)
    assert [image["path"] for image in output["images"]] == names
    for image in output["images"]:
        assert set(image) == {"path", "label", "probability", "top"}
        assert image["top"][0] == {"label": image["label"], "probability": image["probability"]}
        assert {guess["label"] for guess in image["top"]} == set(CLASSES)


def test_a_person_sees_a_table() -> None:
    header, rule, *lines = featcache("predict", "latest", TEST, "--neighbours", "1").stdout.splitlines()
    assert header.split() == ["image", "class", "probability", "other", "classes", "most", "similar", "train", "images"]
    assert set(rule) == {"-", " "}
    assert [line.split()[0] for line in lines] == [str(path) for path in sorted(TEST.glob("*/*.png"))]
    assert all("%" in line and "(" in line for line in lines)


def test_with_one_class_an_image_there_is_nothing_more_to_show() -> None:
    header = featcache("predict", "latest", TEST, "--top", "1").stdout.splitlines()[0]
    assert header.split() == ["image", "class", "probability"]


def test_csv_is_read_back(run: Path) -> None:
    output = answer("predict", run, TEST, "--top", "2", "--neighbours", "1")["images"]
    stdout = featcache("predict", run, TEST, "--csv", "--top", "2", "--neighbours", "1").stdout
    rows = list(csv.DictReader(io.StringIO(stdout)))
    assert [row["path"] for row in rows] == [image["path"] for image in output]
    for row, image in zip(rows, output, strict=True):
        assert (row["label"], float(row["probability"])) == (image["label"], image["probability"])
        assert row["label_2"] == image["top"][1]["label"]
        near = image["neighbours"][0]
        assert (row["neighbour_1"], row["neighbour_1_label"]) == (near["id"], near["label"])
        assert float(row["neighbour_1_similarity"]) == near["similarity"]


def test_paths_are_read_from_stdin(here: Path) -> None:
    names = [str(path) for path in sorted(TEST.glob("dog/*.png"))]
    ran = subprocess.run(
        [sys.executable, "-m", "featcache", "predict", "latest", "-", "--csv"],
        input="\n".join(names) + "\n\n",
        cwd=here,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [row["path"] for row in csv.DictReader(io.StringIO(ran.stdout))] == names


def test_an_image_is_read_from_stdin(here: Path) -> None:
    path = next(TEST.glob("dog/*.png"))
    ran = subprocess.run(
        [sys.executable, "-m", "featcache", "predict", "latest", "-", "--json"],
        input=path.read_bytes(),
        cwd=here,
        capture_output=True,
        check=True,
    )
    (from_stdin,), (from_file,) = json.loads(ran.stdout)["images"], answer("predict", "latest", path)["images"]
    assert (from_stdin["path"], from_file["path"]) == ("image-0", str(path))
    assert from_stdin["top"] == from_file["top"]


def test_what_is_no_image_is_named_and_can_be_left_out(here: Path) -> None:
    (here / "note.txt").write_text("no image")
    error, hint = complaint("predict", "latest", "note.txt", TEST)
    assert error.startswith("note.txt: not an image")
    assert "JPEG" in hint
    output = answer("predict", "latest", "note.txt", TEST, "--on-error", "skip")
    assert len(output["images"]) == 12
    assert output["skipped"][0]["path"] == "note.txt"
    assert (
        "warning: left out: note.txt" in featcache("predict", "latest", "note.txt", TEST, "--on-error", "skip").stderr
    )


def test_a_run_that_is_not_there_offers_the_nearest(run: Path) -> None:
    error, hint = complaint("predict", "lastest", TEST)
    assert (error, hint) == ("unknown run 'lastest'", "did you mean latest, best?")
    error, hint = complaint("predict", f"{run.name}x", TEST)
    assert run.name in hint
    error, _ = complaint("predict", "runs/nothing", TEST)
    assert "no run in runs/nothing" in error


def test_neighbours_without_the_cache_are_an_error_with_a_hint(cache: Path) -> None:
    cache.unlink()
    assert len(answer("predict", "latest", TEST)["images"]) == 12
    error, hint = complaint("predict", "latest", TEST, "--neighbours", "2")
    assert str(cache) in error
    assert "leave out --neighbours" in hint


@pytest.mark.parametrize("words", [("--csv", "--json"), ("--top", "0"), ("--batch-size", "many")])
def test_wrong_usage_ends_with_2(words: tuple[str, ...]) -> None:
    error, hint = featcache("predict", "latest", TEST, *words, expect=2).stderr.splitlines()
    assert words[0] in error and hint.startswith("hint: ")
