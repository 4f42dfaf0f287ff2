"""Fixtures: a workspace with pictures and two runs. They are shared; tests that change one copy it first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report_workspace import Workspace

from featcache.runs.run import Run


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, because threads slow down such small networks on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with pictures and the cache of their pixels."""
    workspace = Workspace.create(tmp_path_factory.mktemp("workspace"))
    workspace.extract_pixels().close()
    return workspace


@pytest.fixture(scope="session")
def runs(workspace: Workspace) -> tuple[Run, Run]:
    """Runs of a trained head and of a solved head."""
    return workspace.train("linear"), workspace.train("ridge")


@pytest.fixture
def run(runs: tuple[Run, Run], tmp_path: Path) -> Run:
    """A copy of the run of the solved head, which a test may damage."""
    return replace(runs[1], folder=Path(shutil.copytree(runs[1].folder, tmp_path / runs[1].folder.name)))
