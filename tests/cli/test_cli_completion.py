"""What the shell is offered at the tab key: names, at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from command_line import featcache

from featcache.backbones.zoos.names import short_names
from featcache.backbones.zoos.torchvision_facts import TORCHVISION
from featcache.cli import completion

# Each line is completed as in a new process of the shell; one interpreter does it for all lines.
COMPLETE = """
import contextlib, io, json, os, sys
from featcache.cli.app import main
offered = {}
for line in json.load(sys.stdin):
    os.environ |= {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main()
    offered[line] = printed.getvalue().split()
assert not {"torch", "torchvision", "sklearn"} & set(sys.modules), "heavy"
json.dump(offered, sys.stdout)
"""


def complete(here: Path, *lines: str) -> dict[str, list[str]]:
    """What bash is offered at the end of each line, without torch."""
    ran = subprocess.run(
        [sys.executable, "-c", COMPLETE],
        cwd=here,
        env=os.environ | {"_FEATCACHE_COMPLETE": "complete_bash"},
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    offered: dict[str, list[str]] = json.loads(ran.stdout)
    return offered


def test_the_names_of_backbones_are_those_that_there_are() -> None:
    assert completion.backbones("") == sorted([*TORCHVISION, *(short.name for short in short_names()), "pixels"])


def test_names_are_offered_where_they_belong(here: Path) -> None:
    expected = {
        "featcache extract -b inc": ["inception_v3"],
        "featcache extract --dataset cif": ["cifar10", "cifar100"],
        "featcache train-head --head logr": ["logreg"],
        "featcache train-head --recipe mlp-l": ["mlp-l1", "mlp-l2", "mlp-leaky"],
        "featcache backbones vgg11": ["vgg11", "vgg11_bn"],
        "featcache extract -d ./pic": ["./pictures/"],
        "featcache pull ./pic": ["./pictures/"],
        "featcache push latest ./pic": ["./pictures/"],
        "featcache ver": ["verify"],
        "featcache predict lat": [],
    }
    assert complete(here, *expected) == expected


def test_caches_and_runs_are_offered_from_their_folders(cache: Path, here: Path) -> None:
    featcache("train-head", "--head", "centroid")
    (run,) = (here / "runs").iterdir()
    expected = {
        "featcache info pict": [cache.stem],
        "featcache train-head pict": [cache.stem],
        "featcache predict ": [run.name, "best", "latest"],
        "featcache export ": [run.name, "best", "latest", cache.stem],
        "featcache push ": [run.name, "best", "latest", cache.stem],
        "featcache info --data-dir elsewhere pict": [],
        "featcache predict runs/": [f"runs/{run.name}/"],
    }
    assert complete(here, *expected) == expected
