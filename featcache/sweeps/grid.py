"""Reads a grid, such as `dropout=0,0.5` and `head=mlp:64,mlp:128-64`, and makes all combinations of its values.

    grid = parse_grid(["dropout=0,0.5", "head=mlp:64,mlp:128-64"])
    for one in combinations({"batch_norm": True}, grid):
        one.values, one.config        # {"dropout": "0", "head": "mlp:64"}, HeadConfig(...)

Every option of a head may be varied, except those that set the targets and the val images: heads selected on
different images cannot be ranked. Several caches are values of the grid too. If the grid mixes kinds of heads, options
without effect on a head (a learning rate for `knn`, an activation for `linear`) are dropped for that head; equal
combinations are kept once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.config import ConfigField, options_of
from featcache.errors import InvalidOption, UnknownName, nearest
from featcache.heads.architectures import HEAD_KINDS, parse_head
from featcache.heads.config import PERCEPTRON_OPTIONS, STEP_OPTIONS, HeadConfig
from featcache.heads.own import own_path
from featcache.rows.options import RowOptions

CACHE, LAYER, SEED = "cache", "layer", "seed"
_VARIED_ROWS = ("layers", "train_views")
_FIXED = tuple(one.name for one in options_of(RowOptions) if one.name not in _VARIED_ROWS)
_FIELDS: Mapping[str, ConfigField] = {
    # As the command line calls it.
    LAYER if one.name == "layers" else one.name: one
    for one in options_of(HeadConfig)
    if one.name not in _FIXED
}
GRID_OPTIONS = tuple(_FIELDS)

Grid = Mapping[str, Sequence[object]]


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One point of a grid.

    Attributes:
        values: The values as text, by option name.
        config: The options of its head.
        cache: Index of its cache.
    """

    values: Mapping[str, str]
    config: HeadConfig
    cache: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.values.items()) or self.config.head


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[object, ...]]:
    """Read texts `name=value,value`, one per option. Sizes of hidden layers are joined by `-`, layers by `+`.

    Raises UnknownName or InvalidOption.
    """
    grid: dict[str, tuple[object, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = _name(name)
        parts = _split(name, values)
        if not equals or not all(parts):
            raise InvalidOption(f"expected --grid name=value,value, got {text!r}", hint="for example dropout=0,0.5")
        if name in grid:
            raise InvalidOption(f"expected --grid {name} once, got it twice", hint=f"{name}=value,value")
        grid[name] = tuple(_parse(name, part) for part in parts)
    return grid


def combinations(options: Mapping[str, Any], grid: Grid, caches: Sequence[str] = ()) -> tuple[Combination, ...]:
    """All combinations of the grid's values, each added to `options`. The grid's `seed` is left to the caller.

    Args:
        options: Options of a HeadConfig, by name.
        grid: Lists of values, by name.
        caches: The names of the caches, if there are several.

    Returns:
        The combinations in the order of the grid; equal ones once.

    Raises:
        UnknownName, InvalidOption: Values that cannot be used.
    """
    varied = _check(grid)
    varied.pop(SEED, None)
    numbers = {CACHE: tuple(range(len(caches)))} if len(caches) > 1 else {}
    found: dict[tuple[HeadConfig, int], Combination] = {}
    for values in itertools.product(*(numbers | varied).values()):
        one = _combination(options, dict(zip(numbers | varied, values, strict=True)), caches)
        found.setdefault((one.config, one.cache), one)
    return tuple(found.values())


def grid_texts(grid: Grid, caches: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """The values of a grid as text, by option name; with the names of `caches`, if there are several."""
    several = {CACHE: tuple(caches)} if len(caches) > 1 else {}
    return several | {name: tuple(_text_of(name, value) for value in values) for name, values in _check(grid).items()}


def seeds_of(options: Mapping[str, Any], grid: Grid, count: int) -> tuple[int, ...]:
    """The seeds of every combination: those of the grid, else `count` seeds beginning with the option `seed`."""
    if SEED in grid and count > 1:
        raise InvalidOption("--seeds and --grid seed=... both set the seeds", hint="leave one of them out")
    if SEED in grid:
        return tuple(dict.fromkeys(_check(grid)[SEED]))
    first = HeadConfig(seed=options.get(SEED, HeadConfig.seed)).seed
    return tuple(HeadConfig(seed=first + number).seed for number in range(count))


def _combination(options: Mapping[str, Any], values: Mapping[str, Any], caches: Sequence[str]) -> Combination:
    cache = values.get(CACHE, 0)
    written = {name: caches[cache] if name == CACHE else _text_of(name, value) for name, value in values.items()}
    chosen = {**options, **{_FIELDS[name].name: value for name, value in values.items() if name != CACHE}}
    for name in _meaningless(chosen, values):
        chosen.pop(name, None)
        if name in written:
            written[name] = "-"
    return Combination(values=written, config=HeadConfig.of(chosen), cache=cache)


def _meaningless(chosen: Mapping[str, Any], varied: Mapping[str, object]) -> Iterator[str]:
    """Options without effect on this head, given for other heads of the grid."""
    head = parse_head(chosen.get("head", HeadConfig.head))
    if "head" in varied:
        yield from STEP_OPTIONS if head.solved else ()
        yield from () if head.hidden else PERCEPTRON_OPTIONS
        yield from () if head.own else ("head_arguments",)
    if "optimizer" in varied and chosen["optimizer"] != "sgd":
        yield "momentum"


def _check(grid: Grid) -> dict[str, tuple[Any, ...]]:
    """The grid with valid option names and values of the options' types. Raises UnknownName or InvalidOption."""
    found: dict[str, tuple[Any, ...]] = {}
    for key, values in grid.items():
        name = _name(key)
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InvalidOption(f"expected a list of values for {name}, got {values!r}", hint=f"{name}=[value, value]")
        values = _own_heads(values) if name == "head" else values
        found[name] = tuple(_FIELDS[name].fit(value) for value in values)
    return found


def _own_heads(values: Sequence[object]) -> list[object]:
    """Heads as text. Raises InvalidOption if two different functions or classes have the same text."""
    written: list[object] = [f"own:{own_path(one, 'head')}" if callable(one) else one for one in values]
    for number, (one, text) in enumerate(zip(values, written, strict=True)):
        before = written.index(text)
        if callable(one) and before < number and values[before] is not one:
            raise InvalidOption(
                f"expected heads with different names, got two named {text}",
                hint="give each head a function with its own name; or use one function, and head_arguments",
            )
    return written


def _name(text: str) -> str:
    name = text.strip().removeprefix("--").replace("-", "_")
    name = LAYER if name == "layers" else name
    if name in _FIXED:
        raise InvalidOption(
            f"{name} cannot be varied: heads selected on different images cannot be ranked",
            hint="use --folds to see how much the choice of images matters",
        )
    if name in GRID_OPTIONS:
        return name
    described = [one for one, field in _FIELDS.items() if name.replace("_", " ") in field.option.help.lower()]
    known = described if described and not nearest(name, GRID_OPTIONS) else GRID_OPTIONS
    raise UnknownName("option of a grid", name, known)


def _split(name: str, values: str) -> list[str]:
    """The values between commas; a comma in a template (`text:a photo of a {}, a type of pet`) belongs to it."""
    parts: list[str] = []
    for part in values.split(","):
        kind = part.strip().partition(":")[0]
        if name == "head" and parts and parts[-1].startswith("text") and kind not in HEAD_KINDS:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return [part.strip() for part in parts]


def _parse(name: str, text: str) -> object:
    """A value from the command line, in the type of its option."""
    if name == LAYER:
        return tuple(text.split("+"))
    if name == "head" and text.replace("-", "").isdecimal():
        raise InvalidOption(
            f"expected heads in --grid head=..., got {text!r}",
            hint="the sizes of one head are joined by -: head=mlp:128-64,mlp:64",
        )
    return _FIELDS[name].parse(text)


def _text_of(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    # Commas separate values.
    return re.sub(r"(?<=\d),(?=\d)", "-", str(value)) if name == "head" else str(value)
