"""Contact sheets: every picture is in its place, in a file and in a terminal."""

from __future__ import annotations

import numpy as np
import pytest
from rich.color import Color
from rich.text import Text

from featcache.errors import InvalidOption
from featcache.images.contact_sheet import PAPER, Tile, contact_sheet, fit, terminal_lines
from featcache.images.source import Pixels

RED, BLUE = (200, 10, 10), (10, 10, 200)


def plain(colour: tuple[int, int, int], height: int = 4, width: int = 4) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


def colours(sheet: Pixels) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}


def test_every_picture_is_in_its_place() -> None:
    tiles = [Tile(pictures=(plain(RED),), caption=""), Tile(pictures=(plain(BLUE),), caption="")] * 2
    sheet = contact_sheet(tiles, columns=2, side=20)
    assert sheet.shape == (2 * (20 + 18 + 8) + 8, 2 * 28 + 8, 3)
    assert tuple(sheet[18, 18]) == RED
    assert tuple(sheet[18, 46]) == BLUE
    assert tuple(sheet[64, 18]) == RED
    assert colours(sheet) == {PAPER, RED, BLUE}


def test_two_pictures_of_a_tile_are_side_by_side() -> None:
    sheet = contact_sheet([Tile(pictures=(plain(RED), plain(BLUE)), caption="")], columns=3, side=20)
    assert (tuple(sheet[18, 18]), tuple(sheet[18, 40])) == (RED, BLUE)


def test_captions_are_written_and_cut_where_they_do_not_fit() -> None:
    def ink(caption: str) -> Pixels:
        return contact_sheet([Tile(pictures=(None,), caption=caption)], columns=1, side=60)

    assert len(colours(ink("cat"))) > 1
    assert np.array_equal(ink("cat" * 50), ink("cat" * 60))


@pytest.mark.parametrize(("height", "width", "expected"), [(4, 4, (40, 40)), (10, 5, (20, 40)), (100, 300, (40, 13))])
def test_a_picture_keeps_its_proportions(height: int, width: int, expected: tuple[int, int]) -> None:
    assert fit(plain(RED, height, width), 40).size == expected


def test_a_picture_that_cannot_be_shown_leaves_its_place_empty() -> None:
    assert colours(contact_sheet([Tile(pictures=(None,), caption="")], columns=1, side=20)) == {PAPER}


@pytest.mark.parametrize(("count", "columns", "side"), [(0, 1, 20), (1, 0, 20), (1, 1, 7)])
def test_nothing_to_show_is_an_error(count: int, columns: int, side: int) -> None:
    with pytest.raises(InvalidOption, match="expected tiles in at least 1 column"):
        contact_sheet([Tile(pictures=(None,), caption="")] * count, columns=columns, side=side)


def shades(line: Text) -> set[tuple[Color | None, Color | None]]:
    return {(span.style.color, span.style.bgcolor) for span in line.spans if not isinstance(span.style, str)}


def test_a_terminal_shows_two_pixels_per_character() -> None:
    half = np.concatenate([plain(RED, 3, 6), plain(BLUE, 3, 6)])
    *blocks, caption = terminal_lines([Tile(pictures=(half,), caption="cat")], columns=1, width=6)
    assert [line.plain for line in blocks] == ["▀" * 6] * 3
    assert shades(blocks[0]) == {(Color.from_rgb(*RED), Color.from_rgb(*RED))}
    assert shades(blocks[1]) == {(Color.from_rgb(*RED), Color.from_rgb(*BLUE))}
    assert shades(blocks[2]) == {(Color.from_rgb(*BLUE), Color.from_rgb(*BLUE))}
    assert caption.plain == "cat"


@pytest.mark.parametrize("width", [10, 33, 80, 200])
@pytest.mark.parametrize("pictures", [1, 2])
def test_lines_are_as_wide_as_the_terminal_at_most(width: int, pictures: int) -> None:
    tiles = [Tile(pictures=(plain(RED, 3, 9),) * pictures, caption="caterpillar 32x32")] * 7
    lines = list(terminal_lines(tiles, columns=4, width=width))
    assert max(len(line.plain) for line in lines) <= width
    assert sum("cat" in line.plain for line in lines) >= 2
