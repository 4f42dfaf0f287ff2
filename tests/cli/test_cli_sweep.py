"""`featcache sweep`."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from command_line import PIXELS, answer, complaint, featcache

from featcache.cli.terminal import Terminal
from featcache.training.checkpoints import Unfinished

QUICK = ("--head", "linear", "--max-epochs", "2")
GRID = ("--grid", "lr=1e-3,1e-2", "--grid", "weight_decay=0,1e-4")


def test_the_answer_is_one_object_with_the_table_and_the_chosen_head(cache: Path, here: Path) -> None:
    output = answer("sweep", *QUICK, *GRID, "--seeds", "2")
    assert output["grid"] == {"lr": ["0.001", "0.01"], "weight_decay": ["0", "0.0001"]}
    assert (output["heads"], output["seeds"], output["interrupted"]) == (8, [0, 1], False)
    assert len(output["rows"]) == 4
    accuracies = [row["estimate"]["accuracy"] for row in output["rows"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert output["chosen"] == {**output["rows"][0]["values"], "seed": output["chosen"]["seed"], "draw": None}
    assert output["caches"] == [str(cache)]
    assert set(output["test"]) == {"accuracy", "loss"}
    run = here / output["run"]
    assert json.loads((run / "metrics.json").read_text())["test"] == output["test"]
    assert {path.name for path in (here / output["sweep"]).iterdir()} == {"sweep.json", "table.csv", "table.md"}


def test_a_person_reads_the_table_the_choice_and_where_it_lies(cache: Path) -> None:
    stdout = featcache("sweep", *QUICK, *GRID).stdout
    first, _, header, _, *lines = stdout.splitlines()
    assert " % accuracy on test, loss " in first and ": linear, lr " in first
    assert header.split() == ["#", "lr", "weight_decay", "val", "95", "%", "loss", "epochs", "seconds"]
    assert [line.split()[0] for line in lines[:4]] == ["1", "2", "3", "4"]
    pairs = dict(line.split(maxsplit=1) for line in lines[-6:] if line)
    assert pairs["cache"] == str(cache.relative_to(Path.cwd()))
    assert pairs["run"].startswith("runs/") and "sweep" in pairs["sweep"]
    assert pairs["next:"] == f"featcache report {Path(pairs['run']).name}"


def test_a_long_table_is_cut_and_names_the_file_with_the_rest(cache: Path) -> None:
    rates = ",".join(f"{number}e-4" for number in range(1, 26))
    stdout = featcache("sweep", *QUICK, "--grid", f"lr={rates}").stdout
    assert "and 5 more in runs/" in stdout
    assert stdout.count("\n") < 40


@pytest.mark.parametrize(
    ("words", "heads", "expected"),
    [
        (("--folds", "3"), 3, "held out once"),
        (("--shots", "1,3", "--draws", "2"), 4, "2 random draws"),
        (("--grid", "head=linear,ridge,knn"), 3, "val"),
        (("--grid", "head=mlp:8,mlp:4-4"), 2, "mlp:4-4"),
        (("--grid", "seed=3,5"), 2, "means over 2 heads"),
        (("--layer", "pixels", "--grid", "activation=relu,gelu", "--head", "mlp:4"), 2, "gelu"),
        (("--with", "pictures", "--grid", "lr=0.1"), 1, "0.1"),
    ],
    ids=["folds", "shots", "solved", "sizes", "seeds", "layer", "with"],
)
def test_every_kind_of_sweep_answers(cache: Path, words: tuple[str, ...], heads: int, expected: str) -> None:
    assert expected in featcache("sweep", *QUICK, *words).stdout
    output = answer("sweep", *QUICK, *words)
    assert output["heads"] == heads and output["run"] is not None


def test_features_that_may_take_no_memory_are_streamed_to_the_same_table(cache: Path) -> None:
    resident, streamed = (answer("sweep", *QUICK, *GRID, *more) for more in ((), ("--feature-memory", "0")))
    assert [row["estimate"] for row in resident["rows"]] == [row["estimate"] for row in streamed["rows"]]


def test_a_run_of_a_sweep_can_be_loaded_and_its_cache_is_in_use(cache: Path, here: Path) -> None:
    from featcache import Run

    output = answer("sweep", *QUICK, *GRID)
    assert Run.load(output["run"]).training.test is not None
    shutil.rmtree(here / output["run"])
    assert answer("gc")["garbage"] == []
    assert answer("ls")["caches"][0]["used"] is not None


def test_ctrl_c_reports_what_there_is_and_ends_with_130(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Terminal, stage: str, done: int, total: int) -> None:
        if stage == "sweeping" and done > 0.1 * total:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Terminal, "advance", interrupt)
    monkeypatch.setattr("featcache.training.engine.PROGRESS_EVERY_S", 0.0)
    words = ("--head", "linear", *GRID, "--max-epochs", "60", "--patience", "60")
    output = answer("sweep", *words, expect=130)
    assert output["interrupted"] is True and output["run"] is not None
    assert "interrupted" in featcache("sweep", *words, expect=130).stdout


class CutOffError(Exception):
    """Stands for a power cut."""


LONG = ("--head", "linear", *GRID, "--max-epochs", "6", "--patience", "6")


def cut_off(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """A sweep that a power cut ends with a checkpoint."""

    def cut(self: Terminal, stage: str, done: int, total: int) -> None:
        if stage == "sweeping" and done > 0.4 * total:
            raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr("featcache.training.engine.PROGRESS_EVERY_S", 0.0)
        patch.setattr("featcache.training.checkpoints.Unfinished.of", _eager)
        patch.setattr(Terminal, "advance", cut)
        featcache("sweep", *words, expect=1)


def _eager(runs_dir: Path, name: str, *, about: dict[str, Any], every_s: float) -> Unfinished:
    return Unfinished(folder=runs_dir / f"{name}.unfinished", about=about, every_s=0.0)


@pytest.mark.parametrize("named", ["latest", "last", "name", "path"])
def test_a_sweep_that_was_cut_off_goes_on(cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    cut_off(monkeypatch, *LONG)
    (folder,) = (here / "runs").iterdir()
    output = answer("sweep", "--resume", {"name": folder.name[:-11], "path": str(folder)}.get(named, named))
    whole = answer("sweep", *LONG)
    assert [(row["values"], row["estimate"]) for row in output["rows"]] == [
        (row["values"], row["estimate"]) for row in whole["rows"]
    ]
    assert (output["test"], output["chosen"]) == (whole["test"], whole["chosen"])
    assert Path(output["sweep"]).name == folder.name.removesuffix(".unfinished") and not folder.exists()


def test_a_sweep_goes_on_as_it_was_begun(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(monkeypatch, *LONG)
    words = (cache.stem, "--resume", "last", "--seeds", "2", "--grid", "lr=0.1")
    shown = featcache("sweep", *words, expect=2).stderr
    assert all(word in shown for word in ("leave out", "--seeds", "--grid", "cache"))
    streamed = answer("sweep", "--resume", "last", "--feature-memory", "0")
    assert streamed["heads"] == 4 and not streamed["interrupted"]


def test_without_a_sweep_to_resume_there_is_an_error(cache: Path) -> None:
    error, hint = complaint("sweep", "--resume", "last")
    assert "no sweep in" in error and "sweep starts one" in hint


@pytest.mark.parametrize(
    ("words", "expected", "offered"),
    [
        (("--folds", "13"), "cat (12), dog (12), eel (12)", "--folds"),
        (("--shots", "20"), "20 shots", "--shots"),
        (("--grid", "layer=pixels,pixles"), "unknown layer 'pixles'", "pixels"),
        (("--grid", "lr=1e30,1e31", "--head", "mlp:4"), "none of 2 heads could be trained: diverged", "lr"),
        (("no-such-cache",), "no-such-cache", "there are"),
    ],
)
def test_what_cannot_be_is_an_error(
    cache: Path, here: Path, words: tuple[str, ...], expected: str, offered: str
) -> None:
    error, hint = complaint(
        "sweep", *(word for word in QUICK if "--head" not in words or word not in QUICK[:2]), *words
    )
    assert expected in error
    assert offered in error + hint
    assert not list((here / "runs").glob("*"))


@pytest.mark.parametrize(
    ("words", "expected", "offered"),
    [
        (("--grid", "lrr=1"), "unknown option of a grid 'lrr'", "lr"),
        (("--grid", "lr=fast"), "expected --lr a number such as 1e-3 above 0, got 'fast'", ""),
        (("--grid", "lr=0.1", "--head", "ridge"), "--lr would do nothing", "linear"),
        (("--folds", "1"), "--folds", ""),
        (("--shots", "1;5"), "such as 1,5,10", ""),
        (("--shots", "1", "--folds", "2"), "two ways", "one of them"),
        (("--draws", "3"), "--draws belongs to --shots", "--shots"),
    ],
)
def test_what_the_command_line_alone_rules_out_is_wrong_usage(
    cache: Path, words: tuple[str, ...], expected: str, offered: str
) -> None:
    error, hint = complaint("sweep", *words, expect=2)
    assert expected in error
    assert offered in error + hint


def test_several_caches_are_compared_by_one_command(cache: Path, here: Path) -> None:
    words = (*PIXELS[:2], "--image-size", "4", *PIXELS[4:])
    other = here / answer("extract", *words)["cache"]
    output = answer("sweep", cache.stem, other.stem, *QUICK, "--grid", "head=linear,ridge")
    assert output["grid"]["cache"] == [cache.stem, other.stem]
    assert output["heads"] == 4 and output["caches"] == [str(cache), str(other)]
    assert {(row["cache"], row["values"]["cache"]) for row in output["rows"]} == {(0, cache.stem), (1, other.stem)}
    lines = featcache("sweep", cache.stem, other.stem, *QUICK[2:], "--grid", "head=ridge,knn").stdout.splitlines()
    assert lines[2].split()[:3] == ["#", "cache", "head"]


def test_rows_that_cannot_be_distinguished_stand_above_a_line(cache: Path) -> None:
    stdout = featcache("sweep", "--grid", "head=ridge,centroid,knn").stdout
    # Of 7 images no two heads can be distinguished, unless one is wrong and another right on nearly all of them.
    tied = int(stdout.split("Rows 1 to ")[1].split()[0]) if "Rows 1 to" in stdout else 1
    rules = [number for number, line in enumerate(stdout.splitlines()[2:8]) if set(line) <= {"-", " "} and "-" in line]
    assert rules == ([1] if tied == 3 else [1, 2 + tied])
    assert "95 %: the interval over the images of val." in stdout


def test_best_names_the_run_with_the_highest_score(cache: Path, here: Path) -> None:
    good = answer("train-head", "--head", "ridge")
    answer("train-head", "--head", "linear", "--lr", "1e-6", "--max-epochs", "1")
    image = next((here / "pictures" / "test").rglob("*.png"))
    assert Path(answer("predict", "best", image)["run"]).name == Path(good["run"]).name
    assert "best" in complaint("predict", "bset", image)[1]
