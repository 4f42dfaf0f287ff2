"""Write the images of a cache for programs that show features as points: TensorBoard's projector, and embedding-atlas.

    projector   a folder: two tables and a text that describes them. `tensorboard --logdir FOLDER` shows them, and
                https://projector.tensorflow.org loads the two tables too
    atlas       one Parquet file with the columns of embedding-atlas: x and y, the nearest neighbours, all targets, the
                predictions of a run, and the encoded images

With images, every point is shown as its image, which must still exist.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache.errors import ExportError, InvalidOption
from featcache.files import atomic_file, atomic_folder, fsync_file
from featcache.images import decode
from featcache.images.formats import format_of
from featcache.images.samples import Sample
from featcache.images.source import ImageSource
from featcache.inference.array_files import require_new_folder
from featcache.inference.cache_rows import Advance, CacheRows, RowBlock
from featcache.inference.pictures import source_of
from featcache.inference.similarity import QUERY_BYTES, CachedImages, Queries, nearest, text_of
from featcache.inference.table_files import import_pyarrow

# TensorBoard's projector shows no larger sprite.
_SPRITE_SIDE = 8192
_LARGEST_THUMBNAIL = 64
_THUMBNAIL_SIDE = 256
# Of the atlas: smaller files of formats that browsers show are kept as they are.
_KEPT_BYTES = 64 << 10
_SHOWN_BY_BROWSERS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP")
# Neighbours of a point of the atlas, as embedding-atlas itself computes by default.
_NEIGHBOURS = 15
_ROW_GROUP = 1000
# t-SNE takes half a minute for so many points on 2 cores.
_MOST_TSNE_ROWS = 5_000


def write_projector(rows: CacheRows, path: Path, advance: Advance, *, images: bool, data_dir: Path) -> None:
    """Write the folder.

    Args:
        rows: The rows, of one layer.
        path: The folder to write.
        advance: Called with (done, total) after each block.
        images: Also write a picture of all images (a sprite).
        data_dir: The folder of downloaded data sets.

    Raises:
        InvalidOption: There are several layers, or the folder exists.
        ExportError: Images are missing.
    """
    require_new_folder("projector", path)
    if len(rows.layers) > 1:
        raise InvalidOption(
            f"the projector shows one layer, and {rows.cache.name} has {', '.join(rows.layers)}",
            hint=f"--layer {rows.layers[0]}",
        )
    with atomic_folder(path) as folder:
        thumbnail = _write_sprite(rows, folder / "sprite.png", data_dir) if images else None
        (folder / "projector_config.pbtxt").write_text(_config(rows, thumbnail))
        with (
            (folder / "tensors.tsv").open("w") as tensors,
            (folder / "metadata.tsv").open("w", encoding="utf-8", errors="surrogateescape") as metadata,
        ):
            print("id\tclass\tsplit", file=metadata)
            for block in rows.blocks(advance):
                np.savetxt(tensors, block.features[rows.layers[0]].astype(np.float32), fmt="%.6g", delimiter="\t")
                metadata.writelines(_lines(rows, block))
        for file in folder.iterdir():
            fsync_file(file)


def _lines(rows: CacheRows, block: RowBlock) -> Iterator[str]:
    for name, label in zip(block.ids, block.labels.tolist(), strict=True):
        yield "\t".join((_cell(name), _cell(rows.class_name(label)), block.split)) + "\n"


def _cell(text: str) -> str:
    """The text for a cell. The format has no quotes, so tabs and line breaks become spaces."""
    return " ".join(text.split()) or "-"


def _config(rows: CacheRows, thumbnail: int | None) -> str:
    name = f"{rows.cache.spec.backbone}/{rows.layers[0]}".replace('"', "'").replace("\\", "/")
    lines = [
        "embeddings {",
        f'  tensor_name: "{name}"',
        '  tensor_path: "tensors.tsv"',
        '  metadata_path: "metadata.tsv"',
    ]
    if thumbnail is not None:
        image = [
            '    image_path: "sprite.png"',
            f"    single_image_dim: {thumbnail}",
            f"    single_image_dim: {thumbnail}",
        ]
        lines += ["  sprite {", *image, "  }"]
    return "\n".join([*lines, "}", ""])


def _write_sprite(rows: CacheRows, path: Path, data_dir: Path) -> int:
    """Write one picture of all images, row by row from the left, each a square; returns the side of a square."""
    across = math.ceil(math.sqrt(len(rows)))
    side = min(_LARGEST_THUMBNAIL, _SPRITE_SIDE // across)
    if side < 8:
        raise ExportError(
            f"a sprite holds at most {(_SPRITE_SIDE // 8) ** 2:,} images, got {len(rows):,}",
            hint="leave out --images",
        )
    sheet = Image.new("RGB", (across * side, math.ceil(len(rows) / across) * side))
    with closing(source_of(rows.cache.selection.source, data_dir)) as source:
        samples = _samples(source, {split: rows.cache[split].ids for split in rows.splits}, rows.cache.name)
        for number, sample in enumerate(samples):
            picture = Image.fromarray(decode(source.read(sample), sample.id)).resize((side, side))
            sheet.paste(picture, (number % across * side, number // across * side))
    sheet.save(path)
    return side


def _samples(source: ImageSource, ids: Mapping[str, Sequence[str]], cache: str) -> list[Sample]:
    """The images of a cache, split after split. Raises ExportError where some are missing."""
    known = {
        (split, sample.id): sample for split in ids if split in source.splits() for sample in source.samples(split)
    }
    wanted = [(split, name) for split, names in ids.items() for name in names]
    missing = [name for split, name in wanted if (split, name) not in known]
    if missing:
        raise ExportError(
            f"{len(missing)} images of {cache} are no longer in {source.origin}, the first is {missing[0]}",
            hint="leave out --images, or extract again",
        )
    return [known[one] for one in wanted]


# --- atlas -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """A run's predictions for the atlas.

    Args:
        outputs: The head: features float32 (n, D) -> outputs float32 (n, C).
        columns: Outputs (n, C) -> the columns `prediction` and `probability`, or one for each number.
    """

    outputs: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    columns: Callable[[NDArray[np.float32]], Mapping[str, Sequence[Any]]]


def write_atlas(
    images: CachedImages,
    path: Path,
    advance: Callable[[str, int, int], None],
    *,
    method: str | None,
    answers: Answers | None,
    pictures: bool,
    data_dir: Path,
) -> str:
    """Write the Parquet file.

    Args:
        images: The rows.
        path: The file to write.
        advance: Called with (stage, done, total).
        method: "pca", "tsne" or "umap"; None: t-SNE for up to 5,000 rows, else PCA.
        answers: The predictions of a run; None for none.
        pictures: Whether the encoded images are written.
        data_dir: The folder of downloaded data sets.

    Returns:
        The method of the map.

    Raises:
        MissingExtra: pyarrow, or a package of the method, is not installed.
        InvalidOption: There are fewer than 5 rows.
        ExportError: Images are missing.
    """
    pyarrow, parquet = import_pyarrow("atlas")
    from featcache.analysis.projection import Method, project

    chosen: Method = method or ("tsne" if len(images) <= _MOST_TSNE_ROWS else "pca")  # type: ignore[assignment]
    points = project(images, method=chosen, limit=len(images)).points
    near = _neighbours(images, advance)
    with ExitStack() as opened:
        read = opened.enter_context(_Pictures(images, data_dir)).read if pictures else None
        building = opened.enter_context(atomic_file(path))
        writer = None
        for start in range(0, len(images), _ROW_GROUP):
            rows = np.arange(start, min(start + _ROW_GROUP, len(images)))
            table = pyarrow.table(_columns(pyarrow, images, rows, points, near, answers, read))
            writer = writer or opened.enter_context(parquet.ParquetWriter(building, table.schema, compression="zstd"))
            writer.write_table(table)
            advance("exporting", int(rows[-1]) + 1, len(images))
    return chosen


def _neighbours(images: CachedImages, advance: Callable[[str, int, int], None]) -> tuple[Any, Any]:
    """Row numbers int64 (N, k) of the nearest other rows of each row, and their cosine distances."""
    count, wide = images.shape
    step = max(1, QUERY_BYTES // (4 * wide))
    found, far = [], []
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        with closing(Queries(wide)) as queries:
            queries.add(images[rows])
            similarities, numbers = nearest(queries, images.blocks(), _NEIGHBOURS + 1)
        # A row is nearly always its own nearest; among many equal rows it may not be found at all.
        other = numbers != rows[:, None]
        other[other.all(axis=1), -1] = False
        shape = len(rows), -1
        found.append(numbers[other].reshape(shape))
        far.append(np.maximum(0, 1 - similarities[other].reshape(shape)))
        advance("finding neighbours", int(rows[-1]) + 1, count)
    return np.concatenate(found), np.concatenate(far)


def _columns(
    pyarrow: Any,
    images: CachedImages,
    rows: NDArray[np.int64],
    points: NDArray[np.float32],
    near: tuple[Any, Any],
    answers: Answers | None,
    read: Callable[[int], bytes] | None,
) -> dict[str, Any]:
    """The columns of some rows, as arrays of pyarrow."""
    described = images.describe(rows)
    columns: dict[str, Any] = {
        "id": pyarrow.array([_utf8(name) for _, name, _ in described], pyarrow.string()),
        "split": pyarrow.array([split for split, _, _ in described], pyarrow.string()),
        "x": pyarrow.array(points[rows, 0], pyarrow.float32()),
        "y": pyarrow.array(points[rows, 1], pyarrow.float32()),
        "neighbors": pyarrow.StructArray.from_arrays(
            [_lists(pyarrow, near[0][rows]), _lists(pyarrow, near[1][rows])], names=["ids", "distances"]
        ),
    }
    if answers is not None:
        columns |= {
            name: pyarrow.array(values) for name, values in answers.columns(answers.outputs(images[rows])).items()
        }
    if read is not None:
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        encoded = [
            {"bytes": read(int(row)), "path": _utf8(name)} for row, (_, name, _) in zip(rows, described, strict=True)
        ]
        columns["image"] = pyarrow.array(encoded, kind)
    for name, values in images.target_values(rows).items():
        kind = pyarrow.float64() if images.cache.targets[name].kind == "numbers" else pyarrow.string()
        columns[f"target.{name}" if name in columns else name] = pyarrow.array(list(map(_cell_of, values)), kind)
    return columns


def _lists(pyarrow: Any, values: NDArray[Any]) -> Any:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values.ravel()))


def _cell_of(value: Any) -> Any:
    """A target's value as a cell: several classes as text."""
    return value if value is None or isinstance(value, float) else _utf8(text_of((value,)) or "")


def _utf8(text: str) -> str:
    # A file name that is no UTF-8 is shown with its bytes escaped.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class _Pictures:
    """Reads the encoded images of rows. Raises ExportError where some are missing."""

    def __init__(self, images: CachedImages, data_dir: Path) -> None:
        self._source = source_of(images.cache.selection.source, data_dir)
        try:
            ids = {part.split.name: part.ids() for part in images.parts}
            self._samples = _samples(self._source, ids, images.cache.name)
        except ExportError:
            self._source.close()
            raise

    def read(self, row: int) -> bytes:
        """The image as a browser shows it: a small file itself, else a thumbnail of at most 256 pixels a side."""
        sample = self._samples[row]
        payload = self._source.read(sample)
        if isinstance(payload, bytes) and len(payload) <= _KEPT_BYTES and format_of(payload) in _SHOWN_BY_BROWSERS:
            return payload
        picture = Image.fromarray(decode(payload, sample.id))
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        file = io.BytesIO()
        # Of so few pixels JPEG would change each.
        small = max(picture.size) <= _LARGEST_THUMBNAIL
        picture.save(file, "PNG" if small else "JPEG", quality=90)
        return file.getvalue()

    def __enter__(self) -> _Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()
