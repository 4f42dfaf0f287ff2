"""Experiment files for tests, on few of scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

DIGITS = """
[images]
dataset = "digits"
limit = 80

[[backbones]]
backbone = "pixels"
"""


def write_experiment(folder: Path, text: str, name: str = "experiment.toml") -> Path:
    """Write an experiment file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path
