"""What holds for every command: how it is called, how it fails, and what goes to which stream."""

from __future__ import annotations

import errno
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import PIXELS, child, complaint, featcache

from featcache.cache import catalog

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "extract",
    "assemble",
    "train-head",
    "sweep",
    "report",
    "reproduce",
    "benchmark",
    "predict",
    "export",
    "ls",
    "info",
    "verify",
    "why",
    "rm",
    "gc",
    "audit",
    "show",
    "backbones",
    "datasets",
    "recipes",
    "doctor",
)


def finished(*words: str | Path, cwd: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of any program."""
    ran = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout, ran.stderr


# --- how it is called --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("-m", "featcache"), (ROOT / "cli.py",)], ids=["module", "cli.py"])
def test_it_runs_as_a_module_and_from_a_checkout(words: tuple[str | Path, ...], here: Path) -> None:
    assert finished(sys.executable, *words, "--version", cwd=here) == (0, f"featcache {version('featcache')}\n", "")


def test_the_console_script_is_installed(here: Path) -> None:
    script = Path(sys.executable).parent / "featcache"
    assert finished(script, "--version", cwd=here)[:2] == (0, f"featcache {version('featcache')}\n")


def test_help_lists_every_command_with_a_whole_sentence() -> None:
    stdout = featcache("--help").stdout
    for name in COMMANDS:
        (line,) = [line for line in stdout.splitlines() if line.startswith(f"  {name} ")]
        assert line.endswith(".")
        assert not line.endswith("...")
    assert max(map(len, stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_common_options_are_accepted_after_any_command(name: str) -> None:
    stdout = featcache(name, "--help").stdout
    assert all(f"{option} " in stdout for option in ("--json", "--data-dir", "--runs-dir", "--quiet", "--debug"))
    assert max(map(len, stdout.splitlines())) <= 80


def test_help_groups_options_in_sections() -> None:
    lines = featcache("train-head", "-h").stdout.splitlines()
    sections = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert sections == [
        *("On which cache:", "The run:", "What is learned from which rows:", "The head:", "How it is trained:"),
        *("How it runs:", "Which features:", "Of which images:", "Common:"),
    ]
    common = lines.index("Common:")
    assert lines[-1].split()[:2] == ["-h,", "--help"]
    assert "--json" in lines[common + 1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("exract",), "Did you mean 'extract'"),
        (("extract", "--limt", "3"), "--limit"),
        (("extract", "--limit", "three"), "--limit"),
        (("extract", "--pool", "max"), "--pool"),
        (("extract", "--batch-size", "some"), "expected auto or a whole number of at least 1, got 'some'"),
        (("extract", "stray"), "stray"),
        (("info",), "Missing argument 'cache'"),
        (("verify", "name", "--recompute", "-1"), "--recompute"),
        (("--json", "ls"), "--json"),
    ],
)
def test_wrong_usage_is_explained_and_ends_with_2(words: tuple[str, ...], expected: str) -> None:
    result = featcache(*words, expect=2)
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: featcache")
    assert expected in result.stderr


def test_without_any_word_the_help_is_shown(here: Path) -> None:
    code, stdout, stderr = finished(sys.executable, "-m", "featcache", cwd=here)
    assert code == 2
    assert "train-head" in stdout + stderr


# --- how it fails ------------------------------------------------------------------------------------------


def test_an_error_is_two_lines_and_no_traceback(here: Path) -> None:
    result = featcache("info", "nothing", expect=1)
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == ["error", "hint"]


def test_debug_shows_where_an_error_was_raised(here: Path) -> None:
    code, stdout, stderr = finished(sys.executable, "-m", "featcache", "info", "nothing", "--debug", cwd=here)
    assert (code, stdout) == (1, "")
    assert "Traceback" in stderr
    assert "CacheNotFound" in stderr


def test_a_message_of_several_lines_is_still_one_line(here: Path) -> None:
    error, _ = complaint("info", "no\nthing")
    assert "no\\nthing" in error or "no thing" in error


def test_an_error_of_the_system_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(folder))

    monkeypatch.setattr(catalog, "list_caches", failing)
    error, hint = complaint("ls")
    assert error == "data/features: Input/output error"
    assert hint


def test_a_fault_of_featcache_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(folder: Path) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(catalog, "list_caches", failing)
    error, hint = complaint("ls")
    assert error == "unexpected ZeroDivisionError: by zero"
    assert "--debug" in hint


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "list_caches", interrupted)
    result = featcache("ls", expect=130)
    assert (result.stdout, result.stderr) == ("", "interrupted\n")


# --- stdout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_has_left_is_no_error(
    unbuffered: str, cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    # Many caches: what does not fit into the pipe meets a closed one.
    for number in range(1000):
        (cache.parent / f"{cache.stem}{number}.h5").touch()
    listing = child("ls", cwd=here)
    assert listing.stdout is not None
    assert listing.stderr is not None
    assert listing.stdout.readline().startswith("name")
    listing.stdout.close()
    assert listing.stderr.read() == ""
    assert listing.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_cannot_be_written_is_an_error(
    unbuffered: str, cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("w") as full:
        listing = child("ls", cwd=here, stdout=full)
        _, stderr = listing.communicate()
    assert listing.returncode == 1
    assert stderr.startswith("error: the result cannot be written: ")
    assert "Traceback" not in stderr


def test_a_closed_stdout_is_no_fault(cache: Path, here: Path) -> None:
    closed = f"{sys.executable} -m featcache ls --json >&-"
    assert finished("bash", "-c", closed, cwd=here) == (0, "", "")


def test_a_name_that_is_no_text_is_shown_escaped(here: Path) -> None:
    odd = here / b"\xff.zip".decode("utf-8", "surrogateescape")
    try:
        odd.write_bytes(b"no archive")
    except OSError:
        pytest.skip("this file system takes no such name")
    code, stdout, stderr = finished(sys.executable, "-m", "featcache", "extract", *PIXELS, "-d", odd, cwd=here)
    assert (code, stdout) == (1, "")
    assert "\\udcff.zip" in stderr
    assert "Traceback" not in stderr
