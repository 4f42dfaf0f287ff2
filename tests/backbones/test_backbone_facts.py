"""The table of facts about backbones agrees with the loaded backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision import models
from torchvision.models import get_model_weights

from featcache.backbones import load_backbone
from featcache.backbones.listing import listing
from featcache.backbones.zoos import timm as timm_zoo
from featcache.backbones.zoos.torchvision_facts import TORCHVISION, Costs, torch_hub_path

# One per family; VGG16 has an exceptional layer, and the last one is built for another size than 224.
QUICK = ("alexnet", "inception_v3", "mobilenet_v3_small", "resnet18", "squeezenet1_1", "vgg16", "vit_h_14")


def measure(name: str, data_dir: Path) -> Costs:
    found = listing(name, data_dir=data_dir)
    return Costs(
        image_size=found.image_size,
        feature_dim=found.feature_dim,
        parameters=found.parameters,
        gflops=found.gflops,
    )


def test_the_table_has_every_network_of_torchvision() -> None:
    assert sorted(TORCHVISION) == sorted(models.list_models(module=models))


@pytest.mark.parametrize("name", QUICK)
def test_the_table_equals_the_measurement(name: str, tmp_path: Path) -> None:
    assert TORCHVISION[name].costs == measure(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TORCHVISION) - set(QUICK)))
def test_the_table_equals_the_measurement_for_the_other_networks(name: str, tmp_path: Path) -> None:
    assert TORCHVISION[name].costs == measure(name, tmp_path)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "timm:resnet18"])
def test_the_measurement_equals_a_loaded_backbone(name: str, tmp_path: Path) -> None:
    spec = load_backbone(name, weights="random", data_dir=tmp_path).spec
    assert measure(name, tmp_path) == Costs(
        image_size=spec.transform.image_size,
        feature_dim=spec.layers[0].feature_dim,
        parameters=spec.parameters,
        gflops=round(spec.flops_per_image / 1e9, 2),
    )


def test_the_weights_that_are_downloaded_are_torchvisions_default_ones() -> None:
    for name, known in TORCHVISION.items():
        entry = get_model_weights(name).DEFAULT
        assert known.weights.file == entry.url.rpartition("/")[2], name
        # torchvision's unit is 2^20 bytes.
        assert known.weights.megabytes == round(entry.meta["_file_size"] * 2**20 / 1e6, 1), name


@pytest.mark.parametrize(
    "variables", [{}, {"XDG_CACHE_HOME": "caches"}, {"TORCH_HOME": "~/torch", "XDG_CACHE_HOME": "x"}]
)
def test_weights_are_searched_where_torch_stores_them(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert torch_hub_path("a.pth") == Path(torch.hub.get_dir()) / "checkpoints" / "a.pth"


def test_weights_of_timm_are_found_in_the_cache_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    requests: list[tuple[str, str]] = []

    def in_cache(repository: str, file: str) -> str | None:
        requests.append((repository, file))
        return str(tmp_path) if file == "pytorch_model.bin" else None

    assert timm_zoo.default_weights("timm:resnet18") == "timm/resnet18.a1_in1k"
    assert timm_zoo.local_file("timm:resnet18") is None
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", in_cache)
    assert timm_zoo.local_file("timm:resnet18") == tmp_path
    assert requests[0] == ("timm/resnet18.a1_in1k", "model.safetensors")
