"""Every test of the command line starts in an empty folder of its own that holds `pictures/`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import PIXELS, featcache, write_pictures

from featcache.cli.terminal import Terminal


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny heads: on a busy machine threads cost a hundred times what they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.delenv("FEATCACHE_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    return tmp_path


@pytest.fixture
def cache(here: Path) -> Path:
    """The cache of the pixels of `pictures/`, in `data/features`."""
    featcache("extract", *PIXELS)
    (path,) = (here / "data" / "features").glob("*.h5")
    return path


@pytest.fixture
def unfinished(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The segments of an extraction that was interrupted after 16 of 48 images."""

    def interrupt(self: Terminal, stage: str, done: int, total: int, **_: object) -> None:
        if stage == "extracting" and done >= 16:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Terminal, "advance", interrupt)
        featcache("extract", *PIXELS, "--batch-size", "8", "--segment-rows", "8", expect=130)
    (manifest,) = (here / "data" / "features").glob("*/manifest.json")
    return manifest.parent


@pytest.fixture
def damaged(cache: Path) -> Path:
    """The cache with its last bytes missing."""
    content = cache.read_bytes()
    cache.write_bytes(content[:-100])
    return cache
