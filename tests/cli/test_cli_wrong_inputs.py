"""Wrong words on the command line, made from every option of every command: exit code 2, one line, and a hint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from featcache.cli.app import app
from featcache.config import ConfigField

# Built once: there are hundreds of lines.
ROOT: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = dict(ROOT.commands)


def wrong_values(field: ConfigField) -> Iterator[tuple[str, str]]:
    """Values that an option must refuse, each with a word of the message."""
    option = field.option
    if field.is_switch or field.is_list:
        return
    if field.choices:
        yield f"{field.choices[0]}q", field.choices[0]
        yield "", field.choices[0]
    if field.expected.startswith(("a whole number", "a number")) and option.read is None:
        yield "many", "number"
        yield "1,5", "number"
        yield "nan", "number"
        if option.least is not None:
            yield str(option.least - 1), str(option.least)
        if option.greatest is not None:
            yield str(option.greatest + 1), str(option.greatest)
        if option.above is not None:
            yield str(option.above), str(option.above)
        if option.below is not None:
            yield str(option.below), str(option.below)


def wrong_lines(name: str) -> Iterator[tuple[list[str], str]]:
    """Wrong command lines, each with a word of the error or the hint."""
    command = COMMANDS[name]
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    needed = ["x" for one in arguments if one.required]
    yield [name, *needed, "--no-such-option"], "--no-such-option"
    yield [name, *needed, "--jsno"], "--json"
    if needed:
        yield [name], "needs"
    required = [one for one in command.params if one.required and one.param_type_name == "option"]
    if all(one.nargs == 1 for one in arguments) and not required:
        yield [name, *["x" for _ in arguments], "stray"], "stray"
    for field in command.callback.fields:
        # `-1` behind an option is its value, joined by `=`.
        for value, word in wrong_values(field):
            yield [name, *needed, f"{field.flag}={value}"], word
        if not field.is_switch:
            yield [name, *needed, field.flag], field.flag
        yield [name, *needed, f"{field.flag}x", "1"], field.flag


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_line_ends_with_2_one_line_and_a_hint_and_with_json_one_object(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            ROOT.main([*words], prog_name="featcache")
        return ended.value.code, *capsys.readouterr()

    lines = list(wrong_lines(name))
    assert len(lines) >= 2
    for words, word in lines:
        code, stdout, stderr = run(*words)
        assert (code, stdout) == (2, ""), (words, stdout, stderr)
        error, hint = stderr.splitlines()
        assert error.startswith("error: ") and hint.startswith("hint: "), words
        assert word in error + hint, (words, stderr)
        printed = json.loads(run(*words, "--json")[1])
        # `--option --json` has no value either, but takes the next word for one.
        if words[-1].startswith("--") and "=" not in words[-1] and "needs" not in error:
            continue
        assert printed["error"]["exit_code"] == 2, words
        assert f"error: {printed['error']['message']}" == error


def test_there_are_at_least_40_wrong_lines_for_each_command_with_many_options() -> None:
    counts = {name: sum(1 for _ in wrong_lines(name)) for name in COMMANDS}
    assert min(counts[name] for name in ("extract", "train-head", "sweep", "why")) >= 40
    assert sum(counts.values()) >= 400
