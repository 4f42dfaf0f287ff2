"""timm's networks as backbones: the backbone contract, and equality with timm itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from backbone_contract import BackboneContract, some_images
from safetensors.torch import save_file

from featcache.backbones import load_backbone
from featcache.backbones.cutting import choose_layers, probe_network
from featcache.backbones.listing import listing
from featcache.backbones.network import Network
from featcache.backbones.spec import Layer
from featcache.backbones.transforms import Transform
from featcache.backbones.weights import source_of
from featcache.backbones.zoos import STANDARD_LAYERS, zoo_of
from featcache.backbones.zoos import timm as timm_zoo
from featcache.errors import DownloadError, InvalidOption, MissingExtra, UnknownName, WeightsError

# A dozen families with fast sizes; the slow tests use the networks' own sizes.
FAMILIES = {
    "timm:vit_tiny_patch16_224": (64,),
    "timm:vit_small_patch14_reg4_dinov2": (56,),
    "timm:vit_small_patch16_dinov3": (64,),
    "timm:eva02_tiny_patch14_224": (70,),
    "timm:swin_tiny_patch4_window7_224": (112,),
    "timm:vit_base_patch16_siglip_224": (64,),
    "timm:vit_base_patch32_clip_quickgelu_224": (),
    "timm:convnext_atto": (64,),
    "timm:mobilenetv4_conv_small": (64,),
    "timm:tf_efficientnet_lite0": (64,),
    "timm:hiera_tiny_224": (128,),
    "timm:resnet18": (64,),
    "timm:deit_tiny_distilled_patch16_224": (64,),
    "timm:levit_128s": (224,),
}


def load(name: str, data_dir: Path, **options: Any) -> Network:
    return load_backbone(name, weights="random:1", data_dir=data_dir, **options)


def build_in_timm(name: str, size: int) -> Any:
    """timm's own network for an image size, initialised with the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return zoo_of(name).build(name, size).root.get_submodule("network")


def layers_by_pool(name: str, size: int, *layers: str) -> Callable[[str | None], Layer]:
    """The layer that a pooling gives of one network, which is probed once and not loaded."""
    architecture, listed = probe_network(name, partial(zoo_of(name).build, name), size)
    return lambda pool: choose_layers(name, architecture, listed, size, layers, pool).layers[0]


def normalise(network: Network, images: np.ndarray) -> torch.Tensor:
    return network.spec.transform.normalize(torch.from_numpy(images).permute(0, 3, 1, 2))


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.flatten(1).shape
    difference = (found - expected.flatten(1)).norm() / expected.norm()
    assert float(difference) <= 1e-4


class TestTimmConvolutionsContract(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def network(cls, tmp_path_factory: pytest.TempPathFactory) -> Network:
        return load("timm:resnet18", tmp_path_factory.mktemp("timm"), image_size=64)


class TestTimmTransformerContract(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def network(cls, tmp_path_factory: pytest.TempPathFactory) -> Network:
        return load("timm:vit_tiny_patch16_224", tmp_path_factory.mktemp("timm"), image_size=64)


OWN_SIZES = [pytest.param(name, None, marks=pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize(
    ("name", "size"), [*((name, size) for name, sizes in FAMILIES.items() for size in sizes), *OWN_SIZES]
)
def test_pre_logits_and_token_poolings_are_timms_own(name: str, size: int | None, tmp_path: Path) -> None:
    size = size or zoo_of(name).transform(name).image_size
    plain = build_in_timm(name, size)
    network = load(name, tmp_path, image_size=size, layers=("pre_logits", "tokens"), pool="none")
    assert network.spec.layers[0].feature_dim == getattr(plain, "head_hidden_size", plain.num_features)
    images = some_images(2, size)
    with torch.inference_mode():
        tokens = plain.forward_features(normalise(network, images))
        expected = plain.forward_head(tokens, pre_logits=True)
    found = network.on().features(images)
    assert_near(found["pre_logits"], expected)
    assert_near(found["tokens"], tokens)
    chosen = layers_by_pool(name, size)
    assert chosen(None).name == "pre_logits"
    if tokens.dim() != 3:
        return
    prefix = getattr(plain, "num_prefix_tokens", 0)
    by_hand = {"avg": tokens[:, prefix:].mean(dim=1)}
    if getattr(plain, "cls_token", None) is not None:
        by_hand["cls+avg"] = torch.cat([tokens[:, 0], by_hand["avg"]], dim=1)
    for pool, rows in by_hand.items():
        assert chosen(pool).name == "tokens"
        assert_near(chosen(pool).pooling.rows(tokens), rows)


@pytest.mark.parametrize("pool", ["cls", "cls+avg"])
@pytest.mark.parametrize("name", ["timm:hiera_tiny_224", "timm:resnet18"])
def test_a_network_without_a_class_token_has_no_pooling_of_that_name(name: str, pool: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"class token|no tokens"):
        load(name, tmp_path, image_size=128, pool=pool)


def test_tokens_are_pooled_as_in_the_network_itself(tmp_path: Path) -> None:
    plain = load("timm:vit_tiny_patch16_224", tmp_path, image_size=64, layers=("tokens",))
    assert plain.spec.layers[0].pooling.name == "cls"
    assert plain.spec.layers[0].shape == (192,)
    # Attention pooling consists of layers, so it is none of the poolings.
    with pytest.raises(InvalidOption, match="with its own layers"):
        load("timm:vit_base_patch16_siglip_224", tmp_path, image_size=64, layers=("tokens",))


def test_averages_leave_the_prefix_tokens_out_wherever_they_are(tmp_path: Path) -> None:
    name, layers, images = "timm:vit_small_patch14_reg4_dinov2", ("patch_embed", "blocks.3", "norm"), some_images(2, 56)
    whole, pooled = (load(name, tmp_path, image_size=56, layers=layers, pool=pool) for pool in ("none", "avg"))
    tokens, averages = (network.on().features(images) for network in (whole, pooled))
    for layer in whole.spec.layers:
        # 16 patches of 14 x 14 pixels.
        patches = tokens[layer.name].reshape(2, *layer.shape)[:, -16:]
        assert_near(averages[layer.name], patches.mean(dim=1))


def test_the_last_block_counts_from_the_end(tmp_path: Path) -> None:
    network = load("timm:vit_tiny_patch16_224", tmp_path, image_size=64, layers=("blocks.-1", "blocks.-12"))
    assert network.spec.layer_names == ("blocks.11", "blocks.0")


def test_no_network_has_a_top_level_module_with_a_standard_name() -> None:
    names = ["timm:vit_tiny_patch16_224", "timm:resnet18", "timm:levit_128s", "timm:naflexvit_base_patch16_gap"]
    for name in [*names, "vgg16", "vit_b_16", "swin_t"]:
        _, found = probe_network(name, partial(zoo_of(name).build, name), zoo_of(name).transform(name).image_size)
        top = {layer.name.partition(".")[0] for layer in found.layers if layer.name not in STANDARD_LAYERS}
        assert not top & set(STANDARD_LAYERS)


def test_the_transform_is_timms_own_in_numbers() -> None:
    from timm.data import create_transform, resolve_data_config

    found = zoo_of("timm:").transform("timm:vit_tiny_patch16_224")
    assert found == Transform(
        image_size=224,
        resize="crop",
        resize_size=248,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    from PIL import Image

    config = resolve_data_config({}, model=timm.create_model("vit_tiny_patch16_224"))
    image = np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)
    expected = create_transform(**config)(Image.fromarray(image))
    got = found.normalize(torch.from_numpy(found.resize_image(image).copy()).permute(2, 0, 1)[None])[0]
    assert torch.allclose(got, expected, atol=1e-6)


def test_weights_are_identified_by_their_bytes(tmp_path: Path) -> None:
    tensors = {name: value.clone() for name, value in build_in_timm("timm:resnet18", 64).state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    options: dict[str, Any] = {"data_dir": tmp_path, "image_size": 64}
    drawn = load("timm:resnet18", tmp_path, image_size=64)
    read = load_backbone("timm:resnet18", weights=str(tmp_path / "w.safetensors"), **options)
    assert read.spec.layers == drawn.spec.layers
    assert (drawn.spec.source, drawn.name) == ("random:1", "timm:resnet18")
    del tensors["layer4.1.bn2.bias"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"layer4\.1\.bn2\.bias"):
        load_backbone("timm:resnet18", weights=str(tmp_path / "w.safetensors"), **options)


def test_position_embeddings_of_a_checkpoint_are_interpolated_as_timm_does_it(tmp_path: Path) -> None:
    own = timm.create_model("vit_tiny_patch16_224", img_size=96)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in own.state_dict().items()}}, tmp_path / "w.pth"
    )
    from timm.models.vision_transformer import checkpoint_filter_fn

    resized = timm.create_model("vit_tiny_patch16_224", img_size=160).eval()
    resized.load_state_dict(checkpoint_filter_fn(dict(own.state_dict()), resized))
    network = load_backbone(
        "timm:vit_tiny_patch16_224", weights=str(tmp_path / "w.pth"), image_size=160, data_dir=tmp_path
    )
    images = some_images(2, 160)
    with torch.inference_mode():
        expected = resized.forward_head(resized.forward_features(normalise(network, images)), pre_logits=True)
    assert_near(network.on().features(images)["pre_logits"], expected)


def official(names: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """DINOv3's tensors under the names of Meta's own checkpoint."""
    found = {}
    for name, value in names.items():
        renamed = name.replace("reg_token", "storage_tokens").replace(".gamma_1", ".ls1.gamma")
        found[renamed.replace(".gamma_2", ".ls2.gamma")] = value
    for block in range(12):
        width = found[f"blocks.{block}.attn.qkv.weight"].shape[0]
        found[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(width)
        found[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(width)
    return {**found, "mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}


def test_metas_own_dinov3_checkpoint_is_read(tmp_path: Path) -> None:
    name = "timm:vit_small_patch16_dinov3"
    own, expected = build_in_timm(name, 64), load(name, tmp_path, image_size=64)
    for prefix in ("", "backbone."):
        path = tmp_path / f"{prefix}pth"
        torch.save({f"{prefix}{key}": value for key, value in official(own.state_dict()).items()}, path)
        read = load_backbone(name, weights=str(path), image_size=64, data_dir=tmp_path)
        assert read.spec.layers == expected.spec.layers


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("timm:resnt18", "timm:resnet18"),
        ("timm:resnet18.a1_in2k", "timm:resnet18.a1_in1k"),
        ("dinov2_vits15", "dinov2_vits14"),
    ],
)
def test_an_unknown_name_suggests_a_similar_one(name: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        load(name, tmp_path)
    assert nearest in str(caught.value.hint)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    timm_zoo._names.cache_clear()
    with pytest.raises(MissingExtra) as caught:
        zoo_of("timm:").check("timm:resnet18")
    assert caught.value.hint == "pip install 'featcache[timm]'"


def test_default_weights_are_those_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_of("timm:resnet18", "default") == "timm:timm/resnet18.a1_in1k"
    assert source_of("timm:resnet18.tv_in1k", "default") == "timm:timm/resnet18.tv_in1k"
    with pytest.raises(UnknownName, match="weights for timm:resnet18"):
        source_of("timm:resnet18", "IMAGENET1K_V1")

    def unreachable(name: str, **options: object) -> object:
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(DownloadError, match=r"timm/resnet18\.a1_in1k could not be downloaded: no route") as caught:
        zoo_of("timm:").weights("timm:resnet18", "default")
    assert "--weights PATH" in str(caught.value.hint)


def test_the_table_of_layers_shows_paths_types_shapes_and_widths(tmp_path: Path) -> None:
    found = listing("timm:vit_tiny_patch16_224", image_size=64, data_dir=tmp_path)
    rows = {row.name: row for row in found.layers}
    assert (found.default, found.feature_dim, found.own_pool) == ("pre_logits", 192, "cls")
    assert rows["blocks.5"].kind == "Block"
    assert (rows["blocks.5"].shape, rows["blocks.5"].pooled, rows["blocks.5"].flat) == ((17, 192), 192, 17 * 192)
    assert rows["blocks.5"].megabytes == pytest.approx(17 * 192 * 2 * 10_000 / 1e6)
    assert {"pre_logits", "tokens", "blocks.11"} <= {row.name for row in found.layers if row.usual}
    names = list(rows)
    assert names.index("blocks.0") < names.index("blocks.11") < names.index("tokens") < names.index("pre_logits")
    assert listing("timm:vit_tiny_patch16_224", image_size=64, data_dir=tmp_path) == found
