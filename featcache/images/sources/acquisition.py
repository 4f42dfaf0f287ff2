"""Getting hold of a named set through torchvision: found where it lies, else downloaded, never half of it.

A set lies in torchvision's own layout in DIR/<name> (or straight in DIR, as torchvision users have it). It is
downloaded and unpacked in DIR/<name>/.download, under a lock, and moved up when it is whole; what an interrupted
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from featcache.errors import DownloadError, MissingExtra, SourceError
from featcache.images.source import Report
from featcache.images.sources.torchvision_sets import NamedSet

_STAGING = ".download"
_LOCK = ".lock"
_SILENCE_S = 60.0  # a server that says nothing for so long is not there
_ABSENT = ("not found", "not present", "does not exist")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")


def lies_in(own_folder: Path) -> bool:
    """Whether something was downloaded, or put, into a set's own folder; what, is not looked at."""
    return own_folder.is_dir() and any(path.name not in (_STAGING, _LOCK) for path in own_folder.iterdir())


def acquire(named: NamedSet, datasets_dir: Path, report: Report | None, *, download: bool = True) -> dict[str, Any]:
    """torchvision's dataset objects by split.

    Raises DownloadError where the set is absent and cannot (or, with `download` false, may not) be downloaded,
    SourceError where it is there but cannot be read, MissingExtra where reading it needs another package.
    """
    own_folder = datasets_dir / named.name
    for root in (own_folder, datasets_dir):
        found = _find(named, root)
        if found is not None:
            return found
    if not (named.downloads and download):
        why = "and torchvision cannot download it" if download else "and nothing is downloaded here"
        raise DownloadError(f"{named.name} is not in {own_folder}, {why}", hint=_ways_out(named, own_folder))
    found = _download_once(named, own_folder, report)
    if found is None:
        raise DownloadError(
            f"{named.name}: torchvision does not find in {own_folder} what it has just downloaded",
            hint=_ways_out(named, own_folder),
        )
    return found


def _download_once(named: NamedSet, root: Path, report: Report | None) -> dict[str, Any] | None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / _LOCK):
            # Whoever held the lock may have downloaded it.
            found = _find(named, root)
            if found is None:
                _download(named, root, report)
                found = _find(named, root)
            return found
    except (OSError, NotImplementedError) as error:
        raise DownloadError(f"{named.name}: {root} cannot be used: {error}", hint=_ways_out(named, root)) from error


def _find(named: NamedSet, root: Path) -> dict[str, Any] | None:
    if not root.is_dir():
        return None
    try:
        return _datasets(named, root, download=False)
    except (RuntimeError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) or any(word in str(error) for word in _ABSENT):
            return None
        raise _unreadable(named, root, error) from error
    except ImportError as error:
        raise _missing(named, error) from error
    except Exception as error:  # Whatever a parser raises on a damaged file.
        raise _unreadable(named, root, error) from error


def _missing(named: NamedSet, error: ImportError) -> MissingExtra:
    return MissingExtra(named.name, package=(error.name or "scipy").partition(".")[0], extra="matlab")


def _unreadable(named: NamedSet, root: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{named.name} in {root} cannot be read: {str(error) or type(error).__name__}",
        hint=f"remove it from {root}, then it is downloaded again",
    )


def _datasets(named: NamedSet, root: Path, *, download: bool) -> dict[str, Any]:
    import torchvision.datasets

    of_kind = getattr(torchvision.datasets, named.dataset)
    # Some of torchvision's own lines go to stdout, which belongs to results.
    with contextlib.redirect_stdout(sys.stderr):
        return {
            split: of_kind(root=str(root), **arguments, **({"download": download} if named.downloads else {}))
            for split, arguments in named.arguments.items()
        }


def _download(named: NamedSet, root: Path, report: Report | None) -> None:
    damaged = lies_in(root)
    if report:
        report(f"downloading {named.name} into {root}" + ("" if named.digests else " (its digest is not known)"))
    staging = _prepare(named, root)
    try:
        with _patience(), _progress_only_on_a_terminal(report), _unpacking_stays_inside():
            _datasets(named, staging, download=True)
        _move_up(staging, root)
    except ImportError as error:
        raise _missing(named, error) from error
    except Exception as error:  # Networks, servers, archives and disks: the message and the way out are the same.
        state = f"what {root} holds is incomplete or damaged, and the set " if damaged else ""
        raise DownloadError(f"{named.name}: {state}{_cause(error)}", hint=_ways_out(named, root)) from error
    finally:
        _keep_only_archives(staging, named)


def _cause(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"cannot be downloaded: the server answered {error.code} ({error.reason}) for {error.url}"
    if isinstance(error, urllib.error.URLError | OSError):
        return f"cannot be downloaded: {getattr(error, 'reason', error)}"
    return f"cannot be downloaded: {' '.join(str(error).split()) or type(error).__name__}"


def _ways_out(named: NamedSet, root: Path) -> str:
    note = f" ({named.note})" if named.note and not named.downloads else ""
    address = _published_at(named) if named.downloads else None
    return (
        f"{f'download {address} elsewhere and ' if address else ''}put it into {root} as torchvision's "
        f"{named.dataset} lays it out{note}, or give the path of a folder or zip of its images "
        "(split/class/image); the set `digits` needs no download"
    )


def _published_at(named: NamedSet) -> str | None:
    import torchvision.datasets

    of_kind = getattr(torchvision.datasets, named.dataset)
    addresses = (getattr(of_kind, attribute, None) for attribute in ("url", "_URL", "_DATASET_URL"))
    return next((address for address in addresses if isinstance(address, str)), None)


def _prepare(named: NamedSet, root: Path) -> Path:
    """The staging folder with nothing in it but archives: an earlier attempt's, and those put into `root`."""
    staging = root / _STAGING
    _keep_only_archives(staging, named)
    staging.mkdir(exist_ok=True)
    for path in root.rglob("*"):
        if path.suffix in _ARCHIVES and path.is_file() and staging not in path.parents:
            _link(path, staging / path.relative_to(root))
    return staging


def _keep_only_archives(staging: Path, named: NamedSet) -> None:
    for path in [*sorted(staging.rglob("*"), reverse=True), staging]:
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        # With a digest to compare, torchvision itself tells a whole archive from a part of one.
        elif not (named.digests and path.suffix in _ARCHIVES):
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
