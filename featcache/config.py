"""An option is written once: as a field of a config record.

    @dataclass(frozen=True, kw_only=True)
    class ImageOptions:
        PANEL: ClassVar[str] = "Images"

        limit: Annotated[int | None, Option("Images per split.", metavar="<images>", least=1)] = None

        def __post_init__(self) -> None:
            check(self)

The command line makes `--limit` of it (`cli.groups`), `featcache.extract` takes `limit=` (`accepts`), `check` holds its
type, choices (`Literal`) and bounds, and `command_words` writes it into a command that is offered. What is stored of a
record is `dataclasses.asdict` of it: after `check` its values are plain Python values.

Types that are expensive to import may stand under `if TYPE_CHECKING`: a value is then recognised by its class's name.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar

from featcache.errors import InvalidOption, nearest

Function = TypeVar("Function", bound=Callable[..., Any])
Record = TypeVar("Record")
_UNFIT: Any = object()


@dataclass(frozen=True, kw_only=True)
class Option:
    """The properties of a field's option that its type does not state.

    Attributes:
        help: One or two sentences for people.
        flags: How the command line spells it, as in `("--backbone", "-b")`; without any, after the field's name.
            `("--yes/--no",)` for both values of a switch, `("--no-wait",)` for one that is on by default.
        metavar: What stands for the value in help texts.
        default: What is used where the field is None or empty, in words, for help texts.
        unset: The word that stands for None on the command line.
        least, greatest: Bounds of a number, both allowed.
        above, below: Bounds of a number, neither allowed.
        read: Makes the value from text, where the type alone does not say how. Raises InvalidOption.
        panel: The heading in the help, where it is not the record's `PANEL`.
        completion: The function of `cli.completion` that offers values.
        several: What to add to the help where a command takes several records. "NAME=VALUE" options then say which
            record they belong to.
        names: Whether the field names each of several records.
        advanced: Whether `--help` leaves it to `--help-all`.
        python_only: Whether it is an argument in Python and a name of a grid, but no option on the command line.
        variable: The environment variable that gives its value where the command line does not.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    default: str | None = None
    unset: str | None = None
    least: float | None = None
    greatest: float | None = None
    above: float | None = None
    below: float | None = None
    read: Callable[[str], object] | None = None
    panel: str | None = None
    completion: str | None = None
    several: str | None = None
    names: bool = False
    advanced: bool = False
    python_only: bool = False
    variable: str | None = None


@dataclass(frozen=True, kw_only=True)
class ConfigField:
    """A field of a record with its option: `kind` is its type without `Annotated`, `default` its default value."""

    name: str
    kind: Any
    default: Any
    option: Option
    panel: str | None

    @property
    def flags(self) -> tuple[str, ...]:
        """How the command line spells it."""
        return self.option.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def flag(self) -> str:
        """The spelling that messages use."""
        return self.name if self.option.python_only else self.flags[0].partition("/")[0]

    @property
    def is_switch(self) -> bool:
        """Whether it stands on the command line without a value."""
        return self.kind is bool or bool in _alternatives(self.kind)

    @property
    def is_list(self) -> bool:
        """Whether it holds several values."""
        return any(typing.get_origin(kind) is tuple for kind in (_alternatives(self.kind) or (self.kind,)))

    @property
    def switches_off(self) -> bool:
        """Whether its only flag turns it off."""
        return self.kind is bool and self.default is True and "/" not in self.flags[0]

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices of a `Literal`, also where None or another type may stand for it."""
        return _choices(self.kind)

    @property
    def expected(self) -> str:
        """Its type, choices and bounds in words."""
        return _in_words(self.kind) + _bounds_in_words(self.option)

    def fit(self, value: object) -> Any:
        """The value as a plain Python value of the field's type: a NumPy number is a number, a list a tuple.

        Raises InvalidOption for another type, another choice, or a number out of bounds.
        """
        if isinstance(value, str) and value == self.option.unset:
            return None
        if isinstance(value, str) and self.option.read is not None:
            read = self.option.read(value)
            self._require_bounds(read)
            return read
        found = _fit(self.kind, value)
        if found is _UNFIT:
            raise InvalidOption(f"expected {self.flag} {self.expected}, got {value!r}", hint=self._hint(value))
        self._require_bounds(found)
        return found

    def parse(self, text: str) -> Any:
        """The value that a word of the command line stands for. Raises InvalidOption, as `fit` does."""
        if self.kind is bool:
            return self.fit(_TRUTHS.get(text.lower(), text))
        if text == self.option.unset or self.option.read is not None:
            return self.fit(text)
        return self.fit(_as_number(text) if {int, float} & {self.kind, *_alternatives(self.kind)} else text)

    def words(self, value: object) -> list[str]:
        """What the command line says for this value."""
        if isinstance(value, bool):
            positive, _, negative = self.flags[0].partition("/")
            return [positive if value or self.switches_off else negative]
        values = value if isinstance(value, tuple) else (value,)
        return [word for one in values for word in (self.flag, self.option.unset or "" if one is None else str(one))]

    def _hint(self, value: object) -> str | None:
        return nearest(value, self.choices) if isinstance(value, str) and self.choices else None

    def _require_bounds(self, value: object) -> None:
        if isinstance(value, tuple):
            for one in value:
                self._require_bounds(one)
        elif isinstance(value, int | float) and not isinstance(value, bool) and not _within(self.option, value):
            raise InvalidOption(f"expected {self.flag}{_bounds_in_words(self.option)}, got {value}")


@functools.cache
def options_of(record: Any) -> tuple[ConfigField, ...]:
    """The fields of a record, a dataclass, that are options, in order."""
    hints = _hints(record)
    found = []
    for field in fields(record):
        kind, *notes = typing.get_args(hints[field.name]) if hasattr(hints[field.name], "__metadata__") else [None]
        for option in (note for note in notes if isinstance(note, Option)):
            # A required option has no default.
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            panel = option.panel or getattr(_home(record, field.name), "PANEL", None)
            if isinstance(panel, type):
                # `_hints` makes a class of a name that it does not find, which only a type may be.
                raise TypeError(f"{record.__name__}.{field.name}: {panel.__name__} is not a name of the module")
            found.append(ConfigField(name=field.name, kind=kind, default=default, option=option, panel=panel))
    return tuple(found)


def check(record: Any) -> None:
    """Holds every option of a frozen record to its type, choices and bounds, and makes it a plain Python value.

    For `__post_init__`. Raises InvalidOption.
    """
    kind: Any = type(record)
    for field in options_of(kind):
        object.__setattr__(record, field.name, field.fit(getattr(record, field.name)))


def merge_fields(*records: Any) -> dict[str, Any]:
    """The fields of several records by name, to make one record of them all."""
    return {field.name: getattr(record, field.name) for record in records for field in fields(record)}


def non_default_options(record: Any, of: type | None = None) -> dict[str, Any]:
    """The options of a record by name whose values are not their defaults; `of`: only those of a parent class."""
    kind: Any = of or type(record)
    return {field.name: value for field in options_of(kind) if (value := getattr(record, field.name)) != field.default}


def divide_options(
    options: Mapping[str, Any], function: str, *records: type, without: Collection[str] = (), also: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Keyword arguments of `function`, divided by the record that has them as options.

    `without`: options of the records that the function does not take; `also`: its own arguments, for the hint.
    Raises InvalidOption for an option that no record has.
    """
    known = [{field.name for field in options_of(record)} - {*without} for record in records]
    for name in options:
        if not any(name in names for names in known):
            hint = nearest(name, sorted({*also}.union(*known)))
            raise InvalidOption(f"{function} has no option {name!r}", hint=hint)
    return [{name: value for name, value in options.items() if name in names} for names in known]


def command_words(record: Any, *, without: Collection[str] = ()) -> list[str]:
    """What the command line says for a record: every option whose value is not its default."""
    words: list[str] = []
    kind: Any = type(record)
    for field in options_of(kind):
        value = getattr(record, field.name)
        if field.name not in without and not field.option.python_only and value != field.default:
            words += field.words(value)
    return words


def from_command_words(record: type[Record], words: Sequence[str], **values: object) -> Record:
    """The record that `command_words` has written, with some further fields; other words are left out.

    Raises InvalidOption for a value that does not fit.
    """
    kind: Any = record
    by_flag = {flag: (field, value) for field in options_of(kind) for flag, value in _spellings(field)}
    found: dict[str, Any] = {}
    following = iter(words)
    for word in following:
        if word not in by_flag:
            continue
        field, value = by_flag[word]
        if value is not None:
            found[field.name] = value
        elif field.is_list and field.option.read is None:
            found[field.name] = (*found.get(field.name, ()), next(following, ""))
        else:
            found[field.name] = field.parse(next(following, ""))
    return record(**(found | values))


def _spellings(field: ConfigField) -> Iterator[tuple[str, bool | None]]:
    """Each spelling of an option, with the value that it stands for; None where a value follows."""
    for flag in field.flags:
        positive, _, negative = flag.partition("/")
        yield positive, (not field.switches_off) if field.is_switch else None
        if negative:
            yield negative, False


def accepts(*records: type, without: Collection[str] = ()) -> Callable[[Function], Function]:
    """Shows the options of records in the signature and the docstring of a function that takes them as `**options`.

    In the docstring they replace the line `{options}`.
    """
    known = [field for record in records for field in options_of(record) if field.name not in without]

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters = [
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.kind)
            for one in known
        ]
        vars(function)["__signature__"] = signature.replace(parameters=[*own, *parameters])
        function.__doc__ = _with_options(function.__doc__ or "", known)
        return function

    return show


def _with_options(text: str, known: Sequence[ConfigField]) -> str:
    lines = []
    for line in text.splitlines():
        indent = line.removesuffix("{options}")
        lines += [line] if indent == line else [_explain_option(one, indent) for one in known]
    return "\n".join(lines)


def _explain_option(field: ConfigField, indent: str) -> str:
    default = f" [default: {field.option.default}]" if field.option.default else ""
    text = f"{field.name} ({field.expected}): {field.option.help}{default}"
    return textwrap.fill(text, 120, initial_indent=indent, subsequent_indent=f"{indent}    ")


# --- types -------------------------------------------------------------------------------------------------


def _hints(record: type) -> dict[str, Any]:
    """The record's types; what is imported for type checkers only becomes an empty class of the same name."""
    deferred: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(record, localns=deferred or None, include_extras=True)
        except NameError as error:
            name = str(error.name)
            deferred[name] = type(name, (), {})


def _home(record: type, name: str) -> type:
    """The class that defines the field."""
    return next(one for one in record.__mro__ if name in vars(one).get("__annotations__", {}))


def _fit(kind: Any, value: Any) -> Any:
    """The value as one of this type; _UNFIT where it is none."""
    if kind in (None, types.NoneType):
        return None if value is None else _UNFIT
    if _alternatives(kind):
        found = (_fit(one, value) for one in _alternatives(kind))
        return next((one for one in found if one is not _UNFIT), _UNFIT)
    if typing.get_origin(kind) is Literal:
        return next((one for one in typing.get_args(kind) if isinstance(value, str) and one == value), _UNFIT)
    if typing.get_origin(kind) is tuple:
        return _fit_items(typing.get_args(kind)[0], value)
    if kind in _PLAIN:
        return _PLAIN[kind](value)
    return value if kind.__name__ in {one.__name__ for one in type(value).__mro__} else _UNFIT


def _fit_items(kind: Any, value: Any) -> Any:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Sequence):
        return _UNFIT
    items = tuple(_fit(kind, one) for one in value)
    return _UNFIT if any(one is _UNFIT for one in items) else items


def _as_number(text: str) -> float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _is_bool(value: Any) -> bool:
    # NumPy's is not registered as a number.
    return type(value).__name__ in ("bool", "bool_")


_PLAIN: dict[Any, Callable[[Any], Any]] = {
    bool: lambda value: bool(value) if _is_bool(value) else _UNFIT,
    int: lambda value: int(value) if isinstance(value, Integral) and not _is_bool(value) else _UNFIT,
    float: lambda value: (
        float(value) if isinstance(value, Real) and not _is_bool(value) and math.isfinite(value) else _UNFIT
    ),
    str: lambda value: str(value) if isinstance(value, str) else _UNFIT,
    Path: lambda value: Path(value) if isinstance(value, str | os.PathLike) else _UNFIT,
}
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}
_PLURAL = {int: "whole numbers", float: "numbers"}
_NAMED = {bool: "True or False", int: "a whole number", float: "a number such as 1e-3", str: "text", Path: "a path"}


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else ()


def _choices(kind: Any) -> tuple[str, ...]:
    """The choices of a `Literal`, also where None or another type may stand for it."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return tuple(choice for one in _alternatives(kind) for choice in _choices(one))


def _in_words(kind: Any) -> str:
    if _alternatives(kind):
        return " or ".join(_in_words(one) for one in _alternatives(kind) if one is not types.NoneType)
    if typing.get_origin(kind) is Literal:
        *others, last = typing.get_args(kind)
        return f"{', '.join(others)} or {last}" if others else str(last)
    if typing.get_origin(kind) is tuple:
        return f"a list of {_PLURAL.get(typing.get_args(kind)[0]) or _in_words(typing.get_args(kind)[0])}"
    return _NAMED.get(kind) or f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"


def _within(option: Option, value: float) -> bool:
    return (
        (option.least is None or value >= option.least)
        and (option.greatest is None or value <= option.greatest)
        and (option.above is None or value > option.above)
        and (option.below is None or value < option.below)
    )


def _bounds_in_words(option: Option) -> str:
    if option.least is not None and option.greatest is not None:
        return f" between {option.least} and {option.greatest}"
    bounds = (
        ("of at least", option.least),
        ("above", option.above),
        ("of at most", option.greatest),
        ("below", option.below),
    )
    text = " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)
    return f" {text}" if text else ""
