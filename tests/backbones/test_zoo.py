"""Fast networks of many families can be extracted; `benchmarks/measure.py zoo` tests all networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import zoo_networks as zoo

from featcache.backbones.zoos import zoo_of
from featcache.errors import InvalidOption

# Networks that test_torchvision_zoo and test_timm_zoo compare with their library are not repeated. Among these: a
# classifier behind a convolution (ghostnet), two classifiers (repvit), tables that the forward method
# makes (convit), no classifier at all (dinov2), tuples of tokens (pit).
NAMES = (
    "squeezenet1_1",
    "timm:convit_tiny",
    "timm:ghostnet_050",
    "timm:pit_ti_224",
    "timm:repvit_m1",
    "timm:test_nfnet",
    "timm:vit_small_patch14_dinov2",
    "timm:xcit_nano_12_p16_224",
)
# No peculiarity of their own.
MORE = (
    "timm:cs3darknet_s",
    "timm:edgenext_xx_small",
    "timm:efficientformerv2_s0",
    "timm:efficientvit_b0",
    "timm:efficientvit_m0",
    "timm:fastvit_t8",
    "timm:lcnet_035",
    "timm:mambaout_femto",
    "timm:mobilenetv4_conv_small_035",
    "timm:mobilevit_xxs",
    "timm:pvt_v2_b0",
    "timm:regnetx_002",
    "timm:rexnet_100",
    "timm:swin_s3_tiny_224",
    "timm:test_efficientnet",
    "timm:test_vit",
    "timm:tiny_vit_5m_224",
)


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_two_images_give_two_rows_of_the_input_of_the_classifier(name: str) -> None:
    outcome = zoo.try_network(name)
    assert outcome.refusal is None, outcome.line()
    assert outcome.computed
    assert outcome.feature_dim > 0


def test_a_network_that_takes_no_size_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, image_size: int) -> None:
        raise InvalidOption(f"{name} cannot be built for {image_size} pixels")

    monkeypatch.setattr(zoo_of("resnet18"), "build", refuse, raising=True)
    outcome = zoo.try_network("resnet18", sizes=(64, 96))
    assert outcome.refusal == "resnet18 cannot be built for 224 pixels"
    assert outcome.image_size == 224
    assert "\n" not in outcome.line()


def test_another_error_than_featcaches_own_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("fc.weight")

    monkeypatch.setattr(zoo, "load", lambda options, weights_dir: fail())
    outcome = zoo.try_network("squeezenet1_1")
    assert outcome.refusal == "a fault of featcache: KeyError: 'fc.weight'"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (torch.zeros(2, 512), "the same features"),
        (torch.full((2, 512), torch.nan), "not finite"),
        (torch.rand(2, 1000), "shape"),
    ],
)
def test_wrong_features_are_no_success(monkeypatch: pytest.MonkeyPatch, rows: torch.Tensor, reason: str) -> None:
    monkeypatch.setattr(zoo, "features_of_two_images", lambda network: rows.numpy())
    refusal = zoo.try_network("squeezenet1_1", sizes=(64,)).refusal
    assert refusal is not None
    assert reason in refusal


def test_logits_are_distinguished_from_features_of_the_same_length() -> None:
    logits = torch.rand(2, 1000).numpy()
    close = (logits * (1 + 1e-6)).astype(np.float32)
    with pytest.raises(zoo.WrongFeatures):
        zoo.require_no_logits(logits, close)
    zoo.require_no_logits(logits, logits[::-1])


def test_a_network_that_is_too_large_is_cut_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "MOST_PARAMETERS", 1_000_000)
    monkeypatch.setattr(zoo, "load", None)
    outcome = replace(zoo.try_network("squeezenet1_1", sizes=(64,)), seconds=0.0)
    assert (outcome.refusal, outcome.computed, outcome.feature_dim) == (None, False, 512)
    assert "nothing computed" in outcome.line()
