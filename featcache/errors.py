"""Every error that featcache raises on purpose.

    FeatcacheError
    ├── UnknownName           a backbone, layer, data set, head, ... that does not exist; offers the nearest
    ├── InvalidOption         a value that cannot be used, or two that contradict each other
    │   └── RunnerUnsuitable  a runner cannot run this network, or computes other numbers
    ├── MissingExtra          an optional package is not installed
    ├── DownloadError         no network, or what came does not match its digest
    ├── SourceError           the images cannot be listed
    │   └── ImageError        one image cannot be read or decoded
    ├── WeightsError          weights are absent, incomplete or of the wrong shape
    ├── CacheError            anything about a cache file
    │   ├── CacheNotFound     there is none, or several and none was named
    │   ├── CacheIncomplete   its extraction has not been finished
    │   ├── CacheDamaged      its bytes are not those that were written
    │   ├── CacheForeign      it is no featcache file, or one that must not be trusted
    │   │   └── CacheOutdated it was made by an earlier featcache
    │   ├── CacheUnreadable   it cannot be opened or read now: permissions, too many open files, a failing disk
    │   ├── CacheBusy         another process is writing it
    │   └── CacheUnwritable   the disk refused it: full, read-only, failing
    ├── ExtractionError       features could not be computed or stored
    ├── HeadError             a head cannot be trained on, or applied to, what was given
    ├── ExportError           something cannot be exported, or what was exported says something else
    └── ReportError           a report cannot be made of what was given, or cannot be written

A message says what was expected and what was got; the hint says what to do. The command line translates
them once, into two lines on stderr and exit code 1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


class FeatcacheError(Exception):
    """Root of all errors a user can act on.

    `message` says what, expected, got; `hint` says what to do about it (None where there is nothing to say).
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (decoding workers); keyword-only arguments do not pickle by themselves.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[FeatcacheError], message: str, hint: str | None) -> FeatcacheError:
    error = kind.__new__(kind)
    FeatcacheError.__init__(error, message, hint=hint)
    return error


def one_line(error: BaseException) -> str:
    """The first line of a library's error, without terminal escape codes; its type where it has no text."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


class UnknownName(FeatcacheError):
    """A name that is not among the known ones; the hint offers the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, listed_by: str | None = None) -> None:
        super().__init__(f"unknown {kind} {name!r}", hint=nearest(name, sorted(known), listed_by=listed_by))


def nearest(name: str, known: Sequence[str], *, listed_by: str | None = None) -> str | None:
    """A hint for a name that is not among the known ones: the nearest, or all where there are few."""
    lowered = {candidate.lower(): candidate for candidate in reversed(known)}
    close = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=4, cutoff=0.5)]
    if close:
        offer = "did you mean " + ", ".join(close) + "?"
    elif len(known) <= 12:
        offer = "known: " + ", ".join(known) + "."
    else:
        offer = ""
    listed = f"`{listed_by}` lists them all" if listed_by else ""
    return " ".join(part for part in (offer, listed) if part) or None


class InvalidOption(FeatcacheError):
    """A value that cannot be used here, or two that contradict each other."""


class RunnerUnsuitable(InvalidOption):
    """A runner cannot convert, load or run a network, or computes other numbers than torch does."""

    def __init__(self, runner: str, network: str, reason: str) -> None:
        super().__init__(
            f"{runner} cannot run {network}: {reason}", hint="choose another --runner, or leave it to auto"
        )
        self.reason = reason


class MissingExtra(FeatcacheError):
    """An optional package is needed and not installed."""

    def __init__(self, what: str, *, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package {package}, which is not installed",
            hint=f"pip install 'featcache[{extra}]'",
        )


class DownloadError(FeatcacheError):
    """Nothing could be downloaded, or what came does not match its digest."""


class SourceError(FeatcacheError):
    """The images of a data set cannot be listed."""


class ImageError(SourceError):
    """One image cannot be read or decoded. The message names it."""


class WeightsError(FeatcacheError):
    """Weights are absent, incomplete or of the wrong shape."""


class CacheError(FeatcacheError):
    """Anything about a cache file."""


class CacheNotFound(CacheError):
    """There is no such cache, or several fit and none was named."""


class CacheIncomplete(CacheError):
    """The cache's extraction has not been finished."""


class CacheDamaged(CacheError):
    """The file's bytes are not those that were written."""


class CacheUnreadable(CacheError):
    """The file cannot be opened or read now, whatever its bytes are."""


class CacheForeign(CacheError):
    """The file is no featcache file, or one that must not be trusted."""


class CacheOutdated(CacheForeign):
    """The file was made by an earlier featcache, in a format that this one does not read. `what` names it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} was made by an earlier featcache; extract again")


class CacheBusy(CacheError):
    """Somebody else is writing this cache."""


class CacheUnwritable(CacheError):
    """The disk refused to store it: full, read-only, failing. Nothing was published under a final name."""


class ExtractionError(FeatcacheError):
    """Features could not be computed or stored."""


class HeadError(FeatcacheError):
    """A head cannot be trained on, or applied to, what was given."""


class ExportError(FeatcacheError):
    """Something cannot be exported, or the exported file says something else. Nothing was published."""


class ReportError(FeatcacheError):
    """A report cannot be made of what was given, or cannot be written."""
