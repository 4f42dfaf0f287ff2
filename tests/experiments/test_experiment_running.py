"""`featcache run` and `featcache.run_experiment`: extract, train or sweep, and report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_files import DIGITS, write_experiment
from typer.testing import CliRunner, Result

import featcache
from featcache.cli.app import app
from featcache.errors import InvalidOption
from featcache.extraction.reporting import LogReporter
from featcache.runs.catalog import run_folders
from featcache.runs.files import sweep_folders

SWEEP = f"""{DIGITS}
[[backbones]]
backbone = "pixels"
image_size = 4

[grid]
head = ["ridge", "centroid"]

[report]
map = "none"
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str | Path, expect: int = 0) -> Result:
    """Calls `featcache run`."""
    result = CliRunner().invoke(app, ["run", *map(str, words)], prog_name="featcache")
    assert result.exit_code == expect, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result


def test_a_sweep_over_all_backbones_is_reported_and_features_are_computed_once(here: Path) -> None:
    file = write_experiment(here / "there", SWEEP)
    first = json.loads(run(file, "--json", "--data-dir", "store").stdout)
    assert list(first) == ["caches", "sweep", "run", "report"]
    assert [one["computed"] for one in first["caches"]] == [160, 160]
    assert [str(here / one["cache"]) for one in first["caches"]] == first["sweep"]["caches"]
    assert len(first["sweep"]["rows"]) == 4
    assert first["run"]["run"] == first["sweep"]["run"]
    assert Path(first["report"]["report"]) == Path(first["sweep"]["sweep"]) / "report.html"
    assert "<html" in Path(first["report"]["report"]).read_text()
    lines = run(file, "--data-dir", "store").stdout.splitlines()
    assert lines.count("160 images reused, none had to be computed") == 2
    assert next(line for line in lines if line.startswith("1  ")).split()[2] in ("ridge", "centroid")
    assert any(line.startswith("1 run in runs/") and "report.html" in line for line in lines)
    assert lines[-1].startswith("next: featcache export ") and lines[-1].endswith("head.pt2 --data-dir store")
    assert len(sweep_folders(here / "runs")) == len(run_folders(here / "runs")) == 2
    assert len(list((here / "store" / "features").glob("*.h5"))) == 2


def test_one_head_is_a_run_and_its_report_is_where_the_file_names_it(here: Path) -> None:
    text = f"{DIGITS}[head]\nhead = 'ridge'\n[report]\nmap = 'none'\noutput = 'page.html'"
    stdout = run(write_experiment(here / "there", text)).stdout
    assert (here / "there" / "page.html").is_file()
    (folder,) = run_folders(here / "runs")
    assert str(folder.name) in stdout and "there/page.html" in stdout
    assert sweep_folders(here / "runs") == []


def test_an_error_ends_with_1_and_nothing_is_written(here: Path) -> None:
    file = write_experiment(here, f"{DIGITS}[head]\nlr = 'fast'")
    result = run(file, expect=1)
    assert result.stdout == ""
    assert (
        result.stderr.splitlines()[0]
        == f"error: {file} [head]: expected --lr a number such as 1e-3 above 0, got 'fast'"
    )
    assert json.loads(run("none.toml", "--json", expect=1).stdout)["error"]["kind"] == "InvalidOption"
    assert [path.name for path in here.iterdir()] == ["experiment.toml"]


def test_from_python_the_result_is_a_short_record(here: Path) -> None:
    seen: list[str] = []
    done = featcache.run_experiment(
        write_experiment(here, SWEEP), data_dir="data", progress=lambda stage, *_: seen.append(stage)
    )
    assert done.sweep is not None and done.run is not None and done.report is not None
    assert done.run == featcache.Run.load(done.sweep.run or "")
    assert {"extracting", "sweeping"} <= set(seen)
    assert len(repr(done)) <= 302 and repr(done).startswith("<ExperimentResult ")
    assert "images computed 320" in repr(done)
    assert "<table>" in done._repr_html_() and len(done._repr_html_()) < 6_000


class Interrupting(LogReporter):
    """Sends Ctrl-C after the second epoch."""

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        if stage == "training" and done == 2:
            signal.raise_signal(signal.SIGINT)


def test_after_ctrl_c_the_best_epoch_is_a_run_without_a_report(here: Path) -> None:
    file = write_experiment(here, f"{DIGITS}[head]\nmax_epochs = 50\npatience = 50\n[training]\nthreads = 1")
    done = featcache.run_experiment(file, reporter=Interrupting())
    assert done.interrupted and done.report is None
    assert done.run is not None and done.run.training.interrupted and done.run.training.epochs < 50
    assert (done.run.folder / "experiment.toml").is_file()


def test_one_network_at_two_sizes_beside_another_is_extracted(here: Path) -> None:
    text = f"{DIGITS}[[beside]]\nbackbone = 'pixels'\nimage_size = 4\n[head]\nhead = 'ridge'\n[report]\nmap = 'none'"
    done = featcache.run_experiment(write_experiment(here, text), progress=False)
    assert done.run is not None and done.run.features.feature_dim == 3 * 64 + 3 * 16


def test_a_cache_that_exists_and_a_solved_head_need_no_torch(here: Path) -> None:
    file = write_experiment(here, f"{DIGITS}[head]\nhead = 'centroid'\n[report]\nmap = 'none'")
    featcache.run_experiment(file, progress=False)
    code = f"import featcache, sys; featcache.run_experiment({str(file)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_images_that_do_not_exist_are_an_error_of_the_extraction(here: Path) -> None:
    file = write_experiment(here, DIGITS.replace("digits", "./photos"))
    with pytest.raises(featcache.FeatcacheError, match="photos: no such file or folder") as found:
        featcache.run_experiment(file, progress=False)
    assert not isinstance(found.value, InvalidOption)
