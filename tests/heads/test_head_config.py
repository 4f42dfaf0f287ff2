from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import InvalidOption, UnknownName
from featcache.heads.config import HeadConfig


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
    with pytest.raises(InvalidOption, match="--" + option.replace("_", "-")) as raised:
        HeadConfig(**{option: value})
    assert repr(value) in raised.value.message


@pytest.mark.parametrize("layers", [(), ("",), ("a", "a")])
def test_layers_that_are_none_are_refused(layers: tuple[str, ...]) -> None:
    with pytest.raises(InvalidOption):
        HeadConfig(layers=layers)


def test_dropout_needs_a_hidden_layer() -> None:
    with pytest.raises(InvalidOption, match="linear"):
        HeadConfig(head="linear", dropout=0.5)


def test_unknown_activation_offers_the_nearest() -> None:
    with pytest.raises(UnknownName) as raised:
        HeadConfig(activation="leakyrelu")
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
    with pytest.raises(UnknownName) as raised:
        HeadConfig(**{option: value})
    assert nearest in str(raised.value.hint)


def test_momentum_belongs_to_sgd() -> None:
    assert HeadConfig(optimizer="sgd", momentum=0.5).momentum == 0.5
    with pytest.raises(InvalidOption, match="--momentum belongs to sgd, and the optimizer is adam"):
        HeadConfig(momentum=0.5)


def test_options_that_came_later_have_their_defaults_in_older_runs() -> None:
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
