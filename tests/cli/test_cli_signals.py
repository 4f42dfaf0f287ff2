"""Ctrl-C at a process of its own: 130, what is finished stands, and the same command goes on from there."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from command_line import answer, child, write_pictures

from featcache.backbones.runners.compiled import compiler

NETWORK = ("--backbone", "resnet18", "--weights", "random:0", "--image-size", "64", "--dataset", "many")
SLOWLY = ("--batch-size", "8", "--segment-rows", "8", "--device", "cpu")


def wait_for_segment(features: Path, seconds: float = 90) -> Path:
    """The folder of segments, as soon as the first one is published."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for segment in features.glob("*/*.h5"):
            return segment.parent
        time.sleep(0.01)
    raise AssertionError("no segment was published")


def test_an_interrupted_extraction_goes_on_where_it_stopped(here: Path) -> None:
    write_pictures(here / "many", train=80, test=20)
    features = here / "data" / "features"
    command = ("extract", *NETWORK, *SLOWLY, "--json")
    extracting = child(*command, cwd=here)
    segments = wait_for_segment(features)
    extracting.send_signal(signal.SIGINT)
    stdout, stderr = extracting.communicate(timeout=60)
    assert (extracting.returncode, json.loads(stdout)["error"]["exit_code"]) == (130, 130)
    assert "run the same command again to go on" in stderr
    assert stderr.endswith("interrupted\n")
    assert "Traceback" not in stderr
    assert not list(features.glob("*.h5"))
    assert not list(features.glob("*.lock"))

    standing = 8 * len(list(segments.glob("*.h5")))
    assert 8 <= standing < 300
    (entry,) = answer("ls")["caches"]
    assert (entry["state"], entry["rows_done"]) == ("unfinished", standing)

    again = child(*command, cwd=here)
    stdout, stderr = again.communicate(timeout=90)
    output = json.loads(stdout)
    assert (output["computed"], output["reused"]) == (300 - standing, standing)
    assert f"{standing} of 300 images exist already" in stderr
    assert not segments.exists()


@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
def test_while_a_network_is_compiled_ctrl_c_ends_the_command(here: Path) -> None:
    write_pictures(here / "many", train=4, test=4)
    compiling = child("extract", *NETWORK, "--runner", "compiled", "--device", "cpu", "--json", cwd=here)
    assert compiling.stderr is not None
    shown = next(line for line in compiling.stderr if "compiling resnet18" in line)
    # In the middle of it: the compiler is loaded, and nowhere near its end.
    time.sleep(1)
    compiling.send_signal(signal.SIGINT)
    stdout, stderr = compiling.communicate(timeout=60)
    assert compiling.returncode == 130, shown + stderr
    assert json.loads(stdout)["error"]["kind"] == "Interrupted"
    assert stderr.endswith("interrupted\n")
    assert "Traceback" not in stderr
    assert not list((here / "data" / "features").glob("*.h5"))
    assert not list((here / "data" / "features").glob("*.lock"))
