from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featcache.errors import InvalidOption, UnknownName
from featcache.heads.architectures import (
    ACTIVATIONS,
    Architecture,
    HeadShape,
    build_head,
    head_names,
    parse_head,
)

SIZES = st.lists(st.integers(1, 65_536), min_size=1, max_size=32)


@given(SIZES)
def test_written_head_reads_back_as_itself(sizes: list[int]) -> None:
    architecture = Architecture(kind="mlp", hidden=tuple(sizes))
    assert parse_head(str(architecture)) == architecture


def test_spaces_between_sizes_are_harmless() -> None:
    assert str(parse_head("mlp: 128, 64")) == "mlp:128,64"


def test_every_kind_has_an_example_of_its_name() -> None:
    assert [str(parse_head(usage)) for usage in head_names()] == [
        *("linear", "mlp:128,64"),
        *("logreg", "ridge", "centroid", "knn"),
        *("text:a photo of a {}", "text+linear:a photo of a {}"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "mlp",
        "mlp:",
        "mlp:0",
        "mlp:-1",
        "mlp:1.5",
        "mlp:a",
        "mlp:128,,64",
        "mlp:128,",
        "mlp:65537",
        "mlp:" + "9" * 5000,
        "mlp:²",
        "linear:5",
        "logreg:5",
        "knn:5",
        "mlp:" + ",".join(["8"] * 33),
    ],
)
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(InvalidOption) as raised:
        parse_head(text)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("lineer", "linear"), ("mpl:128", "mlp"), ("MLP:128", "mlp"), ("kkn", "knn"), ("logregg", "logreg")],
)
def test_unknown_head_offers_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UnknownName, match="unknown head") as raised:
        parse_head(text)
    assert nearest in str(raised.value.hint)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_follows_each_hidden_layer(activation: str) -> None:
    head = build_head(parse_head("mlp:6,5"), HeadShape(in_features=7, classes=3, hidden=(6, 5), activation=activation))
    kinds = [type(layer).__name__ for layer in head.children()]
    assert kinds == ["Linear", ACTIVATIONS[activation], "Linear", ACTIVATIONS[activation], "Linear"]
    assert head(torch.randn(4, 7)).shape == (4, 3)


def test_dropout_follows_each_hidden_layer_and_not_the_output() -> None:
    head = build_head(parse_head("mlp:6,5"), HeadShape(in_features=7, classes=3, hidden=(6, 5), dropout=0.5))
    names = [name for name, _ in head.named_children()]
    assert names[2] == "dropout1" and names[5] == "dropout2" and names[-1] == "output"
    assert sum(isinstance(layer, nn.Dropout) for layer in head.children()) == 2


@pytest.mark.parametrize(
    ("head", "in_features", "parameters"),
    [
        ("linear", 64, 650),
        # The notebook's heads: 3.2 M on VGG16's 25088, 271 K on Inception's 2048.
        ("mlp:128,64", 25_088, 3_220_298),
        ("mlp:128,64", 2_048, 271_178),
    ],
)
def test_parameters_are_those_of_the_notebook(head: str, in_features: int, parameters: int) -> None:
    architecture = parse_head(head)
    built = build_head(architecture, HeadShape(in_features=in_features, classes=10, hidden=architecture.hidden))
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters
