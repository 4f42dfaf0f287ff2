"""How paths become splits and classes: the same rules for a folder, a zip and a tar.

    class/image              one split, train
    split/class/image        splits where all top folders name one
    class/split/image        where every class folder holds nothing but splits
    image                    unlabelled
    split/image              unlabelled within that split

`splits` has the words that name a split; forms such as `x_train` or `val2017` count only where every top folder
names a split. `looking_through` has the folders that are passed, such as one around all of it, which is no part of
the ids. Deeper folders belong to their class folder: `cat/indoor/1.jpg` is a cat. What could be read in two ways is
an error that shows both, and `--split-by-folder` decides; no image is left out silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from featcache.errors import SourceError
from featcache.images.folder_tree import Inside, tree_of
from featcache.images.layout_refusals import EXPECTED as EXPECTED
from featcache.images.layout_refusals import (
    refuse_copy,
    refuse_doubtful_classes,
    refuse_doubtful_in_splits,
    refuse_inner_splits,
    refuse_loose,
    refuse_mixed,
    refuse_odd,
    refuse_same_split,
    refuse_same_split_in_class,
    refuse_split_below_class,
    refuse_two_around,
)
from featcache.images.looking_through import IMAGE_FOLDERS, in_images, in_split, name_in, start_of
from featcache.images.omissions import NO_SPLIT, Omissions, and_more
from featcache.images.splits import BY_NAME, SplitFolders, split_word, splits_in

Row = tuple[str, str, str | None]
"""(split, id, class name as the folder is called; None: unlabelled)"""


class _Reading(Protocol):
    """What a path says, `prefix` being at its beginning."""

    def row(self, path: str) -> tuple[str, str | None] | None:
        """(split, class name or None); None where the image lies in no split."""

    def is_class(self, folder: str) -> bool:
        """Whether a folder stands where those of classes stand."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the paths of a set say.

    Attributes:
        prefix: The folders around the set with their slash, or ""; a sample's path in the set is prefix + id.
        notes: Sentences on what was looked through or read in an unusual way.
        omissions: The images in folders that are no split, where the user says which are.
    """

    prefix: str
    notes: tuple[str, ...]
    omissions: Omissions
    _paths: Sequence[str] = field(repr=False)
    _reading: _Reading = field(repr=False)
    _root: Inside = field(repr=False)

    @property
    def rows(self) -> Iterator[Row]:
        """(split, id, class name or None) of every image, sorted by id; from the beginning at each call."""
        start = len(self.prefix)
        for path in self._paths:
            found = self._reading.row(path)
            if found is not None:
                yield found[0], path[start:], found[1]

    def without_images(self, folders: Iterable[str]) -> list[str]:
        """Those of `folders` (paths in the set) that stand where a class stands, and in which no image lies."""
        found = (folder for folder in folders if folder.startswith(self.prefix) and self._reading.is_class(folder))
        return sorted(folder for folder in found if self._root.find(folder) is None)


def arrange(paths: Iterable[str], where: str, *, splits: SplitFolders = BY_NAME) -> Layout:
    """Splits and classes of the images at `paths`.

    Args:
        paths: POSIX, relative, in any order, those that `is_image` takes.
        where: What names the set in an error.
        splits: Which folders are splits, where their names do not say it.

    Raises:
        SourceError: No images at all, a layout that can be read in two ways, or a folder of `splits` is missing.
    """
    found = sorted(paths)
    if not found:
        raise SourceError(f"{where}: no images found", hint=EXPECTED)
    root = Inside(where=where, prefix="", folder=tree_of(found))
    start = start_of(root, splits)
    reading, notes = _read(start.inside, splits)
    return Layout(
        prefix=start.inside.prefix,
        notes=(*start.notes, *notes),
        omissions=_left_out(found, reading) if splits.named else Omissions(),
        _paths=found,
        _reading=reading,
        _root=root,
    )


def _left_out(paths: Sequence[str], reading: _Reading) -> Omissions:
    omissions = Omissions()
    for path in paths:
        if reading.row(path) is None:
            omissions.add(path, NO_SPLIT)
    return omissions


def _read(here: Inside, splits: SplitFolders) -> tuple[_Reading, tuple[str, ...]]:
    if splits.named:
        return _by_split(here, _named_splits(here, splits), sure=True)
    refuse_loose(here)
    if splits.none:
        return _Branch(split="train", inside=here), ()
    tops = _splits_at_top(here)
    if tops:
        return _by_split(here, tops, sure=False)
    if _is_class_then_split(here):
        return _ClassThenSplit(prefix=here.prefix), ()
    refuse_two_around(here)
    refuse_split_below_class(here)
    refuse_doubtful_classes(here)
    refuse_copy(here)
    return _by_class(here)


# --- splits at the top ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """The images of one folder: their split, and the folder inside it that holds the classes or the images."""

    split: str
    inside: Inside

    def row(self, path: str) -> tuple[str, str | None]:
        if self.inside.folder.images_only:
            return self.split, None
        return self.split, path[len(self.inside.prefix) :].partition("/")[0]

    def is_class(self, folder: str) -> bool:
        inner = folder.removeprefix(self.inside.prefix)
        below = folder.startswith(self.inside.prefix) and inner != "" and "/" not in inner
        return below and not self.inside.folder.images_only


@dataclass(frozen=True, kw_only=True)
class _ByTop:
    """Every split is a folder at the top."""

    prefix: str
    branches: Mapping[str, _Branch]

    def row(self, path: str) -> tuple[str, str | None] | None:
        branch = self._branch(path)
        return branch.row(path) if branch is not None else None

    def is_class(self, folder: str) -> bool:
        branch = self._branch(folder)
        return branch is not None and branch.is_class(folder)

    def _branch(self, path: str) -> _Branch | None:
        top, slash, _ = path[len(self.prefix) :].partition("/")
        return self.branches.get(top) if slash else None


def _named_splits(here: Inside, splits: SplitFolders) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder, split in splits.named:
        name = name_in(here, folder)
        if name is None or name in found:
            raise SourceError(f"{here.where}: the folder {folder} is given twice", hint="give each folder once")
        found[name] = split
    return found


def _splits_at_top(here: Inside) -> dict[str, str]:
    """The split of each folder where all name one; {} where they are classes."""
    found = {name: splits_in(name)[0] for name in here.names if len(splits_in(name)) == 1}
    if len(found) == len(here.names):
        refuse_same_split(here, found)
        return found
    if any(map(split_word, here.names)):
        refuse_odd(here)
    if len(set(found.values())) > 1:
        refuse_mixed(here, found)
    return {}


def _by_split(here: Inside, tops: Mapping[str, str], *, sure: bool) -> tuple[_Reading, tuple[str, ...]]:
    """`sure`: the user says so, and what could be read otherwise is not."""
    notes = [] if sure else _notes_on_forms(here, tops)
    branches = {}
    for name, split in tops.items():
        passed = in_split(here.inner(name), split, _classes_beside(here, [other for other in tops if other != name]))
        refuse_loose(passed.inside)
        branches[name] = (split, passed.inside)
        notes += passed.notes
    if not sure:
        refuse_inner_splits(branches)
        refuse_doubtful_in_splits(branches)
    read = {name: _Branch(split=split, inside=inside) for name, (split, inside) in branches.items()}
    return _ByTop(prefix=here.prefix, branches=read), tuple(notes)


def _classes_beside(here: Inside, splits: Sequence[str]) -> set[str]:
    """The classes of splits that have several: `images` is one only where others stand beside it."""
    others = [here.folder.inner[name].inner for name in splits]
    return {name for inner in others if len(inner) > 1 for name in inner}


def _notes_on_forms(here: Inside, tops: Mapping[str, str]) -> list[str]:
    forms = [f"{here.prefix}{name} as {split}" for name, split in tops.items() if split_word(name) is None]
    return [f"folders are read as splits: {and_more(forms)}"] if forms else []


# --- classes at the top --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _ClassThenSplit:
    """Every class is a folder at the top, and the splits are folders in it."""

    prefix: str

    def row(self, path: str) -> tuple[str, str | None] | None:
        name, split, _ = path[len(self.prefix) :].split("/", 2)
        return split_word(split) or "train", name

    def is_class(self, folder: str) -> bool:
        return "/" not in folder[len(self.prefix) :]


def _is_class_then_split(here: Inside) -> bool:
    """Whether two or more classes hold nothing but splits, and these images, or `images`."""
    classes = [here.inner(name) for name in here.names]
    # images/train beside masks/train are no classes.
    says_nothing = any(name.lower() in IMAGE_FOLDERS for name in here.names)
    if len(classes) < 2 or says_nothing or not all(map(_holds_splits_alone, classes)):
        return False
    for one in classes:
        refuse_same_split_in_class(one)
    return True


def _holds_splits_alone(one: Inside) -> bool:
    splits = [one.inner(name) for name in one.names]
    named = one.folder.folders_only and bool(splits) and all(map(split_word, one.names))
    return named and all(in_split(split, "").inside.folder.images_only for split in splits)


def _by_class(here: Inside) -> tuple[_Reading, tuple[str, ...]]:
    passed = in_images(here)
    refuse_loose(passed.inside)
    return _Branch(split="train", inside=passed.inside), passed.notes
