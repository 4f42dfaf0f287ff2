"""Every error that featcache raises on purpose.

    FeatcacheError
    ├── UnknownName           a backbone, layer, data set, head, ... that does not exist; offers the nearest
    │   └── UnknownKey        a split that a cache does not hold; a KeyError too
    ├── InvalidOption         a value that cannot be used, or two that contradict each other
    │   └── RunnerUnsuitable  a runner cannot run this network, or computes different numbers
    ├── MissingExtra          an optional package is not installed
    ├── DownloadError         no network, or the downloaded file does not match its digest
    ├── SourceError           the images cannot be listed
    │   └── ImageError        one image cannot be read or decoded
    ├── WeightsError          weights are absent, incomplete or of the wrong shape
    ├── CacheError            a problem with a cache file
    │   ├── CacheNotFound     there is no such cache, or several fit
    │   ├── CacheIncomplete   its extraction has not been finished
    │   ├── CacheDamaged      its bytes are not those that were written
    │   ├── CacheForeign      it is not a featcache file, or one that must not be trusted
    │   │   └── CacheOutdated it was made by an earlier featcache
    │   ├── CacheUnreadable   it cannot be opened or read now: permissions, too many open files, a failing disk
    │   ├── CacheBusy         another process is writing it
    │   └── CacheUnwritable   it cannot be written: the disk is full, read-only or failing
    ├── ExtractionError       features could not be computed or stored
    ├── HeadError             a head cannot be trained on, or applied to, the given data
    ├── ExportError           something cannot be exported, or the exported file gives other results
    ├── SharingError          a run or a cache cannot be pushed or pulled
    │   └── HubError          the Hugging Face Hub refuses a request, or cannot be reached
    │       └── HubNotFound   it has no such repository, or hides it
    └── ReportError           a report cannot be made of the given data, or cannot be written

The message states what was expected and what was found; the hint what to do. The command line prints both, as two
lines on stderr, and ends with exit code 1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


class FeatcacheError(Exception):
    """The base class of all errors that a user can act on.

    Args:
        message: What is wrong: what was expected, and what was found instead.
        hint: What to do about it, if there is something; it is also a note of the exception, shown in tracebacks.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def hint(self) -> str | None:
        """What to do about it; None if there is nothing to advise."""
        return self._hint

    @hint.setter
    def hint(self, hint: str | None) -> None:
        # A hint may be set later: its note replaces the earlier one.
        earlier = f"hint: {getattr(self, '_hint', None)}"
        self.__notes__ = [note for note in getattr(self, "__notes__", ()) if note != earlier]
        self._hint = hint
        if hint:
            self.add_note(f"hint: {hint}")

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (decoding workers); keyword-only arguments do not pickle by themselves. The
        # state carries the notes, and replaces the note that `_rebuild` adds.
        return (_rebuild, (type(self), self.message, self.hint), dict(vars(self)))


def _rebuild(kind: type[FeatcacheError], message: str, hint: str | None) -> FeatcacheError:
    error = kind.__new__(kind)
    FeatcacheError.__init__(error, message, hint=hint)
    return error


def one_line(error: BaseException) -> str:
    """The first line of a library's error, without terminal escape codes; the name of its type where it has no text."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


class UnknownName(FeatcacheError):
    """A name that does not exist; the hint offers the nearest names."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, listed_by: str | None = None) -> None:
        super().__init__(f"unknown {kind} {name!r}", hint=nearest(name, sorted(known), listed_by=listed_by))


def nearest(name: str, known: Sequence[str], *, listed_by: str | None = None) -> str | None:
    """A hint for an unknown name: the nearest known names, or all if there are few."""
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


class UnknownKey(UnknownName, KeyError):
    """A name that a mapping does not have, such as a split that a cache does not hold."""

    # KeyError would show the message in quotes.
    __str__ = Exception.__str__


class InvalidOption(FeatcacheError):
    """A value that cannot be used here, or two that contradict each other."""


class RunnerUnsuitable(InvalidOption):
    """A runner cannot convert, load or run a network, or its numbers differ from those of torch."""

    def __init__(self, runner: str, network: str, reason: str) -> None:
        super().__init__(
            f"{runner} cannot run {network}: {reason}", hint="choose another --runner, or leave it to auto"
        )
        self.reason = reason


class MissingExtra(FeatcacheError):
    """An optional package is needed, and not installed."""

    def __init__(self, what: str, *, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package {package}, which is not installed",
            hint=f"pip install 'featcache[{extra}]'",
        )


class DownloadError(FeatcacheError):
    """A download failed, or the downloaded file does not match its digest."""


class SourceError(FeatcacheError):
    """The images of a data set cannot be listed."""


class ImageError(SourceError):
    """One image cannot be read or decoded. The message names it."""


class WeightsError(FeatcacheError):
    """Weights are absent, incomplete or of the wrong shape."""


class CacheError(FeatcacheError):
    """A problem with a cache file."""


class CacheNotFound(CacheError):
    """There is no such cache, or several caches fit."""


class CacheIncomplete(CacheError):
    """The cache's extraction has not been finished."""


class CacheDamaged(CacheError):
    """The file's bytes are not those that were written."""


class CacheUnreadable(CacheError):
    """The file cannot be opened or read now; its bytes may be correct."""


class CacheForeign(CacheError):
    """The file is not a featcache file, or one that must not be trusted."""


class CacheOutdated(CacheForeign):
    """The file was made by an earlier featcache, in a format that is no longer read.

    Args:
        what: The name of the file, for the message.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} was made by an earlier featcache; extract again")


class CacheBusy(CacheError):
    """Another process is writing this cache."""


class CacheUnwritable(CacheError):
    """The file could not be written: the disk is full, read-only or failing. No file has its final name."""


class ExtractionError(FeatcacheError):
    """Features could not be computed or stored."""


class HeadError(FeatcacheError):
    """A head cannot be trained on, or applied to, the given data."""


class ExportError(FeatcacheError):
    """Something cannot be exported, or the exported file gives other results. No file was written."""


class SharingError(FeatcacheError):
    """A run or a cache cannot be pushed or pulled. Nothing was written under a final name."""


class HubError(SharingError):
    """The Hugging Face Hub refuses a request, lacks what was asked for, or cannot be reached."""


class HubNotFound(HubError):
    """The Hugging Face Hub has no such repository or revision, or hides it: it answers both in the same way."""


class ReportError(FeatcacheError):
    """A report cannot be made of the given data, or cannot be written."""
