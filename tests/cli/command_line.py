"""Calls of featcache in this process or in a process of its own, and pictures to call it on."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer import testing
from typer.testing import CliRunner, Result

from featcache.cli.app import app

# `CliRunner` builds all commands anew for each call, which takes longer than most commands.
vars(testing)["_get_command"] = functools.cache(vars(testing)["_get_command"])

CLASSES = ("cat", "dog", "eel")
PIXELS = ("--backbone", "pixels", "--image-size", "8", "--dataset", "pictures")


def featcache(*words: str | Path, expect: int = 0) -> Result:
    """Runs a command in this process and checks its exit code."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="featcache")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expect, f"exit {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def answer(*words: str | Path, expect: int = 0) -> dict[str, Any]:
    """What a command says with `--json`: the whole of stdout, one object in one line."""
    stdout = featcache(*words, "--json", expect=expect).stdout
    assert stdout.count("\n") == 1
    assert stdout.endswith("}\n")
    output = json.loads(stdout)
    assert isinstance(output, dict)
    return output


def complaint(*words: str | Path, expect: int = 1) -> tuple[str, str]:
    """The two lines of a command that fails: what follows `error:` and `hint:` ("" where there is none)."""
    result = featcache(*words, expect=expect)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    assert len(errors) == 1, result.stderr
    assert len(hints) <= 1, result.stderr
    assert "Traceback" not in result.stderr
    return errors[0], "".join(hints)


def child(*words: str | Path, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """Starts a command in a process of its own; stdout and stderr are pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "featcache", *map(str, words)],
        cwd=cwd,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def picture(seed: int, side: int = 12) -> bytes:
    """An encoded image, different for every seed; its class shows in its brightness."""
    pixels = np.random.default_rng(seed).integers(0, 60, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels + np.uint8(60 * (seed % len(CLASSES)))).save(file, "PNG")
    return file.getvalue()


def write_pictures(root: Path, train: int = 12, test: int = 4) -> Path:
    """`split/class/NN.png`: `train` and `test` images per class, all different."""
    seed = 0
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            for name in CLASSES:
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{number:02d}.png").write_bytes(picture(seed))
                seed += 1
    return root
