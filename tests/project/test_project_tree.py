"""The checkout: versions that agree, links that lead somewhere, nothing of the machine it was written on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from documents import blocks, without_code, without_fences
from pins import canonical, direct_dependencies, pins_here
from project_tree import PACKAGE, ROOT, files_in_git, packages, pages, text_of

from featcache.cli.reference import reference

PYPI = {"pypi.org", "files.pythonhosted.org"}


def test_the_version_is_the_newest_in_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    entries = re.findall(r"^## \[?([^\s\]]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [entry for entry in entries if entry.lower() != "unreleased"]
    assert released[:1] in ([version], [])
    assert entries


def test_the_command_reference_is_the_help() -> None:
    written = (ROOT / "docs" / "commands.md").read_text()
    assert written == reference(), "docs/commands.md is old: python -m featcache.cli.reference > docs/commands.md"


# --- what it is installed with -----------------------------------------------------------------------------


def test_constraints_are_the_versions_that_are_installed() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    installed = pins_here()
    wanted = {name: installed[name] for name in direct_dependencies() if name in installed}
    found = {canonical(name): version for name, version in pinned.items() if canonical(name) in wanted}
    assert found == wanted, "constraints.txt is old: bash scripts/constraints"
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-", "triton"))]


# --- what is committed -------------------------------------------------------------------------------------


def index_hosts() -> set[str]:
    """The hosts of the package indexes that this machine is set up with, but for PyPI itself."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    texts = [listing, *(value for key, value in os.environ.items() if key.startswith(("PIP_", "UV_")))]
    hosts = {urlsplit(address).hostname or "" for text in texts for address in re.findall(r"https?://[^\s'\"]+", text)}
    return hosts - PYPI - {""}


def test_no_file_speaks_of_the_machine_it_was_written_on() -> None:
    folders = "|".join(("work", "tmp", "root", "home/[a-z]+", "Users/[A-Za-z]+"))
    machine = re.compile(rf"(?<![\w.)}}>*-])/(?:{folders})/" + "".join(f"|{re.escape(host)}" for host in index_hosts()))
    found = []
    for path in files_in_git():
        for number, line in enumerate((text_of(path) or "").splitlines(), start=1):
            if machine.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_nothing_of_data_and_runs_is_committed() -> None:
    kept = [path.relative_to(ROOT) for path in files_in_git() if path.relative_to(ROOT).parts[0] in ("data", "runs")]
    assert kept in ([Path("data/README.md")], [])


@pytest.mark.parametrize("name", ["environment", "test", "check", "demo", "constraints"])
def test_scripts_are_sound_shell(name: str) -> None:
    path = ROOT / "scripts" / name
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", path], check=True)


# --- what people read --------------------------------------------------------------------------------------


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_fences(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        path = page.parent / file if file else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def trees() -> list[tuple[str, str]]:
    """(page, tree): fenced blocks that draw the folders of the project."""
    drawn = [(relative(page), block.text) for page in pages() for block in blocks(page.read_text())]
    return [(page, text) for page, text in drawn if re.search(r"^featcache/(\s|$)", text, re.MULTILINE)]


def entries(tree: str) -> set[str]:
    """The paths that a tree draws; what is indented under a folder stands in it."""
    above: list[tuple[int, str]] = []
    found: set[str] = set()
    for line in tree.splitlines():
        match = re.match(r"^(\s*)([\w.\-]+/?)(?:\s{2,}|$)", line)
        if match is None:
            continue
        depth, name = len(match[1]), match[2]
        above = [(indent, folder) for indent, folder in above if indent < depth]
        found.add("".join(folder for _, folder in above) + name)
        above += [(depth, name)] if name.endswith("/") else []
    return found


def test_the_readme_draws_the_packages() -> None:
    assert "README.md" in {page for page, _ in trees()}


@pytest.mark.parametrize(("page", "tree"), trees(), ids=[page for page, _ in trees()])
def test_a_tree_of_folders_matches_the_disk(page: str, tree: str) -> None:
    drawn = entries(tree)
    assert sorted(name for name in drawn if not (ROOT / name).exists()) == []
    assert {f"featcache/{package}/" for package in packages()} <= drawn


def test_every_package_is_described() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    assert [package for package in packages() if f"{package}/" not in architecture] == []
    assert PACKAGE.is_dir()
