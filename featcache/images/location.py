"""Where images are: the images argument is parsed here, once, into a location that opens itself.

    location = locate("~/photos")                    # also a Path, an array, a list of paths, a torch dataset, ...
    location.kind, location.place, location.origin   # "folder", "<home>/photos", "<home>/photos"
    with location.opened(datasets_dir=Path("data/datasets")) as source:
        ...

An origin names the images wherever the command runs: `locate(location.origin)` is the same location. Text may carry
options behind a question mark, as in `photos.csv?label=species`.

Each file of `images.sources` registers the kinds that it opens; a new kind is a new file.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import os
import pkgutil
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode

from featcache.columns import ColumnOptions
from featcache.errors import FeatcacheError, SourceError, UnknownName
from featcache.images.layout import EXPECTED
from featcache.images.source import ImageSource, Report, has_archive_suffix

SPLIT_BY_FOLDER: Final = "split-by-folder"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What opening images needs besides their location.

    Args:
        datasets_dir: Where data sets lie and are downloaded to.
        report: Takes progress in words, one line a call.
        download: Whether a set that is not there may be downloaded; else it is a DownloadError.
        columns: Which columns become targets; None: the label alone is read.
    """

    datasets_dir: Path
    report: Report | None = None
    download: bool = True
    columns: ColumnOptions | None = None


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where images are, and as what they are read.

    Args:
        kind: One of the registered kinds.
        place: An absolute path, or a name.
        options: How it is read: (name, value), each perhaps several times.
        prefix: What stands before the place in text.
        given: The object that holds the images, where no text names them.
    """

    kind: str
    place: str
    options: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    given: Any = field(default=None, compare=False, repr=False)

    @property
    def origin(self) -> str:
        """The text that names the images in a cache."""
        asked = f"?{urlencode(self.options, quote_via=quote, safe='/*,:')}" if self.options else ""
        return f"{self.prefix}{self.place}{asked}"

    @property
    def is_object(self) -> bool:
        """Whether the images were handed over from Python, so that no text can open them again."""
        return self.given is not None

    def option(self, name: str) -> str | None:
        """The value of an option; None where it is not given."""
        return next((value for key, value in self.options if key == name), None)

    def values(self, name: str) -> tuple[str, ...]:
        """All values of an option."""
        return tuple(value for key, value in self.options if key == name)

    def open(
        self,
        *,
        datasets_dir: Path,
        report: Report | None = None,
        download: bool = True,
        columns: ColumnOptions | None = None,
    ) -> ImageSource:
        """List the images; the arguments are those of `Opening`.

        Raises:
            SourceError: They cannot be listed, or in several ways.
            DownloadError, MissingExtra: They are not here, or reading them needs another package.
        """
        opening = Opening(datasets_dir=datasets_dir, report=report, download=download, columns=columns)
        kind = _REGISTERED.get(self.kind) or _kinds()[self.kind]
        source = kind.open(self, opening)
        if self.kind != OPEN:
            source.origin = self.origin
        return source

    @contextmanager
    def opened(self, **opening: Any) -> Iterator[ImageSource]:
        """The same, closed at the end; a source that was given open stays open."""
        source = self.open(**opening)
        try:
            yield source
        finally:
            if self.kind != OPEN:
                source.close()


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """The images argument, and what is known of it before anything is read.

    Args:
        value: As it was given.
        labels, classes: Of the images of an object, where these are given beside it.
        split: Which split the images of an object are.
    """

    value: Any
    labels: Any = None
    classes: Sequence[str] | None = None
    split: str = "train"

    @property
    def is_text(self) -> bool:
        """Whether it is text or a path, not an object that holds images."""
        return isinstance(self.value, str | os.PathLike)

    @functools.cached_property
    def text(self) -> str:
        """It as text without its options; empty for an object."""
        return self._parts[0]

    @functools.cached_property
    def options(self) -> tuple[tuple[str, str], ...]:
        """What stands behind its question mark."""
        return self._parts[1]

    @functools.cached_property
    def _parts(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        whole = os.fspath(self.value) if self.is_text else ""
        place, mark, asked = whole.rpartition("?")
        # A question mark may belong to a file's name, also behind hf: and the like, or to a pattern.
        names = (whole, whole.partition(":")[2])
        if not mark or "=" not in asked or any(name and _status(_expanded(name)) is not None for name in names):
            return whole, ()
        return place, tuple(sorted(parse_qsl(asked, keep_blank_values=True)))

    @functools.cached_property
    def path(self) -> Path:
        """It as an absolute path, without links."""
        return absolute(self.text)

    @functools.cached_property
    def status(self) -> os.stat_result | None:
        """Of the file or folder; None where there is none. Raises SourceError where it cannot be looked at."""
        return _status(self.path)

    @property
    def is_folder(self) -> bool:
        """Whether it is the path of a folder."""
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is the path of a regular file."""
        return self.status is not None and stat.S_ISREG(self.status.st_mode)

    @property
    def looks_like_path(self) -> bool:
        """Whether a path is meant, not a name, although nothing is there."""
        separators = "/" + os.sep
        return (
            isinstance(self.value, os.PathLike)
            or self.text.startswith(("~", "."))
            or any(one in self.text for one in separators)
            or has_archive_suffix(self.text)
        )

    def at(self, kind: str, place: str | None = None, *, prefix: str = "", options: Sequence[str] = ()) -> Location:
        """It as a location. `options`: those that the kind knows. Raises SourceError for another one."""
        unknown = sorted({name for name, _ in self.options} - set(options))
        if unknown:
            known = f"options of this kind ({kind}) are {', '.join(options)}" if options else f"a {kind} has no options"
            raise SourceError(f"{self.value}: no option {unknown[0]!r}", hint=known)
        return Location(
            kind=kind, place=str(self.path) if place is None else place, options=self.options, prefix=prefix
        )


def absolute(text: str) -> Path:
    """A path, perhaps with `~`, as an absolute one without links. Raises SourceError for what can be none."""
    try:
        return _expanded(text).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"{text!r} is no path: {error}") from error


def _expanded(text: str) -> Path:
    # Not Path.expanduser: a Path has lost the dot of ./~ana, which is a folder here.
    return Path(os.path.expanduser(text))  # noqa: PTH111


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # A name with a NUL in it is nowhere.
        return None
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened: {error.strerror or error}") from error


# --- kinds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of source.

    Args:
        name: What it is called.
        rank: Kinds of a lower rank are asked first.
        locate: The location that is meant, where it is one of this kind.
        open: Lists its images.
    """

    name: str
    rank: int
    locate: Callable[[Given], Location | None]
    open: Callable[[Location, Opening], ImageSource]


# The origin of an object.
_OBJECT = re.compile(r"(array|paths|dataset|splits):[\w.-]+")


def refuse_columns(location: Location, opening: Opening) -> None:
    """Raises SourceError where columns are asked of images that have none but the label."""
    asked = opening.columns
    if asked is not None and (asked.columns or asked.kinds):
        raise SourceError(
            f"{location.origin} has no columns but the label",
            hint="leave --column and --kind out, or add columns of a table with `featcache label`",
        )


#: The kind of a source that is open already.
OPEN: Final = "open source"
#: The kind of a path with nothing behind it.
ABSENT: Final = "absent path"
_REGISTERED: dict[str, Kind] = {}


def register(
    name: str, *, rank: int, locate: Callable[[Given], Location | None]
) -> Callable[[Callable[[Location, Opening], ImageSource]], Callable[[Location, Opening], ImageSource]]:
    """Makes a function that opens locations of one kind known to `locate`."""

    def note(opens: Callable[[Location, Opening], ImageSource]) -> Callable[[Location, Opening], ImageSource]:
        _REGISTERED[name] = Kind(name=name, rank=rank, locate=locate, open=opens)
        return opens

    return note


@functools.cache
def _kinds() -> Mapping[str, Kind]:
    """All kinds by name, in the order in which they are asked."""
    package = importlib.import_module("featcache.images.sources")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return {kind.name: kind for kind in sorted(_REGISTERED.values(), key=lambda kind: kind.rank)}


@register(OPEN, rank=0, locate=lambda given: _given_open(given))
def _open_given(location: Location, opening: Opening) -> ImageSource:
    source: ImageSource = location.given
    return source


def _given_open(given: Given) -> Location | None:
    if not isinstance(given.value, ImageSource):
        return None
    return Location(kind=OPEN, place=given.value.origin, given=given.value)


def _absent(given: Given) -> Location | None:
    """A path with nothing behind it still names the images of a cache; opening it says that they are gone."""
    if not given.is_text or given.status is not None or not given.looks_like_path:
        return None
    return Location(kind=ABSENT, place=str(given.path), options=given.options)


@register(ABSENT, rank=99, locate=_absent)
def _open_absent(location: Location, opening: Opening) -> ImageSource:
    raise _nowhere(Given(value=Path(location.place)))


def object_location(kind: str, given: Given, content: Iterable[bytes], name: str = "") -> Location:
    """The location of an object, named by a digest of what tells its content."""
    hashed = hashlib.sha256()
    for number, part in enumerate(content):
        hashed.update(b"\0" + part if number else part)
    digest = hashed.hexdigest()[:12]
    return Location(kind=kind, place=f"{name}-{digest}" if name else digest, prefix=f"{kind}:", given=given)


def locate(
    images: Any, *, labels: Any = None, classes: Sequence[str] | None = None, split_by_folder: Sequence[str] = ()
) -> Location:
    """Where images are, from text or an object; nothing is listed yet.

    Args:
        images: The name of a data set; a path with or without `~`; `hf:`, `wds:` and `torchvision:` names; a list of
            paths, an array (N, H, W[, C]) uint8, a torch dataset, an ImageSource; a mapping of splits to any of these.
        labels: Of an array or of paths: N class names or numbers, or a mapping of column names to N values.
        classes: The names of labels that are numbers.
        split_by_folder: FOLDER=SPLIT for folders that are splits, or `none`.

    Raises:
        UnknownName: A name that there is not; the nearest are offered.
        SourceError: An object that holds no images. A path with nothing behind it is a location; opening it raises.
    """
    if isinstance(images, Location):
        return images
    given = Given(value=images, labels=labels, classes=classes)
    if given.is_text and not given.text:
        raise _unknown_name(given, [])
    found = locate_given(given)
    if not found.is_object and (labels is not None or classes is not None):
        raise SourceError(
            f"{found.origin} brings its own labels",
            hint="labels and classes belong to arrays and lists of paths; `featcache label` adds columns of a table",
        )
    extra = tuple((SPLIT_BY_FOLDER, one) for one in split_by_folder)
    if extra and found.kind not in ("folder", "archive", ABSENT):
        raise SourceError(f"{found.origin} has no folders that could be splits", hint="leave --split-by-folder out")
    # In the order in which the origin is parsed again.
    return replace(found, options=tuple(sorted(found.options + extra)))


def locate_given(given: Given) -> Location:
    """The location of the first kind that knows the argument. Raises what `locate` raises."""
    named = _name_of_a_set(given)
    if named is not None:
        return named
    found = next((place for kind in _kinds().values() if (place := kind.locate(given)) is not None), None)
    if found is None:
        raise _nowhere(given)
    return found


def _name_of_a_set(given: Given) -> Location | None:
    """The location of a set that has a name; it is asked for before the other kinds are imported."""
    if not (isinstance(given.value, str) and given.value.isidentifier()):
        return None
    importlib.import_module("featcache.images.sources.torchvision_sets")
    return _REGISTERED["named set"].locate(given)


def _nowhere(given: Given) -> FeatcacheError:
    if not given.is_text:
        return SourceError(
            f"expected images, got {type(given.value).__name__}",
            hint="give a name, a path, a list of paths, an array (N, H, W, C) uint8, a torch dataset, or a mapping of "
            "train, val and test to these",
        )
    if _OBJECT.fullmatch(given.text):
        return SourceError(
            f"{given.text} are images that were handed over from Python, and are not kept",
            hint="hand them over again: featcache.extract(images, ...)",
        )
    if given.status is not None:
        return SourceError(f"{given.text}: neither a folder nor a regular file", hint=EXPECTED)
    beside = _names_beside(given.path)
    if given.looks_like_path:
        near = difflib.get_close_matches(given.path.name, beside, n=1)
        offer = f"did you mean {Path(given.text).with_name(near[0])}? " if near else ""
        return SourceError(f"{given.text}: no such file or folder", hint=offer + EXPECTED)
    return _unknown_name(given, beside)


def _unknown_name(given: Given, beside: Sequence[str]) -> UnknownName:
    from featcache.images.sources.torchvision_sets import dataset_names

    return UnknownName("data set", given.text, [*dataset_names(), *beside], listed_by="featcache datasets")


def _names_beside(path: Path) -> list[str]:
    """The names of the folders and archives where `path` was looked for."""
    try:
        return sorted(one.name for one in path.parent.iterdir() if one.is_dir() or has_archive_suffix(one.name))
    except (OSError, ValueError):
        return []


def open_images(
    images: Any = "cifar10",
    *,
    datasets_dir: str | Path = "data/datasets",
    labels: Any = None,
    classes: Sequence[str] | None = None,
    split_by_folder: Sequence[str] = (),
    columns: ColumnOptions | None = None,
    report: Report | None = None,
    download: bool = True,
) -> ImageSource:
    """List images: `locate` and `Location.open` in one. The caller closes the source.

    Args:
        images, labels, classes, split_by_folder: As `locate` takes them.
        datasets_dir, columns, report, download: As `Opening` has them.

    Raises:
        UnknownName, SourceError, DownloadError, MissingExtra: As `locate` and `Location.open` do.
    """
    place = locate(images, labels=labels, classes=classes, split_by_folder=split_by_folder)
    return place.open(datasets_dir=Path(datasets_dir), report=report, download=download, columns=columns)
