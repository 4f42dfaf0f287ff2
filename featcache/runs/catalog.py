"""Lists the runs in a folder and finds one by name. Needs neither NumPy nor torch.

`latest` is the newest run. `best` is the run with the highest score on val, among those with the same targets and the
same val images as `latest`.
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
# What reading a damaged JSON file, or an unexpected content, raises.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, zipfile.BadZipFile)


def run_folders(runs_dir: Path) -> list[Path]:
    """The folders of finished runs, sorted by name; an empty list if `runs_dir` does not exist."""
    return sorted(path.parent for path in runs_dir.glob(f"*/{CONFIG_FILE}") if not is_tmp(path.parent))


def find_run(runs_dir: Path, ref: str | Path) -> Path:
    """Find the folder of a run.

    Args:
        runs_dir: The folder that holds runs.
        ref: A path, the name of a run in `runs_dir` or the beginning of exactly one name, `latest` or `best`.

    Returns:
        The run's folder; a path is returned as it is.

    Raises:
        UnknownName: No run has that name; the error lists the nearest names.
        HeadError: Several names begin with `ref`, or there are no runs.
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


def is_run(runs_dir: Path, ref: str | Path) -> bool:
    """Whether `find_run` finds a run by this name or path."""
    try:
        return (find_run(runs_dir, ref) / CONFIG_FILE).is_file()
    except (HeadError, UnknownName):
        return False


@dataclass(frozen=True, kw_only=True)
class _ValScore:
    """A run's score on val. Scores can be compared only if their `on` is equal.

    `on`: the targets, the metric, the source of the images, and the size and checksum of the list of val images.
    """

    folder: Path
    on: tuple[object, ...]
    metric: str
    value: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class BetterRun:
    """A run with a higher score on val than another one.

    Attributes:
        folder: Its folder.
        metric: The metric of both scores: accuracy, map or r2.
        value: Its score.
        compared: The score of the other run.
    """

    folder: Path
    metric: str
    value: float
    compared: float


def better_run(runs_dir: Path, folder: Path) -> BetterRun | None:
    """The run with the highest score on val, if it is higher than that of the run in `folder`.

    Only runs with the same targets and the same val images are compared, as for `best`.

    Args:
        runs_dir: The folder that holds runs.
        folder: The folder of one of them.

    Returns:
        The better run; None if there is none, or if `folder` has no readable score.
    """
    own = _val_score_or_none(folder)
    if own is None:
        return None
    best = _best_of(run_folders(runs_dir), own)
    if best.value <= own.value:
        return None
    return BetterRun(folder=best.folder, metric=own.metric, value=best.value, compared=own.value)


def _best(folders: Sequence[Path]) -> Path:
    """The best of the runs that can be compared with the latest. Raises HeadError if the latest has no val score."""
    latest = max(folders, key=_age)
    try:
        return _best_of(folders, _read_val_score(latest)).folder
    except _UNREADABLE as error:
        raise HeadError(
            f"cannot find the best run: the latest run {latest.name} has no readable val score: {error!r}",
            hint="give the name of a run, or train again",
        ) from error


def _best_of(folders: Sequence[Path], score: _ValScore) -> _ValScore:
    """The best score among those that can be compared with `score`."""
    rivals = [one for one in map(_val_score_or_none, folders) if one is not None and one.on == score.on]
    return max([score, *rivals], key=lambda one: (one.value, -one.loss, _age(one.folder)))


def _val_score_or_none(folder: Path) -> _ValScore | None:
    try:
        return _read_val_score(folder)
    except _UNREADABLE:
        return None


def _read_val_score(folder: Path) -> _ValScore:
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    val = dict(json.loads((folder / METRICS_FILE).read_bytes())["val"])
    loss = float(val.pop("loss"))
    ((metric, value),) = val.items()
    with zipfile.ZipFile(folder / VAL_PREDICTIONS_FILE) as predictions:
        # The archive lists the checksum of the array of ids, so nothing is unpacked.
        ids = predictions.getinfo("ids.npy")
    on = (*config["options"]["target"], metric, config["features"]["images"], ids.CRC, ids.file_size)
    return _ValScore(folder=folder, on=on, metric=metric, value=float(value), loss=loss)


def _age(folder: Path) -> tuple[str, int]:
    # For runs of the same second, the file's modification time decides.
    path = folder / CONFIG_FILE
    try:
        return str(json.loads(path.read_bytes()).get("created") or ""), path.stat().st_mtime_ns
    except (OSError, ValueError, AttributeError, RecursionError):
        return "", 0
