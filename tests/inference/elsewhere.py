"""Runs exported files without featcache: in a process of its own, with the script of docs/export.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
# The script of the page is imported, so it ends up with no images to print.
_ELSEWHERE = """
import json, sys
paths = sys.stdin.read().splitlines()
import classify
rows = [classify.outputs(path).tolist() for path in paths]
assert not any(name.startswith("featcache") for name in sys.modules)
json.dump({"names": classify.names, "rows": rows}, sys.stdout)
"""


def snippet() -> str:
    """The script `classify.py` of docs/export.md."""
    text = PAGE.read_text(encoding="utf-8")
    begin = text.index("cat > classify.py <<'END'\n") + len("cat > classify.py <<'END'\n")
    return text[begin : text.index("\nEND\n", begin) + 1]


def outputs_elsewhere(model: Path, paths: list[Path], folder: Path) -> dict[str, Any]:
    """The outputs of an ONNX file for images, in a process without featcache: `names` of the columns and `rows`."""
    (folder / "classify.py").write_text(snippet(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(model)],
        input="\n".join(map(str, paths)),
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
