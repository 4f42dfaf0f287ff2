"""`featcache sweep`, as a stranger would call it."""

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
    said = answer("sweep", *QUICK, *GRID, "--seeds", "2")
    assert said["grid"] == {"lr": ["0.001", "0.01"], "weight_decay": ["0", "0.0001"]}
    assert (said["heads"], said["seeds"], said["interrupted"]) == (8, [0, 1], False)
    assert len(said["rows"]) == 4
    accuracies = [row["estimate"]["accuracy"] for row in said["rows"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert said["chosen"] == {**said["rows"][0]["values"], "seed": said["chosen"]["seed"], "draw": None}
    assert said["caches"] == [str(cache)]
    assert set(said["test"]) == {"accuracy", "loss"}
    run = here / said["run"]
    assert json.loads((run / "metrics.json").read_text())["test"] == said["test"]
    assert {path.name for path in (here / said["sweep"]).iterdir()} == {"sweep.json", "table.csv", "table.md"}


def test_a_person_reads_the_table_the_choice_and_where_it_lies(cache: Path) -> None:
    stdout = featcache("sweep", *QUICK, *GRID).stdout
    lines = stdout.splitlines()
    assert lines[0].split() == ["#", "lr", "weight_decay", "val", "+-", "95", "%", "loss", "epochs", "seconds"]
    assert [line.split()[0] for line in lines[2:6]] == ["1", "2", "3", "4"]
    pairs = dict(line.split(maxsplit=1) for line in lines[-8:] if line)
    assert pairs["chosen"].startswith("linear, lr ") and "%" in pairs["test"]
    assert pairs["cache"] == str(cache) and pairs["run"].startswith("runs/") and "sweep" in pairs["sweep"]


def test_a_long_table_is_cut_and_says_where_the_rest_is(cache: Path) -> None:
    rates = ",".join(f"{number}e-4" for number in range(1, 26))
    stdout = featcache("sweep", *QUICK, "--grid", f"lr={rates}").stdout
    assert "... and 5 more in runs/" in stdout
    assert stdout.count("\n") < 40


@pytest.mark.parametrize(
    ("words", "heads", "expected"),
    [
        (("--folds", "3"), 3, "held out once"),
        (("--shots", "1,3", "--draws", "2"), 4, "2 draws"),
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
    said = answer("sweep", *QUICK, *words)
    assert said["heads"] == heads and said["run"] is not None


def test_features_that_may_take_no_memory_are_streamed_to_the_same_table(cache: Path) -> None:
    resident, streamed = (answer("sweep", *QUICK, *GRID, *more) for more in ((), ("--feature-memory", "0")))
    assert [row["estimate"] for row in resident["rows"]] == [row["estimate"] for row in streamed["rows"]]


def test_a_run_of_a_sweep_can_be_loaded_and_its_cache_is_in_use(cache: Path, here: Path) -> None:
    from featcache import Run

    said = answer("sweep", *QUICK, *GRID)
    assert Run.load(said["run"]).training.test is not None
    shutil.rmtree(here / said["run"])
    assert answer("gc")["garbage"] == []
    assert answer("ls")["caches"][0]["used"] is not None


def test_ctrl_c_tells_what_there_is_and_ends_with_130(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Terminal, stage: str, done: int, total: int) -> None:
        if stage == "sweeping" and done > 0.1 * total:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Terminal, "advance", interrupt)
    monkeypatch.setattr("featcache.training.engine.ADVANCED_EVERY_S", 0.0)
    words = ("--head", "linear", *GRID, "--max-epochs", "60", "--patience", "60")
    said = answer("sweep", *words, expect=130)
    assert said["interrupted"] is True and said["run"] is not None
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
        patch.setattr("featcache.training.engine.ADVANCED_EVERY_S", 0.0)
        patch.setattr("featcache.training.checkpoints.Unfinished.of", _eager)
        patch.setattr(Terminal, "advance", cut)
        featcache("sweep", *words, expect=1)


def _eager(runs_dir: Path, name: str, *, about: dict[str, Any], every_s: float) -> Unfinished:
    return Unfinished(folder=runs_dir / f"{name}.unfinished", about=about, every_s=0.0)


@pytest.mark.parametrize("named", ["last", "name", "path"])
def test_a_sweep_that_was_cut_off_goes_on(cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    cut_off(monkeypatch, *LONG)
    (folder,) = (here / "runs").iterdir()
    said = answer("sweep", "--resume", {"last": "last", "name": folder.name[:-11], "path": str(folder)}[named])
    whole = answer("sweep", *LONG)
    assert [(row["values"], row["estimate"]) for row in said["rows"]] == [
        (row["values"], row["estimate"]) for row in whole["rows"]
    ]
    assert (said["test"], said["chosen"]) == (whole["test"], whole["chosen"])
    assert Path(said["sweep"]).name == folder.name.removesuffix(".unfinished") and not folder.exists()


def test_a_sweep_goes_on_as_it_was_begun(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(monkeypatch, *LONG)
    words = (cache.stem, "--resume", "last", "--seeds", "2", "--grid", "lr=0.1")
    told = featcache("sweep", *words, expect=2).stderr
    assert all(word in told for word in ("leave out", "--seeds", "--grid", "cache"))
    streamed = answer("sweep", "--resume", "last", "--feature-memory", "0")
    assert streamed["heads"] == 4 and not streamed["interrupted"]


def test_without_a_sweep_to_go_on_with_it_says_so(cache: Path) -> None:
    error, hint = complaint("sweep", "--resume", "last")
    assert "no sweep in" in error and "sweep begins one" in hint


@pytest.mark.parametrize(
    ("words", "expected", "offered"),
    [
        (("--grid", "lrr=1"), "unknown option of a grid 'lrr'", "lr"),
        (("--grid", "lr=fast"), "expected --lr a number above 0, got 'fast'", ""),
        (("--grid", "lr=0.1", "--head", "ridge"), "--lr, --max-epochs would do nothing", "linear"),
        (("--folds", "1"), "--folds", ""),
        (("--folds", "13"), "cat (12), dog (12), eel (12)", "--folds"),
        (("--shots", "20"), "20 shots", "--shots"),
        (("--shots", "1", "--folds", "2"), "two ways", "one of them"),
        (("--draws", "3"), "--draws belongs to --shots", "--shots"),
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


def test_numbers_that_are_none_are_wrong_usage(cache: Path) -> None:
    assert "such as 1,5,10" in featcache("sweep", "--shots", "1;5", expect=2).stderr


def test_several_caches_are_compared_by_one_command(cache: Path, here: Path) -> None:
    words = (*PIXELS[:2], "--image-size", "4", *PIXELS[4:])
    other = here / answer("extract", *words)["cache"]
    said = answer("sweep", cache.stem, other.stem, *QUICK, "--grid", "head=linear,ridge")
    assert said["grid"]["cache"] == [cache.stem, other.stem]
    assert said["heads"] == 4 and said["caches"] == [str(cache), str(other)]
    assert {(row["cache"], row["values"]["cache"]) for row in said["rows"]} == {(0, cache.stem), (1, other.stem)}
    lines = featcache("sweep", cache.stem, other.stem, *QUICK[2:], "--grid", "head=ridge,knn").stdout.splitlines()
    assert lines[0].split()[:3] == ["#", "cache", "head"]


def test_rows_that_cannot_be_told_apart_stand_above_a_line(cache: Path) -> None:
    stdout = featcache("sweep", "--grid", "head=ridge,centroid,knn").stdout
    # Of 7 images no two heads can be told apart, unless one is wrong and another right on nearly all of them.
    tied = int(stdout.split("Rows 1 to ")[1].split()[0]) if "Rows 1 to" in stdout else 1
    rules = [number for number, line in enumerate(stdout.splitlines()[:6]) if set(line) <= {"-", " "} and "-" in line]
    assert rules == ([1] if tied == 3 else [1, 2 + tied])
    assert "95 %: the interval over the images of val." in stdout


def test_best_names_the_run_with_the_highest_score(cache: Path, here: Path) -> None:
    good = answer("train-head", "--head", "ridge")
    answer("train-head", "--head", "linear", "--lr", "1e-6", "--max-epochs", "1")
    image = next((here / "pictures" / "test").rglob("*.png"))
    assert Path(answer("predict", "best", image)["run"]).name == Path(good["run"]).name
    assert "best" in complaint("predict", "bset", image)[1]
