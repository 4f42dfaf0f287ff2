"""What holds for every command: how it is called, how it fails, and what goes to which stream."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from command_line import PIXELS, child, complaint, featcache

from featcache.cache import catalog
from featcache.cli.app import app

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "extract",
    "assemble",
    "train-head",
    "sweep",
    "run",
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


def run_program(*words: str | Path, cwd: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of any program."""
    ran = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout, ran.stderr


# --- how it is called --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("-m", "featcache"), (ROOT / "cli.py",)], ids=["module", "cli.py"])
def test_it_runs_as_a_module_and_from_a_checkout(words: tuple[str | Path, ...], here: Path) -> None:
    assert run_program(sys.executable, *words, "--version", cwd=here) == (0, f"featcache {version('featcache')}\n", "")


def test_the_console_script_is_installed(here: Path) -> None:
    script = Path(sys.executable).parent / "featcache"
    assert run_program(script, "--version", cwd=here)[:2] == (0, f"featcache {version('featcache')}\n")


def test_help_lists_every_command_with_a_whole_sentence() -> None:
    stdout = featcache("--help").stdout
    for name in COMMANDS:
        (line,) = [line for line in stdout.splitlines() if line.startswith(f"  {name} ")]
        assert line.endswith(".")
        assert not line.endswith("...")
    assert max(map(len, stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_one_and_a_half_screens_with_two_examples(name: str) -> None:
    lines = featcache(name, "--help").stdout.splitlines()
    assert len(lines) <= 36
    assert lines[-1] == "Anywhere: --json --data-dir --runs-dir --quiet --debug"
    # An example is a line to copy: it is not wrapped.
    examples = [line for line in lines if line.startswith("  featcache ")]
    assert len(examples) == 2 and all(name in line for line in examples)
    assert max(len(line) for line in lines if line not in examples) <= 80


@pytest.mark.parametrize("name", ["extract", "train-head", "sweep"])
def test_help_all_shows_every_option_with_all_of_its_help(name: str) -> None:
    usual, whole = (featcache(name, word).stdout for word in ("--help", "--help-all"))
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    flags = [parameter.opts[0] for parameter in command.params if parameter.param_type_name == "option"]
    assert all(f"{flag} " in whole for flag in flags)
    assert not all(f"{flag} " in usual for flag in flags)
    assert "None" not in whole and "<str>" not in whole


@pytest.mark.parametrize("where", ["before", "after", "between"])
def test_the_common_options_are_accepted_anywhere(where: str, cache: Path, here: Path) -> None:
    (here / "data").rename(here / "elsewhere")
    common, words = ("--json", "--data-dir", "elsewhere"), ("info", cache.stem)
    line = {"before": (*common, *words), "after": (*words, *common), "between": (words[0], *common, words[1])}[where]
    assert json.loads(featcache(*line).stdout)["name"] == cache.stem


def test_the_data_folder_may_be_an_environment_variable(
    cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "data").rename(here / "elsewhere")
    monkeypatch.setenv("FEATCACHE_DATA_DIR", "elsewhere")
    assert cache.stem in featcache("ls").stdout
    assert cache.stem not in featcache("ls", "--data-dir", "data").stdout


def test_a_common_option_without_its_value_is_wrong_usage(here: Path) -> None:
    for words in (("ls", "--data-dir"), ("info", "ls", "--data-dir")):
        error, _ = complaint(*words, expect=2)
        assert error == "--data-dir needs a value"


def test_an_empty_name_removes_nothing(cache: Path) -> None:
    error, _ = complaint("rm", "")
    assert "got an empty text" in error and cache.exists()


def test_a_result_that_is_no_json_is_one_error_object(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.cli.caches.entry_json", lambda entry: {"size": float("nan")})
    assert json.loads(featcache("ls", "--json", expect=1).stdout)["error"]["kind"] == "ValueError"


def test_there_are_at_most_230_options_and_34_of_train_head() -> None:
    root = typer.main.get_command(app)
    own = {
        name: sum(parameter.param_type_name == "option" for parameter in command.params)
        for name, command in root.commands.items()  # type: ignore[attr-defined]
    }
    assert own["train-head"] <= 34 and own["assemble"] <= 10
    assert sum(own.values()) + len(root.params) <= 230


def test_help_groups_options_in_sections() -> None:
    lines = featcache("train-head", "-h").stdout.splitlines()
    sections = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert sections == [
        *("Examples:", "Which cache:", "How it starts:", "What is learned from which rows:", "The head:"),
        "How it is trained:",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("exract",), "extract"),
        (("extract", "--limt", "3"), "--limit"),
        (("extract", "--limit", "three"), "--limit"),
        (("extract", "--pool", "max"), "--pool"),
        (("extract", "--batch-size", "some"), "expected --batch-size auto or a whole number of at least 1, got 'some'"),
        (("extract", "stray"), "stray"),
        (("export",), "featcache export needs RUN_OR_CACHE"),
        (("verify", "name", "--recompute", "-1"), "--recompute"),
        (("train-head", "--image-size", "8"), "it is an option of extract"),
        (("extract", "--runs"), "--runs"),
    ],
)
def test_wrong_usage_is_explained_and_ends_with_2(words: tuple[str, ...], expected: str) -> None:
    result = featcache(*words, expect=2)
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("words", "kind", "code"),
    [
        (("ls", "--foo"), "WrongUsage", 2),
        (("exract",), "WrongUsage", 2),
        (("extract", "--limit", "0"), "WrongUsage", 2),
        (("train-head", "--head", "mpl"), "WrongUsage", 2),
        (("info", "nothing"), "CacheNotFound", 1),
        (("predict", "latest", "x.png"), "HeadError", 1),
    ],
)
def test_with_json_an_error_is_one_object_on_stdout(words: tuple[str, ...], kind: str, code: int, here: Path) -> None:
    result = featcache(*words, "--json", expect=code)
    error = json.loads(result.stdout)["error"]
    assert list(error) == ["kind", "message", "hint", "exit_code"]
    assert (error["kind"], error["exit_code"]) == (kind, code)
    assert f"error: {error['message']}" in result.stderr


def test_without_any_word_the_help_is_shown(here: Path) -> None:
    code, stdout, stderr = run_program(sys.executable, "-m", "featcache", cwd=here)
    assert code == 2
    assert "train-head" in stdout + stderr


# --- how it fails ------------------------------------------------------------------------------------------


def test_an_error_is_two_lines_and_no_traceback(here: Path) -> None:
    result = featcache("info", "nothing", expect=1)
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == ["error", "hint"]


def test_debug_shows_where_an_error_was_raised(here: Path) -> None:
    code, stdout, stderr = run_program(sys.executable, "-m", "featcache", "info", "nothing", "--debug", cwd=here)
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
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "list_caches", interrupt)
    result = featcache("ls", expect=130)
    assert (result.stdout, result.stderr) == ("", "interrupted\n")


# --- stdout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_no_error(unbuffered: str, cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert run_program("bash", "-c", closed, cwd=here) == (0, "", "")


def test_a_name_that_is_no_text_is_shown_escaped(here: Path) -> None:
    odd = here / b"\xff.zip".decode("utf-8", "surrogateescape")
    try:
        odd.write_bytes(b"no archive")
    except OSError:
        pytest.skip("this file system takes no such name")
    code, stdout, stderr = run_program(sys.executable, "-m", "featcache", "extract", *PIXELS, "-d", odd, cwd=here)
    assert (code, stdout) == (1, "")
    assert "\\udcff.zip" in stderr
    assert "Traceback" not in stderr


def test_json_as_a_value_or_behind_two_dashes_is_no_option(here: Path) -> None:
    assert complaint("ls", "stray", "--", "--json", expect=2)
    assert complaint("info", "x", "--", "--json", expect=2)


def test_the_command_that_is_offered_extracts_into_the_same_folder(here: Path) -> None:
    _, hint = complaint("train-head", "--backbone", "pixels", "--data-dir", "elsewhere")
    assert "featcache extract --backbone pixels --data-dir elsewhere" in hint
