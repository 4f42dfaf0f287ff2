"""Groups of options: a command's parameter is a config record, and each of its fields an option on the command line.

What an option is called, what it takes and what its help says stands with the field (`featcache.config`):

    def extract(what: list[BackboneOptions], images: ImageOptions, how: Execution) -> None: ...
    def assemble(what: BackboneOptions, how: Annotated[Execution, Without("shard")]) -> None: ...
    def sweep(head: Annotated[dict[str, Any], Given(HeadConfig)]) -> None: ...

`list[...]` is for several records: the option that names them may be repeated, and others say NAME=VALUE. `Given` is
for a record that is made later, of what was given and something else. A record whose fields are annotated for typer
itself is unfolded as it is.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from types import NoneType
from typing import Annotated, Any, Literal

import typer

from featcache.cli import completion
from featcache.config import ConfigField, options_of
from featcache.errors import InvalidOption


class Without:
    """In `Annotated[Record, Without("name")]`: the command does not take these options of the record."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Given:
    """In `Annotated[dict[str, Any], Given(Record)]`: the record's options that stand on the command line, by name.

    An option that was given is there whatever its value, also where that is the default. The command's function has
    a parameter `context: typer.Context`.
    """

    def __init__(self, record: type, *, without: Collection[str] = ()) -> None:
        self.record, self.without = record, without


class Group(ABC):
    """A parameter of a command that stands for several options."""

    @abstractmethod
    def parameters(self) -> list[inspect.Parameter]:
        """The options, as typer reads them."""

    @abstractmethod
    def folded(self, values: dict[str, Any]) -> Any:
        """What the command's function is given; takes the values of the options out of `values`."""


def group_of(annotation: Any) -> Group | None:
    """The group that a parameter's annotation means; None for a parameter that is one option."""
    record = annotation
    left_out: tuple[str, ...] = ()
    if typing.get_origin(annotation) is Annotated:
        record, *notes = typing.get_args(annotation)
        for note in notes:
            if isinstance(note, Given):
                fields = [field for field in options_of(note.record) if field.name not in note.without]
                return _AsGiven(note.record, fields)
        left_out = tuple(name for note in notes if isinstance(note, Without) for name in note.names)
    several = typing.get_origin(record) is list
    record = typing.get_args(record)[0] if several else record
    if not (isinstance(record, type) and dataclasses.is_dataclass(record)):
        return None
    if not options_of(record):
        return _AsTyperReadsIt(record)
    fields = [field for field in options_of(record) if field.name not in left_out]
    return _Several(record, fields) if several else _One(record, fields)


class _AsTyperReadsIt(Group):
    def __init__(self, record: Any) -> None:
        self._record = record

    def parameters(self) -> list[inspect.Parameter]:
        kinds = typing.get_type_hints(self._record, include_extras=True)
        return [
            _keyword(
                field.name, inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
                kinds[field.name],
            )
            for field in self._fields
        ]  # fmt: skip

    def folded(self, values: dict[str, Any]) -> Any:
        return self._record(**{field.name: values.pop(field.name) for field in self._fields})

    @property
    def _fields(self) -> tuple[dataclasses.Field[Any], ...]:
        return dataclasses.fields(self._record)


class _One(Group):
    """One record."""

    def __init__(self, record: type, fields: Sequence[ConfigField]) -> None:
        self._record, self._fields = record, fields

    def parameters(self) -> list[inspect.Parameter]:
        return [_option(field) for field in self._fields]

    def folded(self, values: dict[str, Any]) -> Any:
        return self._record(**{field.name: _value(field, values.pop(field.name)) for field in self._fields})


class _AsGiven(_One):
    """The options that were given."""

    def folded(self, values: dict[str, Any]) -> Any:
        found = {field.name: (field, values.pop(field.name)) for field in self._fields}
        given = given_options(values["context"], found)
        return {name: field.fitted(_value(field, value)) for name, (field, value) in found.items() if name in given}


class _Several(_One):
    """One record for each name that is given."""

    def parameters(self) -> list[inspect.Parameter]:
        return [_repeated(field) if field.option.several else _option(field) for field in self._fields]

    def folded(self, values: dict[str, Any]) -> Any:
        (naming,) = (field for field in self._fields if field.option.names)
        names = list(dict.fromkeys(values.pop(naming.name)))
        each = {
            field.name: _by_name(field, values.pop(field.name), names)
            for field in self._fields
            if field.option.several and field is not naming
        }
        alike = {
            field.name: _value(field, values.pop(field.name)) for field in self._fields if not field.option.several
        }
        return [
            self._record(**{naming.name: name}, **alike, **{key: found[name] for key, found in each.items()})
            for name in names
        ]


def given_options(context: typer.Context, names: Iterable[str]) -> set[str]:
    """Which of these parameters of a command stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _by_name(field: ConfigField, values: Sequence[str] | None, names: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE`, or VALUE where there is one name -> the value of each; a usage error where it is unclear."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for value in values or ():
        owner, _, rest = value.partition("=")
        if owner in found and rest:
            found[owner].append(rest)
        elif len(names) == 1:
            found[names[0]].append(value)
        else:
            raise typer.BadParameter(
                f"of several backbones, say whose it is: {field.flag} {names[0]}={value}", param_hint=field.flag
            )
    many = _is_list(field)
    return {name: (tuple(some) if many else some[-1]) if some else field.default for name, some in found.items()}


def _option(field: ConfigField) -> inspect.Parameter:
    default = not field.default if field.switches_off else field.default
    kind = list[str] | None if _is_list(field) else _as_text(field.kind)
    if field.option.unset is not None or field.option.read is not None:
        default = field.option.unset if field.default is None else field.default
        return _keyword(field.name, default, _annotated(str | None, field, parser=_reader(field)))
    return _keyword(field.name, None if _is_list(field) else default, _annotated(kind, field))


def _repeated(field: ConfigField) -> inspect.Parameter:
    default = [field.default] if field.option.names else None
    return _keyword(field.name, default, _annotated(list[str] | None, field, also=field.option.several))


def _annotated(kind: Any, field: ConfigField, *, also: str | None = None, parser: Any = None) -> Any:
    default = field.option.default or (also and not field.option.names and field.default)
    shown = f"[default: {default}]" if default else None
    return Annotated[
        kind,
        typer.Option(
            *field.flags,
            help=" ".join(text for text in (field.option.help, also, shown) if text),
            metavar=field.option.metavar,
            rich_help_panel=field.panel,
            autocompletion=getattr(completion, field.option.completion) if field.option.completion else None,
            parser=parser,
        ),
    ]


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _reader(field: ConfigField) -> Callable[[str], Any]:
    """Reads the option's text; a usage error where it cannot be read."""
    unset = field.option.unset

    def read(text: str) -> Any:
        try:
            return field.parsed(text)
        except InvalidOption as error:
            expected = f"expected {unset} or {field.expected}, got {text!r}"
            raise typer.BadParameter(error.message if unset is None else expected) from None

    return read


def _value(field: ConfigField, value: Any) -> Any:
    """The field's value for what typer has read."""
    if _is_list(field):
        return tuple(value) if value else field.default
    return not value if field.switches_off else value


def _is_list(field: ConfigField) -> bool:
    alternatives = typing.get_args(field.kind) if typing.get_origin(field.kind) is not tuple else (field.kind,)
    return any(typing.get_origin(one) is tuple for one in alternatives)


def _as_text(kind: Any) -> Any:
    """Of several types the one that the command line can say: text, or choices, rather than an object."""
    if typing.get_origin(kind) is Literal:
        return kind
    alternatives = [one for one in typing.get_args(kind) if one is not NoneType]
    chosen = [one for one in alternatives if typing.get_origin(one) is Literal]
    return str if str in alternatives else chosen[0] if len(alternatives) > 1 and chosen else kind
