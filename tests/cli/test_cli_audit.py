"""`featcache audit`: what was planted among pictures is named, in the table, as JSON and in files."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import PIXELS, answer, complaint, featcache
from PIL import Image, ImageEnhance, ImageOps

from featcache.analysis.records import HEADER, KINDS


@pytest.fixture
def leaky(here: Path) -> Path:
    """The cache of `pictures/`, two of whose test images stand in train too, one of them under another class."""
    pictures = here / "pictures"
    shutil.copy(pictures / "test" / "cat" / "00.png", pictures / "train" / "cat" / "98.png")
    shutil.copy(pictures / "test" / "dog" / "01.png", pictures / "train" / "eel" / "99.png")
    featcache("extract", *PIXELS)
    (path,) = (here / "data" / "features").glob("*.h5")
    return path


def test_leaks_are_named_with_the_contradicting_label_first(leaky: Path) -> None:
    output = answer("audit", leaky)
    assert [section["kind"] for section in output["sections"]] == list(KINDS)
    assert output["rows"] == {"train": 38, "test": 12}
    leaks = output["sections"][0]["findings"]
    assert [[sample["id"] for sample in leak["samples"]] for leak in leaks] == [
        ["train/eel/99.png", "test/dog/01.png"],
        ["train/cat/98.png", "test/cat/00.png"],
    ]
    assert leaks[0]["reason"] == "the same bytes: 2 images in train and test, labelled dog and eel"


def test_the_table_shows_the_worst_of_each_kind(leaky: Path) -> None:
    lines = featcache("audit", leaky, "--top", "1").stdout.splitlines()
    assert lines[0].endswith(f" findings in {leaky.stem}; 2 checks withheld")
    assert lines[-1] == f"next: featcache audit {leaky.stem} --output audit.csv"
    leaks = lines.index("Leaks: the same image in several splits: 2")
    assert lines[leaks + 1].startswith("  the same bytes, the same decoded pixels, ")
    table = next(number for number in range(leaks, len(lines)) if lines[number].startswith("score  what "))
    assert lines[table + 2].startswith(" 1.00  the same bytes: 2 images in train and test, labelled dog and eel")
    assert lines[table + 3] == "and 1 more; --top shows more of them"
    clear = " ".join(lines[next(number for number, line in enumerate(lines) if line.startswith("nothing found: ")) :])
    assert "Images without a label" in clear
    # A check without findings takes no lines of its own.
    assert not any(line.startswith("Images without a label") for line in lines)


def test_all_findings_go_into_a_file(leaky: Path, here: Path) -> None:
    output = answer("audit", leaky, "--output", "findings.json")
    assert json.loads((here / "findings.json").read_text()) | {"seconds": 0} == output | {"seconds": 0}
    stdout = featcache("audit", leaky, "-o", "tables/findings.csv").stdout
    assert stdout.splitlines()[-2:] == [
        "all findings are in tables/findings.csv",
        f"next: featcache train-head {leaky.stem}",
    ]
    with (here / "tables" / "findings.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == HEADER
    assert [row[:6] for row in rows[:2]] == [
        ["leak", "1", "1.0000", "train/eel/99.png", "train", "eel"],
        ["leak", "1", "1.0000", "test/dog/01.png", "test", "dog"],
    ]


def test_changed_copies_of_real_images_are_leaks(cifar_zip: Path, vgg_weights: Path, here: Path) -> None:
    changes: dict[str, Callable[[Image.Image], Image.Image]] = {
        "mirrored": ImageOps.mirror,
        "brighter": lambda one: ImageEnhance.Brightness(one).enhance(1.2),
    }
    copies: dict[str, str] = {}
    with zipfile.ZipFile(cifar_zip) as real:
        for number in range(1, 31):
            for split in ("train", "test"):
                folder = here / "cifar" / split / ("cat", "ship")[number % 2]
                folder.mkdir(parents=True, exist_ok=True)
                content = real.read(f"cifar10/{split}/{folder.name}/{number:04d}.jpg")
                (folder / f"{number}.jpg").write_bytes(content)
            how = ("mirrored", "brighter")[number // 3 % 2]
            if number % 3 == 0:
                copy = here / "cifar" / "train" / folder.name / f"{how}-{number}.jpg"
                changes[how](Image.open(io.BytesIO(content))).save(copy, quality=70)
                copies[f"train/{folder.name}/{copy.name}"] = f"test/{folder.name}/{number}.jpg"
    network = ("-b", "vgg16", "--weights", vgg_weights, "--image-size", "32", "--pool", "avg")
    extracted = answer("extract", "-d", "cifar", *network, "--runner", "eager")
    leaks = [
        {one["id"] for one in leak["samples"]}
        for section in answer("audit", extracted["cache"])["sections"]
        if section["kind"] in ("leak", "look_alike")
        for leak in section["findings"]
    ]
    assert sum({copy, origin} in leaks for copy, origin in copies.items()) >= 0.9 * len(copies)
    assert len(leaks) <= len(copies)


def test_images_that_are_gone_are_a_warning(leaky: Path, here: Path) -> None:
    assert "images were looked at" in " ".join(featcache("audit", leaky).stdout.split())
    shutil.rmtree(here / "pictures")
    result = featcache("audit", leaky)
    assert "no such file or folder; pixels are not compared, so only the same bytes are certain" in result.stderr
    assert "the images were not compared" in " ".join(result.stdout.split())
    assert featcache("audit", leaky, "--no-pixels").stderr == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--layer", "fc"), "does not have layer fc: it has layer pixels"),
        (("--output", "findings.xls"), "expected a .json or .csv file, got 'findings.xls'"),
        (("--device", "tpu9"), "tpu9"),
    ],
)
def test_what_cannot_be_done_is_an_error(words: tuple[str, ...], expected: str, cache: Path) -> None:
    assert expected in complaint("audit", cache, *words)[0]


def test_an_unfinished_cache_is_refused(unfinished: Path) -> None:
    assert "is not finished" in complaint("audit", unfinished.stem)[0]
