from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import FeatcacheError, InvalidOption, UnknownName
from featcache.heads.config import HeadConfig
from featcache.sweeps.grid import GRID_OPTIONS, combinations, grid_texts, parse_grid, seeds_of
from featcache.sweeps.options import SweepOptions


def configs(grid: dict[str, Any], **options: Any) -> list[HeadConfig]:
    return [one.config for one in combinations(options, grid)]


def test_a_grid_is_every_combination_of_its_values() -> None:
    grid = parse_grid(["lr=1e-3,1e-2", "head=mlp:64,mlp:128-64", "weight-decay=0,1e-4"])
    wanted = itertools.product((1e-3, 1e-2), ("mlp:64", "mlp:128,64"), (0.0, 1e-4))
    assert [(one.lr, one.head, one.weight_decay) for one in configs(grid)] == list(wanted)
    assert str(combinations({}, grid)[2]) == "lr=0.001, head=mlp:128-64, weight_decay=0"


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("head=linear,mlp:128-64,knn", "head", ["linear", "mlp:128,64", "knn"]),
        ("head=text:a {}, a pet|{},text+linear:{},knn", "head", ["text:a {}, a pet|{}", "text+linear:{}", "knn"]),
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


def test_values_from_python_give_the_same_heads() -> None:
    grid: dict[str, Sequence[object]] = {"head": ["mlp:64", "mlp:128,64"], "layers": ["a", ("a", "b")], "lr": [0.1]}
    assert configs(grid) == configs(parse_grid(["head=mlp:64,mlp:128-64", "layer=a,a+b", "lr=0.1"]))
    assert grid_texts(grid) == {"head": ("mlp:64", "mlp:128-64"), "layer": ("a", "a+b"), "lr": ("0.1",)}


def test_options_without_effect_on_a_head_do_not_multiply_it() -> None:
    grid = parse_grid(["head=linear,knn,mlp:8", "lr=0.1,0.2", "dropout=0,0.5"])
    found = combinations({"weight_decay": 0.1}, grid)
    assert [one.config.head for one in found] == ["linear"] * 2 + ["knn"] + ["mlp:8"] * 4
    assert found[2].values == {"head": "knn", "lr": "-", "dropout": "-"}
    assert found[2].config == HeadConfig(head="knn")
    assert found[0].config == HeadConfig(head="linear", lr=0.1, weight_decay=0.1)
    sgd = parse_grid(["optimizer=adam,sgd", "momentum=0.5,0.9"])
    assert [(one.optimizer, one.momentum) for one in configs(sgd)] == [("adam", 0.9), ("sgd", 0.5), ("sgd", 0.9)]


@pytest.mark.parametrize(
    ("texts", "options", "expected"),
    [
        (["lrr=1"], {}, "unknown option of a grid 'lrr'"),
        (["lr=x"], {}, "expected --lr a number such as 1e-3 above 0, got 'x'"),
        (["lr"], {}, "expected --grid name=value,value, got 'lr'"),
        (["lr=1,,2"], {}, "expected --grid name=value,value"),
        (["lr=1", "lr=2"], {}, "--grid lr once"),
        (["lr=-1"], {}, "expected --lr above 0, got -1"),
        (["seed=1.5"], {}, "expected --seed a whole number between 0 and 4294967295, got 1.5"),
        (["standardize=perhaps"], {}, "expected --standardize True or False, got 'perhaps'"),
        (["val_fraction=0.1,0.2"], {}, "val_fraction cannot be varied"),
        (["head=mlp:8,4"], {}, "expected heads in --grid head=..., got '4'"),
        (["head=mlp:8,4-2"], {}, "expected heads in --grid head=..., got '4-2'"),
        (["head=mlp:0"], {}, "hidden sizes from 1"),
        (["val_cut=random"], {}, "val_cut cannot be varied"),
        (["target=a,b"], {}, "target cannot be varied"),
        (["lr=0.1"], {"head": "logreg"}, "--lr would do nothing"),
        (["dropout=0,0.5"], {"head": "linear"}, "dropout 0.5 follows hidden layers"),
        (["activation=rleu"], {}, "expected --activation relu, leaky_relu"),
    ],
)
def test_an_impossible_grid_is_refused(texts: list[str], options: dict[str, Any], expected: str) -> None:
    with pytest.raises(FeatcacheError) as raised:
        combinations(options, parse_grid(texts))
    assert expected in raised.value.message


@pytest.mark.parametrize("values", [[], "0.1", 0.1])
def test_values_from_python_must_be_lists(values: Any) -> None:
    with pytest.raises(InvalidOption, match="expected a list of values for lr"):
        combinations({}, {"lr": values})


def test_seeds_are_a_number_or_a_list() -> None:
    assert seeds_of({"seed": 7}, {}, 3) == (7, 8, 9)
    assert seeds_of({}, parse_grid(["seed=3,5,3"]), 1) == (3, 5)
    assert configs(parse_grid(["seed=3,5"])) == [HeadConfig()]
    with pytest.raises(InvalidOption, match="--seeds"):
        seeds_of({}, {"seed": [1]}, 2)
    with pytest.raises(InvalidOption, match="--seed"):
        seeds_of({"seed": 2**32 - 1}, {}, 2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"seeds": 0}, "expected --seeds between 1 and 10000, got 0"),
        ({"seeds": True}, "expected --seeds a whole number between 1 and 10000, got True"),
        ({"folds": 1}, "expected --folds of at least 2, got 1"),
        ({"shots": (0,)}, "expected --shots of at least 1, got 0"),
        ({"shots": "1;5"}, "whole numbers such as 1,5,10, got '1;5'"),
        ({"shots": (1,), "draws": 0}, "--draws"),
        ({"draws": 3}, "--draws belongs to --shots"),
        ({"folds": 2, "shots": (1,)}, "two ways"),
        ({"shots": (1,), "seeds": 2}, "more --draws"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidOption) as raised:
        SweepOptions(**values)
    assert expected in f"{raised.value.message} {raised.value.hint}"


@given(
    lrs=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=4, unique=True),
    sizes=st.lists(
        st.lists(st.integers(1, 512), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3, unique=True
    ),
)
def test_what_is_written_reads_as_the_same_heads(lrs: list[float], sizes: list[tuple[int, ...]]) -> None:
    grid: dict[str, Sequence[object]] = {
        "lr": [float(f"{lr:g}") for lr in lrs],
        "head": ["mlp:" + ",".join(map(str, one)) for one in sizes],
    }
    texts = [f"{name}={','.join(values)}" for name, values in grid_texts(grid).items()]
    assert configs(parse_grid(texts)) == configs(grid)


def test_unknown_options_offer_the_nearest() -> None:
    with pytest.raises(UnknownName) as raised:
        parse_grid(["wieght_decay=1"])
    assert "weight_decay" in str(raised.value.hint)
    assert {"head", "layer", "lr", "seed", "dropout", "optimizer"} <= set(GRID_OPTIONS)


@pytest.mark.parametrize(
    ("text", "offered"), [("learning_rate=0.1", "lr"), ("learning-rate=", "lr"), ("batch_size=8", "head_batch_size")]
)
def test_the_name_of_another_library_offers_the_option(text: str, offered: str) -> None:
    with pytest.raises(UnknownName) as raised:
        parse_grid([text])
    assert offered in str(raised.value.hint)


@pytest.mark.parametrize("values", [["1"], [1.5], [None]])
def test_a_seed_that_is_no_number_is_refused(values: list[Any]) -> None:
    with pytest.raises(InvalidOption, match="expected --seed a whole number"):
        seeds_of({}, {"seed": values}, 1)


def test_numbers_of_numpy_are_numbers() -> None:
    grid = {"lr": list(np.array([0.1, 0.2])), "max_epochs": list(np.array([3]))}
    assert [(one.lr, one.max_epochs) for one in configs(grid)] == [(0.1, 3), (0.2, 3)]
    assert seeds_of({"seed": np.int64(7)}, {}, 2) == (7, 8)
    assert seeds_of({}, {"seed": list(np.arange(2))}, 1) == (0, 1)


@pytest.mark.parametrize("options", [{"lr": 1e-3}, {"max_epochs": 50}, {"activation": "relu"}])
def test_an_option_that_is_given_and_would_do_nothing_is_refused_also_where_it_is_the_default(
    options: dict[str, Any],
) -> None:
    with pytest.raises(InvalidOption, match="would do nothing"):
        combinations({"head": "ridge", **options}, {})
    (mixed,) = [one for one in configs({"head": ["ridge", "mlp:8"]}, **options) if one.head == "ridge"]
    assert mixed == HeadConfig(head="ridge")


def test_several_caches_are_values_of_the_grid() -> None:
    found = combinations({}, {"head": ["linear", "ridge"]}, ("vgg16", "dinov2"))
    assert [(one.cache, one.config.head) for one in found] == [(0, "linear"), (0, "ridge"), (1, "linear"), (1, "ridge")]
    assert found[2].values == {"cache": "dinov2", "head": "linear"}
    assert grid_texts({}, ("vgg16", "dinov2")) == {"cache": ("vgg16", "dinov2")}
    assert grid_texts({}, ("vgg16",)) == {}
