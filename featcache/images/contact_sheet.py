"""Contact sheets: a grid of captioned images, as a PNG or in a terminal, to inspect a data set.

A tile shows one image, or the same image twice: as it was loaded, and as the backbone will see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from featcache.errors import InvalidOption
from featcache.images.source import Pixels

if TYPE_CHECKING:
    from rich.text import Text

PAPER: Final = (255, 255, 255)
INK: Final = (30, 30, 30)
_GAP: Final = 8
_FONT_SIZE: Final = 13
_LINE: Final = 18
# The upper half of a character cell: foreground and background colour make it two pixels.
_HALF: Final = "▀"


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """`pictures`: uint8 (H, W, 3) each, side by side; None for one that cannot be shown. `caption`: text below them."""

    pictures: tuple[Pixels | None, ...]
    caption: str


def contact_sheet(tiles: Sequence[Tile], *, columns: int, side: int) -> Pixels:
    """Draw all tiles row by row.

    Args:
        tiles: The tiles.
        columns: The greatest number of tiles in a row.
        side: Each picture is scaled to fit into `side` x `side` pixels.

    Returns:
        The sheet, uint8 (H, W, 3).

    Raises:
        InvalidOption: No tiles, no columns, or `side` below 8.
    """
    if not tiles or columns < 1 or side < 8:
        raise InvalidOption(
            f"expected tiles in at least 1 column of at least 8 pixels, got {len(tiles)} in {columns} of {side}"
        )
    across = max(len(tile.pictures) for tile in tiles)
    wide, high = across * side + (across - 1) * 2 + _GAP, side + _LINE + _GAP
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * wide + _GAP, -(-len(tiles) // columns) * high + _GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for number, tile in enumerate(tiles):
        left, top = _GAP + number % columns * wide, _GAP + number // columns * high
        for place, picture in enumerate(tile.pictures):
            if picture is not None:
                fitted = fit(picture, side)
                corner = (left + place * (side + 2) + (side - fitted.width) // 2, top + (side - fitted.height) // 2)
                sheet.paste(fitted, corner)
        pen.text((left, top + side + 2), _shorten(tile.caption, font, wide - _GAP), fill=INK, font=font)
    return np.asarray(sheet)


def fit(picture: Pixels, side: int) -> Image.Image:
    """Scale a picture to fit into a square of `side` pixels; nearest neighbour if it at least doubles in size."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    resampling = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(picture).resize(size, resampling)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    return next(
        (
            f"{text[:length]}..."
            for length in range(len(text) - 1, 0, -1)
            if font.getlength(f"{text[:length]}...") <= width
        ),
        "",
    )


def terminal_lines(tiles: Sequence[Tile], *, columns: int, width: int) -> Iterator[Text]:
    """The contact sheet for a colour terminal: lines of half blocks, two pixels per character, and captions below.

    Args:
        tiles: The tiles.
        columns: The greatest number of tiles in a row.
        width: The number of characters in a line.

    Yields:
        The lines. Each picture fills a square; those of one tile are side by side.
    """
    from rich.cells import set_cell_size
    from rich.text import Text

    across = max((len(tile.pictures) for tile in tiles), default=1)
    columns = max(1, min(columns, len(tiles), width // (across * 4 + 1)))
    side = ((width - columns + 1) // columns - across + 1) // across
    for start in range(0, len(tiles), columns):
        row = tiles[start : start + columns]
        blocks = [[_half_blocks(picture, side) for picture in tile.pictures] for tile in row]
        for line in range(-(-side // 2)):
            yield Text(" ").join(Text(" ").join(block[line] for block in tile) for tile in blocks)
        captions = (set_cell_size(tile.caption, across * side + across - 1) for tile in row)
        yield Text(" ".join(captions).rstrip())


def _half_blocks(picture: Pixels | None, side: int) -> list[Text]:
    """A picture as lines of half blocks, `side` characters wide and half as high, centred."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    canvas = Image.new("RGBA", (side, side + side % 2))
    if picture is not None:
        fitted = fit(picture, side)
        # At an even row, so that no character is empty above and filled below.
        canvas.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 4 * 2))
    cells = np.asarray(canvas)

    def colour(pixel: Pixels) -> Color | None:
        return Color.from_rgb(*pixel[:3].tolist()) if pixel[3] else None

    lines = []
    for upper, lower in zip(cells[::2], cells[1::2], strict=True):
        line = Text()
        for above, below in zip(upper, lower, strict=True):
            shown = above[3] or below[3]
            line.append(_HALF if shown else " ", Style(color=colour(above), bgcolor=colour(below)))
        lines.append(line)
    return lines
