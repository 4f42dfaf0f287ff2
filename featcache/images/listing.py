"""The listing of a source: all samples by split and in order, with their labels and columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featcache.columns import LABEL, infer_label_kind, number_in
from featcache.errors import InvalidOption, SourceError
from featcache.images.cells import CellsBuilder
from featcache.images.names import ClassNames, refuse_lookalikes
from featcache.images.omissions import Omissions
from featcache.images.options import SPLITS
from featcache.images.samples import UNLABELLED, SampleColumns, Samples

# Splits with more ids than this are not searched for ids that also occur in other splits.
_MOST_COMPARED = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceColumn:
    """A column of a source: values of its images besides the label.

    Args:
        name: The name of the column.
        cells: Its cells by split, in the order of the samples; None for a missing value.
        kind: The kind of its values (`columns.KINDS`), if given or known from types; None: infer it from the cells.
    """

    name: str
    cells: Mapping[str, Sequence[str | None]]
    kind: str | None = None


def join_columns(by_split: Mapping[str, Sequence[SourceColumn]], counts: Mapping[str, int]) -> tuple[SourceColumn, ...]:
    """Join the columns of several splits; a split without a column gets missing values.

    Args:
        by_split: The columns of each split.
        counts: The number of images of each split.
    """
    kinds = {column.name: column.kind for columns in by_split.values() for column in columns}
    cells = {(split, column.name): column.cells for split, columns in by_split.items() for column in columns}
    return tuple(
        SourceColumn(
            name=name,
            kind=kind,
            cells={
                split: next(iter(cells[split, name].values())) if (split, name) in cells else [None] * count
                for split, count in counts.items()
            },
        )
        for name, kind in kinds.items()
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """All samples of a source.

    Args:
        samples: By split in the order of `SPLITS`, within a split sorted by id (code points).
        classes: The names of the classes; a sample's label is an index into them.
        columns: Further columns; one named `label` if the labels are not classes.
        omissions: What was left out of the source, or read in an unusual way.

    Raises:
        SourceError: An id occurs twice or cannot be encoded as UTF-8, or a label has no class.
    """

    samples: Mapping[str, Samples]
    classes: tuple[str, ...]
    columns: tuple[SourceColumn, ...] = ()
    omissions: Omissions = field(default_factory=Omissions)

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise SourceError(f"class names must differ, got {list(self.classes)}")
        _require_text(self.classes)
        for samples in self.samples.values():
            _require_text(samples.ids())
            for before, after in itertools.pairwise(samples.ids()):
                if before == after:
                    raise SourceError(f"the image {after} is listed twice")
            _require_labels(samples, self.classes)

    @classmethod
    def of_rows(
        cls, rows: Iterable[tuple[str, str, int]], classes: Sequence[str], columns: Sequence[SourceColumn] = ()
    ) -> Listing:
        """The listing of rows (split, id, label), which are read once and not kept as objects.

        They may come in any order; with `columns`, in the order of their ids.
        """
        listed = {split: SampleColumns(split) for split in SPLITS}
        for split, sample_id, label in rows:
            listed[split].append(sample_id, label)
        samples = _in_order({name: one.samples() for name, one in listed.items()})
        return cls(samples=samples, classes=tuple(classes), columns=tuple(columns))


def _in_order(samples: Mapping[str, Samples]) -> dict[str, Samples]:
    return {split: samples[split].sort_by_id() for split in SPLITS if len(samples.get(split, ()))}


def _require_labels(samples: Samples, classes: Sequence[str]) -> None:
    invalid = np.flatnonzero((samples.labels < UNLABELLED) | (samples.labels >= len(classes)))
    for row in invalid[:1].tolist():
        raise SourceError(
            f"{samples[row].id}: expected a label from -1 (unlabelled) to {len(classes) - 1}, got {samples[row].label}"
        )


def _require_text(names: Iterable[str]) -> None:
    for name in names:
        # Ids are stored padded with NUL.
        if "\0" in name or not _is_utf8(name):
            raise SourceError(f"the name {name!r} is not valid UTF-8", hint="rename it: ids are stored as UTF-8")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class ListingBuilder:
    """Builds a listing from one image at a time, each with a split, perhaps a class, and further cells."""

    def __init__(self, columns: Mapping[str, str | None] | None = None, classes: Sequence[str] | None = None) -> None:
        """`columns`: the names of the columns, in the order of the cells of `add`, and their kinds, None if unknown.

        `classes`: the class names in order, if the source defines them; None: sort the names that occur.
        """
        self._kinds = dict(columns or {})
        self._samples = {split: SampleColumns(split) for split in SPLITS}
        self._cells = {split: [CellsBuilder() for _ in self._kinds] for split in SPLITS}
        self._names = ClassNames()
        self._classes = classes
        for name in classes or ():
            self._names.number(name)
        self.omissions = Omissions()

    def __len__(self) -> int:
        return sum(map(len, self._samples.values()))

    def add(self, split: str, sample_id: str, class_name: str | None, cells: Sequence[str | None] = ()) -> None:
        """Add an image. `class_name`: None for unlabelled; `cells`: one for each column."""
        self._samples[split].append(sample_id, self._names.number(class_name))
        for builder, cell in zip(self._cells[split], cells, strict=True):
            builder.append(cell)

    def listing(self, where: str, *, label_kind: str | None = "classes", by_value: bool = True) -> Listing:
        """The listing of all images that were added.

        Args:
            where: The name of the source in messages.
            label_kind: The kind of the label. None: infer it (lists and fractions are not classes).
            by_value: Whether classes that are whole numbers are sorted by value; else as text.

        Raises:
            SourceError: As `Listing` does, and for two class names that look alike.
            InvalidOption: `label_kind` is not classes, but the source defines its classes.
        """
        if self._classes is not None and label_kind not in (None, "classes"):
            raise InvalidOption(f"{where} defines its classes, so the label holds classes, not {label_kind}")
        kind = label_kind or infer_label_kind(self._names.names)
        classes, numbers = self._names.in_order(by_value=by_value)
        if self._classes is not None:
            kind, classes, numbers = "classes", self._names.names, np.arange(len(self._names.names))
        listed = {split: column.samples().renumber_labels(numbers) for split, column in self._samples.items()}
        labels: tuple[SourceColumn, ...] = ()
        if kind == "classes":
            if label_kind is None and self._classes is None:
                classes, listed = _whole_numbers(classes, listed)
            refuse_lookalikes(classes, where)
            self._note_merged()
        samples = _in_order(listed)
        if kind != "classes":
            labels = (_as_column(samples, classes, kind),)
            samples = {split: some.without_labels() for split, some in samples.items()}
            classes = ()
        return Listing(
            samples=samples,
            classes=classes,
            columns=labels + self._columns(samples),
            omissions=self.omissions,
        )

    def note_shared(self) -> None:
        """Note images that occur in several splits."""
        parts = sorted((part.samples() for part in self._samples.values() if len(part)), key=len)
        for place, smaller in enumerate(parts[:-1]):
            if len(smaller) > _MOST_COMPARED:
                self.omissions.note("images in several splits were not searched for: `featcache audit` does it")
                return
            names = set(smaller.ids())
            for larger in parts[place + 1 :]:
                shared = sorted(name for name in larger.ids() if name in names)
                if shared:
                    self.omissions.note(
                        f"images of {smaller.split} that are also in {larger.split}: {len(shared):,}, the first is "
                        f"{shared[0]}"
                    )

    def _columns(self, samples: Mapping[str, Samples]) -> tuple[SourceColumn, ...]:
        taken = {
            split: [builder.cells().take(some.rows_in_listing) for builder in self._cells[split]]
            for split, some in samples.items()
        }
        return tuple(
            SourceColumn(name=name, kind=kind, cells={split: cells[place] for split, cells in taken.items()})
            for place, (name, kind) in enumerate(self._kinds.items())
        )

    def _note_merged(self) -> None:
        for first, other in self._names.merged:
            self.omissions.note(f"the classes {first!r} and {other!r} are read as one")


def _whole_numbers(classes: tuple[str, ...], listed: dict[str, Samples]) -> tuple[tuple[str, ...], dict[str, Samples]]:
    """Rename the classes 1.0 and 2.0 to 1 and 2: pandas writes whole numbers so if some cells are empty."""
    numbers = [number_in(name) for name in classes]
    if None in numbers or not any("." in name for name in classes):
        return classes, listed
    whole = sorted({int(number) for number in numbers if number is not None})
    place = np.array([whole.index(int(number)) for number in numbers if number is not None], np.int64)
    return tuple(map(str, whole)), {split: some.renumber_labels(place) for split, some in listed.items()}


def _as_column(samples: Mapping[str, Samples], names: Sequence[str], kind: str) -> SourceColumn:
    """Labels that are not classes, as a column of their texts."""
    cells = {split: NamedCells(names, some.labels) for split, some in samples.items()}
    return SourceColumn(name=LABEL, kind=kind, cells=cells)


class NamedCells(Sequence[str | None]):
    """Cells with few different texts: stored as an index into the texts each, -1 for None."""

    def __init__(self, names: Sequence[str], numbers: npt.NDArray[np.int64]) -> None:
        self._names, self._numbers = (*names, None), numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> str | None:  # type: ignore[override]  # Slices are not used.
        return self._names[int(self._numbers[index])]
