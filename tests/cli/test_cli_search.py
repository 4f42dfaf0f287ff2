"""`featcache search`: the cached images that are most similar to an image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import answer, complaint, featcache, picture

from featcache.errors import CacheIncomplete


def test_an_image_of_the_cache_is_named_by_its_id(cache: Path) -> None:
    lines = featcache("search", cache.stem, "train/dog/00.png", "-k", "3").stdout.splitlines()
    assert lines[0] == "train/dog/00.png (in the cache)"
    assert lines[1].split() == ["similarity", "image", "label", "split"]
    assert len(lines[3:6]) == 3 and all(line.split()[-1] in ("train", "test") for line in lines[3:6])
    assert "train/dog/00.png" not in {line.split()[1] for line in lines[3:6]}
    assert f"of 48 images of {cache.stem}, by pixels" in lines
    assert lines[-1] == f"next: featcache info {cache.stem}"


def test_json_has_the_neighbours_of_each_image(cache: Path, here: Path) -> None:
    (here / "new.png").write_bytes(picture(1000))
    output = answer("search", "pictures", "new.png", "test/eel/00.png", "--split", "train", "--count", "2")
    assert (output["cache"], output["layers"], output["rows"]) == (cache.stem, ["pixels"], 36)
    new, known = output["images"]
    assert (new["path"], new["cached"], known["path"], known["cached"]) == ("new.png", False, "test/eel/00.png", True)
    for image in output["images"]:
        assert len(image["neighbours"]) == 2
        near = image["neighbours"][0]
        assert near["split"] == "train" and near["label"] == near["id"].split("/")[1]
        assert near["similarity"] >= image["neighbours"][1]["similarity"]


def test_ids_are_read_from_stdin(cache: Path, here: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "featcache", "search", cache.stem, "-", "-k", "1"],
        input="train/cat/00.png\ntrain/cat/01.png\n",
        cwd=here,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line for line in ran.stdout.splitlines() if line.endswith("(in the cache)")] == [
        "train/cat/00.png (in the cache)",
        "train/cat/01.png (in the cache)",
    ]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (("pictres", "x.png"), "no cache in data/features is called 'pictres'", "pictures-pixels"),
        (("pictures", "x.png"), "x.png: there is no such file, and no image of pictures-pixels", "train/cat/00.png"),
        (("pictures", "test/cat/00.png", "--split", "tst"), "unknown split 'tst'", "test"),
        (("pictures", "test/cat/00.png", "--layer", "pixel"), "unknown layer 'pixel'", "pixels"),
        (("pictures", "empty"), "no images found", ""),
    ],
)
def test_what_cannot_be_searched_is_explained(
    cache: Path, here: Path, words: tuple[str, ...], error: str, hint: str
) -> None:
    (here / "empty").mkdir()
    output, advice = complaint("search", *words)
    assert error in output
    assert hint in advice


def test_an_unfinished_cache_is_not_searched(unfinished: Path) -> None:
    assert answer("search", unfinished.name, "train/cat/00.png", expect=1)["error"]["kind"] == CacheIncomplete.__name__
