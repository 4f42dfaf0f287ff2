"""Getting hold of a data set through torchvision: found where it lies, else downloaded, never half of it.

A set lies in torchvision's own layout in DIR/<folder> (or straight in DIR, as torchvision users have it). It is
downloaded and unpacked in DIR/<folder>/.download, under a lock, and moved up when it is whole; what an interrupted
attempt leaves there counts for nothing but its whole archives. torchvision checks the digests, and reads pickles
only after that.
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
_SILENCE_S = 60.0  # a server that sends nothing for so long is not there
_ABSENT = "not found"  # what torchvision's RuntimeError says of a set that is not there
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A set that a class of torchvision.datasets reads and downloads.

    Attributes:
        name: what messages call it.
        folder: its own folder among the data sets.
        dataset: the class in torchvision.datasets.
        arguments: by split, what that class is called with besides `root` and `download`.
        has_digests: whether the class is known to compare digests of all archives, so that a part of one shows.
    """

    name: str
    folder: str
    dataset: str
    arguments: Mapping[str, Mapping[str, Any]]
    has_digests: bool = False


def lies_in(own_folder: Path) -> bool:
    """Whether something was downloaded, or put, into a set's own folder; what, is not looked at."""
    return own_folder.is_dir() and any(path.name not in (_STAGING, _LOCK) for path in own_folder.iterdir())


def acquire(wanted: Wanted, datasets_dir: Path, report: Report | None, *, download: bool = True) -> dict[str, Any]:
    """torchvision's dataset objects by split.

    Raises DownloadError where the set is absent and cannot (or, with `download` false, may not) be downloaded,
    SourceError where it is there but cannot be read, MissingExtra where reading it needs another package.
    """
    own_folder = datasets_dir / wanted.folder
    for root in (own_folder, datasets_dir):
        found = _find(wanted, root)
        if found is not None:
            return found
    hint = _ways_out(wanted, own_folder)
    if not download:
        raise DownloadError(f"{wanted.name} is not in {own_folder}, and nothing is downloaded here", hint=hint)
    found = _download_once(wanted, own_folder, report)
    if found is None:
        problem = f"torchvision does not find in {own_folder} what it has just downloaded"
        raise DownloadError(f"{wanted.name}: {problem}", hint=hint)
    return found


def _download_once(wanted: Wanted, root: Path, report: Report | None) -> dict[str, Any] | None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / _LOCK):
            # Another process may have downloaded it while it held the lock.
            found = _find(wanted, root)
            if found is None:
                _download(wanted, root, report)
                found = _find(wanted, root)
            return found
    except (OSError, NotImplementedError) as error:
        raise DownloadError(f"{wanted.name}: {root} cannot be used: {error}", hint=_ways_out(wanted, root)) from error


def _find(wanted: Wanted, root: Path) -> dict[str, Any] | None:
    if not root.is_dir():
        return None
    try:
        return _datasets(wanted, root, download=False)
    except FileNotFoundError:
        return None
    except ImportError as error:
        raise _missing(wanted, error) from error
    except Exception as error:  # Whatever a parser raises on a damaged file.
        if isinstance(error, RuntimeError) and _ABSENT in str(error):
            return None
        raise _unreadable(wanted, root, error) from error


def _missing(wanted: Wanted, error: ImportError) -> MissingExtra:
    return MissingExtra(wanted.name, package=(error.name or "scipy").partition(".")[0], extra="matlab")


def _unreadable(wanted: Wanted, root: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{wanted.name} in {root} cannot be read: {str(error) or type(error).__name__}",
        hint=f"remove it from {root}, then it is downloaded again",
    )


def _datasets(wanted: Wanted, root: Path, *, download: bool) -> dict[str, Any]:
    import torchvision.datasets

    of_kind = getattr(torchvision.datasets, wanted.dataset)
    # Some of torchvision's own lines go to stdout, which belongs to results.
    with contextlib.redirect_stdout(sys.stderr):
        return {
            split: of_kind(root=str(root), download=download, **arguments)
            for split, arguments in wanted.arguments.items()
        }


def _download(wanted: Wanted, root: Path, report: Report | None) -> None:
    damaged = lies_in(root)
    if report:
        report(f"downloading {wanted.name} into {root}")
    staging = _prepare(wanted, root)
    try:
        with _patience(), _progress_only_on_a_terminal(report), _unpacking_stays_inside():
            _datasets(wanted, staging, download=True)
        _move_up(staging, root)
    except ImportError as error:
        raise _missing(wanted, error) from error
    except Exception as error:  # Networks, servers, archives and disks: the message and the way out are the same.
        state = f"what {root} holds is incomplete or damaged, and the set " if damaged else ""
        raise DownloadError(f"{wanted.name}: {state}{_cause(error)}", hint=_ways_out(wanted, root)) from error
    finally:
        _keep_only_archives(staging, wanted)


def _cause(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"cannot be downloaded: the server answered {error.code} ({error.reason}) for {error.url}"
    if isinstance(error, urllib.error.URLError | OSError):
        return f"cannot be downloaded: {getattr(error, 'reason', error)}"
    return f"cannot be downloaded: {' '.join(str(error).split()) or type(error).__name__}"


def _ways_out(wanted: Wanted, root: Path) -> str:
    address = _published_at(wanted)
    return (
        f"{f'download {address} elsewhere and ' if address else ''}put it into {root} as torchvision's "
        f"{wanted.dataset} lays it out, or give the path of a folder or zip of its images (split/class/image); "
        "the set `digits` needs no download"
    )


def _published_at(wanted: Wanted) -> str | None:
    import torchvision.datasets

    of_kind = getattr(torchvision.datasets, wanted.dataset)
    address = getattr(of_kind, "url", None) or getattr(of_kind, "_URL", None)
    return address if isinstance(address, str) else None


def _prepare(wanted: Wanted, root: Path) -> Path:
    """The staging folder with nothing in it but archives: an earlier attempt's, and those put into `root`."""
    staging = root / _STAGING
    _keep_only_archives(staging, wanted)
    staging.mkdir(exist_ok=True)
    for path in root.rglob("*"):
        if path.suffix in _ARCHIVES and path.is_file() and staging not in path.parents:
            _link(path, staging / path.relative_to(root))
    return staging


def _keep_only_archives(staging: Path, wanted: Wanted) -> None:
    for path in [*sorted(staging.rglob("*"), reverse=True), staging]:
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        # With a digest to compare, torchvision itself tells a whole archive from a part of one.
        elif not (wanted.has_digests and path.suffix in _ARCHIVES):
            path.unlink(missing_ok=True)


def _link(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    try:
        to.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, to)


def _move_up(staging: Path, root: Path) -> None:
    """Every entry to its place in `root`, folders first: lists of files must not appear before the files."""
    for path in sorted(staging.iterdir(), key=lambda entry: (entry.is_file(), entry.name)):
        target = root / path.name
        if path.is_dir() and target.is_dir():
            _move_up(path, target)
        else:
            path.replace(target)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    # torchvision opens its connections without a timeout.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _progress_only_on_a_terminal(report: Report | None) -> Iterator[None]:
    if report and sys.stderr.isatty():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _unpacking_stays_inside() -> Iterator[None]:
    # torchvision unpacks with whatever filter tarfile has: before Python 3.14 none, before 3.11.4 there is none.
    careful = getattr(tarfile, "data_filter", None)
    before = vars(tarfile.TarFile).get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(careful) if careful else None
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before
