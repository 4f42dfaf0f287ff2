"""The tables of fields in docs/automation.md, from the objects that the commands print.

`python tests/project/json_fields.py` rewrites them. Each table is between `<!-- fields: NAME -->` and
`<!-- end of fields -->`. The fields come from real outputs; the meaning of a field is written on the page and kept. A
new field gets an empty meaning, which a test does not accept.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from project_tree import ROOT
from typer.testing import CliRunner

import featcache.errors
from featcache.cli.app import app
from featcache.errors import FeatcacheError

PAGE = ROOT / "docs" / "automation.md"
_TABLE = re.compile(r"(<!-- fields: (?P<name>[^\n]*) -->\n)(?P<table>.*?)(<!-- end of fields -->)", re.DOTALL)
_ROW = re.compile(r"^\| `(?P<field>[^`]+)` \| (?P<meaning>.*) \|$", re.MULTILINE)
# The name on the page -> the words of the command line, in an order in which each finds what it needs.
COMMANDS: Mapping[str, Sequence[str]] = {
    "extract": ("extract", "--backbone", "pixels", "--dataset", "digits"),
    "label": ("label", "digits", "odd.csv"),
    "ls": ("ls",),
    "info": ("info", "digits"),
    "verify": ("verify", "digits", "--full", "--recompute", "2"),
    "why": ("why", "--backbone", "pixels", "--dataset", "digits", "--image-size", "16"),
    "train-head": ("train-head", "digits", "--head", "ridge"),
    "sweep": ("sweep", "digits", "--head", "ridge", "--seeds", "1"),
    "predict": ("predict", "latest", "digit.png"),
    "search": ("search", "digits", "digit.png"),
    "export a cache": ("export", "digits", "-o", "rows.npz"),
    "export a run": ("export", "latest", "-o", "head.onnx"),
    "report": ("report", "latest", "--map", "none"),
    "push": ("push", "latest", "shared"),
    "pull": ("pull", "shared"),
    "audit": ("audit", "digits"),
    "show": ("show", "digits", "--limit", "1"),
    "datasets": ("datasets",),
    "backbones": ("backbones",),
    "backbones NAME": ("backbones", "squeezenet1_1"),
    "recipes": ("recipes",),
    "doctor": ("doctor",),
    "gc": ("gc",),
    "rm": ("rm", "digits"),
    "error": ("info", "no-such-cache"),
}
# A mapping whose keys are the same each time: they are fields too.
_RECORDS = ("error", "images", "verified", "recomputed")


def fields_of(value: Mapping[str, Any]) -> Iterator[str]:
    """`rows`, `caches[].name`, ...: the fields of an object, and of the objects in its lists."""
    for key, item in value.items():
        yield key
        if isinstance(item, Mapping) and key in _RECORDS:
            yield from (f"{key}.{inner}" for inner in item)
        elif isinstance(item, list):
            inner = {name: None for one in item if isinstance(one, Mapping) for name in one}
            yield from (f"{key}[].{name}" for name in inner)


def outputs() -> dict[str, Mapping[str, Any]]:
    """Runs every command in a folder of its own; the objects that they print, by the names of `COMMANDS`."""
    found: dict[str, Mapping[str, Any]] = {}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Image.new("RGB", (8, 8), "gray").save("digit.png")
            with Path("odd.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("id", "odd"), ("train/00000", "yes"), ("train/00001", "no")])
            for name, words in COMMANDS.items():
                ran = CliRunner().invoke(app, [*words, "--json", "--quiet"])
                expected = 1 if name == "error" else 0
                assert ran.exit_code == expected, f"featcache {' '.join(words)}: {ran.output}"
                found[name] = json.loads(ran.stdout)
        finally:
            os.chdir(before)
    return found


def render(page: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with the fields of `found`, and the meanings that it had."""

    def table(match: re.Match[str]) -> str:
        known = {row["field"]: row["meaning"] for row in _ROW.finditer(match["table"])}
        names = list(_kinds()) if match["name"] == "kinds" else list(fields_of(found[match["name"]]))
        meanings = _kinds() if match["name"] == "kinds" else known
        head = ("kind", "what") if match["name"] == "kinds" else ("field", "what")
        lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
        lines += [f"| `{name}` | {meanings.get(name, '')} |" for name in names]
        return f"{match[1]}\n" + "\n".join(lines) + f"\n\n{match[4]}"

    return _TABLE.sub(table, page)


def _kinds() -> dict[str, str]:
    """The errors by the names of their classes, and the first line of their docstrings."""
    kinds = [
        one for one in vars(featcache.errors).values() if isinstance(one, type) and issubclass(one, FeatcacheError)
    ]
    return {one.__name__: str(one.__doc__).splitlines()[0] for one in kinds if one is not FeatcacheError}


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), outputs()), encoding="utf-8")
