"""Derives splits and classes from paths: the same rules for a folder, a zip and a tar.

    class/image              one split, train
    split/class/image        splits where all top folders name one
    class/split/image        where every class folder contains only splits
    image                    unlabelled
    split/image              unlabelled within that split

`splits` has the words that name a split; forms such as `x_train` or `val2017` count only if every top folder names
a split. `unwrapping` skips wrapper folders, such as one around the whole set, which are not part of the ids. Deeper
folders belong to their class folder: `cat/indoor/1.jpg` is a cat. A layout that can be read in two ways is an error
that shows both, and `--split-by-folder` decides; no image is left out silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from featcache.errors import SourceError
from featcache.images.folder_tree import SetFolder, tree_of
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
from featcache.images.omissions import NO_SPLIT, Omissions, and_more
from featcache.images.splits import BY_NAME, SplitFolders, split_word, splits_in
from featcache.images.unwrapping import IMAGE_FOLDERS, name_in, unwrap_images, unwrap_set, unwrap_split

Row = tuple[str, str, str | None]
"""(split, id, class name, which is the name of the folder; None: unlabelled)"""


class _PathRules(Protocol):
    """Derives the split and class of a path, which begins with the layout's `prefix`."""

    def row(self, path: str) -> tuple[str, str | None] | None:
        """(split, class name or None); None if the image is in no split."""

    def is_class(self, folder: str) -> bool:
        """Whether a folder is at the level of class folders."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The splits and classes of the paths of a set.

    Attributes:
        prefix: The wrapper folders with a slash at the end, or ""; a sample's path in the set is prefix + id.
        notes: Sentences about wrapper folders and unusual names.
        omissions: The images outside the split folders, if the user named these.
    """

    prefix: str
    notes: tuple[str, ...]
    omissions: Omissions
    _paths: Sequence[str] = field(repr=False)
    _rules: _PathRules = field(repr=False)
    _root: SetFolder = field(repr=False)

    @property
    def rows(self) -> Iterator[Row]:
        """(split, id, class name or None) of every image, sorted by id; each call starts from the beginning."""
        start = len(self.prefix)
        for path in self._paths:
            found = self._rules.row(path)
            if found is not None:
                yield found[0], path[start:], found[1]

    def without_images(self, folders: Iterable[str]) -> list[str]:
        """Those of `folders` (paths in the set) that are class folders and contain no image."""
        found = (folder for folder in folders if folder.startswith(self.prefix) and self._rules.is_class(folder))
        return sorted(folder for folder in found if self._root.find(folder) is None)


def arrange(paths: Iterable[str], where: str, *, splits: SplitFolders = BY_NAME) -> Layout:
    """Find the splits and classes of the images at `paths`.

    Args:
        paths: POSIX, relative, in any order; only paths for which `is_image` is true.
        where: The name of the set in error messages.
        splits: Which folders are splits, according to the user.

    Raises:
        SourceError: There are no images, the layout can be read in two ways, or a folder of `splits` is missing.
    """
    found = sorted(paths)
    if not found:
        raise SourceError(f"{where}: no images found", hint=EXPECTED)
    root = SetFolder(where=where, prefix="", folder=tree_of(found))
    start = unwrap_set(root, splits)
    rules, notes = _find_rules(start.inside, splits)
    return Layout(
        prefix=start.inside.prefix,
        notes=(*start.notes, *notes),
        omissions=_find_omissions(found, rules) if splits.named else Omissions(),
        _paths=found,
        _rules=rules,
        _root=root,
    )


def _find_omissions(paths: Sequence[str], rules: _PathRules) -> Omissions:
    omissions = Omissions()
    for path in paths:
        if rules.row(path) is None:
            omissions.add(path, NO_SPLIT)
    return omissions


def _find_rules(here: SetFolder, splits: SplitFolders) -> tuple[_PathRules, tuple[str, ...]]:
    if splits.named:
        return _by_split(here, _splits_of_user(here, splits), sure=True)
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
    """The images of one folder: their split, and the folder that contains the class folders or the images."""

    split: str
    inside: SetFolder

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
    """Rules for splits at the top: every top folder is a split."""

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


def _splits_of_user(here: SetFolder, splits: SplitFolders) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder, split in splits.named:
        name = name_in(here, folder)
        if name is None or name in found:
            raise SourceError(f"{here.where}: the folder {folder} is given twice", hint="give each folder once")
        found[name] = split
    return found


def _splits_at_top(here: SetFolder) -> dict[str, str]:
    """The split of each folder if all name one; {} if they are classes."""
    found = {name: splits_in(name)[0] for name in here.names if len(splits_in(name)) == 1}
    if len(found) == len(here.names):
        refuse_same_split(here, found)
        return found
    if any(map(split_word, here.names)):
        refuse_odd(here)
    if len(set(found.values())) > 1:
        refuse_mixed(here, found)
    return {}


def _by_split(here: SetFolder, tops: Mapping[str, str], *, sure: bool) -> tuple[_PathRules, tuple[str, ...]]:
    """`sure`: the user named the splits, so there is nothing to check or to note."""
    notes = [] if sure else _notes_on_forms(here, tops)
    branches = {}
    for name, split in tops.items():
        other_classes = _classes_of_splits(here, [other for other in tops if other != name])
        unwrapped = unwrap_split(here.inner(name), split, other_classes)
        refuse_loose(unwrapped.inside)
        branches[name] = (split, unwrapped.inside)
        notes += unwrapped.notes
    if not sure:
        refuse_inner_splits(branches)
        refuse_doubtful_in_splits(branches)
    read = {name: _Branch(split=split, inside=inside) for name, (split, inside) in branches.items()}
    return _ByTop(prefix=here.prefix, branches=read), tuple(notes)


def _classes_of_splits(here: SetFolder, splits: Sequence[str]) -> set[str]:
    """The classes of those splits that have several: a single folder `images` is not a class."""
    others = [here.folder.inner[name].inner for name in splits]
    return {name for inner in others if len(inner) > 1 for name in inner}


def _notes_on_forms(here: SetFolder, tops: Mapping[str, str]) -> list[str]:
    forms = [f"{here.prefix}{name} as {split}" for name, split in tops.items() if split_word(name) is None]
    return [f"folders are read as splits: {and_more(forms)}"] if forms else []


# --- classes at the top --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _ClassThenSplit:
    """Rules for classes at the top, with the splits as folders in each class."""

    prefix: str

    def row(self, path: str) -> tuple[str, str | None] | None:
        name, split, _ = path[len(self.prefix) :].split("/", 2)
        return split_word(split) or "train", name

    def is_class(self, folder: str) -> bool:
        return "/" not in folder[len(self.prefix) :]


def _is_class_then_split(here: SetFolder) -> bool:
    """Whether there are two or more classes that contain only splits, and these only images, or a folder `images`."""
    classes = [here.inner(name) for name in here.names]
    # images/train next to masks/train: these are not classes.
    uninformative = any(name.lower() in IMAGE_FOLDERS for name in here.names)
    if len(classes) < 2 or uninformative or not all(map(_holds_splits_alone, classes)):
        return False
    for one in classes:
        refuse_same_split_in_class(one)
    return True


def _holds_splits_alone(one: SetFolder) -> bool:
    splits = [one.inner(name) for name in one.names]
    named = one.folder.folders_only and bool(splits) and all(map(split_word, one.names))
    return named and all(unwrap_split(split, "").inside.folder.images_only for split in splits)


def _by_class(here: SetFolder) -> tuple[_PathRules, tuple[str, ...]]:
    unwrapped = unwrap_images(here)
    refuse_loose(unwrapped.inside)
    return _Branch(split="train", inside=unwrapped.inside), unwrapped.notes
