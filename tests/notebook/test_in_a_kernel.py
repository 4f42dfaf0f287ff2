"""A notebook, executed by a real kernel of Jupyter: bars, tables, the report, and short outputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
MOST_BYTES = 20_000
# Short stages get a bar too, so that the test need not wait for long ones.
IMPATIENT = "import featcache, featcache.progress; featcache.progress._SHORTEST_S = -1.0"
CELLS = {
    "cache": "cache = featcache.extract('digits', 'pixels', image_size=8, limit=200)\ncache",
    "run": "run = featcache.train_head(cache, 'linear', max_epochs=8)\nrun",
    "sweep": "decays = [number / 1e4 for number in range(60)]\n"
    "swept = featcache.sweep(cache, 'linear', grid={'weight_decay': decays}, max_epochs=2)\nswept",
    "rows": "swept.rows[0], swept.rows[0].heads[0]",
    "audit": "from featcache.analysis import audit_cache\naudit = audit_cache(cache)\naudit",
    "predicted": "import numpy\nimages = numpy.zeros((300, 8, 8, 3), 'uint8')\nfeatcache.predict(run, images)",
    "exported": "from featcache.inference import export_cache\nexport_cache(cache, 'digits.npz', 'npz')",
    "report": "run.report()",
    "error": "featcache.extract('digits', 'vgg61')",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outputs of each cell."""
    blank: dict[str, Any] = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    cells = [
        blank | {"id": f"cell-{number}", "source": source} for number, source in enumerate((IMPATIENT, *CELLS.values()))
    ]
    file = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    notebook = nbformat.reads(json.dumps(file), as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}, allow_errors=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "IPYTHONDIR": str(folder / "ipython")})
    first, *others = notebook.cells
    assert first.outputs == []
    return dict(zip(CELLS, (cell.outputs for cell in others), strict=True))


def texts_of(outputs: list[Any], mime: str) -> Iterator[str]:
    """What the outputs of a cell show as this type."""
    return (one["data"][mime] for one in outputs if mime in one.get("data", {}))


def last_html(outputs: list[Any]) -> str:
    return outputs[-1]["data"]["text/html"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("cell", [name for name in CELLS if name != "report"])
def test_no_cell_holds_more_than_20_kb(outputs: dict[str, list[Any]], cell: str) -> None:
    assert len(json.dumps(outputs[cell]).encode()) < MOST_BYTES


@pytest.mark.parametrize("cell", [name for name in CELLS if name != "error"])
def test_no_cell_fails_or_warns(outputs: dict[str, list[Any]], cell: str) -> None:
    assert [one for one in outputs[cell] if one["output_type"] in ("error", "stream")] == []


@pytest.mark.parametrize(
    ("cell", "stage"),
    [
        ("cache", "extracting"),
        ("run", "training"),
        ("sweep", "sweeping"),
        ("audit", "judging"),
        ("predicted", "predicting"),
        ("exported", "exporting"),
        ("report", "mapping features"),
    ],
)
def test_a_long_call_shows_a_bar_below_its_cell(outputs: dict[str, list[Any]], cell: str, stage: str) -> None:
    bars = [text for text in texts_of(outputs[cell], "text/plain") if text.startswith(stage)]
    assert len(bars) == 1
    assert "\x1b" not in bars[0] and "\n" not in bars[0]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("cache", "pixels on digits"),
        ("run", '<th scope="row">test</th>'),
        ("sweep", "and 50 more"),
        ("audit", "Leaks: the same image in several splits"),
        ("predicted", "300 images"),
        ("exported", "digits.npz"),
    ],
)
def test_a_result_is_an_html_table(outputs: dict[str, list[Any]], cell: str, text: str) -> None:
    html = last_html(outputs[cell])
    assert "<table>" in html and text in html


@pytest.mark.parametrize("cell", ["cache", "run", "sweep", "audit", "predicted", "exported", "report"])
def test_a_result_is_one_short_line_as_text(outputs: dict[str, list[Any]], cell: str) -> None:
    text = outputs[cell][-1]["data"]["text/plain"]
    assert text.startswith("<") and len(text) <= 302 and "\n" not in text


def test_the_report_of_a_run_is_the_page_itself(outputs: dict[str, list[Any]]) -> None:
    html = last_html(outputs["report"])
    assert html.startswith("<iframe srcdoc=")
    page = unescape(html.partition('srcdoc="')[2].partition('"')[0])
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")


def test_an_error_shows_its_hint(outputs: dict[str, list[Any]]) -> None:
    (error,) = outputs["error"]
    assert "hint: did you mean" in "\n".join(error["traceback"])
