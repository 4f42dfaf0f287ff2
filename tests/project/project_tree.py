"""The project on disk: its packages, their modules, the files in git."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "featcache"


def packages() -> list[str]:
    """The folders of the package that hold modules."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def modules(folder: Path = PACKAGE) -> list[Path]:
    """Every module under a folder."""
    return sorted(folder.rglob("*.py"))


def module_name(path: Path) -> str:
    """`featcache/cache/__init__.py` -> `featcache.cache`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def syntax_tree(path: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """The full names of the modules that a module imports, also inside functions unless `at_import_time`.

    What stands under `if TYPE_CHECKING` counts too, unless `at_import_time`.
    """
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in _nodes(syntax_tree(path), at_import_time):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from featcache.cache import spec` imports featcache.cache.spec.
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _nodes(tree: ast.AST, at_import_time: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if at_import_time and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_for_types(node)
        ):
            continue
        yield node
        yield from _nodes(node, at_import_time)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@cache
def files_in_git() -> tuple[Path, ...]:
    """What git keeps or would keep. Empty where this is no checkout."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    names = [os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    return tuple(sorted(path for path in (ROOT / name for name in names) if path.is_file()))


def pages() -> list[Path]:
    """What people read: every committed Markdown file."""
    found = [path for path in files_in_git() if path.suffix == ".md"]
    return found or [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def text_of(path: Path) -> str | None:
    """A file's text, None where it holds none."""
    content = path.read_bytes()
    if b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
