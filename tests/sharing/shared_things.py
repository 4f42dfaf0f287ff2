"""A run and caches to share, made once; each test gets folders of its own to push to and to pull into."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import featcache
from featcache.cache.catalog import list_caches
from featcache.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder with `data/` and `runs/`: the digits' pixels packed and in segments, and a ridge head on them."""

    root: Path
    run: Run
    packed: Path
    segments: Path

    def push(self, what: Any, target: str | Path, **options: Any) -> Any:
        return featcache.push(
            what, target, data_dir=self.root / "data", runs_dir=self.root / "runs", progress=False, **options
        )

    @property
    def each(self) -> dict[str, Any]:
        """The things that can be shared, by a word."""
        return {"run": self.run, "packed": self.packed, "segments": self.segments}


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("sharing")
    options: dict[str, Any] = {"data_dir": root / "data", "progress": False}
    with featcache.extract("digits", "pixels", limit=60, **options) as packed:
        run = featcache.train_head(packed, "ridge", runs_dir=root / "runs", progress=False)
    featcache.extract("digits", "pixels", limit=40, segment_rows=30, pack=False, **options).close()
    (segments,) = [one.path for one in list_caches(root / "data" / "features") if one.path.is_dir()]
    Image.new("RGB", (8, 8), "gray").save(root / "image.png")
    return Workspace(root=root, run=run, packed=packed.path, segments=segments)


def pull(source: str | Path, here: Path) -> Any:
    """Pull into `here/data` and `here/runs`."""
    return featcache.pull(source, data_dir=here / "data", runs_dir=here / "runs", progress=False)


def everything_under(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder, by relative path; locks are left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def change_manifest(folder: Path, **changes: Any) -> None:
    """Change fields of featcache.json."""
    path = folder / "featcache.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def rename_file(folder: Path, before: str, after: str) -> None:
    """Change the name of one file in featcache.json."""
    files = json.loads((folder / "featcache.json").read_bytes())["files"]
    change_manifest(folder, files=[one | {"name": after} if one["name"] == before else one for one in files])


@pytest.fixture
def shared_run(workspace: Workspace, tmp_path: Path) -> Path:
    """A folder to which the run was pushed."""
    workspace.push(workspace.run, tmp_path / "shared")
    return tmp_path / "shared"


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the machine's own login and of its cache of the Hub is used."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield
