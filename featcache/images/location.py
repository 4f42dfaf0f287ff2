"""Parses the images argument into a `Location`, which can open the images.

    location = locate("~/photos")                    # also a Path, an array, a list of paths, a torch dataset, ...
    location.kind, location.place, location.origin   # "folder", "<home>/photos", "<home>/photos"
    with location.open_and_close(datasets_dir=Path("data/datasets")) as source:
        ...

An origin does not depend on the working directory: `locate(location.origin)` is the same location. A text may have
options after a question mark, as in `photos.csv?label=species`.

Each module of `images.sources` registers the kinds that it opens; a new kind is a new module.
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
class OpenOptions:
    """The options for opening images at a location.

    Args:
        datasets_dir: Where data sets are stored and downloaded to.
        report: Receives progress messages, one line per call.
        download: Whether a set that is not on disk may be downloaded; if not, it is a DownloadError.
        columns: Which columns become targets; None: only the label is read.
    """

    datasets_dir: Path
    report: Report | None
    download: bool
    columns: ColumnOptions | None


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where images are, and how they are read.

    Args:
        kind: One of the registered kinds of source.
        place: An absolute path, or a name.
        options: How it is read: pairs (name, value); a name may occur several times.
        prefix: The text before the place, such as `hf:`.
        given: The Python object that contains the images, if no text names them.
    """

    kind: str
    place: str
    options: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    given: Any = field(default=None, compare=False, repr=False)

    @property
    def origin(self) -> str:
        """The text that names the images in a cache; `locate` parses it again."""
        query = f"?{urlencode(self.options, quote_via=quote, safe='/*,:')}" if self.options else ""
        return f"{self.prefix}{self.place}{query}"

    @property
    def is_object(self) -> bool:
        """Whether the images are a Python object, so that no text can open them again."""
        return self.given is not None

    def option(self, name: str) -> str | None:
        """The first value of an option; None if it is not given."""
        return next((value for key, value in self.options if key == name), None)

    def values(self, name: str) -> tuple[str, ...]:
        """All values of an option, in order."""
        return tuple(value for key, value in self.options if key == name)

    def open(
        self,
        *,
        datasets_dir: Path,
        report: Report | None = None,
        download: bool = True,
        columns: ColumnOptions | None = None,
    ) -> ImageSource:
        """List the images. The caller closes the source.

        Args:
            datasets_dir: Where data sets are stored and downloaded to.
            report: Receives progress messages, one line per call.
            download: Whether a set that is not on disk may be downloaded; if not, it is a DownloadError.
            columns: Which columns become targets; None: only the label is read.

        Returns:
            The open source.

        Raises:
            SourceError: The images cannot be listed, or their layout can be read in several ways.
            DownloadError: They are not on disk and cannot be downloaded.
            MissingExtra: Reading them needs another package.
        """
        opening = OpenOptions(datasets_dir=datasets_dir, report=report, download=download, columns=columns)
        kind = _REGISTERED.get(self.kind) or _kinds()[self.kind]
        source = kind.open(self, opening)
        if self.kind != OPEN:
            source.origin = self.origin
        return source

    @contextmanager
    def open_and_close(self, **opening: Any) -> Iterator[ImageSource]:
        """Open the images for a `with` block, then close them; a source that the user had opened stays open.

        Args:
            **opening: The arguments of `open`.

        Raises:
            SourceError, DownloadError, MissingExtra: As `open` does.
        """
        source = self.open(**opening)
        try:
            yield source
        finally:
            if self.kind != OPEN:
                source.close()


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagesArgument:
    """The images argument as the user gave it, and what follows from its text or path.

    Args:
        value: The argument: text, a path or an object.
        labels, classes: Those given together with an object.
        split: The split of an object's images.
    """

    value: Any
    labels: Any = None
    classes: Sequence[str] | None = None
    split: str = "train"

    @property
    def is_text(self) -> bool:
        """Whether it is text or a path, not an object that contains images."""
        return isinstance(self.value, str | os.PathLike)

    @functools.cached_property
    def text(self) -> str:
        """The text without its options; empty for an object."""
        return self._parts[0]

    @functools.cached_property
    def options(self) -> tuple[tuple[str, str], ...]:
        """The options after its question mark."""
        return self._parts[1]

    @functools.cached_property
    def _parts(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        whole = os.fspath(self.value) if self.is_text else ""
        place, mark, query = whole.rpartition("?")
        # A question mark may also be part of a file name, with or without a prefix such as hf:, or of a pattern.
        names = (whole, whole.partition(":")[2])
        if not mark or "=" not in query or any(name and _status(_expand_home(name)) is not None for name in names):
            return whole, ()
        return place, tuple(sorted(parse_qsl(query, keep_blank_values=True)))

    @functools.cached_property
    def path(self) -> Path:
        """The text as an absolute path, with links resolved."""
        return absolute(self.text)

    @functools.cached_property
    def status(self) -> os.stat_result | None:
        """The status of the file or folder; None if it does not exist. Raises SourceError if it cannot be read."""
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
        """Whether the text looks like a path, not a name, even if nothing exists there."""
        separators = "/" + os.sep
        return (
            isinstance(self.value, os.PathLike)
            or self.text.startswith(("~", "."))
            or any(one in self.text for one in separators)
            or has_archive_suffix(self.text)
        )

    def at(self, kind: str, place: str | None = None, *, prefix: str = "", options: Sequence[str] = ()) -> Location:
        """The location of this argument. `options`: those that the kind supports. Raises SourceError for others."""
        unknown = sorted({name for name, _ in self.options} - set(options))
        if unknown:
            known = f"options of this kind ({kind}) are {', '.join(options)}" if options else f"a {kind} has no options"
            raise SourceError(f"{self.value}: unknown option {unknown[0]!r}", hint=known)
        return Location(
            kind=kind, place=str(self.path) if place is None else place, options=self.options, prefix=prefix
        )


def absolute(text: str) -> Path:
    """A path, perhaps with `~`, as an absolute path with links resolved. Raises SourceError for an invalid one."""
    try:
        return _expand_home(text).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"{text!r} is not a valid path: {error}") from error


def _expand_home(text: str) -> Path:
    # Not Path.expanduser: a Path drops the dot of ./~ana, which is a folder here, not a home directory.
    return Path(os.path.expanduser(text))  # noqa: PTH111


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # ValueError: no file can have a name with a NUL.
        return None
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened: {error.strerror or error}") from error


# --- kinds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of source.

    Args:
        name: The name of the kind.
        rank: Kinds with a lower rank are tried first.
        locate: Returns the location of an images argument, None if it is not of this kind.
        open: Lists the images of a location.
    """

    name: str
    rank: int
    locate: Callable[[ImagesArgument], Location | None]
    open: Callable[[Location, OpenOptions], ImageSource]


# The origin of an object.
_OBJECT = re.compile(r"(array|paths|dataset|splits):[\w.-]+")


def refuse_columns(location: Location, opening: OpenOptions) -> None:
    """Raises SourceError if columns are requested of images that have only the label."""
    requested = opening.columns
    if requested is not None and (requested.columns or requested.kinds):
        raise SourceError(
            f"{location.origin} has no columns but the label",
            hint="leave --column and --kind out, or add columns of a table with `featcache label`",
        )


#: The kind of a source that the user opened.
OPEN: Final = "open source"
#: The kind of a path at which nothing exists.
ABSENT: Final = "absent path"
_REGISTERED: dict[str, Kind] = {}


def register(
    name: str, *, rank: int, locate: Callable[[ImagesArgument], Location | None]
) -> Callable[[Callable[[Location, OpenOptions], ImageSource]], Callable[[Location, OpenOptions], ImageSource]]:
    """Decorator: registers a function that opens locations of one kind, so that `locate` finds the kind."""

    def add(opens: Callable[[Location, OpenOptions], ImageSource]) -> Callable[[Location, OpenOptions], ImageSource]:
        _REGISTERED[name] = Kind(name=name, rank=rank, locate=locate, open=opens)
        return opens

    return add


@functools.cache
def _kinds() -> Mapping[str, Kind]:
    """All kinds by name, in the order in which they are tried."""
    package = importlib.import_module("featcache.images.sources")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return {kind.name: kind for kind in sorted(_REGISTERED.values(), key=lambda kind: kind.rank)}


@register(OPEN, rank=0, locate=lambda given: _locate_open_source(given))
def _open_given(location: Location, opening: OpenOptions) -> ImageSource:
    source: ImageSource = location.given
    return source


def _locate_open_source(given: ImagesArgument) -> Location | None:
    if not isinstance(given.value, ImageSource):
        return None
    return Location(kind=OPEN, place=given.value.origin, given=given.value)


def _locate_absent(given: ImagesArgument) -> Location | None:
    """Accept a path at which nothing exists: it still names the images of a cache, and only opening it is an error."""
    if not given.is_text or given.status is not None or not given.looks_like_path:
        return None
    return Location(kind=ABSENT, place=str(given.path), options=given.options)


@register(ABSENT, rank=99, locate=_locate_absent)
def _open_absent(location: Location, opening: OpenOptions) -> ImageSource:
    raise _not_found_error(ImagesArgument(value=Path(location.place)))


def object_location(kind: str, given: ImagesArgument, content: Iterable[bytes], name: str = "") -> Location:
    """The location of an object, named by a digest of its content (of `content`, bytes that identify it)."""
    hashed = hashlib.sha256()
    for number, part in enumerate(content):
        hashed.update(b"\0" + part if number else part)
    digest = hashed.hexdigest()[:12]
    return Location(kind=kind, place=f"{name}-{digest}" if name else digest, prefix=f"{kind}:", given=given)


def locate(
    images: Any, *, labels: Any = None, classes: Sequence[str] | None = None, split_by_folder: Sequence[str] = ()
) -> Location:
    """Find where images are, from text or an object; nothing is listed yet.

    Args:
        images: The name of a data set; a path with or without `~`; `hf:`, `wds:` and `torchvision:` names; a list of
            paths, an array uint8 (N, H, W[, C]), a torch dataset, an ImageSource; a mapping of splits to any of these.
        labels: For an array or paths: N class names or numbers, or a mapping of column names to N values.
        classes: The names of the classes, if labels are numbers.
        split_by_folder: FOLDER=SPLIT for folders that are splits, or `none`.

    Returns:
        The location. A path at which nothing exists has a location too; opening that raises SourceError.

    Raises:
        UnknownName: There is no data set of that name; the message offers the nearest names.
        SourceError: The object contains no images, or an option does not apply.
    """
    if isinstance(images, Location):
        return images
    given = ImagesArgument(value=images, labels=labels, classes=classes)
    if given.is_text and not given.text:
        raise _unknown_name(given, [])
    location = locate_given(given)
    if not location.is_object and (labels is not None or classes is not None):
        raise SourceError(
            f"{location.origin} has its own labels",
            hint="labels and classes belong to arrays and lists of paths; `featcache label` adds columns of a table",
        )
    extra = tuple((SPLIT_BY_FOLDER, one) for one in split_by_folder)
    if extra and location.kind not in ("folder", "archive", ABSENT):
        raise SourceError(f"{location.origin} has no folders that could be splits", hint="leave --split-by-folder out")
    # Sorted, as the options of an origin are when it is parsed again.
    return replace(location, options=tuple(sorted(location.options + extra)))


def locate_given(given: ImagesArgument) -> Location:
    """The location of the first kind that accepts the argument. Raises what `locate` raises."""
    named = _locate_named_set(given)
    if named is not None:
        return named
    found = next((place for kind in _kinds().values() if (place := kind.locate(given)) is not None), None)
    if found is None:
        raise _not_found_error(given)
    return found


def _locate_named_set(given: ImagesArgument) -> Location | None:
    """The location of a named set. Tried before the other kinds are imported, which takes time."""
    if not (isinstance(given.value, str) and given.value.isidentifier()):
        return None
    importlib.import_module("featcache.images.sources.torchvision_sets")
    return _REGISTERED["named set"].locate(given)


def _not_found_error(given: ImagesArgument) -> FeatcacheError:
    if not given.is_text:
        return SourceError(
            f"expected images, got {type(given.value).__name__}",
            hint="give a name, a path, a list of paths, an array (N, H, W, C) uint8, a torch dataset, or a mapping of "
            "train, val and test to these",
        )
    if _OBJECT.fullmatch(given.text):
        return SourceError(
            f"{given.text} names images that were passed from Python, which are not stored",
            hint="pass them again: featcache.extract(images, ...)",
        )
    if given.status is not None:
        return SourceError(f"{given.text}: neither a folder nor a regular file", hint=EXPECTED)
    nearby = _names_in_parent(given.path)
    if given.looks_like_path:
        near = difflib.get_close_matches(given.path.name, nearby, n=1)
        offer = f"did you mean {Path(given.text).with_name(near[0])}? " if near else ""
        return SourceError(f"{given.text}: no such file or folder", hint=offer + EXPECTED)
    return _unknown_name(given, nearby)


def _unknown_name(given: ImagesArgument, nearby: Sequence[str]) -> UnknownName:
    from featcache.images.sources.torchvision_sets import dataset_names

    return UnknownName("data set", given.text, [*dataset_names(), *nearby], listed_by="featcache datasets")


def _names_in_parent(path: Path) -> list[str]:
    """The names of the folders and archives in the parent folder of `path`."""
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
    """List images: `locate` and `Location.open` in one call. The caller closes the source.

    Args:
        images: The name of a data set; a path with or without `~`; `hf:`, `wds:` and `torchvision:` names; a list of
            paths, an array uint8 (N, H, W[, C]), a torch dataset, an ImageSource; a mapping of splits to any of these.
        datasets_dir: Where data sets are stored and downloaded to.
        labels: For an array or paths: N class names or numbers, or a mapping of column names to N values.
        classes: The names of the classes, if labels are numbers.
        split_by_folder: FOLDER=SPLIT for folders that are splits, or `none`.
        columns: Which columns become targets; None: only the label is read.
        report: Receives progress messages, one line per call.
        download: Whether a set that is not on disk may be downloaded; if not, it is a DownloadError.

    Returns:
        The open source.

    Raises:
        UnknownName: There is no data set of that name; the message offers the nearest names.
        SourceError: The images do not exist, cannot be listed, or their layout can be read in several ways.
        DownloadError: They are not on disk and cannot be downloaded.
        MissingExtra: Reading them needs another package.
    """
    place = locate(images, labels=labels, classes=classes, split_by_folder=split_by_folder)
    return place.open(datasets_dir=Path(datasets_dir), report=report, download=download, columns=columns)
