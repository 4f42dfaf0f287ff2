"""Images in WebDataset tars: `key.jpg` next to `key.cls`, in many archives. Members are read in place, not unpacked.

The layout is that of https://github.com/webdataset/webdataset: the files of one sample share their folder and the
part of their names before the first dot. `key.jpg` is its image; `key.seg.png` is another one, which is left out and
counted, unless it is requested: `wds:PATTERN?image=seg.png`. `key.cls` is its class; `key.json` and `key.txt` become
columns, as described in `webdataset_text`. If `.cls` and `.json` give different classes, that of `.cls` is used.
The name or the folder of a tar gives its split ("train/0001.tar", "imagenet-val-0001.tar").
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from featcache.columns import LABEL, MOST_DEFAULT_COLUMNS, ColumnOptions, cell_text, choose
from featcache.errors import ImageError, SourceError
from featcache.images.cells import Cells
from featcache.images.listing import Listing, ListingBuilder
from featcache.images.location import ImagesArgument, Location, OpenOptions, register
from featcache.images.omissions import and_more
from featcache.images.options import SPLITS
from featcache.images.regular import MAX_FILE_BYTES
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, Report, Stamp, has_archive_suffix, slug
from featcache.images.sources.archive import Version, first_bytes, open_file, refuse_compressed, version_of
from featcache.images.sources.folder import has_images
from featcache.images.sources.tar import is_tar
from featcache.images.splits import splits_in
from featcache.images.tar_patterns import tars_of
from featcache.images.webdataset_rows import SplitRows, TarMembers, labels_of

PREFIX: Final = "wds:"
EXPECTED = "expected tars of key.jpg and key.cls: a folder of them, or wds:PATTERN such as wds:set/train-{000..099}.tar"


class WebDatasetSource(ImageSource):
    """All images of several tars. `origin` is the folder or the pattern.

    Raises SourceError for a tar that is compressed, damaged, or contains a sample twice, and if there are no images.
    """

    def __init__(
        self,
        tars: Sequence[Path],
        *,
        origin: str,
        base: Path,
        image: str | None = None,
        columns: ColumnOptions | None = None,
        report: Report | None = None,
    ) -> None:
        """`base`: the folder that ids are relative to; `image`: the extension of images, None: any not compound.

        `columns`: which of the columns from `.json` and `.txt` members become targets; None: none.
        """
        self._tars = [path.resolve() for path in tars]
        self._versions: list[Version] = []
        left_out: Counter[str] = Counter()
        rows = self._list_tars(tars, base, image, left_out, report)
        listing = _listing(rows, labels_of(rows, left_out), origin, columns, left_out)
        name = Path(origin.partition("?image=")[0]).name.removesuffix(".tar")
        super().__init__(name=slug(re.sub(r"[{}*?.,\[\]]+", "-", name)), origin=origin, listing=listing)
        # In the order of the listing: (tar, offset, size) of each sample.
        self._places = {
            split: rows[split].places()[samples.rows_in_listing] for split, samples in listing.samples.items()
        }

    def _list_tars(
        self,
        tars: Sequence[Path],
        base: Path,
        image: str | None,
        left_out: Counter[str],
        report: Report | None,
    ) -> dict[str, SplitRows]:
        rows = {split: SplitRows() for split in SPLITS}
        columns: dict[str, None] = {}
        for number, path in enumerate(tars):
            inside = _inside(path, base)
            self._add_tar(
                TarMembers(rows[_split_of(inside)], columns, left_out, image),
                path,
                number=number,
                prefix=inside.with_suffix("").as_posix(),
            )
            if report and number % 100 == 99:
                report(f"listed {number + 1:,} of {len(tars):,} tars")
        return rows

    def _add_tar(self, members: TarMembers, path: Path, *, number: int, prefix: str) -> None:
        head = first_bytes(path)
        refuse_compressed(path, head)
        if not is_tar(head):
            raise SourceError(f"{path}: not a tar archive", hint=EXPECTED)
        file = open_file(path)
        try:
            self._versions.append(version_of(file))
            members.add_all(file, path, number=number, prefix=prefix)
        finally:
            file.close()

    def read(self, sample: Sample) -> bytes:
        """Read the member. Raises ImageError if the tar is missing, truncated, or has changed since it was listed."""
        number, offset, size = self._place(sample)
        if size > MAX_FILE_BYTES:
            raise ImageError(f"{sample.id}: {size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        path = self._tars[number]
        try:
            # Opened for each read: a process may not be able to keep thousands of tars open.
            file = open_file(path)
            try:
                if version_of(file) != self._versions[number]:
                    raise ImageError(f"{sample.id}: {path.name} has changed since it was listed")
                content = file.read_at(size, offset)
            finally:
                file.close()
        except ImageError:
            raise
        except (OSError, SourceError) as error:
            raise ImageError(f"{sample.id}: cannot be read from {path}: {error}") from error
        if len(content) < size:
            raise ImageError(f"{sample.id}: truncated in {path.name}")
        return content

    def stamp(self, sample: Sample) -> Stamp | None:
        """("tar", the tar's size, its mtime and ctime in ns, the member's offset, its size)."""
        number, offset, size = self._place(sample)
        return ("tar", *self._versions[number], offset, size)

    def mtime_ns(self, sample: Sample) -> int | None:
        """The tar's mtime in ns."""
        return self._versions[self._place(sample)[0]].mtime_ns

    def _place(self, sample: Sample) -> tuple[int, int, int]:
        try:
            number, offset, size = self._places[sample.split][self._listing.samples[sample.split].find(sample.id)]
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None
        return int(number), int(offset), int(size)


def open_webdataset(
    pattern: str | Path,
    *,
    origin: str | None = None,
    image: str | None = None,
    columns: ColumnOptions | None = None,
    report: Report | None = None,
) -> WebDatasetSource:
    """Open a folder of tars, one tar, or a pattern with braces, `*` and `?`. Raises SourceError."""
    origin = origin or f"{PREFIX}{pattern}"
    path = Path(pattern)
    # Unlike Path.is_dir, it returns False for a name that is not valid for a file.
    if os.path.isdir(path):  # noqa: PTH112
        base, tars = path, tars_in(path)
    else:
        base, tars = tars_of(path)
    if not tars:
        raise SourceError(f"{pattern}: no such tar", hint=EXPECTED)
    return WebDatasetSource(tars, origin=origin, base=base, image=image, columns=columns, report=report)


def tars_in(folder: Path) -> list[Path]:
    """The tars of a folder and of its split folders, sorted; if there are only compressed tars, these."""
    folders = [folder, *(one for one in folder.glob("*/") if splits_in(one.name))]
    found = sorted(path for one in folders for path in one.iterdir() if not path.name.startswith("."))
    return [path for path in found if path.suffix == ".tar"] or [path for path in found if _is_compressed(path)]


def _is_compressed(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(".tar.zst") or (has_archive_suffix(name) and not name.endswith(".zip"))


def _inside(path: Path, base: Path) -> Path:
    try:
        return path.relative_to(base)
    except ValueError:
        raise SourceError(f"{path}: is outside {base}", hint="give the folder that contains all tars") from None


def _split_of(path: Path) -> str:
    """The split in the name of a tar or its folders; train if there is none."""
    found = dict.fromkeys(split for part in path.with_suffix("").parts for split in splits_in(part))
    if len(found) > 1:
        raise SourceError(f"{path}: its name has {' and '.join(sorted(found))}", hint="rename it: one split per tar")
    return next(iter(found), "train")


def _listing(
    rows: Mapping[str, SplitRows],
    labels: Mapping[str, Cells],
    origin: str,
    columns: ColumnOptions | None,
    left_out: Counter[str],
) -> Listing:
    names = tuple(dict.fromkeys(name for some in rows.values() for name in some.columns if name != LABEL))
    default = names if len(names) <= MOST_DEFAULT_COLUMNS else ()
    chosen = () if columns is None else choose(origin, names, columns.without(LABEL), default=default)
    kinds = {} if columns is None else columns.kind_of
    builder = ListingBuilder({one.name: "lists" if one.names else kinds.get(one.name) for one in chosen})
    for split, some in rows.items():
        cells = [[some.cells(name) for name in one.columns] for one in chosen]
        for row, (sample_id, label) in enumerate(zip(some.ids(), labels[split], strict=True)):
            of_row = [one.cell([cell[row] for cell in own]) for one, own in zip(chosen, cells, strict=True)]
            builder.add(split, sample_id or "", cell_text(label), of_row)
    _require_images(builder, origin, left_out)
    for what, count in left_out.items():
        builder.omissions.note(f"left out: {count:,} {what}")
    ignored = sorted(set(names) - {name for one in chosen for name in one.columns})
    if ignored and columns is not None:
        builder.omissions.note(f"{len(ignored):,} columns are ignored: {and_more(ignored)} (`--column NAME` keeps one)")
    return builder.listing(origin, label_kind=kinds.get(LABEL))


def _require_images(builder: ListingBuilder, origin: str, left_out: Counter[str]) -> None:
    if len(builder):
        return
    others = [what for what in left_out if what.startswith("images ")]
    seen = f"; left out: {', '.join(others)}" if others else ""
    hint = "choose the images: wds:PATTERN?image=EXTENSION" if others else EXPECTED
    raise SourceError(f"{origin}: no images found{seen}", hint=hint)


def _locate(given: ImagesArgument) -> Location | None:
    if not given.is_text:
        return None
    if given.text.startswith(PREFIX):
        inside = ImagesArgument(value=given.text.removeprefix(PREFIX))
        return given.at("webdataset", str(inside.path), prefix=PREFIX, options=("image",))
    # A folder of tars without images is a WebDataset; a tar next to image files is ignored.
    is_set = given.is_folder and bool(tars_in(given.path)) and not has_images(given.path)
    is_pattern = given.text.endswith(".tar") and not given.is_file and re.search(r"[*?{]", given.text) is not None
    if is_set or is_pattern:
        return given.at("webdataset", prefix=PREFIX, options=("image",))
    return None


@register("webdataset", rank=30, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> WebDatasetSource:
    image = location.option("image")
    return open_webdataset(
        location.place,
        origin=location.origin,
        image=None if image is None else image.lower().removeprefix("."),
        columns=opening.columns,
        report=opening.report,
    )
