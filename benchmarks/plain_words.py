"""Material for a reading test: `python benchmarks/plain_words.py > sheet.json`.

Draws 20 functions and 10 modules with a fixed seed. The sheet shows names, signatures and docstrings, not code: a
reader new to the project explains from it what each does, another reader compares the explanations with the code, and
both are kept in results/plain_words.json.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1] / "featcache"
SEED, FUNCTIONS, MODULES = 17, 20, 10


def module_name(path: Path) -> str:
    """`featcache/cache/spec.py` -> `featcache.cache.spec`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions_of(path: Path) -> Iterator[dict[str, Any]]:
    """The public functions and methods of a module that have a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners: list[tuple[str, Any]] = [("", tree)]
    owners += [(f"{node.name}.", node) for node in tree.body if isinstance(node, ast.ClassDef)]
    for prefix, owner in owners:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and ast.get_docstring(node):
                returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
                yield {
                    "name": f"{module_name(path)}.{prefix}{node.name}",
                    "signature": f"({ast.unparse(node.args)}){returns}",
                    "docstring": ast.get_docstring(node),
                }


def sheet() -> dict[str, Any]:
    """The functions and modules of the test, always the same for the same code."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")
    chance = random.Random(SEED)
    functions = [one for path in paths for one in functions_of(path)]
    modules = [
        {
            "name": module_name(path),
            "docstring": ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))),
            "functions": [one["name"].rpartition(".")[2] for one in functions_of(path)],
        }
        for path in paths
        if path.name != "__init__.py"
    ]
    return {
        "seed": SEED,
        "functions": chance.sample(functions, FUNCTIONS),
        "modules": chance.sample(modules, MODULES),
    }


if __name__ == "__main__":
    print(json.dumps(sheet(), indent=1))
