"""A summary of the images of an extraction: counts, classes, targets, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.columns import LABEL
from featcache.images.omissions import and_more

if TYPE_CHECKING:
    from featcache.cache.targets import Target
    from featcache.extraction.images import Images

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ListedSplit:
    """One split: its number of images, how many of them have no label, and the classes without an image."""

    images: int
    unlabelled: int
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ListedTarget:
    """One target: its kind, how many classes or groups it has, and how many images have no value."""

    name: str
    kind: str
    names: int
    unlabelled: int


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The images of an extraction.

    Args:
        splits: By name.
        classes: The classes of the target `label`.
        targets: All targets but a `label` of classes.
        left_out: Sentences about files, columns and folders that are not used, or were read in an unusual way.
        counts: The same as JSON.
    """

    splits: dict[str, ListedSplit]
    classes: tuple[str, ...]
    targets: tuple[ListedTarget, ...]
    left_out: tuple[str, ...]
    counts: dict[str, Any]

    @classmethod
    def of(cls, images: Images) -> Listed:
        """A summary of the selected images."""
        classes = images.source.classes
        splits = {}
        for split, samples in images.splits.items():
            counts = np.bincount(samples.labels + 1, minlength=len(classes) + 1)
            lacking = tuple(name for name, count in zip(classes, counts[1:].tolist(), strict=True) if not count)
            splits[split] = ListedSplit(images=len(samples), unlabelled=int(counts[0]), lacking=lacking)
        omissions = images.source.omissions
        return cls(
            splits=splits,
            classes=classes,
            targets=tuple(_target(one) for one in images.targets if one.name != LABEL or one.kind != "classes"),
            left_out=tuple(omissions.sentences()),
            counts=omissions.to_json(),
        )

    def to_json(self) -> dict[str, Any]:
        """The field `images` of `featcache extract --json`."""
        return {
            "splits": {name: {**vars(one), "lacking": list(one.lacking)} for name, one in self.splits.items()},
            "classes": list(self.classes),
            "targets": [vars(one) for one in self.targets],
            "left_out": self.counts,
        }

    def rows(self) -> list[tuple[str, str]]:
        """The summary for the terminal, as pairs of a label and a text."""
        found = [("images", ", ".join(_split_in_words(name, one) for name, one in self.splits.items()))]
        if self.classes:
            found.append(("classes", f"{len(self.classes):,}: {and_more(self.classes, _SHOWN)}"))
        for name, one in self.splits.items():
            # A split without any label is shown as unlabelled.
            if one.lacking and one.unlabelled < one.images:
                found.append(("", f"{name} lacks {and_more(one.lacking, _SHOWN)}"))
        if self.targets:
            found.append(("targets", "; ".join(map(_target_in_words, self.targets))))
        found += [("left out" if not number else "", sentence) for number, sentence in enumerate(self.left_out)]
        return found


def _split_in_words(name: str, split: ListedSplit) -> str:
    if split.unlabelled == split.images:
        return f"{name} {split.images:,} (unlabelled)"
    return f"{name} {split.images:,}" + (f" ({split.unlabelled:,} unlabelled)" if split.unlabelled else "")


def _target_in_words(target: ListedTarget) -> str:
    what = f"{target.names:,} {target.kind}" if target.names else target.kind
    if target.kind == "lists":
        what = f"lists of {target.names:,} classes"
    return f"{target.name}: {what}" + (f", {target.unlabelled:,} images without" if target.unlabelled else "")


def _target(target: Target) -> ListedTarget:
    return ListedTarget(name=target.name, kind=target.kind, names=len(target.names), unlabelled=target.unlabelled)
