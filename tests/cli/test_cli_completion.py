"""What the shell is offered at the tab key: names, at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import featcache

from featcache.backbones.zoos.names import short_names
from featcache.backbones.zoos.torchvision_facts import TORCHVISION
from featcache.cli import completion


def complete(line: str, here: Path, code: str = "") -> list[str]:
    """What bash is offered at the end of a line."""
    words = line.split(" ")
    ran = subprocess.run(
        [sys.executable, "-c", f"from featcache.cli.app import main\ntry:\n    main()\nfinally:\n    {code or 'pass'}"],
        cwd=here,
        env=os.environ
        | {"_FEATCACHE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    return ran.stdout.split()


def test_the_names_of_backbones_are_those_that_there_are() -> None:
    assert completion.backbones("") == sorted([*TORCHVISION, *(short.name for short in short_names()), "pixels"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("featcache extract -b inc", ["inception_v3"]),
        ("featcache extract --dataset cif", ["cifar10", "cifar100"]),
        ("featcache train-head --head logr", ["logreg"]),
        ("featcache train-head --recipe mlp-l", ["mlp-l1", "mlp-l2", "mlp-leaky"]),
        ("featcache backbones vgg11", ["vgg11", "vgg11_bn"]),
        ("featcache extract -d ./pic", ["./pictures/"]),
        ("featcache pull ./pic", ["./pictures/"]),
        ("featcache push latest ./pic", ["./pictures/"]),
        ("featcache ver", ["verify"]),
        ("featcache predict lat", []),
    ],
)
def test_names_are_offered_where_they_belong(line: str, expected: list[str], here: Path) -> None:
    assert complete(line, here) == expected


def test_caches_and_runs_are_offered_from_their_folders(cache: Path, here: Path) -> None:
    featcache("train-head", "--head", "centroid")
    (run,) = (here / "runs").iterdir()
    assert complete("featcache info pict", here) == [cache.stem]
    assert complete("featcache train-head pict", here) == [cache.stem]
    assert complete("featcache predict ", here) == [run.name, "best", "latest"]
    assert complete("featcache export ", here) == [run.name, "best", "latest", cache.stem]
    assert complete("featcache push ", here) == [run.name, "best", "latest", cache.stem]
    assert complete("featcache info --data-dir elsewhere pict", here) == []
    assert complete("featcache predict runs/", here) == [f"runs/{run.name}/"]


@pytest.mark.parametrize("line", ["featcache extract -b vgg", "featcache extract -d c", "featcache predict l"])
def test_torch_is_never_loaded_for_a_name(line: str, here: Path) -> None:
    code = "import sys; assert not {'torch', 'torchvision', 'sklearn'} & set(sys.modules), 'heavy'"
    complete(line, here, code)
