"""Parts of a report: calibration bins, JSON in the page, sheets of pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_workspace import Workspace

from featcache.heads.calibration import calibration_error, confidence_bins
from featcache.heads.metric_records import ClassMetrics
from featcache.heads.records import Predictions
from featcache.report.page import json_for_page
from featcache.report.thumbnails import COLUMNS, PER_SHEET, pack_sheets
from featcache.runs.run import Run


def predictions(seed: int, rows: int, classes: int) -> Predictions:
    """Random predictions."""
    random = np.random.default_rng(seed)
    return Predictions(
        ids=tuple(map(str, range(rows))),
        targets=random.integers(0, classes, rows),
        outputs=random.dirichlet(np.full(classes, 0.3), rows).astype(np.float32),
    )


def test_the_page_draws_the_bins_that_were_measured(runs: tuple[Run, Run]) -> None:
    for run in runs:
        measured, predicted = run.metrics("test"), run.predictions("test")
        assert isinstance(measured, ClassMetrics)
        confidence, right = predicted.outputs.max(axis=1), predicted.outputs.argmax(axis=1) == predicted.targets
        assert calibration_error(confidence_bins(confidence, right)) == pytest.approx(
            measured.calibration_error, abs=1e-5
        )
        assert calibration_error(measured.bins) == measured.calibration_error
        assert calibration_error(measured.scaled_bins) == measured.scaled_calibration_error


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4))
def test_json_survives_the_page(data: dict[str, str]) -> None:
    import json

    text = json_for_page(data)
    assert json.loads(text) == data
    assert not {"<", ">", "&"} & set(text)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(1, 15)), max_size=40), st.integers(0, 99))
def test_every_picture_is_found_in_its_tile(sides: list[int | None], seed: int) -> None:
    colours = np.random.default_rng(seed).integers(1, 256, (len(sides), 3), dtype=np.uint8)
    pictures = [
        None if side is None else np.broadcast_to(colour, (side, side, 3)).copy()
        for side, colour in zip(sides, colours, strict=True)
    ]
    found = pack_sheets(pictures, 1_000_000)
    sheets = [np.asarray(open_sheet(sheet)) for sheet in found.sheets]
    for side, colour, tile in zip(sides, colours, found.tiles.tolist(), strict=True):
        assert (tile >= 0) == (side is not None)
        if side is not None:
            sheet, place = divmod(tile, PER_SHEET)
            row, column = divmod(place, COLUMNS)
            middle = sheets[sheet][row * found.side + found.side // 2, column * found.side + found.side // 2]
            assert middle.tolist() == colour.tolist()


def open_sheet(sheet: str) -> Image.Image:
    """The image in a data URL."""
    kind, _, content = sheet.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")


@pytest.mark.parametrize("max_bytes", [0, 3_000, 30_000, 400_000])
def test_sheets_never_exceed_the_given_size(max_bytes: int) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(120)]
    wanted = np.arange(119, -1, -1)
    found = pack_sheets(pictures, max_bytes, wanted=wanted)
    assert found.nbytes <= max_bytes
    have = int((found.tiles >= 0).sum())
    # The most wanted pictures are kept.
    assert (found.tiles[120 - have :] >= 0).all()
    assert bool(found.notes) == (have < 120)
    assert have == {0: 0, 400_000: 120}.get(max_bytes, have)


def test_the_workspace_has_mistakes_and_unique_colours(workspace: Workspace, runs: tuple[Run, Run]) -> None:
    for run in runs:
        predicted = run.predictions("test")
        assert 0 < (predicted.outputs.argmax(axis=1) != predicted.targets).sum() < len(predicted.ids)
    assert len(set(workspace.colours.values())) == len(workspace.colours)
