"""Groups of options: a command's parameter is a config record, and each of its fields an option on the command line.

What an option is called, what it takes and what its help says stands with the field (`featcache.config`):

    def extract(backbones: list[BackboneOptions], images: ImageOptions, how: Execution) -> None: ...
    def assemble(how: Annotated[Execution, Only("pack")]) -> None: ...
    def sweep(head: Annotated[dict[str, Any], Given(HeadConfig)]) -> None: ...

`list[...]` is for several records: the option that names them may be repeated, and others take NAME=VALUE. `Given` is
for a record that is made later, from the options that stand on the command line and from something else.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Any

import typer

from featcache.cli import completion
from featcache.cli.usage import WrongUsage, usage_errors
from featcache.config import ConfigField, Option, options_of
from featcache.errors import InvalidOption


class Without:
    """In `Annotated[Record, Without("name")]`: the command does not take these options of the record."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Only:
    """In `Annotated[Record, Only("name")]`: the command takes these options of the record alone."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Given:
    """In `Annotated[dict[str, Any], Given(Record)]`: the record's options that stand on the command line, by name.

    An option that was given is there whatever its value, also where that is the default. The command's function has
    a parameter `context: typer.Context`. `default`: what is used where an option is not given, in words, if that is
    not the record's default.
    """

    def __init__(self, record: type, *, without: Collection[str] = (), default: str | None = None) -> None:
        self.record, self.without, self.default = record, without, default

    @property
    def fields(self) -> list[ConfigField]:
        """The options, each with the default that its help shows."""
        found = [field for field in _options(self.record) if field.name not in self.without]
        if self.default is None:
            return found
        return [
            dataclasses.replace(field, default=None, option=dataclasses.replace(field.option, default=self.default))
            for field in found
        ]


class Group(ABC):
    """A parameter of a command that stands for several options: those of its `fields`."""

    fields: Sequence[ConfigField]

    @abstractmethod
    def parameters(self) -> list[inspect.Parameter]:
        """The options, as typer reads them."""

    @abstractmethod
    def fold(self, values: dict[str, Any]) -> Any:
        """The argument of the command's function; takes the values of the options out of `values`."""


def group_of(parameter: inspect.Parameter, annotation: Any) -> Group | None:
    """The options that a parameter of a command stands for; None for one that typer itself reads."""
    record: Any = annotation
    notes: Sequence[Any] = ()
    if typing.get_origin(annotation) is Annotated:
        record, *notes = typing.get_args(annotation)
    for note in notes:
        if isinstance(note, Option):
            return SingleOption(
                ConfigField(name=parameter.name, kind=record, default=parameter.default, option=note, panel=note.panel)
            )
        if isinstance(note, Given):
            return _GivenOptions(note.record, note.fields)
    several = typing.get_origin(record) is list
    record = typing.get_args(record)[0] if several else record
    if not (isinstance(record, type) and dataclasses.is_dataclass(record)):
        return None
    fields = _options(record)
    for note in notes:
        if isinstance(note, Without | Only):
            fields = [field for field in fields if (field.name in note.names) == isinstance(note, Only)]
    return _SeveralRecords(record, fields) if several else RecordGroup(record, fields)


def _options(record: type) -> list[ConfigField]:
    return [field for field in options_of(record) if not field.option.python_only]


class SingleOption(Group):
    """One option of a command alone."""

    def __init__(self, field: ConfigField) -> None:
        self._field, self.fields = field, (field,)

    def parameters(self) -> list[inspect.Parameter]:
        return [_parameter(self._field)]

    def fold(self, values: dict[str, Any]) -> Any:
        with usage_errors():
            return self._field.fit(_value(self._field, values.pop(self._field.name)))


class RecordGroup(Group):
    """One record."""

    def __init__(self, record: type, fields: Sequence[ConfigField]) -> None:
        self._record, self.fields = record, fields

    def parameters(self) -> list[inspect.Parameter]:
        return [_parameter(field) for field in self.fields]

    def fold(self, values: dict[str, Any]) -> Any:
        with usage_errors():
            return self._record(**{field.name: _value(field, values.pop(field.name)) for field in self.fields})


class _GivenOptions(RecordGroup):
    """The options that stand on the command line."""

    def fold(self, values: dict[str, Any]) -> Any:
        found = {field.name: (field, values.pop(field.name)) for field in self.fields}
        given = names_of_given(values["context"], found)
        with usage_errors():
            return {name: field.fit(_value(field, value)) for name, (field, value) in found.items() if name in given}


class _SeveralRecords(Group):
    """One record for each name that is given."""

    def __init__(self, record: type, fields: Sequence[ConfigField]) -> None:
        self._record, self.fields = record, fields

    def parameters(self) -> list[inspect.Parameter]:
        return [_parameter_for_several(field) if field.option.several else _parameter(field) for field in self.fields]

    def fold(self, values: dict[str, Any]) -> Any:
        (naming,) = (field for field in self.fields if field.option.names)
        names = list(dict.fromkeys(values.pop(naming.name)))
        by_name = {
            field.name: _values_by_name(field, values.pop(field.name), names)
            for field in self.fields
            if field.option.several and field is not naming
        }
        common = {
            field.name: _value(field, values.pop(field.name)) for field in self.fields if not field.option.several
        }
        with usage_errors():
            return [
                self._record(**{naming.name: name}, **common, **{key: found[name] for key, found in by_name.items()})
                for name in names
            ]


def names_of_given(context: typer.Context, names: Iterable[str]) -> set[str]:
    """Which of these parameters of a command stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _values_by_name(field: ConfigField, values: Sequence[str] | None, names: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE`, or VALUE where there is one name -> the value of each; a usage error where it is unclear."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for value in values or ():
        owner, _, rest = value.partition("=")
        if owner in found and rest:
            found[owner].append(rest)
        elif len(names) == 1:
            found[names[0]].append(value)
        else:
            raise WrongUsage(
                f"expected {field.flag} NAME=VALUE with several backbones, got {value!r}",
                hint=f"{field.flag} {names[0]}={value}",
            )
    return {
        name: (tuple(some) if field.is_list else some[-1]) if some else field.default for name, some in found.items()
    }


def _parameter(field: ConfigField) -> inspect.Parameter:
    if field.is_switch:
        return _keyword(
            field.name, not field.default if field.switches_off else field.default, _annotation_of(field.kind, field)
        )
    if field.is_list and field.option.read is None:
        return _keyword(field.name, None, _annotation_of(list[str] | None, field))
    default = field.option.unset if field.default is None else field.default
    if default is dataclasses.MISSING:
        return _keyword(field.name, inspect.Parameter.empty, _annotation_of(str, field, parser=_parser(field)))
    return _keyword(field.name, default, _annotation_of(str | None, field, parser=_parser(field)))


def _parameter_for_several(field: ConfigField) -> inspect.Parameter:
    default = [field.default] if field.option.names else None
    return _keyword(field.name, default, _annotation_of(list[str] | None, field, more_help=field.option.several))


def _annotation_of(kind: Any, field: ConfigField, *, more_help: str | None = None, parser: Any = None) -> Any:
    option = field.option
    default = option.default or (more_help and not option.names and field.default)
    shown = f"[default: {default}]" if default else None
    return Annotated[
        kind,
        typer.Option(
            *field.flags,
            help=" ".join(text for text in (option.help, more_help, shown) if text),
            metavar=option.metavar or (None if field.is_switch else f"<{'|'.join(field.choices) or 'value'}>"),
            rich_help_panel=field.panel,
            autocompletion=_completion(field),
            parser=parser,
            envvar=option.variable,
            show_envvar=False,
            hidden=option.advanced,
        ),
    ]


def _completion(field: ConfigField) -> Callable[..., Any] | None:
    if field.option.completion:
        return getattr(completion, field.option.completion)  # type: ignore[no-any-return]
    return completion.of_choices(field.choices) if field.choices else None


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parser(field: ConfigField) -> Callable[[Any], Any]:
    """Reads the option's text; a usage error where it cannot be read."""

    def read(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        try:
            return field.parse(text)
        except InvalidOption as error:
            message = error.message
            if field.option.unset is not None:
                message = f"expected {field.flag} {field.option.unset} or {field.expected}, got {text!r}"
            raise WrongUsage(message, hint=error.hint) from None

    return read


def _value(field: ConfigField, value: Any) -> Any:
    """The field's value for what typer has read."""
    if field.is_list and field.option.read is None:
        return tuple(value) if value else field.default
    return not value if field.switches_off else value
