"""`featcache report`, as it is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import answer, complaint, featcache


@pytest.fixture
def trained(cache: Path) -> str:
    """A run on the pixels of `pictures/`; its name."""
    return Path(answer("train-head", "--head", "ridge")["run"]).name


def test_a_report_of_all_runs_is_written(trained: str, here: Path) -> None:
    result = featcache("report")
    assert result.stdout.startswith("1 run in report.html (")
    assert result.stdout.endswith("\nnext: featcache export best --output head.pt2\n")
    assert "12, with pictures" in result.stdout
    assert trained in (here / "report.html").read_text()


def test_runs_are_named_as_for_other_commands(trained: str, here: Path) -> None:
    for number, ref in enumerate((trained, trained[:-3], f"runs/{trained}", "latest")):
        output = answer("report", ref, "-o", f"{number}.html", "--map", "none")
        assert output["report"] == f"{number}.html"
        assert (output["runs"], output["images"], output["pictures"]) == (1, 12, 12)
        assert output["bytes"] == (here / f"{number}.html").stat().st_size


def test_what_is_gone_is_reported_on_stderr_too(trained: str, cache: Path) -> None:
    cache.unlink()
    result = featcache("report")
    assert "is missing" in result.stderr
    assert "12, 0 of them with a picture" in result.stdout


def test_pictures_for_papers_are_counted(trained: str, here: Path) -> None:
    output = answer("report", "--figures", "figures", "--map", "none")
    assert sorted(output["files"]) == sorted(f"figures/{path.name}" for path in (here / "figures").iterdir())


def test_without_runs_there_is_no_report(here: Path) -> None:
    error, hint = complaint("report")
    assert "no run to report in runs" in error
    assert "train-head" in hint
    assert not (here / "report.html").exists()


def test_a_page_that_cannot_be_written_is_an_error(trained: str) -> None:
    error, hint = complaint("report", "-o", "pictures", "--map", "none")
    assert error == "pictures is a folder, and the page is a file"
    assert hint == "--output pictures/report.html"
