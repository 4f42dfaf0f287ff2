"""Which runs there are, and which one a name means. Needs neither NumPy nor torch.

`latest` is the run that was made last; `best` the one with the highest score on val among those that were trained on
the same targets and judged on the same val images as `latest`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import HeadError, UnknownName
from featcache.files import is_tmp

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
VAL_PREDICTIONS_FILE = "predictions_val.npz"
LATEST, BEST = "latest", "best"
# What can be wrong with a file of JSON, or with what it holds.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, zipfile.BadZipFile)


def run_folders(runs_dir: Path) -> list[Path]:
    """The folders of finished runs, by name; none where there is no such folder."""
    return sorted(path.parent for path in runs_dir.glob(f"*/{CONFIG_FILE}") if not is_tmp(path.parent))


def find_run(runs_dir: Path, ref: str | Path) -> Path:
    """The folder of the run that `ref` means: a path, a name in `runs_dir`, a beginning that only one name has,
    `latest` or `best`.

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
    if name == BEST:
        return _best([*folders.values()])
    matches = [name] if name in folders else [one for one in folders if one.startswith(name)]
    if not matches:
        raise UnknownName("run", name, [LATEST, BEST, *folders])
    if len(matches) > 1:
        raise HeadError(f"{len(matches)} runs begin with {name!r}", hint="name one: " + ", ".join(matches))
    return folders[matches[0]]


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A run's score on val, and what has to be equal for two scores to be compared.

    `on`: the targets, the metric, the images' source and which of them are val.
    """

    folder: Path
    on: tuple[object, ...]
    value: float
    loss: float


def _best(folders: Sequence[Path]) -> Path:
    """The best run of those that can be compared with the latest. Raises HeadError where the latest does not say."""
    latest = max(folders, key=_age)
    try:
        on = _judged(latest).on
    except _UNREADABLE as error:
        raise HeadError(
            f"the latest run {latest.name} does not say how it was judged, so none can be called best: {error!r}",
            hint="name a run, or train again",
        ) from error
    rivals = [one for one in map(_judged_or_none, folders) if one is not None and one.on == on]
    return max(rivals, key=lambda one: (one.value, -one.loss, _age(one.folder))).folder


def _judged_or_none(folder: Path) -> _Judged | None:
    try:
        return _judged(folder)
    except _UNREADABLE:
        return None


def _judged(folder: Path) -> _Judged:
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    val = dict(json.loads((folder / METRICS_FILE).read_bytes())["val"])
    loss = float(val.pop("loss"))
    ((metric, value),) = val.items()
    with zipfile.ZipFile(folder / VAL_PREDICTIONS_FILE) as predictions:
        # The checksum of the array of ids, as the archive lists it: nothing is unpacked.
        ids = predictions.getinfo("ids.npy")
    on = (*config["options"]["target"], metric, config["features"]["images"], ids.CRC, ids.file_size)
    return _Judged(folder=folder, on=on, value=float(value), loss=loss)


def _age(folder: Path) -> tuple[str, int]:
    # Two trained within a second of each other are told apart by their files.
    path = folder / CONFIG_FILE
    try:
        return str(json.loads(path.read_bytes()).get("created") or ""), path.stat().st_mtime_ns
    except (OSError, ValueError, AttributeError, RecursionError):
        return "", 0
