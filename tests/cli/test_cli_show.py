"""`featcache show`: images with their labels, as a file or in a terminal, before and after the transform."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import CLASSES, answer, complaint, featcache
from PIL import Image


def test_a_grid_is_drawn_into_a_file(here: Path) -> None:
    stdout = featcache("show", "pictures", "--limit", "6", "--columns", "3", "--side", "40", "-o", "a/grid.png").stdout
    assert stdout == "6 images of pictures in a/grid.png\nnext: featcache extract --dataset pictures\n"
    with Image.open(here / "a" / "grid.png") as grid:
        assert grid.size == (3 * 48 + 8, 2 * 66 + 8)


def test_the_images_are_balanced_and_always_the_same() -> None:
    output = answer("show", "pictures", "--limit", "6", "--split", "test")
    assert [image["label"] for image in output["images"]] == sorted([*CLASSES] * 2)
    assert {image["split"] for image in output["images"]} == {"test"}
    assert (output["output"], output["transform"]) == (None, None)
    assert output == answer("show", "pictures", "--limit", "6", "--split", "test")
    assert output != answer("show", "pictures", "--limit", "6", "--split", "test", "--select-seed", "3")


def test_beside_each_image_stands_what_the_backbone_sees(here: Path) -> None:
    output = answer("show", "pictures", "--limit", "3", "--image-size", "8", "--side", "24", "-o", "grid.png")
    assert output["transform"]["image_size"] == 8
    with Image.open(here / "grid.png") as grid:
        assert grid.size == (3 * (2 * 24 + 2 + 8) + 8, 24 + 18 + 8 + 8)


def test_the_transform_of_a_network_needs_no_weights() -> None:
    output = answer("show", "pictures", "--limit", "1", "-b", "inception_v3", "--resize", "crop")
    assert (output["transform"]["image_size"], output["transform"]["resize_size"]) == (299, 342)


def test_an_image_that_cannot_be_read_is_a_warning_and_left_empty(here: Path) -> None:
    for broken in sorted((here / "pictures" / "train" / "dog").iterdir()):
        broken.write_bytes(b"no image")
    result = featcache("show", "pictures", "--limit", "3", "-o", "grid.png")
    assert result.stderr.startswith("warning: train/dog/")
    assert np.asarray(Image.open(here / "grid.png")).any()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "stdout is no terminal to draw on"),
        (("-o", "grid.jpg"), "expected a .png file, got 'grid.jpg'"),
        (("-o", "grid.png", "--split", "val"), "has no split 'val'"),
        (("-o", "grid.png", "-b", "vgg17"), "unknown backbone 'vgg17'"),
        (("-o", "grid.png", "-b", "pixels"), "pixels needs a size"),
    ],
)
def test_what_cannot_be_shown_is_an_error(words: tuple[str, ...], expected: str, here: Path) -> None:
    assert expected in complaint("show", "pictures", *words)[0]
    assert not list(here.glob("grid.*"))


def test_a_terminal_shows_the_images_in_colours(here: Path) -> None:
    primary, secondary = pty.openpty()
    shown = subprocess.Popen(
        [sys.executable, "-m", "featcache", "show", "pictures", "--limit", "3"],
        stdout=secondary,
        stderr=subprocess.PIPE,
        cwd=here,
        env=os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "60"},
    )
    os.close(secondary)
    seen = b""
    while chunk := _read(primary):
        seen += chunk
    assert shown.wait() == 0
    text = seen.decode()
    assert "\x1b[38;2;" in text
    assert "▀" in text
    assert all(name in text for name in CLASSES)


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 65536)
    except OSError:
        # Linux says so at the end of a terminal.
        return b""
