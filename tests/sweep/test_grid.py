from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import FeatcacheError, InvalidOption, UnknownName
from featcache.heads.config import HeadConfig
from featcache.sweep.grid import GRID_OPTIONS, combinations, parse_grid, seeds_of, written_grid
from featcache.sweep.plan import SweepPlan


def configs(grid: dict[str, Any], **options: Any) -> list[HeadConfig]:
    return [one.config for one in combinations(options, grid)]


def test_a_grid_is_every_combination_of_its_values() -> None:
    grid = parse_grid(["lr=1e-3,1e-2", "hidden=64,128-64", "weight-decay=0,1e-4"])
    wanted = itertools.product((1e-3, 1e-2), ("mlp:64", "mlp:128,64"), (0.0, 1e-4))
    assert [(one.lr, one.head, one.weight_decay) for one in configs(grid)] == list(wanted)
    assert str(combinations({}, grid)[2]) == "lr=0.001, hidden=128-64, weight_decay=0"


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("head=linear,mlp:128-64,knn", "head", ["linear", "mlp:128,64", "knn"]),
        ("activation=relu,gelu", "activation", ["relu", "gelu"]),
        ("standardize=true,no", "standardize", [True, False]),
        ("head_batch_size=64, 128", "head_batch_size", [64, 128]),
        ("layer=a,b+c", "layers", [("a",), ("b", "c")]),
        ("schedule=constant,cosine", "schedule", ["constant", "cosine"]),
        ("class-weights=none,balanced", "class_weights", ["none", "balanced"]),
        ("--lr=0.5", "lr", [0.5]),
    ],
)
def test_values_have_the_type_of_their_option(text: str, field: str, values: list[object]) -> None:
    assert [getattr(one, field) for one in configs(parse_grid([text]))] == values


def test_python_says_values_and_gets_the_same_heads() -> None:
    said: dict[str, Sequence[object]] = {"hidden": [64, (128, 64)], "layer": ["a", ("a", "b")], "lr": [0.1]}
    assert configs(said) == configs(parse_grid(["hidden=64,128-64", "layer=a,a+b", "lr=0.1"]))
    assert written_grid(said) == {"hidden": ("64", "128-64"), "layer": ("a", "a+b"), "lr": ("0.1",)}


def test_what_means_nothing_to_a_head_does_not_multiply_it() -> None:
    grid = parse_grid(["head=linear,knn,mlp:8", "lr=0.1,0.2", "dropout=0,0.5"])
    found = combinations({"weight_decay": 0.1}, grid)
    assert [one.config.head for one in found] == ["linear"] * 2 + ["knn"] + ["mlp:8"] * 4
    assert found[2].said == {"head": "knn", "lr": "-", "dropout": "-"}
    assert found[2].config == HeadConfig(head="knn")
    assert found[0].config == HeadConfig(head="linear", lr=0.1, weight_decay=0.1)
    sgd = parse_grid(["optimizer=adam,sgd", "momentum=0.5,0.9"])
    assert [(one.optimizer, one.momentum) for one in configs(sgd)] == [("adam", 0.9), ("sgd", 0.5), ("sgd", 0.9)]


@pytest.mark.parametrize(
    ("texts", "options", "expected"),
    [
        (["lrr=1"], {}, "unknown option of a grid 'lrr'"),
        (["lr=x"], {}, "expected numbers in --grid lr=..., got 'x'"),
        (["lr"], {}, "expected --grid name=value,value, got 'lr'"),
        (["lr=1,,2"], {}, "expected --grid name=value,value"),
        (["lr=1", "lr=2"], {}, "--grid lr once"),
        (["lr=-1"], {}, "--lr to be a number above 0"),
        (["seed=1.5"], {}, "expected whole numbers"),
        (["standardize=perhaps"], {}, "expected true or false"),
        (["val_fraction=0.1,0.2"], {}, "val_fraction cannot be varied"),
        (["hidden=64", "head=linear"], {}, "both hidden and head"),
        (["hidden=64"], {"head": "linear"}, "the head is linear"),
        (["hidden=0"], {}, "hidden sizes from 1"),
        (["lr=0.1"], {"head": "logreg"}, "--lr would do nothing"),
        (["dropout=0,0.5"], {"head": "linear"}, "dropout 0.5 follows hidden layers"),
        (["activation=rleu"], {}, "unknown activation"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(texts: list[str], options: dict[str, Any], expected: str) -> None:
    with pytest.raises(FeatcacheError) as raised:
        combinations(options, parse_grid(texts))
    assert expected in raised.value.message


@pytest.mark.parametrize("values", [[], "0.1", 0.1])
def test_python_s_values_are_lists(values: Any) -> None:
    with pytest.raises(InvalidOption, match="expected a list of values for lr"):
        combinations({}, {"lr": values})


def test_seeds_are_counted_or_named() -> None:
    assert seeds_of({"seed": 7}, {}, 3) == (7, 8, 9)
    assert seeds_of({}, parse_grid(["seed=3,5,3"]), 1) == (3, 5)
    assert configs(parse_grid(["seed=3,5"])) == [HeadConfig()]
    for grid, count in (({"seed": [1]}, 2), ({}, 0), ({}, True)):
        with pytest.raises(InvalidOption, match="--seeds"):
            seeds_of({}, grid, count)
    with pytest.raises(InvalidOption, match="--seed"):
        seeds_of({"seed": 2**32 - 1}, {}, 2)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"folds": 1}, "--folds to be a whole number of at least 2"),
        ({"shots": (0,)}, "--shots to be a whole number of at least 1"),
        ({"shots": (1,), "draws": 0}, "--draws"),
        ({"draws": 3}, "--draws belongs to --shots"),
        ({"folds": 2, "shots": (1,)}, "two ways"),
        ({"shots": (1,), "seeds": 2}, "more --draws"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(said: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidOption) as raised:
        SweepPlan.of({}, {}, **said)
    assert expected in f"{raised.value.message} {raised.value.hint}"


@given(
    lrs=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=4, unique=True),
    sizes=st.lists(
        st.lists(st.integers(1, 512), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3, unique=True
    ),
)
def test_what_is_written_reads_as_the_same_heads(lrs: list[float], sizes: list[tuple[int, ...]]) -> None:
    grid: dict[str, Sequence[object]] = {"lr": [float(f"{lr:g}") for lr in lrs], "hidden": sizes}
    texts = [f"{name}={','.join(values)}" for name, values in written_grid(grid).items()]
    assert configs(parse_grid(texts)) == configs(grid)


def test_unknown_options_offer_the_nearest() -> None:
    with pytest.raises(UnknownName) as raised:
        parse_grid(["wieght_decay=1"])
    assert "weight_decay" in str(raised.value.hint)
    assert {"hidden", "layer", "lr", "seed", "dropout", "optimizer"} <= set(GRID_OPTIONS)
