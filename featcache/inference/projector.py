"""Export a cache's plain images for TensorBoard's embedding projector: two tables, and a text that describes them.

`tensorboard --logdir FOLDER` shows them; https://projector.tensorflow.org loads the two tables too. With a sprite (one
picture of all images) every point is shown as its image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from featcache.errors import ExportError, InvalidOption
from featcache.files import atomic_folder, fsync_file
from featcache.images import decode
from featcache.images.samples import Sample
from featcache.images.source import ImageSource
from featcache.inference.array_files import require_new_folder
from featcache.inference.cache_rows import Advance, CacheRows, RowBlock
from featcache.inference.verification_images import source_of

# TensorBoard's projector shows no larger sprite.
_SPRITE_SIDE = 8192
_LARGEST_THUMBNAIL = 64


def write_projector(rows: CacheRows, path: Path, advance: Advance, *, sprite: bool, data_dir: Path) -> None:
    """Write the folder.

    Args:
        rows: The rows, of one layer.
        path: The folder to write.
        advance: Called with (done, total) after each block.
        sprite: Also write a picture of all images, which must still exist.
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
        thumbnail = _write_sprite(rows, folder / "sprite.png", data_dir) if sprite else None
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
            f"a sprite holds at most {(_SPRITE_SIDE // 8) ** 2:,} images, got {len(rows):,}", hint="leave out --sprite"
        )
    sheet = Image.new("RGB", (across * side, math.ceil(len(rows) / across) * side))
    with closing(source_of(rows.cache.selection.source, data_dir)) as source:
        for number, sample in enumerate(_samples(rows, source)):
            picture = Image.fromarray(decode(source.read(sample), sample.id)).resize((side, side))
            sheet.paste(picture, (number % across * side, number // across * side))
    sheet.save(path)
    return side


def _samples(rows: CacheRows, source: ImageSource) -> Sequence[Sample]:
    known = {sample.id: sample for split in rows.splits for sample in source.samples(split)}
    ids = rows.ids()
    missing = [name for name in ids if name not in known]
    if missing:
        raise ExportError(
            f"{len(missing)} images of {rows.cache.name} are no longer in {source.origin}, the first is {missing[0]}",
            hint="leave out --sprite, or extract again",
        )
    return [known[name] for name in ids]
