"""scripts/environment makes a virtual environment once, and repairs whatever it finds in its place."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from project_tree import ROOT

# A Python that writes down what it is requested to do. Its virtual environments hold a copy of it.
PYTHON = """#!/usr/bin/env bash
log="{log}"
case "$1 $2" in
    "-c import sys"*) echo "${{FAKE_VERSION:-3.11}}"; [[ ${{FAKE_VERSION:-3.11}} != 3.9 ]] ;;
    "-c "*) ;;
    "-m venv")
        echo "venv ${{*:3}}" >>"$log"
        [[ -z ${{FAKE_NO_ENSUREPIP:-}} || $* == *--without-pip* ]] || exit 1
        rm -rf "${{!#}}"; mkdir -p "${{!#}}/bin"; cp "$0" "${{!#}}/bin/python"; touch "${{!#}}/pyvenv.cfg" ;;
    "-m pip")
        [[ $3 == --version ]] || echo "pip ${{*:3}}" >>"$log"
        [[ -z ${{FAKE_NO_PIP:-}} ]] || exit 1
        [[ $3 != install || -z ${{FAKE_KILLED:-}} ]] || kill -9 $PPID ;;
esac
"""

DOWNLOADS = """# package, bytes, extras
torch==2.14.1	500000000	pypi dev
nvidia-cublas==13.1.1.3	400000000	pypi dev
triton==3.8.0	40000000	pypi dev
ray==2.60.0	79263560	dev
"""


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A checkout with the real script and a Python that only pretends."""

    folder: Path
    log: Path

    def environment(self, expect: int = 0, *, extras: str = "dev", **variables: str) -> list[str]:
        """Sources the script; what Python was requested to do."""
        self.log.unlink(missing_ok=True)
        ran = subprocess.run(
            ["bash", "-c", f'extras={extras}; source scripts/environment; echo "$PATH"; pwd'],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(self.log.parent / "python"), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == expect, ran.stderr
        if expect == 0:
            path, folder = ran.stdout.splitlines()
            assert Path(path.partition(":")[0]) == self.folder / ".venv" / "bin"
            assert Path(folder) == self.folder
        elif expect == 1:
            assert ran.stderr.splitlines()[-2].startswith("error: ")
            assert ran.stderr.splitlines()[-1].startswith("hint: ")
        self.messages.write_text(ran.stderr)
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def messages(self) -> Path:
        """A file with what the script last wrote to stderr."""
        return self.log.with_name("messages")

    @property
    def megabytes(self) -> list[int]:
        """The sizes in the last message: of all downloads, and of those for NVIDIA's GPUs."""
        return [int(size) for size in re.findall(r"(\d+) MB", self.messages.read_text())]

    @property
    def made(self) -> list[str]:
        """What making everything anew asks of Python."""
        return self.text_for("dev")

    def text_for(self, extras: str) -> list[str]:
        """What making the environment anew with extras asks of Python."""
        venv = self.folder / ".venv"
        install = f"pip install --quiet --no-input --disable-pip-version-check -e .[{extras}] -c constraints.txt"
        return [f"venv --clear {venv}", install]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if sys.platform == "win32" or shutil.which("bash") is None:
        pytest.skip("needs bash")
    real = tmp_path.resolve()
    python = real / "python"
    python.write_text(PYTHON.format(log=real / "log"))
    python.chmod(0o755)
    folder = real / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "environment", folder / "scripts")
    (folder / "scripts" / "downloads.tsv").write_text(DOWNLOADS)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).write_text(name)
    return Checkout(folder=folder, log=real / "log")


def test_it_is_made_once(checkout: Checkout) -> None:
    assert checkout.environment() == checkout.made
    assert checkout.environment() == []


def test_a_script_that_needs_less_installs_less_and_another_adds_the_rest(checkout: Checkout) -> None:
    assert checkout.environment(extras="pypi") == checkout.text_for("pypi")
    assert checkout.megabytes == [940, 440]
    assert checkout.environment(extras="pypi") == []
    assert checkout.megabytes == []
    assert checkout.environment() == checkout.made[1:]
    assert checkout.megabytes == [79, 0]


def test_what_is_there_stays_when_a_script_needs_less(checkout: Checkout) -> None:
    checkout.environment()
    assert checkout.megabytes == [1019, 440]
    assert checkout.environment(extras="pypi") == []
    (checkout.folder / "pyproject.toml").write_text("other requirements")
    assert checkout.environment(extras="pypi") == checkout.made[1:]


def test_the_sizes_of_downloads_are_those_of_the_pinned_versions() -> None:
    lines = [line.split("\t") for line in (ROOT / "scripts" / "downloads.tsv").read_text().splitlines()[1:]]
    measured = dict(package.split("==") for package, _, _ in lines)
    pins = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pinned = dict(line.split("==") for line in pins)
    differing = {name: version for name, version in pinned.items() if measured.get(name) != version}
    assert differing == {}, "scripts/downloads.tsv is old: bash scripts/constraints"
    assert all(int(size) > 0 for _, size, _ in lines)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_other_requirements_are_installed_into_the_same_one(checkout: Checkout, name: str) -> None:
    checkout.environment()
    (checkout.folder / name).write_text("other requirements")
    assert checkout.environment() == checkout.made[1:]
    assert checkout.environment() == []


def test_an_interrupted_install_is_begun_again_from_nothing(checkout: Checkout) -> None:
    checkout.environment(expect=-9, FAKE_KILLED="yes")
    assert checkout.environment() == checkout.made


def test_an_interrupted_update_is_begun_again_from_nothing(checkout: Checkout) -> None:
    checkout.environment()
    (checkout.folder / "constraints.txt").write_text("other requirements")
    checkout.environment(expect=-9, FAKE_KILLED="yes")
    assert checkout.environment() == checkout.made


def test_a_moved_checkout_gets_a_new_one(checkout: Checkout) -> None:
    checkout.environment()
    moved = Checkout(folder=checkout.folder.rename(checkout.folder.with_name("moved")), log=checkout.log)
    assert moved.environment() == moved.made
    assert moved.environment() == []


def test_another_python_gets_a_new_one(checkout: Checkout) -> None:
    checkout.environment()
    assert checkout.environment(FAKE_VERSION="3.12") == checkout.made


def test_one_whose_python_is_gone_is_made_anew(checkout: Checkout) -> None:
    checkout.environment()
    (checkout.folder / ".venv" / "bin" / "python").unlink()
    assert checkout.environment() == checkout.made


def test_one_that_is_there_already_is_used(checkout: Checkout) -> None:
    checkout.environment()
    (checkout.folder / ".venv" / "made-from").unlink()
    assert checkout.environment() == checkout.made[1:]


def test_a_python_without_ensurepip_uses_its_own_pip(checkout: Checkout) -> None:
    venv = checkout.folder / ".venv"
    requested = checkout.environment(FAKE_NO_ENSUREPIP="yes")
    assert requested[1:] == [
        f"venv --clear --without-pip {venv}",
        f"pip --python {venv}/bin/python install --quiet --no-input pip",
        checkout.made[1],
    ]


def test_a_python_without_pip_at_all_is_an_error(checkout: Checkout) -> None:
    checkout.environment(expect=1, FAKE_NO_ENSUREPIP="yes", FAKE_NO_PIP="yes")


@pytest.mark.parametrize("variables", [{"FAKE_VERSION": "3.9"}, {"PYTHON": "no-such-python"}], ids=["old", "none"])
def test_a_python_that_will_not_do_is_an_error(checkout: Checkout, variables: dict[str, str]) -> None:
    assert checkout.environment(expect=1, **variables) == []
