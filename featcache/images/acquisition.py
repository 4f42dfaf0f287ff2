"""Get a data set from torchvision: use the copy on disk, else download it completely or not at all.

A set is stored in torchvision's own layout in DIR/<folder> (or directly in DIR, as torchvision users have it). It is
downloaded and unpacked in DIR/<folder>/.download, under a lock, and moved up when it is complete. After an interrupted
attempt only complete archives are used again. torchvision checks the digests, and reads pickles only after that.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import sys
import tarfile
import urllib.error
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from featcache.errors import DownloadError, MissingExtra, SourceError
from featcache.images.source import Report

_STAGING = ".download"
_LOCK = ".lock"
_SILENCE_S = 60.0  # a server that sends nothing for this long is treated as unreachable
_ABSENT = "not found"  # part of torchvision's RuntimeError for a set that is not on disk
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """A set that a class of torchvision.datasets reads and downloads.

    Attributes:
        name: The name used in messages.
        folder: Its own folder in the directory of data sets.
        dataset: The class in torchvision.datasets.
        arguments: By split, the arguments of that class besides `root` and `download`.
        has_digests: Whether the class verifies the digests of all archives, so that an incomplete one is detected.
    """

    name: str
    folder: str
    dataset: str
    arguments: Mapping[str, Mapping[str, Any]]
    has_digests: bool = False


def has_files(own_folder: Path) -> bool:
    """Whether a set's own folder contains anything that was downloaded or put there; the content is not checked."""
    return own_folder.is_dir() and any(path.name not in (_STAGING, _LOCK) for path in own_folder.iterdir())


def acquire(
    data_set: TorchvisionSet, datasets_dir: Path, report: Report | None, *, download: bool = True
) -> dict[str, Any]:
    """Load torchvision's dataset objects, after a download if they are not on disk.

    Args:
        data_set: The set to load.
        datasets_dir: Where data sets are stored.
        report: Receives progress messages.
        download: Whether the set may be downloaded.

    Returns:
        The dataset object of each split.

    Raises:
        DownloadError: The set is not on disk and cannot (or, with `download` false, may not) be downloaded.
        SourceError: It is on disk but cannot be read.
        MissingExtra: Reading it needs another package.
    """
    own_folder = datasets_dir / data_set.folder
    for root in (own_folder, datasets_dir):
        found = _find(data_set, root)
        if found is not None:
            return found
    hint = _how_to_get_it(data_set, own_folder)
    if not download:
        raise DownloadError(f"{data_set.name} is not in {own_folder}, and downloading is off", hint=hint)
    found = _download_once(data_set, own_folder, report)
    if found is None:
        problem = f"torchvision cannot find the files that it has just downloaded into {own_folder}"
        raise DownloadError(f"{data_set.name}: {problem}", hint=hint)
    return found


def _download_once(data_set: TorchvisionSet, root: Path, report: Report | None) -> dict[str, Any] | None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / _LOCK):
            # Another process may have downloaded it while it held the lock.
            found = _find(data_set, root)
            if found is None:
                _download(data_set, root, report)
                found = _find(data_set, root)
            return found
    except (OSError, NotImplementedError) as error:
        hint = _how_to_get_it(data_set, root)
        raise DownloadError(f"{data_set.name}: {root} cannot be used: {error}", hint=hint) from error


def _find(data_set: TorchvisionSet, root: Path) -> dict[str, Any] | None:
    if not root.is_dir():
        return None
    try:
        return _datasets(data_set, root, download=False)
    except FileNotFoundError:
        return None
    except ImportError as error:
        raise _missing(data_set, error) from error
    except Exception as error:  # Whatever a parser raises on a damaged file.
        if isinstance(error, RuntimeError) and _ABSENT in str(error):
            return None
        raise _unreadable(data_set, root, error) from error


def _missing(data_set: TorchvisionSet, error: ImportError) -> MissingExtra:
    return MissingExtra(data_set.name, package=(error.name or "scipy").partition(".")[0], extra="matlab")


def _unreadable(data_set: TorchvisionSet, root: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{data_set.name} in {root} cannot be read: {str(error) or type(error).__name__}",
        hint=f"remove it from {root} to download it again",
    )


def _datasets(data_set: TorchvisionSet, root: Path, *, download: bool) -> dict[str, Any]:
    import torchvision.datasets

    of_kind = getattr(torchvision.datasets, data_set.dataset)
    # torchvision prints some lines to stdout, which is reserved for results.
    with contextlib.redirect_stdout(sys.stderr):
        return {
            split: of_kind(root=str(root), download=download, **arguments)
            for split, arguments in data_set.arguments.items()
        }


def _download(data_set: TorchvisionSet, root: Path, report: Report | None) -> None:
    damaged = has_files(root)
    if report:
        report(f"downloading {data_set.name} into {root}")
    staging = _prepare(data_set, root)
    try:
        with _socket_timeout(), _show_progress_on_terminal_only(report), _extract_safely():
            _datasets(data_set, staging, download=True)
        move_up(staging, root)
    except ImportError as error:
        raise _missing(data_set, error) from error
    except Exception as error:  # Networks, servers, archives and disks: the same message and hint.
        state = f"the content of {root} is incomplete or damaged, and the set " if damaged else ""
        raise DownloadError(f"{data_set.name}: {state}{_cause(error)}", hint=_how_to_get_it(data_set, root)) from error
    finally:
        _keep_only_archives(staging, data_set)


def _cause(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"cannot be downloaded: the server answered {error.code} ({error.reason}) for {error.url}"
    if isinstance(error, urllib.error.URLError | OSError):
        return f"cannot be downloaded: {getattr(error, 'reason', error)}"
    return f"cannot be downloaded: {' '.join(str(error).split()) or type(error).__name__}"


def _how_to_get_it(data_set: TorchvisionSet, root: Path) -> str:
    address = _download_url(data_set)
    return (
        f"{f'download {address} elsewhere and ' if address else ''}put it into {root} in the layout of torchvision's "
        f"{data_set.dataset}, or give the path of a folder or zip of its images (split/class/image); "
        "the set `digits` needs no download"
    )


def _download_url(data_set: TorchvisionSet) -> str | None:
    import torchvision.datasets

    of_kind = getattr(torchvision.datasets, data_set.dataset)
    address = getattr(of_kind, "url", None) or getattr(of_kind, "_URL", None)
    return address if isinstance(address, str) else None


def _prepare(data_set: TorchvisionSet, root: Path) -> Path:
    """The staging folder, containing only archives: those of an earlier attempt, and those put into `root`."""
    staging = root / _STAGING
    _keep_only_archives(staging, data_set)
    staging.mkdir(exist_ok=True)
    for path in root.rglob("*"):
        if path.suffix in _ARCHIVES and path.is_file() and staging not in path.parents:
            _link(path, staging / path.relative_to(root))
    return staging


def _keep_only_archives(staging: Path, data_set: TorchvisionSet) -> None:
    for path in [*sorted(staging.rglob("*"), reverse=True), staging]:
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        # Where torchvision compares a digest, it detects an incomplete archive itself.
        elif not (data_set.has_digests and path.suffix in _ARCHIVES):
            path.unlink(missing_ok=True)


def _link(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    try:
        to.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, to)


def move_up(staging: Path, root: Path) -> None:
    """Move every entry to its place in `root`, folders first: lists of files must not appear before the files."""
    for path in sorted(staging.iterdir(), key=lambda entry: (entry.is_file(), entry.name)):
        target = root / path.name
        if path.is_dir() and target.is_dir():
            move_up(path, target)
        else:
            path.replace(target)


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    # torchvision opens its connections without a timeout.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _show_progress_on_terminal_only(report: Report | None) -> Iterator[None]:
    if report and sys.stderr.isatty():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _extract_safely() -> Iterator[None]:
    # torchvision extracts with the default filter of tarfile, which is none before Python 3.14; before 3.11.4 no filter
    # exists. This one refuses members that would be written outside the folder.
    data_filter = getattr(tarfile, "data_filter", None)
    before = vars(tarfile.TarFile).get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(data_filter) if data_filter else None
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before
