"""Sentences and progress bars: on stderr, on a terminal only, and only for what takes longer than two seconds."""

from __future__ import annotations

import io
import re
import sys

import pytest

from featcache.cli.printing import begin_output, human_rows, print_json, print_pairs, print_table
from featcache.cli.terminal import Terminal
from featcache.text import human_bytes, human_seconds


class Screen(io.StringIO):
    """A stream that is a terminal, or is none."""

    def __init__(self, *, terminal: bool = True) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        """Everything written so far, without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)


def run(screen: Screen, stage: str, steps: list[tuple[float, int]], total: int, *, quiet: bool = False) -> str:
    """Goes through a stage: (seconds since it began, done) after another."""
    clock = Clock()
    with Terminal(quiet=quiet, stream=screen, clock=clock) as terminal:
        for seconds, done in steps:
            clock.now = 100.0 + seconds
            terminal.advance(stage, done, total)
    return screen.text()


def test_a_stage_that_is_over_soon_needs_no_bar() -> None:
    assert run(Screen(), "extracting", [(0.0, 0), (1.0, 50), (1.9, 99), (2.5, 100)], 100) == ""


def test_a_longer_one_gets_a_bar_with_rate_and_time_left() -> None:
    shown = run(Screen(), "extracting", [(0.0, 0), (2.0, 20), (4.0, 40), (6.0, 60)], 100)
    assert "extracting" in shown
    assert "60/100" in shown
    assert "10.0 images/s" in shown
    assert "4.0 s left" in shown


def test_what_it_waits_for_stands_beside_the_stage() -> None:
    clock, screen = Clock(), Screen()
    with Terminal(stream=screen, clock=clock) as terminal:
        terminal.advance("extracting", 0, 100)
        clock.now += 3
        terminal.advance("extracting", 10, 100, bound="decode")
    assert "extracting, decoding is slowest" in screen.text()


def test_the_rate_is_known_at_the_first_glance() -> None:
    assert "5.0 images/s" in run(Screen(), "extracting", [(0.0, 0), (4.0, 20)], 100)


def test_epochs_are_counted_as_epochs() -> None:
    assert "2.0 epochs/s" in run(Screen(), "training", [(0.0, 0), (2.0, 4), (3.0, 6)], 50)


@pytest.mark.parametrize(
    ("stage", "unit"), [("solving", "candidates"), ("mapping features", "maps"), ("heads", "heads")]
)
def test_what_is_counted_is_named(stage: str, unit: str) -> None:
    assert f"2.0 {unit}/s" in run(Screen(), stage, [(0.0, 0), (2.0, 4), (3.0, 6)], 50)


def test_a_sweep_of_epochs_and_candidates_counts_neither() -> None:
    shown = run(Screen(), "sweeping", [(0.0, 0), (2.0, 4), (3.0, 6)], 50)
    assert "12 %" in shown and "22.0 s left" in shown and "epochs" not in shown


def test_bytes_are_shown_as_bytes() -> None:
    shown = run(Screen(), "verifying", [(0.0, 0), (3.0, 30_000_000)], 100_000_000)
    assert "30.0/100.0 MB" in shown
    assert "10.0 MB/s" in shown
    assert "7.0 s left" in shown


def test_every_stage_has_its_own_two_seconds() -> None:
    clock, screen = Clock(), Screen()
    with Terminal(stream=screen, clock=clock) as terminal:
        for stage in ("reading", "extracting"):
            terminal.advance(stage, 0, 10)
            clock.now += 1.5
            terminal.advance(stage, 10, 10)
    assert screen.text() == ""


def test_what_is_no_terminal_gets_no_bar() -> None:
    assert run(Screen(terminal=False), "extracting", [(0.0, 0), (5.0, 50)], 100) == ""


def test_quiet_gets_no_bar_and_no_remark_but_warnings() -> None:
    screen = Screen()
    assert run(screen, "extracting", [(0.0, 0), (5.0, 50)], 100, quiet=True) == ""
    with Terminal(quiet=True, stream=screen) as terminal:
        terminal.info("a remark")
        terminal.warn("a danger")
    assert screen.text() == "warning: a danger\n"


def test_a_sentence_stands_whole_above_the_bar() -> None:
    clock, screen = Clock(), Screen()
    sentence = "[bold]no markup[/bold] " + "and no line break " * 10
    with Terminal(stream=screen, clock=clock) as terminal:
        terminal.advance("extracting", 0, 100)
        clock.now += 3
        terminal.advance("extracting", 10, 100)
        terminal.warn(sentence)
    assert f"warning: {sentence}" in screen.text()


def test_the_cursor_comes_back_when_it_is_interrupted() -> None:
    clock, screen = Clock(), Screen()
    with pytest.raises(KeyboardInterrupt), Terminal(stream=screen, clock=clock) as terminal:
        terminal.advance("extracting", 0, 100)
        clock.now += 3
        terminal.advance("extracting", 10, 100)
        raise KeyboardInterrupt
    hidden, shown = screen.getvalue().rfind("\x1b[?25l"), screen.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown


def test_while_it_is_open_prints_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal():
        print("from a library")
    print("a result")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("a result\n", "from a library\n")


def test_without_a_stderr_nothing_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Terminal() as terminal:
        terminal.info("this is not printed")
        terminal.advance("extracting", 1, 2)


# --- results -----------------------------------------------------------------------------------------------


def test_columns_of_numbers_stand_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("a", "1.5 MB", "x"), ("long", "10 B", "-")], header=("name", "size", ""))
    assert capsys.readouterr().out.splitlines() == [
        "name    size",
        "----  ------  -",
        "a     1.5 MB  x",
        "long    10 B  -",
    ]


def test_pairs_stand_in_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_pairs([("a", "1"), ("long", "2")])
    print_pairs([])
    assert capsys.readouterr().out == "a     1\nlong  2\n"


@pytest.mark.parametrize("value", [{"a": "é"}, {"a": "\udcff"}, {"a": 1.5, "b": [None, True]}])
def test_json_is_one_line_whatever_it_holds(value: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    import json

    begin_output()
    print_json(value)
    stdout = capsys.readouterr().out
    assert stdout.count("\n") == 1
    assert json.loads(stdout) == value


def test_numbers_are_written_for_people() -> None:
    assert [human_bytes(count) for count in (0, 999, 1_234_567, 5e12)] == ["0 B", "999 B", "1.2 MB", "5.0 TB"]
    assert [human_seconds(s) for s in (0, 59.9, 59.96, 75.2, 7325)] == ["0.0 s", "59.9 s", "1m00s", "1m15s", "2h02m"]
    assert human_rows({"test": 10, "train": 2000}) == "2,000 train, 10 test"
