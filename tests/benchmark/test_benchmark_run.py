"""`featcache benchmark` from the command line: a small one, with every way in its own process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from featcache.benchmark.result import NOTEBOOK, TUNED, WARM, WAYS
from featcache.benchmark.result import Result as Measured
from featcache.cli.app import app
from featcache.cli.benchmark import show

SMALL = ("--backbone", "resnet18", "--image-size", "32", "--limit", "60", "--epochs", "2", "--heads", "2")


def benchmark(*words: str | Path) -> Result:
    ran = CliRunner().invoke(app, ["benchmark", *map(str, words)], prog_name="featcache")
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def answer(folder: Path) -> dict[str, Any]:
    ran = benchmark(*SMALL, "--json", "--data-dir", folder / "data", "--output", folder / "out")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.count("\n") == 1
    printed: dict[str, Any] = json.loads(ran.stdout)
    return printed


def test_every_way_is_measured_and_nothing_is_scaled(answer: dict[str, Any]) -> None:
    assert list(answer["ways"]) == list(WAYS)
    for name in WAYS:
        way = answer["ways"][name]
        assert way["images"] == {"train": 48, "val": 12, "test": 60}
        assert len(way["epoch_s"]) == 2
        assert way["memory"]["peak"] > way["memory"]["libraries"] > 0
        assert not answer["summary"]["totals"][name]["scaled"]
    assert len(answer["ways"]["cold"]["heads_s"]) == 2


def test_end_to_end_and_cached_end_at_the_same_head(answer: dict[str, Any]) -> None:
    exact, product = answer["agreements"]
    assert (exact["baseline"], exact["precision"], exact["stored"]) == (NOTEBOOK, "fp32", "float32")
    assert exact["logits"] < 1e-3
    assert exact["step_loss"] < 1e-4
    assert exact["same_answers"] == exact["answers"] == 72
    assert exact["val_accuracy"][0] == exact["val_accuracy"][1]
    assert product["baseline"] == TUNED
    assert product["logits"] < 1e-2
    # The warm way trains the same head as the comparison with the tuned way, but with `fit_head`.
    assert product["val_accuracy"][1] == answer["ways"][WARM]["val_accuracy"]


def test_the_output_folder_holds_the_printed_result(answer: dict[str, Any], folder: Path) -> None:
    written = json.loads((folder / "out" / "benchmark.json").read_text())
    assert written == answer
    assert (folder / "out" / "benchmark.md").read_text().startswith("# Benchmark quick")
    assert {path.suffix for path in (folder / "out").iterdir()} == {".json", ".md", ".svg"}


def test_nothing_is_left_behind(answer: dict[str, Any], folder: Path) -> None:
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["datasets", "weights"]


def test_what_a_person_sees_is_15_lines_without_jargon(
    answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    show(Measured.from_json(answer))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 15, "\n".join(lines)
    assert max(map(len, lines)) <= 80
    # The readers know neither featcache nor caches.
    assert not any(word in "\n".join(lines) for word in ("cache ", "cached", "backbone", "extraction", "end to end"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quik",), "unknown scenario 'quik'"),
        (("--backbone", "pixels"), "pixels computes no network"),
        (("--head", "ridge"), "end to end cannot train the head ridge"),
        (("--dataset", "no/such/folder"), "no/such/folder"),
        (("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_what_cannot_be_measured_is_an_error_at_once(words: tuple[str, ...], message: str, folder: Path) -> None:
    ran = benchmark(*words, "--data-dir", folder / "none")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert message in ran.stderr


def test_a_number_out_of_bounds_is_a_usage_error(folder: Path) -> None:
    ran = benchmark("--limit", "0", "--data-dir", folder / "none")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "--limit of at least 1" in ran.stderr


def test_an_output_that_is_no_folder_is_refused_before_anything_is_measured(folder: Path) -> None:
    (folder / "file").write_text("")
    ran = benchmark("--output", folder / "file", "--data-dir", folder / "never")
    assert ran.exit_code == 1
    assert "cannot be a folder" in ran.stderr
    assert not (folder / "never").exists()
