"""What stands on the screen: bold results, tables that fit, escaped control characters, and the next command."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from command_line import PIXELS, answer, complaint, featcache, picture

from featcache.cli import printing
from featcache.cli.printing import Bold, print_csv, print_line, print_pairs, print_table, shorten_middle
from featcache.cli.terminal import Terminal
from featcache.text import escape_controls

CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for variable in ("NO_COLOR", "FORCE_COLOR", "FEATCACHE_RUNS_DIR"):
        monkeypatch.delenv(variable, raising=False)


# --- bold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "environment", "bold"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": "1", "TERM": "dumb"}, True),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_a_result_is_bold_on_a_terminal_that_wants_it(
    terminal: bool,
    environment: dict[str, str],
    bold: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    print_line(Bold("97 %"), " of all")
    print_pairs([("test", Bold("97 %"))])
    print_table([(Bold("97 %"), "a")], header=("test", ""))
    text = "\x1b[1m97 %\x1b[0m" if bold else "97 %"
    assert capsys.readouterr().out == f"{text} of all\ntest  {text}\ntest\n----  -\n{text}  a\n"


def test_rich_is_not_imported_for_a_result(here: Path, cache: Path) -> None:
    code = (
        "import sys; from featcache.cli.app import app\n"
        "try: app(['ls'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'rich' not in sys.modules"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        env=os.environ | {"FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


# --- tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [30, 40, 60])
def test_long_names_are_shortened_in_the_middle_on_a_terminal_only(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "pictures-vgg16-" + "x" * 40 + "-0f3c"
    rows = [(name, "12"), ("b", "1,000")]
    print_table(rows, header=("name", "images"), shorten=(0,))
    assert name in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(rows, header=("name", "images"), shorten=(0,))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == width
    assert "…" in lines[2] and lines[2].startswith("pict") and "0f3c" in lines[2] and lines[2].endswith("    12")


def test_wide_characters_take_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("狗", "1"), ("cat", "2")], header=("", "images"))
    assert capsys.readouterr().out.splitlines()[2:] == ["狗        1", "cat       2"]
    assert shorten_middle("狗" * 10, 9) == "狗狗…狗狗"


def test_file_names_that_begin_with_a_number_are_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("0001.png", "-0.5"), ("1.png", "12 %")], header=("image", "score"))
    assert capsys.readouterr().out.splitlines()[2:] == ["0001.png   -0.5", "1.png      12 %"]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands print for a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(printing, "is_terminal", lambda: True)


def table_widths(*words: str) -> list[int]:
    """The widths of the lines below which a table begins, and of the table's own."""
    lines = featcache(*words).stdout.splitlines()
    rules = [number for number, line in enumerate(lines) if line and set(line) <= {"-", " "}]
    assert rules
    near = {number for rule in rules for number in range(rule - 1, rule + 4)}
    return [len(line) for number, line in enumerate(lines) if number in near and not line.startswith("next: ")]


SWEEP = ("sweep", "--head", "linear", "--max-epochs", "2", "--grid", "lr=1e-3,1e-2", "--grid", "weight_decay=0,1e-4")
TABLES = [("backbones",), ("ls",), SWEEP, ("reproduce", "mlp", "mlp-dropout", "--dataset", "pictures"), ("gc",)]


@pytest.mark.parametrize("words", TABLES, ids=lambda words: words[0])
def test_tables_fit_into_80_columns(words: tuple[str, ...], cache: Path) -> None:
    assert max(table_widths(*words)) <= 80


@pytest.mark.parametrize("words", TABLES, ids=lambda words: words[0])
def test_tables_fit_into_a_terminal_of_80_columns(words: tuple[str, ...], here: Path, narrow: None) -> None:
    long = f"a-folder-of-pictures-with-{'a-very-' * 6}long-name"
    (here / "pictures").rename(here / long)
    featcache("extract", *PIXELS[:4], "--dataset", long)
    words = tuple(long if word == "pictures" else word for word in words)
    assert max(table_widths(*words)) <= 80


# --- control characters ------------------------------------------------------------------------------------

HOSTILE = "ca\x1b]0;t\x07\u2028\u202e\x85t"
HARMLESS = r"ca\x1b]0;t\x07\u2028\u202e\x85t"


def test_control_characters_are_escaped_and_all_else_is_kept() -> None:
    assert escape_controls(HOSTILE) == HARMLESS
    assert escape_controls("a\nb\tc\x7f\u2066") == r"a\nb\tc\x7f\u2066"
    assert escape_controls("狗 é … \\n") == "狗 é … \\n"


def test_every_way_to_print_escapes_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(HOSTILE, Bold(HOSTILE))
    print_pairs([(HOSTILE, HOSTILE)])
    print_table([(HOSTILE, Bold(HOSTILE))], header=(HOSTILE, ""))
    with Terminal() as terminal:
        terminal.info(HOSTILE)
        terminal.warn(f"two\nlines {HOSTILE}")
    out, err = capsys.readouterr()
    assert not CONTROL.search(out + err)
    assert out.count(HARMLESS) == 7
    assert err == f"{HARMLESS}\nwarning: two lines {HARMLESS}\n"


@pytest.fixture
def hostile(here: Path) -> Path:
    """The cache of pictures whose classes and files have control characters in their names."""
    for split in ("train", "test"):
        folder = here / "pictures" / split
        try:
            (folder / "cat").rename(folder / HOSTILE)
        except OSError:
            pytest.skip("this file system takes no such name")
        (folder / HOSTILE / "00.png").rename(folder / HOSTILE / "0\x1b[2J\x9b.png")
    featcache("extract", *PIXELS)
    return next((here / "data" / "features").glob("*.h5"))


def test_names_in_results_obey_no_terminal(hostile: Path, here: Path) -> None:
    featcache("train-head", "--head", "centroid")
    (here / "pictures" / "test" / HOSTILE / "bad\x1b[31m.png").write_bytes(b"no image")
    ran = [
        featcache("info", hostile.stem),
        featcache("ls"),
        featcache("predict", "latest", "pictures/test", "--on-error", "skip"),
        featcache("audit", hostile.stem),
        featcache("show", "pictures", "--output", "grid.png", "--limit", "12"),
        featcache("extract", *PIXELS, "--on-error", "skip"),
    ]
    for result in ran:
        assert not CONTROL.search(result.stdout + result.stderr)
    for number in (0, 2):
        assert HARMLESS in ran[number].stdout
    assert r"bad\x1b[31m.png" in ran[2].stderr


def test_names_in_errors_obey_no_terminal(here: Path) -> None:
    (here / "pictures" / "test" / "cat" / "bad\x1b[31m.png").write_bytes(b"no image")
    for words in (("extract", *PIXELS), ("info", HOSTILE), ("extract", "-b", "pixels", "-d", f"./{HOSTILE}")):
        result = featcache(*words, expect=1)
        assert not CONTROL.search(result.stderr)
        assert r"\x1b" in result.stderr


def test_json_has_the_names_themselves_in_escapes(hostile: Path) -> None:
    stdout = featcache("info", hostile.stem, "--json").stdout
    assert not CONTROL.search(stdout)
    assert HOSTILE in json.loads(stdout)["targets"][0]["names"]


# --- encodings ---------------------------------------------------------------------------------------------


def test_csv_is_utf_8_in_any_console_and_json_can_be_read(here: Path) -> None:
    for split in ("train", "test"):
        (here / "pictures" / split / "dog").rename(here / "pictures" / split / "狗")
    featcache("extract", *PIXELS)
    featcache("train-head", "--head", "centroid")

    def output_of(*words: str) -> bytes:
        return subprocess.run(
            [sys.executable, "-m", "featcache", "predict", "latest", "pictures/test", *words],
            cwd=here,
            env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
            capture_output=True,
            check=True,
        ).stdout

    assert "狗" in output_of("--csv").decode("utf-8")
    assert "狗" in {image["label"] for image in json.loads(output_of("--json").decode("cp1252"))["images"]}


def test_csv_on_a_terminal_is_escaped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_csv("path,label\na\x1b[2J,b\n")
    assert capsys.readouterr().out == "path,label\na\\x1b[2J,b\n"


# --- paths and times ---------------------------------------------------------------------------------------


def test_paths_are_relative_where_they_lie_below_the_current_folder(
    cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "data/features/" in featcache("extract", *PIXELS, "--data-dir", here / "data").stdout
    assert str(here) not in featcache("train-head", "--head", "centroid", "--runs-dir", here / "runs").stdout
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    stdout = featcache("train-head", "--head", "centroid", "--data-dir", "../data", "--runs-dir", "../runs").stdout
    assert f"{here}/runs/" in stdout and str(cache) in stdout


def test_times_are_iso_8601_for_programs_and_ages_for_people(cache: Path) -> None:
    featcache("train-head", "--head", "centroid")
    entry = answer("info", cache.stem)
    for key in ("created", "used"):
        assert abs(datetime.fromisoformat(entry[key]) - datetime.now().astimezone()) < timedelta(minutes=10)
    assert answer("ls")["caches"][0]["used"] == entry["used"]
    shown = featcache("info", cache.stem).stdout
    assert "created" in shown and "just now" in shown and str(datetime.now().year) not in shown


# --- the next command --------------------------------------------------------------------------------------


def next_of(stdout: str) -> list[str]:
    """The words of the command that the last line names."""
    words = shlex.split(stdout.splitlines()[-1])
    assert words[:2] == ["next:", "featcache"]
    return words[2:]


@pytest.mark.parametrize(
    "folders", [(), ("--data-dir", "my data", "--runs-dir", "it's runs")], ids=["default", "others"]
)
def test_each_command_names_one_that_works(folders: tuple[str, ...], here: Path) -> None:
    words = next_of(featcache("extract", *PIXELS, *folders).stdout)
    ran = []
    while words[0] not in ran:
        ran.append(words[0])
        words = next_of(featcache(*words).stdout)
    assert ran == ["train-head", "report", "export"]
    (run,) = (here / (folders[3] if folders else "runs")).iterdir()
    featcache("predict", run.name, "pictures/test", *folders)
    assert next_of(featcache("ls", *folders).stdout)[0] == "info"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("why", *PIXELS), ["info"]),
        (("why", *PIXELS, "--limit", "6"), ["extract"]),
        (("info", "pictures"), ["train-head"]),
        (("audit", "pictures"), ["train-head", "audit"]),
        (("export", "pictures", "-o", "rows.npz"), ["info"]),
        (("gc",), ["gc"]),
        (("gc", "--delete"), ["ls"]),
        (("sweep", "--grid", "head=ridge,knn"), ["report"]),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_comes_next(words: tuple[str, ...], expected: list[str], cache: Path) -> None:
    following = next_of(featcache(*words).stdout)
    assert following[0] in expected
    featcache(*following)


def test_several_layers_or_caches_are_compared_next(here: Path) -> None:
    network = ("-b", "squeezenet1_1", "--weights", "squeezenet1_1=random:0", "--image-size", "32", "-d", "pictures")
    words = next_of(featcache("extract", *network, "--layer", "features.3", "--layer", "features.5").stdout)
    assert words[0] == "sweep" and words[2:] == ["--grid", "layer=features.3,features.5"]
    featcache(*words, "--head", "ridge")
    words = next_of(featcache("extract", "-b", "pixels", *network).stdout)
    assert words[0] == "sweep" and len(words) == 3
    featcache(*words, "--head", "ridge")


def test_a_table_is_followed_by_a_head_on_its_column(cache: Path, here: Path) -> None:
    ids = [f"train/{name}/{number:02d}.png" for name in ("cat", "dog") for number in range(12)]
    rows = "".join(f"{one},{number % 2}.5\n" for number, one in enumerate(ids))
    (here / "ages.csv").write_text(f"id,age\n{rows}")
    words = next_of(featcache("label", cache.stem, "ages.csv").stdout)
    assert words == ["train-head", cache.stem, "--target", "age"]
    featcache(*words)


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_nothing_comes_next_for_programs_and_with_quiet(option: str, cache: Path) -> None:
    for words in (("extract", *PIXELS), ("train-head", "--head", "centroid"), ("report",), ("ls",), ("gc", "--delete")):
        assert "next:" not in featcache(*words, option).stdout


# --- hints -------------------------------------------------------------------------------------------------


def test_a_run_is_not_exported_as_a_cache_nor_a_cache_as_a_run(cache: Path, here: Path) -> None:
    featcache("train-head", "--head", "centroid")
    (run,) = (here / "runs").iterdir()
    for name in ("latest", "best", run.name, f"runs/{run.name}"):
        error, hint = complaint("export", name, "-o", "x.csv")
        assert error == f"{name} is a run, and csv is a format of caches"
        assert "onnx, pt2" in hint and "featcache ls" in hint
    error, hint = complaint("export", cache.stem, "-o", "x.pt2")
    assert error == f"{cache.stem} is a cache, and pt2 is a format of runs"
    assert "csv" in hint and "train-head" in hint


def test_weights_that_were_moved_are_named_by_an_option(here: Path) -> None:
    import torchvision
    from safetensors.torch import save_file

    network = torchvision.models.squeezenet1_1()
    save_file(dict(network.state_dict()), here / "w.safetensors")
    words = ("-b", "squeezenet1_1", "--weights", "w.safetensors", "--image-size", "32", "-d", "pictures")
    featcache("extract", *words, "--limit", "30")
    featcache("train-head", "--head", "centroid")
    (here / "w.safetensors").rename(here / "moved.safetensors")
    (here / "new").mkdir()
    (here / "new" / "0.png").write_bytes(picture(700))
    for command in (("predict", "latest", "new"), ("extract", *words, "--limit", "31")):
        error, hint = complaint(*command)
        assert "w.safetensors" in error and "--weights PATH" in hint
    featcache("predict", "latest", "new", "--weights", "moved.safetensors")
