"""Reads an experiment file: each table becomes the records that `featcache.extract`, `train_head`, ... are made of.

All checks are those of the records. An error names the file and the table.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featcache.backbones.options import BackboneOptions
from featcache.columns import ColumnOptions
from featcache.config import divide_options, merge_fields
from featcache.errors import FeatcacheError, InvalidOption, UnknownName
from featcache.extraction.execution import Execution
from featcache.extraction.request import Request, StorageOptions
from featcache.heads.architectures import head_with_absolute_files
from featcache.heads.config import HeadConfig
from featcache.heads.own import own_loss
from featcache.images.options import ImageOptions
from featcache.report.options import ReportOptions
from featcache.sweeps.options import SweepOptions
from featcache.training.options import TrainingOptions

#: The records whose options a table has.
TABLES: Mapping[str, tuple[type, ...]] = {
    "images": (ImageOptions, ColumnOptions),
    "backbones": (BackboneOptions, StorageOptions),
    "beside": (BackboneOptions, StorageOptions),
    "extract": (Execution,),
    "head": (HeadConfig,),
    "training": (TrainingOptions,),
    "sweep": (SweepOptions,),
    "report": (ReportOptions,),
}
#: Options that a table does not have: a shard gives no cache to train on, and opening a page belongs to the command.
LEFT_OUT: Mapping[str, tuple[str, ...]] = {"extract": ("shard",), "report": ("open",)}
_GRID, _EXPECTED = "grid", "expected"
_EXPECTATIONS = {"fingerprints": (list, "a list"), "images": (str, "a text"), "targets": (str, "a text")}
_SEVERAL = ("backbones", "beside")
# Fields of a HeadConfig that are no options: they belong to heads and losses of your own.
_OWN = ("head_arguments", "own_loss")
# A sweep trains many heads at once, which neither a logger nor Lightning can follow.
_OF_ONE_HEAD = ("logger", "trainer")
_HINT = "docs/experiments.md explains the tables"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What an experiment file describes.

    Attributes:
        file: The file.
        requests: One for each cache; heads on them are compared.
        beside: One for each further cache, whose features are joined to those of each of the others.
        execution: How the extractions run.
        head: Options of the head that are given, by name.
        training: Options of the training that are given, by name.
        sweep: Options of a sweep that are given, by name; None for a single head.
        grid: Lists of values by option name.
        report: What the report shows.
        output: The page; None for one in the folder of the run or the sweep.
        expected: What `featcache.runs.experiment_file.expectations` gave when the file was written; empty in a file
            that was written by hand.
    """

    file: Path
    requests: tuple[Request, ...]
    beside: tuple[Request, ...] = ()
    execution: Execution = field(default_factory=Execution)
    head: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Any] | None = None
    grid: Mapping[str, Any] = field(default_factory=dict)
    report: ReportOptions = field(default_factory=ReportOptions)
    output: Path | None = None
    expected: Mapping[str, Any] = field(default_factory=dict)


def read_experiment(file: Path | str, *, data_dir: Path | str = "data") -> Experiment:
    """Read an experiment file and check all that can be checked before images are read.

    Relative paths in the file are relative to its folder, which is the working directory while they are resolved.

    Args:
        file: The file.
        data_dir: The folder of data sets, weights and caches.

    Returns:
        The experiment, with absolute paths.

    Raises:
        InvalidOption: The file is missing or is not TOML, or a table or an option is unknown or has a wrong value.
    """
    file = Path(file)
    tables = _Tables(file, _parse(file))
    with contextlib.chdir(file.absolute().parent):
        images, columns = tables.images()
        requests = {
            name: tuple(
                Request(**merge_fields(images, one, stored, columns), data_dir=Path(data_dir))
                for one, stored in tables.features(name)
            )
            for name in _SEVERAL
        }
        head, grid = tables.head(), tables.grid()
        report = tables.options("report")
        options = tables.report(report)
    several = _GRID in tables.content or "sweep" in tables.content or len(requests["backbones"]) > 1
    experiment = Experiment(
        file=file,
        requests=requests["backbones"],
        beside=requests["beside"],
        execution=tables.record("extract", Execution),
        head=head,
        training=tables.options("training", without=_OF_ONE_HEAD if several else ()),
        sweep=tables.options("sweep") if several else None,
        grid=grid,
        report=options,
        output=options.output if "output" in report else None,
        expected=tables.expectation(),
    )
    return _check(experiment, tables)


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode())
    except FileNotFoundError as error:
        raise InvalidOption(f"there is no file {file}", hint="give the path of an experiment file (.toml)") from error
    except OSError as error:
        raise InvalidOption(f"{file} cannot be read: {error.strerror}", hint="give the path of a file") from error
    except (ValueError, RecursionError) as error:
        raise InvalidOption(f"{file} is not TOML: {error}", hint=_HINT) from error


class _Tables:
    """The tables of a file. Each method raises InvalidOption, with the file and the table, for what cannot be used."""

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file, self.content = file, content
        for name, table in content.items():
            if name not in TABLES and name not in (_GRID, _EXPECTED):
                with self.naming():
                    raise UnknownName("table", name, [*TABLES, _GRID, _EXPECTED])
            if not isinstance(table, list if name in _SEVERAL else dict) or not all(
                isinstance(one, dict) for one in self._each(name)
            ):
                written = f"[[{name}]]" if name in _SEVERAL else f"[{name}]"
                raise InvalidOption(f"{file}: expected a table {written}, got {name} = {table!r}", hint=_HINT)

    @contextlib.contextmanager
    def naming(self, *names: str) -> Iterator[None]:
        """Add the file and the tables to the message of an error."""
        try:
            yield
        except FeatcacheError as error:
            where = "".join(f" [{name}]" for name in names)
            raise InvalidOption(f"{self.file}{where}: {error.message}", hint=error.hint or _HINT) from error

    def options(self, name: str, *, also: Sequence[str] = (), without: Sequence[str] = ()) -> dict[str, Any]:
        """The options of a table by name; none if there is no such table."""
        return self._options(name, self.content.get(name, {}), also, without)[0]

    def _options(
        self, name: str, table: Mapping[str, Any], also: Sequence[str] = (), without: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        known = {key: value for key, value in table.items() if key in also}
        others = {key: value for key, value in table.items() if key not in also}
        without = (*without, *LEFT_OUT.get(name, ()))
        what = f"{self.file} [{name}]"
        first, *more = divide_options(others, what, *TABLES[name], without=without, also=also)
        return [first | known, *more]

    def record(self, name: str, kind: type[Any]) -> Any:
        """The record of a table."""
        given = self.options(name)
        with self.naming(name):
            return kind(**given)

    def images(self) -> tuple[ImageOptions, ColumnOptions]:
        """The images, named by their origin."""
        from featcache.images.location import locate

        table = self.content.get("images", {})
        if "dataset" not in table:
            raise InvalidOption(f"{self.file}: expected [images] with dataset, got none", hint='dataset = "cifar10"')
        given, columns = self._options("images", table)
        with self.naming("images"):
            options = ImageOptions(**given)
            location = locate(options.dataset, split_by_folder=options.split_by_folder)
            return ImageOptions(**given | {"dataset": location.origin, "split_by_folder": ()}), ColumnOptions(**columns)

    def features(self, name: str) -> Iterator[tuple[BackboneOptions, StorageOptions]]:
        """The backbones of a table, with how their features are stored."""
        from featcache.backbones.describe import Choice

        if name == "backbones" and not self._each(name):
            raise InvalidOption(f"{self.file}: expected [[backbones]], got none", hint='backbone = "vgg16"')
        for table in self._each(name):
            given, stored = self._options(name, table)
            with self.naming(name):
                if "backbone" not in given:
                    raise InvalidOption("expected backbone, got none", hint='backbone = "vgg16"')
                yield BackboneOptions(**vars(Choice.of(BackboneOptions(**given)))), StorageOptions(**stored)

    def report(self, given: Mapping[str, Any]) -> ReportOptions:
        """The options of the report, with absolute paths."""
        with self.naming("report"):
            options = ReportOptions(**given)
            paths = {
                name: path.expanduser().absolute() for name, path in vars(options).items() if isinstance(path, Path)
            }
            return ReportOptions(**{**given, **paths})

    def head(self) -> dict[str, Any]:
        """The options of the head, with absolute paths of files of texts."""
        given = self.options("head", also=_OWN)
        with self.naming("head"):
            if isinstance(given.get("head"), str):
                given["head"] = head_with_absolute_files(given["head"])
        return given

    def grid(self) -> Mapping[str, Any]:
        """The grid, whose values are checked, with absolute paths of files of texts."""
        from featcache.sweeps.grid import grid_texts

        with self.naming(_GRID):
            grid_texts(self.content.get(_GRID, {}))
            grid = dict(self.content.get(_GRID, {}))
            if "head" in grid:
                grid["head"] = [head_with_absolute_files(one) for one in grid["head"]]
        return grid

    def expectation(self) -> Mapping[str, Any]:
        """What the features and images were when the file was written."""
        table: Mapping[str, Any] = self.content.get(_EXPECTED, {})
        for name, value in table.items():
            kind, what = _EXPECTATIONS.get(name, (None, ""))
            if kind is None:
                with self.naming(_EXPECTED):
                    raise UnknownName("option", name, _EXPECTATIONS)
            if not isinstance(value, kind):
                raise InvalidOption(
                    f"{self.file} [{_EXPECTED}]: expected {what} for {name}, got {value!r}",
                    hint="copy the table from the run again, or remove it",
                )
        return table

    def _each(self, name: str) -> list[Any]:
        table = self.content.get(name, [])
        return table if isinstance(table, list) else [table]


def _check(experiment: Experiment, tables: _Tables) -> Experiment:
    """The experiment, if its parts fit together; a loss of your own becomes the function. Raises InvalidOption."""
    every = (*experiment.requests, *experiment.beside)
    with tables.naming("backbones"):
        if len(set(every)) < len(every):
            raise InvalidOption("expected different backbones, got one twice", hint="remove one of them")
    with tables.naming("training"):
        how = TrainingOptions(**experiment.training)
    head = dict(experiment.head)
    if experiment.sweep is None:
        with tables.naming("head"):
            how.require_steps(HeadConfig.of(head))
    else:
        from featcache.sweeps.plan import SweepPlan

        with tables.naming("sweep"):
            which = SweepOptions(**experiment.sweep)
        with tables.naming("head", _GRID):
            SweepPlan.of(head, experiment.grid, which, caches=[one.backbone_name for one in experiment.requests])
    with tables.naming("head"):
        if (path := head.pop("own_loss", None)) is not None:
            head["loss"] = own_loss(str(path))
    return replace(experiment, head=head)
