"""A workspace with pictures, and two runs. They are shared: a test that changes a run must copy it first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from trained import Workspace, write_pictures

from featcache.runs.run import Run


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine threads cost more than they compute here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A folder with pictures and no caches."""
    root = tmp_path_factory.mktemp("workspace")
    write_pictures(root / "pictures")
    return Workspace(root=root)


@pytest.fixture(scope="session")
def run(workspace: Workspace) -> Run:
    """A trained head on two layers of a ResNet."""
    return workspace.train("mlp:16", layers=("layer2", "pre_logits"), pool="avg")


@pytest.fixture(scope="session")
def pixel_run(workspace: Workspace) -> Run:
    """A linear head on pixels."""
    return workspace.train("linear", "pixels")
