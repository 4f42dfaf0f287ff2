"""Many heads from a few words: `lr=1e-3,1e-2` and `hidden=64,128-64` become every combination of them.

    grid = parse_grid(["lr=1e-3,1e-2", "hidden=64,128-64"])
    for one in combinations({"head": "mlp:128,64"}, grid):
        one.said, one.config        # {"lr": 0.001, "hidden": "64"}, HeadConfig(...)

Every option of a trained head may be varied, but for those that say which images are val: heads that are chosen on
different images cannot be ranked. What means nothing to a head (a learning rate to `knn`, an activation to `linear`)
is left out of it where the grid mixes kinds of heads, and combinations that come out equal stand once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from featcache.errors import InvalidOption, UnknownName
from featcache.heads.architectures import parse_head
from featcache.heads.config import STEP_OPTIONS, HeadConfig

# A grid says `hidden` for sizes only, and `layer` as the command line does.
LAYER, HIDDEN, SEED = "layer", "hidden", "seed"
_FIXED = ("val_fraction", "val_seed")
_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in fields(HeadConfig)}
GRID_OPTIONS = (HIDDEN, LAYER, *(name for name in _DEFAULTS if name not in (*_FIXED, "layers")))
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}

Grid = Mapping[str, Sequence[object]]


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One point of a grid: what the grid says of it, as a person would write it, and the options of its head."""

    said: Mapping[str, str]
    config: HeadConfig

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.said.items()) or self.config.head


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[object, ...]]:
    """Read `name=value,value`, one text an option; sizes of hidden layers are joined by `-`, layers by `+`.

    Raises UnknownName or InvalidOption.
    """
    grid: dict[str, tuple[object, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = _name(name)
        if not equals or not all(part.strip() for part in values.split(",")):
            raise InvalidOption(f"expected --grid name=value,value, got {text!r}", hint="for example lr=1e-3,1e-2")
        if name in grid:
            raise InvalidOption(f"expected --grid {name} once, got it twice", hint=f"{name}=value,value")
        grid[name] = tuple(_value(name, part.strip()) for part in values.split(","))
    return grid


def combinations(options: Mapping[str, Any], grid: Grid) -> tuple[Combination, ...]:
    """Every combination of the grid's values, on top of the `options` of a HeadConfig; `seed` is left to the caller.

    Equal ones stand once. Raises UnknownName or InvalidOption for values that cannot be used.
    """
    for name in options:
        if name not in _DEFAULTS:
            raise UnknownName("option of a head", name, _DEFAULTS)
    varied = {_name(name): _values(_name(name), values) for name, values in grid.items()}
    if HIDDEN in varied:
        _require_perceptron(options, varied)
    varied.pop(SEED, None)
    found: dict[HeadConfig, Combination] = {}
    for values in itertools.product(*varied.values()):
        one = _combination(options, dict(zip(varied, values, strict=True)))
        found.setdefault(one.config, one)
    return tuple(found.values())


def written_grid(grid: Grid) -> dict[str, tuple[str, ...]]:
    """The values of a grid as a person would write them."""
    return {
        name: tuple(_written(name, value) for value in values)
        for name, values in ((_name(key), given) for key, given in grid.items())
    }


def seeds_of(options: Mapping[str, Any], grid: Grid, count: int) -> tuple[int, ...]:
    """The seeds that every combination is trained with: those of the grid, else `count` from the option `seed` on."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidOption(f"expected --seeds to be a whole number of at least 1, got {count!r}")
    if SEED in grid and count > 1:
        raise InvalidOption("--seeds and --grid seed=... both say which seeds there are", hint="leave one of them out")
    first = HeadConfig(seed=options.get(SEED, 0)).seed
    seeds = grid.get(SEED, range(first, first + count))
    return tuple(dict.fromkeys(HeadConfig(seed=seed).seed for seed in seeds if isinstance(seed, int)))


def _combination(options: Mapping[str, Any], values: Mapping[str, object]) -> Combination:
    said = {name: _written(name, value) for name, value in values.items()}
    chosen = {**options, **dict(_option(name, value) for name, value in values.items())}
    for name in _meaningless(chosen, values):
        chosen.pop(name, None)
        if name in said:
            said[name] = "-"
    return Combination(said=said, config=HeadConfig(**chosen))


def _meaningless(chosen: Mapping[str, Any], varied: Mapping[str, object]) -> Iterator[str]:
    """Options that say nothing to this head, where other heads of the grid are why they were said."""
    head = parse_head(str(chosen.get("head", _DEFAULTS["head"])))
    mixed = "head" in varied
    if head.solved and mixed:
        yield from STEP_OPTIONS
    if not head.hidden:
        yield "activation"
        yield from ("dropout",) if mixed else ()
    if "optimizer" in varied and chosen["optimizer"] != "sgd":
        yield "momentum"


def _require_perceptron(options: Mapping[str, Any], grid: Grid) -> None:
    if "head" in grid:
        raise InvalidOption("hidden sizes belong to mlp, and the grid says both hidden and head", hint="head=mlp:64")
    if parse_head(str(options.get("head", _DEFAULTS["head"]))).kind != "mlp":
        raise InvalidOption(f"hidden sizes belong to mlp, and the head is {options['head']}", hint="--head mlp:128,64")


def _name(text: str) -> str:
    name = text.strip().removeprefix("--").replace("-", "_")
    name = LAYER if name == "layers" else name
    if name in _FIXED:
        raise InvalidOption(
            f"{name} cannot be varied: heads that are chosen on different images cannot be ranked",
            hint="--folds says how much the choice of images matters",
        )
    if name not in GRID_OPTIONS:
        raise UnknownName("option of a grid", name, GRID_OPTIONS)
    return name


def _values(name: str, values: Sequence[object]) -> tuple[object, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise InvalidOption(f"expected a list of values for {name}, got {values!r}", hint=f"{name}=[value, value]")
    return tuple(values)


def _value(name: str, text: str) -> object:
    # From the command line; Python's callers pass values.
    if name == HIDDEN:
        return text
    if name == LAYER:
        return tuple(text.split("+"))
    if name == "head":
        return text.replace("-", ",")
    if name == "train_views":
        return text
    kind = type(_DEFAULTS[name])
    try:
        return _TRUTHS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        wanted = {bool: "true or false", int: "whole numbers", float: "numbers"}[kind]
        raise InvalidOption(f"expected {wanted} in --grid {name}=..., got {text!r}") from None


def _option(name: str, value: object) -> tuple[str, object]:
    """What a value of the grid is called, and is, in a HeadConfig."""
    if name == HIDDEN:
        sizes = (value,) if isinstance(value, int | str) else value
        return "head", "mlp:" + ",".join(str(size).replace("-", ",") for size in _sequence(sizes))
    if name == LAYER:
        return "layers", (value,) if isinstance(value, str) else tuple(_sequence(value))
    return name, value


def _sequence(value: object) -> Sequence[object]:
    if isinstance(value, Sequence):
        return value
    raise InvalidOption(f"expected a name, a size or a list of them in the grid, got {value!r}")


def _written(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value).replace(",", "-") if name in ("head", HIDDEN) else str(value)
    return ("+" if name == LAYER else "-").join(map(str, _sequence(value)))
