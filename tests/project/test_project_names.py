"""Names: what is public, what is explained, and which words the project does not use."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest
import typer
import words
from project_tree import PACKAGE, ROOT, files_in_git, module_name, modules, packages, pages, syntax_tree

import featcache
from featcache.cli.app import app

FORBIDDEN = {"util", "utils", "helper", "helpers", "manager", "managers", "processor", "processors", "misc"}
# Only as a module's name: the options that all commands have in common may be called so.
FORBIDDEN_MODULES = FORBIDDEN | {"common"}
PACKAGES = ["featcache", *(f"featcache.{package}" for package in packages())]


def name_of(path: Path) -> str:
    return module_name(path)


# --- public names ------------------------------------------------------------------------------------------


def public_names(package: ModuleType) -> set[str]:
    """The public names of an __init__: the names it defines and, where it is lazy, those it shows to type checkers."""
    tree = syntax_tree(Path(inspect.getfile(package)))
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
    assert set(public) == public_names(package)
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


def test_every_module_has_a_docstring() -> None:
    bare = [
        name_of(path) for path in modules() if path.name != "__main__.py" and not ast.get_docstring(syntax_tree(path))
    ]
    assert bare == []


# --- words -------------------------------------------------------------------------------------------------


def test_no_module_is_called_by_a_word_without_meaning() -> None:
    found = [path for path in files_in_git() if path.suffix == ".py"] or modules()
    vague = [path.name for path in found if {*words.words(path.stem), *path.parts[-3:-1]} & FORBIDDEN_MODULES]
    assert vague == []


def test_no_name_uses_a_word_without_meaning() -> None:
    vague = [
        f"{name_of(path)}: {name}"
        for path in modules()
        for node in ast.walk(syntax_tree(path))
        for name in words.names_defined(node)
        if FORBIDDEN & {*words.words(name)}
    ]
    assert vague == []


@pytest.mark.parametrize("folder", ["featcache", "tests", "benchmarks"])
def test_the_words_are_plain(folder: str) -> None:
    offences = [
        f"{path.relative_to(ROOT)}:{offence}"
        for path in modules(ROOT / folder)
        if path.name != "words.py"
        for offence in words.offences(path)
    ]
    assert offences == []


def test_the_pages_use_plain_words() -> None:
    offences = [
        f"{page.relative_to(ROOT)}:{number}: {word}"
        for page in pages()
        if page.name != "CHANGELOG.md"
        for number, line in enumerate(page.read_text().splitlines(), start=1)
        for word in words.banned_words(line)
    ]
    assert offences == []


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
