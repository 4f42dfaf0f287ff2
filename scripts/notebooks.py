"""Writes docs/notebook.ipynb and docs/notebook.pt.ipynb from docs/notebook.py: the same code, prose in two languages.

python scripts/notebooks.py          # after a change of docs/notebook.py

A text cell with `lang="pt"` is in the Portuguese notebook alone, one with `lang="en"` in the English one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat

DOCS = Path(__file__).resolve().parents[1] / "docs"
SOURCE = DOCS / "notebook.py"
NOTEBOOKS = {"en": DOCS / "notebook.ipynb", "pt": DOCS / "notebook.pt.ipynb"}


def notebook(language: str) -> Any:
    """The notebook in one language, without outputs."""
    whole = jupytext.read(SOURCE)
    cells = [cell for cell in whole.cells if cell.metadata.pop("lang", language) == language]
    for number, cell in enumerate(cells):
        # Random names would make every run a change.
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def main() -> None:
    """Write both notebooks."""
    for language, path in NOTEBOOKS.items():
        path.write_text(nbformat.writes(notebook(language)) + "\n", encoding="utf-8")
        print(path.relative_to(DOCS.parent), file=sys.stderr)


if __name__ == "__main__":
    main()
