"""Torchvision's networks as backbones: every family, layers, pooling, sizes."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_contract import BackboneContract, some_images
from torch import nn

from featcache.backbones import backbone_names, load_backbone
from featcache.backbones.cutting import choose_layers, probe_network
from featcache.backbones.network import Network
from featcache.backbones.tapping import Tapped, prune
from featcache.backbones.zoos import zoo_of
from featcache.errors import InvalidOption, UnknownName

# One network per family of torchvision, at a fast size.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
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
    "vit_b_32": 64,
}

# Larger than others of their kind.
SLOW = ("maxvit_t", "vgg11_bn", "swin_v2_t")

# The first convolution and narrow ones directly after it, which stay in fp32 in any precision.
EXACT = {
    "vgg11_bn": {"features.0"},
    "inception_v3": {"Conv2d_1a_3x3.conv", "Conv2d_2a_3x3.conv"},
    "vit_b_32": {"conv_proj"},
}


def load(name: str, tmp_path: Path, **options: Any) -> Network:
    return load_backbone(name, weights="random:1", data_dir=tmp_path, **options)


def build_in_torchvision(name: str, size: int, seed: int = 1) -> nn.Module:
    """A plain network of torchvision, initialised with a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = zoo_of(name).build(name, size).root.get_submodule("network")
    return network


def normalise(images: np.ndarray, network: Network) -> torch.Tensor:
    return network.spec.transform.normalize(torch.from_numpy(images).permute(0, 3, 1, 2))


def last_features(name: str, images: np.ndarray, network: Network) -> np.ndarray:
    """The input of the network's own classifier, from a hook in plain torchvision, eager, fp32."""
    plain = build_in_torchvision(name, network.spec.transform.image_size)
    seen: list[torch.Tensor] = []
    head = next(getattr(plain, key) for key in ("fc", "classifier", "head", "heads") if hasattr(plain, key))
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        plain(normalise(images, network))
    pooled = seen[0].mean(dim=(2, 3)) if name.startswith(("squeezenet", "maxvit")) else seen[0]
    return pooled.flatten(1).numpy()


class TestTinyNetworkContract(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def network(cls, tmp_path_factory: pytest.TempPathFactory) -> Network:
        return load("resnet18", tmp_path_factory.mktemp("resnet"), image_size=64)


class TestSeveralLayersContract(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def network(cls, tmp_path_factory: pytest.TempPathFactory) -> Network:
        folder = tmp_path_factory.mktemp("squeezenet")
        return load("squeezenet1_1", folder, image_size=64, layers=("features.2", "features.5", "features"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]
)
def test_default_features_equal_the_input_of_the_networks_classifier(name: str, tmp_path: Path) -> None:
    network = load(name, tmp_path, image_size=FAMILIES[name])
    assert network.spec.layer_names == ("pre_logits",)
    images = some_images(2, network.spec.transform.image_size)
    (features,) = network.on().features(images).values()
    expected = last_features(name, images, network)
    assert features.shape == expected.shape
    scale = np.abs(expected).max()
    assert np.abs(features.numpy() - expected).max() <= 1e-4 * scale
    if name in EXACT:
        inner = {path for path, module in part_of(network).named_modules() if isinstance(module, nn.Conv2d)}
        exact = {path.removesuffix(".inner").removeprefix("network.") for path in inner if path.endswith(".inner")}
        assert exact == EXACT[name]


def test_pixels_and_usual_networks_are_among_the_names() -> None:
    assert {"pixels", "vgg16", "inception_v3", "resnet50"} <= set(backbone_names())


@pytest.mark.parametrize(
    ("name", "nearest"), [("vgg61", "vgg16"), ("inception", "inception_v3"), ("ResNet18", "resnet18")]
)
def test_an_unknown_backbone_suggests_a_similar_one(name: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        load_backbone(name, data_dir=tmp_path)
    assert nearest in str(caught.value.hint)


def test_an_unknown_layer_suggests_a_similar_one(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="layer of resnet18") as caught:
        load("resnet18", tmp_path, layers=("layer5",))
    assert "layer4" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "requested"),
    [
        ("resnet18", ("layer1.0.bn1", "layer1.0.bn2", "layer1.0.relu", "layer1.0", "layer2.0.bn2", "avgpool")),
        ("alexnet", ("features.0", "features.1", "features.8", "features.9", "classifier.1", "classifier.2")),
        ("mobilenet_v2", ("features.2.conv.0", "features.2.conv.2", "features.2", "features.3.conv.2", "features.3")),
        ("shufflenet_v2_x0_5", ("conv1.1", "conv1", "stage2.0", "pre_logits")),
        ("googlenet", ("inception3a.branch2.0.bn", "inception3a", "pre_logits", "logits")),
    ],
)
@pytest.mark.parametrize("traced", [False, True], ids=["watched", "traced"])
def test_a_layer_has_the_same_value_alone_and_with_later_ones(
    name: str, requested: tuple[str, ...], traced: bool
) -> None:
    # In-place operations (ReLU, +=) must not overwrite requested values.
    build = partial(zoo_of(name).build, name)
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    root, (architecture, listed) = build(64).root, probe_network(name, build, 64)

    def outputs(layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
        probed = choose_layers(name, architecture, listed, 64, layers).probed
        part = prune(copy.deepcopy(root), probed) if traced else Tapped(copy.deepcopy(root), probed)
        assert part is not None
        with torch.inference_mode():
            return dict(part.eval()(images.clone()))

    together = outputs(requested)
    for layer in requested:
        assert torch.allclose(outputs((layer,))[layer], together[layer], rtol=1e-4, atol=1e-6), layer


@pytest.mark.parametrize(
    ("name", "layer", "size", "channels"),
    [
        ("resnet18", "layer3", 64, 256),
        ("alexnet", "avgpool", 64, 256),  # of one size for images of any size
        ("swin_t", "features.5", 64, 384),  # channels last
        ("vit_b_32", "encoder.ln", 64, 768),  # tokens
        ("alexnet", "pre_logits", 64, 256),
        ("inception_v3", "Mixed_7a", 128, 1280),
    ],
)
def test_average_pooling_finds_the_channels(name: str, layer: str, size: int, channels: int, tmp_path: Path) -> None:
    whole = load(name, tmp_path, layers=(layer,), pool="none", image_size=size)
    maps = whole.on().features(some_images(2, size))[layer].reshape(2, *whole.spec.layers[0].shape)
    architecture, listed = probe_network(name, partial(zoo_of(name).build, name), size)
    (pooled,) = choose_layers(name, architecture, listed, size, (layer,), "avg").layers
    assert pooled.shape == (channels,)
    # The class token is not a patch.
    patches = maps[:, 1:] if name.startswith("vit") else maps
    expected = patches.mean(dim=pooled.pooling.positions)
    assert torch.allclose(pooled.pooling.rows(maps), expected, atol=1e-5)


def test_a_pooled_layer_is_computed_pooled(tmp_path: Path) -> None:
    options: dict[str, Any] = {"layers": ("layer3",), "image_size": 64}
    whole, pooled = (load("resnet18", tmp_path, pool=pool, **options) for pool in ("none", "avg"))
    images = some_images(2, 64)
    maps = whole.on().features(images)["layer3"].reshape(2, *whole.spec.layers[0].shape)
    assert torch.allclose(pooled.on().features(images)["layer3"], maps.mean(dim=(2, 3)), atol=1e-5)


def test_an_unsupported_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"vit_b_32 cannot .* 70"):
        load("vit_b_32", tmp_path, image_size=70)
    with pytest.raises(InvalidOption, match=r"inception_v3 cannot .* 20x20"):
        load("inception_v3", tmp_path, image_size=20)


def test_only_the_tensors_that_the_layer_needs_are_kept(tmp_path: Path) -> None:
    early = load("vgg16", tmp_path, layers=("features.4",), image_size=64)
    # Two convolutions: 3x64x9 + 64 and 64x64x9 + 64.
    assert early.spec.parameters == 3 * 64 * 9 + 64 + 64 * 64 * 9 + 64


def test_flops_grow_with_the_area(tmp_path: Path) -> None:
    small, large = (load("resnet18", tmp_path, image_size=size, layers=("layer4",)) for size in (64, 128))
    assert large.spec.flops_per_image == 4 * small.spec.flops_per_image


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_transform_input_is_folded_into_mean_and_std(name: str, tmp_path: Path) -> None:
    """Torchvision's own construction with transform_input=True, on ImageNet's normalisation, is the reference."""
    from torchvision.models import get_model

    plain = build_in_torchvision(name, 96)
    reference = get_model(name, weights=None, init_weights=False, aux_logits=True, transform_input=True).eval()
    reference.load_state_dict(plain.state_dict())
    seen: list[torch.Tensor] = []
    reference.fc.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = some_images(2, 96)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        reference((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    (features,) = load(name, tmp_path, image_size=96).on().features(images).values()
    assert torch.allclose(features, seen[0], rtol=1e-3, atol=1e-5 * float(seen[0].abs().max()))


def part_of(network: Network) -> nn.Module:
    part: nn.Module = network.module().get_submodule("part")
    return part


def test_batch_norms_are_folded_and_the_first_convolution_only_rounds_its_result(tmp_path: Path) -> None:
    network = load("resnet18", tmp_path, image_size=64)
    images = some_images(8, 64)
    (exact,) = network.on().features(images).values()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in part_of(network).modules())
    seen: list[torch.Tensor] = []
    stem = part_of(network).get_submodule("network.conv1")
    stem.register_forward_hook(lambda _module, _given, output: seen.append(output.clone()))
    network.on().features(images)
    (rounded,) = network.on("cpu", "bf16").features(images).values()
    whole, halves = seen
    assert halves.dtype is torch.bfloat16
    # As good as the exact result in bf16; rounded weights would change most of it.
    assert (whole.bfloat16() == halves).float().mean() > 0.97
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.9999


def test_position_embeddings_are_interpolated_as_torchvision_does_it(tmp_path: Path) -> None:
    from torchvision.models import get_model
    from torchvision.models.vision_transformer import interpolate_embeddings

    name = "vit_b_32"
    own = get_model(name, weights=None, image_size=96).eval()
    with torch.no_grad():
        own.encoder.pos_embedding.normal_(std=0.5)
    torch.save(own.state_dict(), tmp_path / "w.pth")
    network = load_backbone(name, weights=str(tmp_path / "w.pth"), image_size=160, data_dir=tmp_path)
    with torch.device("meta"):
        resized = get_model(name, weights=None, image_size=160).eval()
    resized.load_state_dict(interpolate_embeddings(160, own.patch_size, dict(own.state_dict())), assign=True)
    resized.heads = nn.Identity()
    images = some_images(2, 160)
    with torch.inference_mode():
        expected = resized(normalise(images, network))
    (features,) = network.on().features(images).values()
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_a_negative_number_counts_layers_from_the_end(tmp_path: Path) -> None:
    network = load("resnet18", tmp_path, image_size=64, layers=("layer1.-1", "layer4.-2"))
    assert network.spec.layer_names == ("layer1.1", "layer4.0")
    with pytest.raises(UnknownName, match=r"layer4\.-3"):
        load("resnet18", tmp_path, image_size=64, layers=("layer4.-3",))
