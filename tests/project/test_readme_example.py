"""The README's example in Python does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from documents import blocks
from project_tree import ROOT


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    shown = [block.text for block in blocks((ROOT / "README.md").read_text()) if block.language == "python"]
    assert shown
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(shown)],
        cwd=tmp_path,
        # Small heads on a busy machine: threads that wait for each other take a hundred times as long.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "accuracy" in ran.stdout
    assert list(tmp_path.glob("runs/*/head.safetensors"))
