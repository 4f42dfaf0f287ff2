from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.config import options_of
from featcache.errors import InvalidOption
from featcache.heads.architectures import ACTIVATIONS, Activation
from featcache.heads.config import STEP_OPTIONS, HeadConfig
from featcache.heads.doubts import worse_than_constant
from featcache.heads.records import Score
from featcache.rows.options import RowOptions
from featcache.training.options import TrainingOptions

# Custom classes and functions cannot be given on a command line (heads/own.py).
FROM_PYTHON_ALONE = ("head_arguments", "own_loss")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0.0),
        ("lr", -1e-3),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", "fast"),
        ("lr", True),
        ("weight_decay", -1e-9),
        ("l1", -1.0),
        ("l1", float("nan")),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("momentum", 1.0),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("standardize", 1),
        ("head_batch_size", 0),
        ("head_batch_size", 1.5),
        ("max_epochs", 0),
        ("patience", 0),
        ("min_delta", -0.1),
        ("val_fraction", 0.0),
        ("val_fraction", 1.0),
        ("val_seed", -1),
        ("val_seed", 2**32),
        ("seed", -1),
        ("seed", 0.5),
    ],
)
def test_number_out_of_range_is_refused(option: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=option.replace("_", "[-_]")) as raised:
        HeadConfig(**{option: value})
    assert f"got {value!r}" in raised.value.message or f"got {float(value)!r}" in raised.value.message


@pytest.mark.parametrize("layers", [(), ("",), ("a", "a")])
def test_invalid_names_of_layers_are_refused(layers: tuple[str, ...]) -> None:
    with pytest.raises(InvalidOption):
        HeadConfig(layers=layers)


def test_dropout_needs_a_hidden_layer() -> None:
    with pytest.raises(InvalidOption, match="linear"):
        HeadConfig(head="linear", dropout=0.5)


def test_unknown_activation_offers_the_nearest() -> None:
    with pytest.raises(InvalidOption) as raised:
        HeadConfig(activation="leakyrelu")  # type: ignore[arg-type]  # the point of the test
    assert "leaky_relu" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("option", "value", "nearest"),
    [
        ("optimizer", "adamv", "adamw"),
        ("schedule", "cosin", "cosine"),
        ("class_weights", "balance", "balanced"),
        ("train_views", "drawn", "draw"),
    ],
)
def test_unknown_name_offers_the_nearest(option: str, value: Any, nearest: str) -> None:
    with pytest.raises(InvalidOption) as raised:
        HeadConfig(**{option: value})
    assert nearest in str(raised.value.hint)


def test_momentum_belongs_to_sgd() -> None:
    assert HeadConfig(optimizer="sgd", momentum=0.5).momentum == 0.5
    with pytest.raises(InvalidOption, match="momentum belongs to sgd, and the optimizer is adam"):
        HeadConfig(momentum=0.5)


@pytest.mark.parametrize("given", [{"lr": 1e-3}, {"standardize": True}, {"momentum": 0.9}])
def test_an_option_without_effect_is_refused_even_with_its_default_value(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(given))):
        HeadConfig.of({"head": "logreg", **given})
    if "momentum" in given:
        with pytest.raises(InvalidOption, match="momentum belongs to sgd"):
            HeadConfig.of(given)


def test_given_options_replace_those_of_a_recipe() -> None:
    recipe = HeadConfig(head="mlp:8", standardize=False, lr=0.1)
    assert HeadConfig.of({"lr": 0.2}, recipe) == HeadConfig(head="mlp:8", standardize=False, lr=0.2)


@pytest.mark.parametrize("head", ["mlp:8,4", "mlp:8-4", "mlp: 8, 4"])
def test_a_head_has_one_spelling(head: str) -> None:
    assert HeadConfig(head=head).head == "mlp:8,4"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seed": np.int64(1)}, {"seed": 1}),
        ({"lr": np.float32(0.5), "max_epochs": np.int32(3)}, {"lr": 0.5, "max_epochs": 3}),
        (
            {"batch_norm": np.bool_(True), "target": ["age", "height"]},
            {"batch_norm": True, "target": ("age", "height")},
        ),
    ],
)
def test_numpy_numbers_are_stored_as_plain_numbers(options: dict[str, Any], expected: dict[str, Any]) -> None:
    config = HeadConfig(**options)
    assert {name: getattr(config, name) for name in expected} == expected
    assert HeadConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ()}, "expected --target with one or more names"),
        ({"target": ("age", "age")}, "expected each --target once"),
        ({"target": ("age", "")}, "expected --target with one or more names"),
        ({"target": ("age", "patient"), "group": "patient"}, "patient is a target and cannot be the --group"),
        ({"group": "label"}, "label is a target and cannot be the --group"),
        ({"head": "ridge", "loss": "huber"}, "--loss would do nothing"),
    ],
)
def test_targets_and_groups_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        HeadConfig(**options)


def test_every_activation_can_be_chosen_and_every_option_of_steps_exists() -> None:
    assert set(get_args(Activation)) == set(ACTIVATIONS)
    assert {*STEP_OPTIONS} <= {one.name for one in options_of(HeadConfig)}


@pytest.mark.parametrize("record", [RowOptions, HeadConfig, TrainingOptions])
def test_every_field_is_an_option_under_a_heading_and_is_explained(record: Any) -> None:
    named = [one.name for one in dataclasses.fields(record) if one.name not in FROM_PYTHON_ALONE]
    assert named == [one.name for one in options_of(record)]
    assert [one.name for one in options_of(record) if not (one.panel and one.option.help.endswith("."))] == []


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"threads": 2}, "threads"), ({"resident_bytes": 0}, "--feature-memory"), ({"logger": "csv"}, "--logger")],
)
def test_options_of_training_by_steps_are_refused_for_a_solved_head(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(InvalidOption, match=f"expected {flag} for a head that is trained by steps"):
        TrainingOptions(**options).require_steps(HeadConfig(head="knn"))
    TrainingOptions(**options).require_steps(HeadConfig())


@pytest.mark.parametrize(
    ("val", "outputs", "options", "expected"),
    [
        (Score(value=0.1, loss=2.4e14), 10, {"lr": 1e6}, "2.4e+14, and equal probabilities for all classes would have"),
        (Score(value=0.4, loss=0.8, metric="map"), 3, {}, "a probability of 0.5 for every class would have 0.6931"),
        (Score(value=-3.0, loss=4.0, metric="r2"), 1, {}, "the mean of the train values would have 1"),
        (Score(value=0.5, loss=2.3), 10, {}, None),
    ],
)
def test_a_head_that_is_worse_than_a_constant_gets_a_warning(
    val: Score, outputs: int, options: dict[str, Any], expected: str | None
) -> None:
    found = worse_than_constant(val, outputs=outputs, config=HeadConfig(**options))
    assert found == () if expected is None else expected in found[0]


def test_options_that_a_run_does_not_name_have_their_defaults() -> None:
    assert HeadConfig.from_json({"head": "linear", "lr": 0.1}) == HeadConfig(head="linear", lr=0.1)


def test_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HeadConfig().lr = 1.0  # type: ignore[misc]  # the point of the test


@given(
    st.builds(
        HeadConfig,
        head=st.sampled_from(["mlp:128,64", "mlp:3"]),
        layers=st.none() | st.lists(st.text(min_size=1), min_size=1, unique=True).map(tuple),
        activation=st.sampled_from(["relu", "gelu"]),
        dropout=st.floats(0, 1, exclude_max=True),
        lr=st.floats(0, 1e3, exclude_min=True),
        l1=st.floats(0, 1),
        seed=st.integers(0, 2**32 - 1),
    )
)
def test_config_survives_json(config: HeadConfig) -> None:
    assert HeadConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_unknown_option_in_json_is_refused() -> None:
    with pytest.raises(InvalidOption, match="warmth"):
        HeadConfig.from_json({"warmth": 0.9})
