"""The documentation's notebook runs from its first to its last cell, and its two languages have the same code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]

ENGLISH, PORTUGUESE = ROOT / "docs" / "notebook.ipynb", ROOT / "docs" / "notebook.pt.ipynb"


def code(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_both_notebooks_are_what_their_source_gives(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (ENGLISH, PORTUGUESE)}
    copy = tmp_path / "scripts" / "notebooks.py"
    copy.parent.mkdir()
    (tmp_path / "docs").mkdir()
    copy.write_bytes((ROOT / "scripts" / "notebooks.py").read_bytes())
    (tmp_path / "docs" / "notebook.py").write_bytes((ROOT / "docs" / "notebook.py").read_bytes())
    subprocess.run([sys.executable, str(copy)], check=True, capture_output=True)
    for path, bytes_ in before.items():
        assert (tmp_path / "docs" / path.name).read_bytes() == bytes_, "run python scripts/notebooks.py"


def test_the_languages_differ_only_in_their_prose() -> None:
    assert code(ENGLISH) == code(PORTUGUESE)
    kinds = [[cell.cell_type for cell in nbformat.read(path, as_version=4).cells] for path in (ENGLISH, PORTUGUESE)]
    assert kinds[0] == kinds[1]


@pytest.mark.shared
def test_the_notebook_runs_on_a_few_real_images(
    cifar_zip: Path, vgg_weights: Path, inception_weights: Path, tmp_path: Path
) -> None:
    notebook = nbformat.read(ENGLISH, as_version=4)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    settings.source = "\n".join(
        f"{name} = {value!r}"
        for name, value in {
            "images": str(cifar_zip),
            "limit": 12,
            "weights": {"vgg16": str(vgg_weights), "inception_v3": str(inception_weights)},
            "seeds": 1,
        }.items()
    )
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [text for cell in notebook.cells if cell.cell_type == "code" for text in texts(cell.outputs)]
    everything = "\n".join(shown)
    assert "train: 50,000 images" in everything
    for name in ("mlp-best", "vgg16", "inception_v3"):
        assert name in everything
    assert "images, the notebook had 40,000 train and 10,000 val" in everything, "fewer images are no agreement"
    assert (tmp_path / "report.html").stat().st_size > 50_000


def texts(outputs: list[Any]) -> list[str]:
    """The texts of a cell's outputs; of pictures only their kind."""
    assert not [one for one in outputs if one.output_type == "error"]
    return [json.dumps(one.get("data", one.get("text", ""))) for one in outputs]
