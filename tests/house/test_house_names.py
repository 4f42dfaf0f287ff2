"""Names: what is public, what is explained, and which words this house does not use."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer
from house import PACKAGE, committed_files, module_name, modules, parsed, rooms

import featcache
from featcache.cli.app import app

FORBIDDEN = {"util", "utils", "helper", "helpers", "manager", "managers", "processor", "processors", "misc"}
# Only as a module's name: the options that all commands have in common may be called so.
FORBIDDEN_MODULES = FORBIDDEN | {"common"}
PACKAGES = ["featcache", *(f"featcache.{room}" for room in rooms())]


def words(name: str) -> set[str]:
    """`ImageHelpers`, `image_helpers` -> {"image", "helpers"}."""
    return set(re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().split("_"))


def name_of(path: Path) -> str:
    return module_name(path)


# --- public names ------------------------------------------------------------------------------------------


def offered(package: ModuleType) -> set[str]:
    """What an __init__ offers: the names it defines and, where it is lazy, those it shows to type checkers."""
    tree = parsed(Path(inspect.getfile(package)))
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    if "__getattr__" in found:
        shown = [node for node in tree.body if isinstance(node, ast.If)]
        found |= {
            alias.asname or alias.name
            for block in shown
            for node in ast.walk(block)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("featcache")
            for alias in node.names
        }
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_exactly_what_is_public(name: str) -> None:
    package = importlib.import_module(name)
    public = getattr(package, "__all__", [])
    assert list(public) == sorted(public, key=lambda each: (not each.isupper(), each[0].islower(), each))
    assert set(public) == offered(package)
    assert set(public) <= set(dir(package))
    for each in public:
        assert getattr(package, each) is not None
    with pytest.raises(AttributeError):
        _ = package.no_such_name


@pytest.mark.parametrize("name", featcache.__all__)
def test_a_public_name_is_explained(name: str) -> None:
    thing = getattr(featcache, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        members = [member for key, member in vars(thing).items() if not key.startswith("_")]
        functions = [member for member in members if inspect.isfunction(member) or isinstance(member, property)]
        unexplained = [getattr(member, "__name__", member) for member in functions if not inspect.getdoc(member)]
        assert unexplained == []


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(parsed(path)) or path.name == "__main__.py"


# --- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [path for path in committed_files() if path.suffix == ".py"] or modules(), ids=lambda p: p.name
)
def test_a_module_is_not_called_by_a_word_that_says_nothing(path: Path) -> None:
    assert not {word for part in path.with_suffix("").parts[-3:] for word in words(part)} & FORBIDDEN_MODULES


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_identifier_uses_a_word_that_says_nothing(path: Path) -> None:
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    assert sorted(name for name in found if words(name) & FORBIDDEN) == []


# --- the command line --------------------------------------------------------------------------------------


def commands() -> dict[str, typer.core.TyperCommand]:
    """Every command by its name."""
    return dict(getattr(typer.main.get_command(app), "commands"))  # noqa: B009


@pytest.mark.parametrize("name", commands())
def test_a_command_and_all_its_options_have_a_help_text(name: str) -> None:
    command = commands()[name]
    assert command.help
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


@pytest.mark.parametrize("name", commands())
def test_an_option_stands_under_a_heading(name: str) -> None:
    own = {"verify": {"full", "recompute", "seed", "device"}, "gc": {"delete"}}.get(name, set())
    for parameter in commands()[name].params:
        if parameter.param_type_name == "option" and parameter.name not in own:
            assert getattr(parameter, "rich_help_panel", None), parameter.name


def test_the_groups_of_commands_are_files() -> None:
    assert {path.stem for path in (PACKAGE / "cli").glob("*.py")} >= {"app", "extract", "train", "caches", "inventory"}
