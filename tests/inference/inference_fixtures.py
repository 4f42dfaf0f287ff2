"""A house with pictures in it, and two runs. They are shared: whoever changes one copies it first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from trained import House, write_pictures

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
    """Pictures and an empty shelf."""
    root = tmp_path_factory.mktemp("house")
    write_pictures(root / "pictures")
    return House(root=root)


@pytest.fixture(scope="session")
def run(house: House) -> Run:
    """A trained head on two layers of a ResNet."""
    return house.trained("mlp:16", layers=("layer2", "pre_logits"), pool="avg")


@pytest.fixture(scope="session")
def pixel_run(house: House) -> Run:
    """A linear head on pixels."""
    return house.trained("linear", "pixels")
