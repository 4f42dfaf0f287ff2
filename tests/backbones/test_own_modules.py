"""The caller's own modules as backbones: digests, checks and errors; the module is never changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from backbone_contract import BackboneContract, some_images
from torch import nn

import featcache
from featcache.backbones.network import Network
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos.modules import from_module
from featcache.errors import FeatcacheError, InvalidOption, UnknownName

TRANSFORM = Transform(image_size=16)


def own(module: nn.Module, **options: object) -> Network:
    return from_module(module, name="mine", transform=TRANSFORM, **options)  # type: ignore[arg-type]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) * self.weight


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3), nn.Flatten())


class TestOwnModuleContract(BackboneContract):
    @pytest.fixture
    def network(self) -> Network:
        return own(Scaled())


class TestLayersOfAnOwnModuleContract(BackboneContract):
    @pytest.fixture
    def network(self) -> Network:
        return own(small(), layers=("0", "2", "3"))


def test_the_weights_of_an_own_module_are_digested() -> None:
    module = Scaled()
    first = own(module)
    with torch.no_grad():
        module.weight[0] += 1e-6
    (before,), (after,) = first.spec.layers, own(module).spec.layers
    assert before.weights != after.weights


def test_an_own_module_is_not_changed() -> None:
    module = small().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = own(module, layers=("2",))
    network.on("cpu", "bf16").features(some_images(8, 16))
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())


def test_a_network_computes_what_it_did_after_another_precision() -> None:
    network = own(small())
    images = some_images(8, 16)
    before = network.on().features(images)["output"]
    network.on("cpu", "bf16").features(images)
    assert torch.equal(network.on().features(images)["output"], before)


@pytest.mark.parametrize("name", ["", "vgg16", "pixels", "timm:resnet18", "hf:a/b", "dinov2_vits14"])
def test_an_own_module_needs_an_unused_name(name: str) -> None:
    with pytest.raises(InvalidOption, match="a name of your own"):
        from_module(Scaled(), name=name, transform=TRANSFORM)


def test_an_unknown_layer_suggests_a_similar_one() -> None:
    with pytest.raises(UnknownName, match="layer of mine"):
        own(small(), layers=("convolution",))


class Mean(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean()


class Grey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images)  # type: ignore[no-any-return]


class Text(nn.Module):
    def forward(self, images: torch.Tensor) -> str:
        return "features"


class Raising(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise KeyError("a missing table")


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten())


def script() -> nn.Module:
    module: nn.Module = torch.jit.script(small())
    return module


@pytest.mark.parametrize("make", [Mean, Grey, Text, Raising, lazy, script, lambda: nn.Conv2d(5, 2, 1)])
def test_a_module_that_is_no_backbone_is_refused_in_one_line(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(FeatcacheError) as caught:
        own(make())
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message
    assert "mine" in caught.value.message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_in_another_precision_computes_in_fp32(dtype: torch.dtype) -> None:
    exact = small()
    rows = own(exact.to(dtype)).on().features(some_images(2, 16))["output"]
    assert rows.dtype == torch.float32
    expected = own(exact.float()).on().features(some_images(2, 16))["output"]
    assert torch.allclose(rows, expected, atol=1e-6)


class Constants(nn.Module):
    """Creates tensors in its forward method, and has one that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.tensor([0.5, 0.25, 0.125])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) * torch.tensor([1.0, 2.0, 4.0]) + self.shift


def test_tensors_may_be_created_in_the_forward_method() -> None:
    images = some_images(2, 16)
    expected = Constants()(TRANSFORM.normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
    assert torch.allclose(own(Constants()).on().features(images)["output"], expected, atol=1e-6)


class OnValues(nn.Module):
    """Its forward method branches on a value, and computes a part with NumPy."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = torch.from_numpy(images.numpy().mean(axis=(2, 3)))
        return rows * 2 if float(rows.abs().sum()) >= 0 else rows


def test_a_module_that_cannot_run_on_the_meta_device_is_probed_on_the_cpu() -> None:
    images = some_images(2, 16)
    network = own(OnValues())
    expected = OnValues()(TRANSFORM.normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
    assert torch.allclose(network.on().features(images)["output"], expected)
    assert network.spec.feature_dims == {"output": 3}


class Pair(nn.Module):
    """A backbone that returns a mapping, as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self.body(images), "rest": images}


def test_the_first_tensor_of_a_mapping_is_the_output() -> None:
    assert own(Pair()).spec.feature_dims == own(small()).spec.feature_dims | {"output": 4 * 12 * 12}


def test_it_is_a_public_name() -> None:
    assert featcache.from_module is from_module


def test_features_equal_the_modules_own_output() -> None:
    images = some_images(4, 16)
    module = small().eval()
    with torch.inference_mode():
        expected = module(TRANSFORM.normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
    rows = own(module).on().features(images)["output"].numpy()
    assert np.allclose(rows, expected.numpy(), rtol=1e-4, atol=1e-5)
