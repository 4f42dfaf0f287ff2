"""An option is written once: a record's field is the command's option, the function's argument and what is stored."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

import featcache
from featcache.backbones.options import BackboneOptions
from featcache.cli.app import app
from featcache.cli.commands import command
from featcache.cli.groups import Without
from featcache.columns import ColumnOptions
from featcache.config import Option, accepts, check, command_words, divide_options, options_of
from featcache.errors import InvalidOption
from featcache.extraction.execution import Cluster, Execution
from featcache.extraction.request import Request, StorageOptions
from featcache.images.options import ImageOptions

if TYPE_CHECKING:
    # Stands for a type that is expensive to import.
    from email.message import Message as Instrument


def upwards(text: str) -> int:
    if not text.startswith("+"):
        raise InvalidOption(f"expected --rise +N, got {text!r}")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class TeaOptions:
    """A record of every kind of option."""

    PANEL: ClassVar[str] = "The tea"

    cups: Annotated[int, Option(help="How many cups.", metavar="<cups>", least=1, greatest=9)] = 2
    heat: Annotated[float | None, Option(help="Degrees.", flags=("--degrees", "-t"), default="boiling")] = None
    leaf: Annotated[Literal["green", "black"] | None, Option(help="Which leaf.", default="the shop's")] = None
    extras: Annotated[tuple[str, ...], Option(help="Milk or sugar.", flags=("--extra",), default="none")] = ()
    warm: Annotated[bool, Option(help="Whether the cups are warmed.", flags=("--warm/--no-warm",))] = False
    stir: Annotated[bool, Option(help="Whether it is stirred.", flags=("--no-stir",))] = True
    minutes: Annotated[int | None, Option(help="Minutes, or auto.", unset="auto", least=1)] = None
    rise: Annotated[int, Option(help="How far.", read=upwards, panel="The rest")] = 0
    pot: Annotated[str | Path | Instrument, Option(help="The pot.")] = "pot"
    place: str = "no option"

    def __post_init__(self) -> None:
        check(self)


EVERY = ("cups", "heat", "leaf", "extras", "warm", "stir", "minutes", "rise", "pot")


def run_tea(*words: str, kind: Any = TeaOptions) -> tuple[Result, Any]:
    """What the command was given for these words."""
    given: list[Any] = []
    tea = typer.Typer(rich_markup_mode=None)

    def brew(what: Any) -> None:
        """Brew."""
        given.append(what)

    brew.__annotations__["what"] = kind
    command(tea, "brew", section="Tea")(brew)
    result = CliRunner().invoke(tea, [*words])
    return result, given[0] if given else None


@accepts(TeaOptions, without=("rise",))
def brew(water: str = "tap", **options: Any) -> TeaOptions:
    """Brew.

    Args:
        water: The water.
        {options}
    """
    (given,) = divide_options(options, "brew", TeaOptions, without=("rise",), also=("water",))
    return TeaOptions(**given)


# --- one field, everywhere ---------------------------------------------------------------------------------


def test_a_field_written_once_is_in_the_help_the_signature_the_checks_and_what_is_stored() -> None:
    shown = run_tea("--help")[0].output
    assert "The tea:" in shown and "--cups <cups>" in shown and "How many cups. [default: 2]" in shown
    assert inspect.signature(brew).parameters["cups"].default == 2
    assert "        cups (a whole number between 1 and 9): How many cups." in str(brew.__doc__).splitlines()
    with pytest.raises(InvalidOption, match="expected --cups between 1 and 9, got 0"):
        TeaOptions(cups=0)
    assert json.loads(json.dumps(asdict(TeaOptions(cups=np.int64(3)))))["cups"] == 3  # type: ignore[arg-type]


def test_every_option_is_shown_and_no_other_field() -> None:
    assert tuple(field.name for field in options_of(TeaOptions)) == EVERY
    shown = run_tea("--help")[0].output
    flags = (
        "-t, --degrees",
        "--leaf <green|black>",
        "--extra",
        "--warm / --no-warm",
        "--no-stir",
        "--minutes",
        "--pot",
    )
    assert [flag for flag in flags if flag not in shown] == []
    assert "[default: boiling]" in shown and "The rest:" in shown and "--place" not in shown
    assert list(inspect.signature(brew).parameters) == ["water", *(name for name in EVERY if name != "rise")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("--cups", "4", "-t", "80.5"), {"cups": 4, "heat": 80.5}),
        (("--extra", "milk", "--extra", "sugar"), {"extras": ("milk", "sugar")}),
        (("--warm", "--no-stir"), {"warm": True, "stir": False}),
        (("--minutes", "3"), {"minutes": 3}),
        (("--minutes", "auto"), {"minutes": None}),
        (("--rise", "+2", "--leaf", "black", "--pot", "./iron"), {"rise": 2, "leaf": "black", "pot": "./iron"}),
    ],
)
def test_the_command_line_makes_the_record_and_the_record_the_command_line(
    words: tuple[str, ...], expected: dict[str, Any]
) -> None:
    result, given = run_tea(*words)
    assert (result.exit_code, given) == (0, TeaOptions(**expected))
    if "rise" not in expected:
        assert run_tea(*command_words(given))[1] == given


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--cups", "many"), 2, "--cups"),
        (("--leaf", "gren"), 2, "green"),
        (("--minutes", "some"), 2, "expected --minutes auto or a whole number of at least 1, got 'some'"),
        (("--rise", "2"), 2, "expected --rise +N, got '2'"),
        (("--cups", "10"), 2, "expected --cups between 1 and 9, got 10"),
    ],
)
def test_what_cannot_be_used_on_the_command_line_is_an_error(words: tuple[str, ...], code: int, message: str) -> None:
    result, given = run_tea(*words)
    assert (result.exit_code, given) == (code, None)
    assert message in result.output


def test_a_command_may_do_without_some_of_a_records_options() -> None:
    kind = Annotated[TeaOptions, Without("cups")]
    assert "--cups" not in run_tea("--help", kind=kind)[0].output
    assert run_tea("--warm", kind=kind)[1] == TeaOptions(warm=True)


# --- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"cups": np.int32(3)}, {"cups": 3}),
        ({"heat": 80}, {"heat": 80.0}),
        ({"heat": np.float32(0.5)}, {"heat": 0.5}),
        ({"extras": ["milk"]}, {"extras": ("milk",)}),
        ({"extras": "milk"}, {"extras": ("milk",)}),
        ({"warm": np.bool_(True)}, {"warm": True}),
        ({"minutes": "auto"}, {"minutes": None}),
        ({"rise": "+4"}, {"rise": 4}),
        ({"pot": Path("iron")}, {"pot": Path("iron")}),
    ],
)
def test_values_become_plain_ones(given: dict[str, Any], stored: dict[str, Any]) -> None:
    record = asdict(TeaOptions(**given))
    for name, value in stored.items():
        assert (record[name], type(record[name])) == (value, type(value))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cups": 2.5}, "expected --cups a whole number between 1 and 9, got 2.5"),
        ({"cups": True}, "expected --cups a whole number between 1 and 9, got True"),
        ({"cups": "2"}, "expected --cups a whole number between 1 and 9, got '2'"),
        ({"cups": None}, "expected --cups a whole number between 1 and 9, got None"),
        ({"heat": float("nan")}, "expected --degrees a number such as 1e-3, got nan"),
        ({"leaf": "gren"}, "expected --leaf green or black, got 'gren'"),
        ({"extras": [1]}, "expected --extra a list of text, got [1]"),
        ({"warm": 1}, "expected --warm True or False, got 1"),
        ({"pot": 7}, "expected --pot text or a path or an Instrument, got 7"),
        ({"minutes": 0}, "expected --minutes of at least 1, got 0"),
    ],
)
def test_another_type_choice_or_bound_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(message)):
        TeaOptions(**given)


def test_a_misspelt_choice_or_option_offers_the_nearest() -> None:
    with pytest.raises(InvalidOption) as choice:
        brew(leaf="gren")
    assert choice.value.hint == "did you mean green?"
    with pytest.raises(InvalidOption, match="brew has no option 'cup'") as option:
        brew(cup=3)
    assert "did you mean cups" in str(option.value.hint)


def test_a_type_that_was_not_imported_is_recognised_by_its_name() -> None:
    pot = type("Kettle", (type("Instrument", (), {}),), {})()
    assert TeaOptions(pot=pot).pot is pot


# --- extract -----------------------------------------------------------------------------------------------

RECORDS = (ImageOptions, ColumnOptions, BackboneOptions, StorageOptions, Execution, Cluster)


def names_of(*records: type) -> set[str]:
    return {field.name for record in records for field in options_of(record)}


def test_the_options_of_extract_are_those_of_the_records() -> None:
    parameters = {one.name for one in typer.main.get_command(app).commands["extract"].params}  # type: ignore[attr-defined]
    assert parameters == names_of(*RECORDS)
    own = {"images", "labels", "classes", "data_dir", "progress"}
    taken = set(inspect.signature(featcache.extract).parameters) - own
    assert taken == names_of(Request, Execution) - {"dataset", "shard"}


def test_every_option_of_extract_is_explained_in_its_docstring() -> None:
    text = str(inspect.getdoc(featcache.extract))
    options = names_of(Request, Execution) - {"dataset", "shard", "backbone"}
    assert [name for name in options if f"    {name} (" not in text] == []
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_of_a_record_is_an_option_under_a_heading(record: Any) -> None:
    assert [field.name for field in dataclasses.fields(record)] == [field.name for field in options_of(record)]
    assert all(field.panel and field.option.help.endswith(".") for field in options_of(record))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_sise": 64}, "extract has no option 'image_sise'"),
        ({"dataset": "digits"}, "extract has no option 'dataset'"),
        ({"shard": "0/2"}, "extract has no option 'shard'"),
        ({"limit": "ten"}, "expected --limit a whole number of at least 1, got 'ten'"),
        ({"pool": "max"}, "expected --pool none, avg, cls or cls+avg, got 'max'"),
        ({"precision": "int8"}, "expected --precision auto, fp32, bf16 or fp16, got 'int8'"),
        ({"on_error": "stop"}, "expected --on-error fail or skip, got 'stop'"),
        ({"batch_size": 0}, "expected --batch-size of at least 1, got 0"),
    ],
)
def test_extract_refuses_what_it_does_not_know(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=re.escape(message)):
        featcache.extract("digits", "pixels", data_dir=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    cache = featcache.extract("digits", "pixels", data_dir=tmp_path, limit=np.int64(10), batch_size=np.int32(4))
    assert cache.selection.limit == 10


def module_of_ones_own() -> Any:
    from torch import nn

    from featcache.backbones.transforms import Transform

    return featcache.from_module(nn.Flatten(), name="mine", transform=Transform(image_size=4))


@pytest.mark.parametrize("make", [module_of_ones_own, lambda: [module_of_ones_own(), "pixels"]])
@pytest.mark.parametrize(
    "option",
    [
        {"image_size": 64},
        {"pool": "avg"},
        {"normalize": "half"},
        {"resize": "crop"},
        {"layers": {"mine": "features"}},
        {"weights": {"mine": "random:0"}},
    ],
    ids=lambda option: next(iter(option)),
)
def test_an_option_that_a_made_backbone_cannot_obey_is_refused(
    option: dict[str, Any], make: Callable[[], Any], tmp_path: Path
) -> None:
    with pytest.raises(InvalidOption, match=f"{next(iter(option))} cannot be chosen for the network mine"):
        featcache.extract("digits", make(), data_dir=tmp_path, **option)
    assert not list(tmp_path.iterdir())


def test_the_records_load_nothing_heavy() -> None:
    code = (
        "import sys, featcache.extraction.request, featcache.extraction.execution\n"
        "from featcache.config import options_of\n"
        "options_of(featcache.extraction.request.Request), options_of(featcache.extraction.execution.Execution)\n"
        "assert not {'numpy', 'torch', 'h5py', 'PIL'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
