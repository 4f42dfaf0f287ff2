"""The shelf of runs: which there are, and which one somebody means. Needs neither NumPy nor torch."""

from __future__ import annotations

import json
from pathlib import Path

from featcache.errors import HeadError, UnknownName
from featcache.files import is_tmp

CONFIG_FILE = "config.json"
LATEST = "latest"


def run_folders(runs_dir: Path) -> list[Path]:
    """The folders of finished runs, by name; none where there is no such folder."""
    return sorted(path.parent for path in runs_dir.glob(f"*/{CONFIG_FILE}") if not is_tmp(path.parent))


def find_run(runs_dir: Path, ref: str | Path) -> Path:
    """The folder of the run that `ref` means: a path, a name in `runs_dir`, a beginning that only one name has, or
    `latest`.

    Raises UnknownName with the nearest names, HeadError where several begin like that or there is none at all.
    """
    name, path = str(ref), Path(ref)
    if len(path.parts) > 1 or path.is_absolute() or (path / CONFIG_FILE).is_file():
        return path
    folders = {folder.name: folder for folder in run_folders(runs_dir)}
    if not folders:
        hint = "`featcache train-head` makes one; or pass another --runs-dir"
        raise HeadError(f"there are no runs in {runs_dir}", hint=hint)
    if name == LATEST:
        return max(folders.values(), key=_age)
    matches = [name] if name in folders else [one for one in folders if one.startswith(name)]
    if not matches:
        raise UnknownName("run", name, [LATEST, *folders])
    if len(matches) > 1:
        raise HeadError(f"{len(matches)} runs begin with {name!r}", hint="name one: " + ", ".join(matches))
    return folders[matches[0]]


def _age(folder: Path) -> tuple[str, int]:
    # Two trained within a second of each other are told apart by their files.
    path = folder / CONFIG_FILE
    try:
        return str(json.loads(path.read_bytes()).get("created")), path.stat().st_mtime_ns
    except (OSError, ValueError, AttributeError, RecursionError):
        return "", 0
