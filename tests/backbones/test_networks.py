"""Torchvision's networks as backbones: every family, layers, pooling, sizes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_contract import BackboneContract, some_images
from torch import nn

from featcache.backbones import backbone_names, load_backbone, networks
from featcache.backbones.backbone import Backbone
from featcache.backbones.layers import cut
from featcache.errors import InvalidOption, UnknownName

# One network of each of torchvision's families, at a size that is quick; None: the size cannot change.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": None,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_32": None,
}


def load(name: str, tmp_path: Path, **options: object) -> Backbone:
    return load_backbone(name, weights="random:1", weights_dir=tmp_path, **options)  # type: ignore[arg-type]


def last_features(name: str, images: np.ndarray, backbone: Backbone) -> np.ndarray:
    """What the network's own classifier is given: plain torchvision, eager, fp32, hooked."""
    network = networks.build_random(name, 1)
    seen: list[torch.Tensor] = []
    head = next(getattr(network, key) for key in ("fc", "classifier", "head", "heads") if hasattr(network, key))
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.transform.mean, backbone.transform.std))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        network((pixels - mean) / std)
    pooled = seen[0].mean(dim=(2, 3)) if name.startswith(("squeezenet", "maxvit")) else seen[0]
    return pooled.flatten(1).numpy()


class TestTinyNetworkContract(BackboneContract):
    @pytest.fixture
    def backbone(self, tmp_path: Path) -> Backbone:
        return load("resnet18", tmp_path, image_size=64)


class TestSeveralLayersContract(BackboneContract):
    @pytest.fixture
    def backbone(self, tmp_path: Path) -> Backbone:
        return load("squeezenet1_1", tmp_path, image_size=64, layers=["features.2", "features.5", "features"])


@pytest.mark.parametrize("name", FAMILIES)
def test_default_features_equal_what_the_networks_own_classifier_is_given(name: str, tmp_path: Path) -> None:
    backbone = load(name, tmp_path, image_size=FAMILIES[name])
    images = some_images(2, backbone.transform.image_size)
    (features,) = backbone.features(images).values()
    expected = last_features(name, images, backbone)
    assert features.shape == expected.shape
    scale = np.abs(expected).max()
    assert np.abs(features.numpy() - expected).max() <= 1e-4 * scale


def test_every_torchvision_network_belongs_to_a_family_tested_here() -> None:
    families = {networks.family_of(name).prefix for name in networks.network_names()}
    tested = {networks.family_of(name).prefix for name in FAMILIES}
    # Wide ResNets are ResNets under another name.
    assert families - tested == {"wide_resnet"}


def test_pixels_and_the_mission_are_among_the_names() -> None:
    assert {"pixels", "vgg16", "inception_v3", "resnet50"} <= set(backbone_names())


@pytest.mark.parametrize(
    ("said", "nearest"), [("vgg61", "vgg16"), ("inception", "inception_v3"), ("ResNet18", "resnet18")]
)
def test_an_unknown_backbone_offers_the_nearest(said: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        load_backbone(said, weights_dir=tmp_path)
    assert nearest in str(caught.value.hint)


def test_an_unknown_layer_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="layer of resnet18") as caught:
        load("resnet18", tmp_path, layers=["layer5"])
    assert "layer4" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("resnet18", ["layer1.0.bn1", "layer1.0.relu", "layer1.0.bn2", "layer1.0", "layer2.0.bn2", "avgpool"]),
        ("alexnet", ["features.0", "features.1", "features.8", "features.9", "classifier.1", "classifier.2"]),
        ("mobilenet_v2", ["features.2.conv.0", "features.2.conv.2", "features.2", "features.3.conv.2", "features.3"]),
        ("shufflenet_v2_x0_5", ["conv1.1", "conv1", "stage2.0", "mean"]),
    ],
)
def test_a_layer_has_the_same_value_alone_and_beside_later_ones(name: str, asked: list[str]) -> None:
    # In-place operations (ReLU, +=) overwrite what was asked for unless they are forbidden.
    network = networks.build_random(name, 0)
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = cut(copy.deepcopy(network), name, asked)(images)
        for layer in asked:
            alone = cut(copy.deepcopy(network), name, [layer])(images)[layer]
            assert torch.allclose(alone, together[layer], rtol=1e-4, atol=1e-7), layer


@pytest.mark.parametrize(
    ("name", "layer", "size", "channels"),
    [
        ("resnet18", "layer3", 64, 256),
        ("vgg11_bn", "avgpool", 64, 512),
        ("swin_t", "features.5", 64, 384),  # channels last
        ("vit_b_32", "encoder.ln", None, 768),  # tokens
        ("inception_v3", "Mixed_7a", 128, 1280),
    ],
)
def test_average_pooling_finds_the_channels(
    name: str, layer: str, size: int | None, channels: int, tmp_path: Path
) -> None:
    backbone = load(name, tmp_path, layers=[layer], pool="avg", image_size=size)
    assert backbone.layers[0].shape == (channels,)
    unpooled = load(name, tmp_path, layers=[layer], pool="none", image_size=size)
    images = some_images(2, backbone.transform.image_size)
    maps = unpooled.features(images)[layer].reshape(2, *unpooled.layers[0].shape)
    dims = backbone.layers[0].mean_over
    expected = maps.mean(dim=dims)
    assert torch.allclose(backbone.features(images)[layer], expected, atol=1e-5)


def test_a_size_the_network_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="vit_b_32 cannot take images of 64x64"):
        load("vit_b_32", tmp_path, image_size=64)


def test_only_the_tensors_that_the_layer_needs_are_kept(tmp_path: Path) -> None:
    early = load("vgg16", tmp_path, layers=["features.4"], image_size=64)
    # Two convolutions: 3x64x9 + 64 and 64x64x9 + 64.
    assert early.parameters == 3 * 64 * 9 + 64 + 64 * 64 * 9 + 64


def test_flops_grow_with_the_area(tmp_path: Path) -> None:
    small, large = (load("resnet18", tmp_path, image_size=size, layers=["layer4"]) for size in (64, 128))
    assert large.flops_per_image == 4 * small.flops_per_image


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_transform_input_is_folded_into_mean_and_std(name: str, tmp_path: Path) -> None:
    """Torchvision's own construction with transform_input=True, on ImageNet's normalisation, is the reference."""
    from torchvision.models import get_model

    plain = networks.build_random(name, 1)
    reference = get_model(name, weights=None, init_weights=False, aux_logits=True, transform_input=True).eval()
    reference.load_state_dict(plain.state_dict())
    seen: list[torch.Tensor] = []
    reference.fc.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = some_images(2, 96)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        reference((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    backbone = load(name, tmp_path, image_size=96)
    (features,) = backbone.features(images).values()
    assert torch.allclose(features, seen[0], rtol=1e-3, atol=1e-5 * float(seen[0].abs().max()))


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) * self.weight


class TestOwnModuleContract(BackboneContract):
    @pytest.fixture
    def backbone(self) -> Backbone:
        from featcache.backbones.network import from_module
        from featcache.backbones.transforms import Transform

        return from_module(_Scaled(), name="scaled", transform=Transform(image_size=16))


def test_ones_own_module_is_digested_like_any_other() -> None:
    from featcache.backbones.network import from_module
    from featcache.backbones.transforms import Transform

    module = _Scaled()
    first = from_module(module, name="scaled", transform=Transform(image_size=16))
    with torch.no_grad():
        module.weight[0] += 1e-7
    second = from_module(module, name="scaled", transform=Transform(image_size=16))
    assert first.weights is not None
    assert second.weights is not None
    assert first.weights.digests != second.weights.digests


@pytest.mark.parametrize("name", ["", "vgg16", "pixels"])
def test_ones_own_module_needs_a_name_of_its_own(name: str) -> None:
    from featcache.backbones.network import from_module
    from featcache.backbones.transforms import Transform

    with pytest.raises(InvalidOption, match="a name of your own"):
        from_module(_Scaled(), name=name, transform=Transform(image_size=16))


def test_ones_own_module_must_give_a_row_per_image() -> None:
    from featcache.backbones.network import from_module
    from featcache.backbones.transforms import Transform

    class Mean(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean()

    with pytest.raises(InvalidOption, match="one row per image"):
        from_module(Mean(), name="mean", transform=Transform(image_size=16))


def test_batch_norms_are_folded_and_the_convolution_that_sees_pixels_rounds_its_result_alone(tmp_path: Path) -> None:
    backbone = load("resnet18", tmp_path, image_size=64)
    images = some_images(8, 64)
    (exact,) = backbone.features(images).values()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone._normalised.part.modules())  # type: ignore[attr-defined]
    seen: list[torch.Tensor] = []
    stem = backbone._normalised.part.get_submodule("conv1")  # type: ignore[attr-defined]
    stem.register_forward_hook(lambda _module, _given, output: seen.append(output.clone()))
    backbone.features(images)
    backbone.place("cpu", "bf16")
    (rounded,) = backbone.features(images).values()
    whole, halves = seen
    assert halves.dtype is torch.bfloat16
    # As good as the exact result in bf16; rounded weights would change most of it.
    assert (whole.bfloat16() == halves).float().mean() > 0.97
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.9999


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("vgg11_bn", {"features.0"}),
        ("inception_v3", {"Conv2d_1a_3x3.conv", "Conv2d_2a_3x3.conv"}),
        ("vit_b_32", {"conv_proj"}),
    ],
)
def test_narrow_convolutions_behind_the_first_stay_in_fp32_too(name: str, exact: set[str], tmp_path: Path) -> None:
    backbone = load(name, tmp_path, image_size=FAMILIES[name])
    part = backbone._normalised.part  # type: ignore[attr-defined]
    inner = {path for path, module in part.named_modules() if path.endswith(".inner") and isinstance(module, nn.Conv2d)}
    assert {path.removesuffix(".inner") for path in inner} == exact
