"""A house with pictures, two runs and their page; shared, so whoever changes one copies it first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report_house import House

from featcache.runs.run import Run


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine threads cost more than they compute here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Pictures and the cache of their pixels."""
    house = House.built(tmp_path_factory.mktemp("house"))
    house.extracted().close()
    return house


@pytest.fixture(scope="session")
def runs(house: House) -> tuple[Run, Run]:
    """A head that is trained, and one that is solved."""
    return house.trained("linear"), house.trained("ridge")


@pytest.fixture
def run(runs: tuple[Run, Run], tmp_path: Path) -> Run:
    """A copy of the solved one, to be damaged."""
    return replace(runs[1], folder=Path(shutil.copytree(runs[1].folder, tmp_path / runs[1].folder.name)))
