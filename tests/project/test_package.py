"""The wheel and the sdist, their metadata, and the files that install featcache in other ways."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from project_tree import PACKAGE, ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"{PROJECT['name']}-{PROJECT['version']}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}
        assert f"{NAME}.dist-info/licenses/LICENSE" in wheel.namelist()
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == on_disk
    assert {"featcache/py.typed", "featcache/report/page/page.html.j2", "featcache/report/page/page.js"} <= names


def test_the_sdist_holds_what_tests_site_and_images_are_made_of(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        names = {name.removeprefix(f"{NAME}/") for name in sdist.getnames()}
    folders = {"featcache", "tests", "benchmarks", "docs", "scripts"}
    files = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Dockerfile"}
    files |= {"cli.py", "constraints.txt", "mkdocs.yml", ".dockerignore", ".gitignore", "PKG-INFO"}
    assert {name.partition("/")[0] for name in names} == folders | files
    assert {"tests/project/test_package.py", "docs/install.md", "scripts/environment"} <= names
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_metadata_are_complete(built: Path) -> None:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        metadata = message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    assert (metadata["Name"], metadata["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("MIT", ">=3.11")
    assert metadata["Summary"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    classifiers = metadata.get_all("Classifier") or []
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(classifiers)
    assert set(metadata.get_all("Provides-Extra") or []) == set(PROJECT["optional-dependencies"])


def test_every_extra_has_its_first_command_on_the_page() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \| `", page, re.MULTILINE)) == set(PROJECT["optional-dependencies"])


def test_the_page_names_the_pinned_torch() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    torch = [line for line in pins if line.startswith(("torch==", "torchvision=="))]
    assert f"pip install {' '.join(torch)} --index-url" in (ROOT / "docs" / "install.md").read_text()


def test_the_citation_has_the_version_and_the_licence() -> None:
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert {f"version: {PROJECT['version']}", f"license: {PROJECT['license']}", "cff-version: 1.2.0"} <= set(lines)


def test_the_images_run_without_root_and_copy_files_that_exist() -> None:
    stages = re.split(r"^(?=FROM )", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    by_name = {stage.split()[3]: stage for stage in stages if stage.startswith("FROM ")}
    for target in ("cpu", "cuda"):
        assert re.findall(r"^USER (.+)$", by_name[target], re.MULTILINE) == ["1000"]
        assert "VOLUME /data" in by_name[target]
        assert 'ENTRYPOINT ["featcache"]' in by_name[target]
    copied = {name for line in re.findall(r"^COPY (.+)$", "".join(stages), re.MULTILINE) for name in line.split()[:-1]}
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert copied
    assert copied <= allowed
    assert [name for name in copied if not (ROOT / name).exists()] == []
