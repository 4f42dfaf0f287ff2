"""Models of transformers as backbones: tiny models with random weights, saved by the library."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from featcache.backbones.zoos import PRE_LOGITS, TOKENS, Architecture, TokenLayout
from featcache.backbones.zoos.transformers import TransformersZoo, commit_of
from featcache.backbones.zoos.vision_models import FAMILIES, TWO_TOWERS
from featcache.errors import DownloadError, InvalidOption, MissingExtra, UnknownName, WeightsError

ZOO = TransformersZoo()
OWN, OTHER = 64, 96

_WIDTHS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_PATCHES: dict[str, Any] = {**_WIDTHS, "image_size": OWN, "patch_size": 8}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_WINDOWS: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": OWN, "window_size": 4}
_TEXT: dict[str, Any] = {**_WIDTHS, "vocab_size": 40}

#: By the type in config.json: the options of a tiny model.
TINY: dict[str, dict[str, Any]] = {
    "aimv2_vision_model": _PATCHES,
    "beit": {**_PATCHES, "use_mean_pooling": True},
    "bit": {"embedding_size": 8, **_STAGES, "num_groups": 4},
    "chinese_clip": {"vision_config": _PATCHES, "text_config": _TEXT},
    "clip": {"vision_config": _PATCHES, "text_config": _TEXT},
    "clip_vision_model": _PATCHES,
    "convnext": _STAGES,
    "convnextv2": _STAGES,
    "data2vec-vision": {**_PATCHES, "use_mean_pooling": True},
    "deit": _PATCHES,
    "dinov2": _PATCHES,
    "dinov2_with_registers": {**_PATCHES, "num_register_tokens": 3},
    "dinov3_convnext": _STAGES,
    "dinov3_vit": {**_PATCHES, "num_register_tokens": 4},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "image_size": OWN},
    "focalnet": {"embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3], "image_size": OWN},
    "hiera": {"embed_dim": 8, "image_size": [OWN, OWN], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "ijepa": _PATCHES,
    "mlcd": _PATCHES,
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.35},
    "mobilevit": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16], "num_attention_heads": 2},
    "mobilevitv2": {"width_multiplier": 0.25},
    "regnet": {"embedding_size": 8, **_STAGES, "groups_width": 4},
    "resnet": {"embedding_size": 8, **_STAGES},
    "siglip": {"vision_config": _PATCHES, "text_config": _TEXT},
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "vit": _PATCHES,
    "vit_msn": _PATCHES,
}
_SQUASH = {"image_processor_type": "ViTImageProcessor", "size": {"height": OWN, "width": OWN}, "resample": 3}


def randomize(model: Any) -> Any:
    """Draw all weights and statistics at random: initial zeros and ones would hide missing weights."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            pre_logits_of = torch.empty_like(value).normal_(0.0, 0.1, generator=generator)
            value.copy_(pre_logits_of.abs() + 0.5 if name.endswith("running_var") else pre_logits_of)
    return model.eval()


def save_model(model: Any, folder: Path, processor: Mapping[str, Any] = _SQUASH) -> str:
    """Save a model as a checkpoint; returns its name as a backbone."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return f"hf:{folder}"


def tiny(kind: str, **changes: Any) -> Any:
    return transformers.AutoConfig.for_model(kind, **{**TINY[kind], **changes})


def tiny_vit(folder: Path, **changes: Any) -> str:
    return save_model(randomize(transformers.ViTModel(tiny("vit", **changes), add_pooling_layer=False)), folder)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load_network(name: str, image_size: int) -> Architecture:
    """The network with the weights of its folder; missing weights are NaN."""
    architecture = ZOO.build(name, image_size)
    network = architecture.root.get_submodule(architecture.inside.removesuffix("."))
    for parameter in network.parameters():
        parameter.fill_(torch.nan)
    network.load_state_dict(ZOO.weights(name, "default").tensors, strict=False)
    return architecture


def layers_of(architecture: Architecture, images: Tensor) -> dict[str, Tensor]:
    """The values of the standard layers."""
    seen: dict[str, Tensor] = {}
    handles = [
        architecture.root.get_submodule(tap.module).register_forward_hook(
            lambda _module, _given, output, name=name: seen.update({name: output})
        )
        for name, tap in architecture.standard.items()
    ]
    with torch.no_grad():
        architecture.root(images)
    for handle in handles:
        handle.remove()
    return seen


def images_of(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert float(expected.std()) > 0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def with_classifier(kind: str) -> Any:
    """The library's classifier of a family, changed to return the classifier's input; None if there is none."""
    config = tiny(kind)
    known = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if kind in TWO_TOWERS or type(config) not in known:
        return None
    found = known[type(config)]
    model = randomize((found[0] if isinstance(found, tuple) else found)(config))
    model.classifier = nn.Flatten(1)
    return model


def at_size(model: Any, size: int) -> dict[str, bool]:
    """The library's option for another image size, if the model has one."""
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if takes and size != OWN else {}


CLASSIFIERS = [kind for kind in TINY if with_classifier(kind) is not None]
OTHERS = [kind for kind in TINY if kind not in CLASSIFIERS]
ONE_SIZE = ("aimv2_vision_model",)


def test_every_family_is_tested() -> None:
    towers = {transformers.AutoConfig.for_model(kind).vision_config.model_type for kind in TWO_TOWERS}
    # The second is another name for the first.
    assert ({*TINY, *towers} - {*TWO_TOWERS}) | {"mlcd_vision_model"} == set(FAMILIES)
    assert len(CLASSIFIERS) > 15


@pytest.mark.parametrize(
    ("kind", "size"), [*((kind, OTHER) for kind in CLASSIFIERS), ("convnext", OWN), ("swin", OWN), ("vit", OWN)]
)
def test_pre_logits_are_what_the_librarys_own_classifier_is_given(kind: str, size: int, tmp_path: Path) -> None:
    model = with_classifier(kind)
    layers = layers_of(load_network(save_model(model, tmp_path), size), images_of(size))
    base = model.base_model
    with torch.no_grad():
        given = model(images_of(size), **at_size(model, size)).logits
        tokens = base(images_of(size), **at_size(base, size)).last_hidden_state
    assert_close(layers[PRE_LOGITS], given)
    assert (TOKENS in layers) == (tokens.ndim == 3)
    if TOKENS in layers:
        assert_close(layers[TOKENS], tokens)


@pytest.mark.parametrize(
    ("kind", "size"), [*((kind, OTHER) for kind in OTHERS), *((kind, OWN) for kind in ONE_SIZE), ("clip", OWN)]
)
def test_without_a_classifier_pre_logits_are_the_models_pooled_output(kind: str, size: int, tmp_path: Path) -> None:
    model = randomize(transformers.AutoModel.from_config(tiny(kind)))
    name = save_model(model, tmp_path)
    if size != OWN and kind in ONE_SIZE:
        with pytest.raises(InvalidOption, match=f"cannot take images of {size}x{size} pixels"):
            ZOO.build(name, size)
        return
    layers = layers_of(load_network(name, size), images_of(size))
    tower = model.vision_model if kind in TWO_TOWERS else model
    with torch.no_grad():
        expected = tower(pixel_values=images_of(size), **at_size(tower, size))
    assert_close(layers[PRE_LOGITS], expected.pooler_output)
    assert_close(layers[TOKENS], expected.last_hidden_state)


@pytest.mark.parametrize("kind", [kind for kind in TINY if FAMILIES.get(kind, FAMILIES["clip_vision_model"]).own_pool])
def test_the_networks_own_pooling_of_tokens_gives_pre_logits(kind: str, tmp_path: Path) -> None:
    model = randomize(transformers.AutoModel.from_config(tiny(kind)))
    architecture = load_network(save_model(model, tmp_path), OTHER)
    layers, layout = layers_of(architecture, images_of(OTHER)), architecture.tokens
    assert layout is not None
    tokens = layers[TOKENS]
    parts = {"cls": tokens[:, 0], "avg": tokens[:, layout.prefix :].mean(dim=1)}
    assert layout.own_pool is not None
    assert_close(layers[PRE_LOGITS], torch.cat([parts[name] for name in layout.own_pool.split("+")], dim=1))


@pytest.mark.parametrize(
    ("kind", "prefix", "class_token"),
    [
        ("vit", 1, True),
        ("deit", 2, True),
        ("dinov2_with_registers", 4, True),
        ("dinov3_vit", 5, True),
        ("clip", 1, True),
        ("siglip", 0, False),
        ("swin", 0, False),
        ("ijepa", 0, False),
    ],
)
def test_patches_follow_the_tokens_of_the_prefix(kind: str, prefix: int, class_token: bool, tmp_path: Path) -> None:
    architecture = ZOO.build(save_model(transformers.AutoModel.from_config(tiny(kind)), tmp_path), OTHER)
    layout = architecture.tokens
    assert isinstance(layout, TokenLayout)
    assert (layout.prefix, layout.class_token) == (prefix, class_token)
    randomize(architecture.root)
    assert layers_of(architecture, images_of(OTHER))[TOKENS].shape[1] == prefix + (OTHER // 8) ** 2


@pytest.mark.parametrize("pooler", [True, False])
def test_a_vits_pooler_is_never_used(pooler: bool, tmp_path: Path) -> None:
    model = randomize(transformers.ViTModel(tiny("vit"), add_pooling_layer=pooler))
    name = save_model(model, tmp_path)
    layers = layers_of(load_network(name, OWN), images_of(OWN))
    with torch.no_grad():
        assert_close(layers[PRE_LOGITS], model(images_of(OWN)).last_hidden_state[:, 0])
    assert not [key for key in ZOO.weights(name, "default").tensors if "pooler" in key]


def test_weights_that_a_checkpoint_lacks_are_not_drawn(tmp_path: Path) -> None:
    name = save_model(randomize(transformers.BeitModel(tiny("beit"), add_pooling_layer=False)), tmp_path)
    expected = set(ZOO.build(name, OWN).root.get_submodule("network").state_dict())
    assert expected - set(ZOO.weights(name, "default").tensors) == {"pooler.layernorm.weight", "pooler.layernorm.bias"}


def test_half_precision_checkpoints_give_float32_networks(tmp_path: Path) -> None:
    model = randomize(transformers.ViTModel(tiny("vit"), add_pooling_layer=False)).half()
    name = save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    architecture = ZOO.build(name, OWN)
    assert {parameter.dtype for parameter in architecture.root.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in ZOO.weights(name, "default").tensors.values()} == {torch.float32}


@pytest.mark.parametrize("kind", TINY)
def test_it_is_built_without_storage(kind: str, tmp_path: Path) -> None:
    name = save_model(transformers.AutoModel.from_config(tiny(kind)), tmp_path)
    with torch.device("meta"):
        root = ZOO.build(name, OWN).root
    assert {value.device.type for value in [*root.parameters(), *root.buffers()]} == {"meta"}
    assert not root.training
    assert not any(parameter.requires_grad for parameter in root.parameters())


def test_random_weights_follow_the_seed(tmp_path: Path) -> None:
    name = tiny_vit(tmp_path)

    def pre_logits_of(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([value.flatten() for value in ZOO.build(name, OWN).root.parameters()])

    with torch.random.fork_rng(devices=[]):
        assert torch.equal(pre_logits_of(1), pre_logits_of(1))
        assert not torch.equal(pre_logits_of(1), pre_logits_of(2))
        assert bool(pre_logits_of(1).isfinite().all())


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    model = randomize(transformers.ViTModel(tiny("vit"), add_pooling_layer=False))
    name = save_model(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    torch.testing.assert_close(dict(ZOO.weights(name, "default").tensors), dict(model.state_dict()))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    name = tiny_vit(tmp_path)
    tensors = ZOO.weights(name, "default").tensors
    (tmp_path / "model.safetensors").unlink()
    torch.save(dict(tensors), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError) as caught:
        ZOO.weights(name, "default")
    assert "never read" in str(caught.value.hint)


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    name = tiny_vit(tmp_path)
    (tmp_path / "model.safetensors").write_text("<html>")
    with pytest.raises(WeightsError) as caught:
        ZOO.weights(name, "default")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("kind", ["vit", "mine"])
def test_remote_code_is_refused_and_never_run(file: str, kind: str, tmp_path: Path) -> None:
    name = tiny_vit(tmp_path)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    auto_map = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model", "AutoImageProcessor": "mine.Processor"}
    change_json(tmp_path / file, auto_map=auto_map, model_type=kind)
    with pytest.raises(InvalidOption, match="its own code, which is never run"):
        ZOO.build(name, OWN) if file == "config.json" else ZOO.transform(name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["bert", "wav2vec2", "vit_mae", "yolos"])
def test_what_makes_no_vector_of_an_image_is_refused(kind: str, tmp_path: Path) -> None:
    transformers.AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(InvalidOption, match=f"expected a vision model, got one of the type {kind}"):
        ZOO.build(f"hf:{tmp_path}", OWN)


def test_models_of_timm_are_left_to_timm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(InvalidOption) as caught:
        ZOO.build(f"hf:{tmp_path}", OWN)
    assert caught.value.hint == "use timm:resnet18"


def test_a_tower_without_a_head_is_refused(tmp_path: Path) -> None:
    model = transformers.SiglipVisionModel(
        tiny("siglip", vision_config={**_PATCHES, "vision_use_head": False}).vision_config
    )
    with pytest.raises(InvalidOption, match="only tokens"):
        ZOO.build(save_model(model, tmp_path), OWN)


def test_tensors_of_ones_own_file_get_the_networks_names(tmp_path: Path) -> None:
    model = randomize(transformers.ViTForImageClassification(tiny("vit")))
    name = save_model(model.base_model, tmp_path)
    architecture = ZOO.build(name, OTHER)
    found = ZOO.convert(name, model.state_dict(), architecture, OTHER)
    torch.testing.assert_close(dict(found), dict(model.base_model.state_dict()))
    wrong = {key: value[..., :5] for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match="cannot be read according to config"):
        ZOO.convert(name, wrong, architecture, OTHER)


def test_reading_weights_leaves_random_numbers_as_they_were(tmp_path: Path) -> None:
    name = save_model(randomize(transformers.BeitModel(tiny("beit"), add_pooling_layer=False)), tmp_path)
    before = torch.get_rng_state()
    ZOO.weights(name, "default")
    assert torch.equal(torch.get_rng_state(), before)


def test_arguments_follow_the_config_and_not_its_layout(tmp_path: Path) -> None:
    name, config = tiny_vit(tmp_path), tmp_path / "config.json"
    first = ZOO.build(name, OWN).arguments
    config.write_text(json.dumps(dict(reversed(json.loads(config.read_text()).items()))))
    assert ZOO.build(name, OWN).arguments == first
    change_json(config, layer_norm_eps=1e-5)
    assert ZOO.build(name, OWN).arguments != first


def test_nothing_is_printed_and_the_librarys_settings_stay(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = save_model(randomize(transformers.ViTForImageClassification(tiny("vit"))), tmp_path)
    before = transformers.utils.logging.get_verbosity()
    capfd.readouterr()
    ZOO.build(name, OWN)
    ZOO.weights(name, "default")
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.get_verbosity() == before
    assert transformers.utils.logging.is_progress_bar_enabled()


CROPPED = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 72}, "resample": 3}
CROPPED |= {"do_center_crop": True, "crop_size": {"height": OWN, "width": OWN}}
PROCESSORS: dict[str, tuple[dict[str, Any], tuple[str, int | None, str]]] = {
    "squash": (_SQUASH, ("squash", None, "bicubic")),
    "squash, bilinear": ({**_SQUASH, "resample": 2}, ("squash", None, "bilinear")),
    "one number": ({**_SQUASH, "size": OWN}, ("squash", None, "bicubic")),
    "crop": (CROPPED, ("crop", 72, "bicubic")),
    "crop of all": ({**CROPPED, "size": {"shortest_edge": OWN}}, ("crop", OWN, "bicubic")),
    "BiT's": ({**CROPPED, "image_processor_type": "BitImageProcessor"}, ("crop", 72, "bicubic")),
    "SigLIP's": ({**_SQUASH, "image_processor_type": "SiglipImageProcessor"}, ("squash", None, "bicubic")),
    "ConvNeXt's": (
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": OWN}, "crop_pct": 0.875},
        ("crop", 73, "bicubic"),
    ),
    "ConvNeXt's for large images": (
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 1.0},
        ("squash", None, "bicubic"),
    ),
    # Old files: integers as sizes, no rescaling option, an earlier name of the class.
    "CLIP's of 2021": (
        {"feature_extractor_type": "CLIPFeatureExtractor", "do_center_crop": True, "size": 72, "crop_size": OWN},
        ("crop", 72, "bicubic"),
    ),
    "ResNet's of 2022": (
        {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.8, "size": OWN, "resample": 3},
        ("crop", 80, "bicubic"),
    ),
    "ViT's of 2021": ({"do_resize": True, "resample": 2, "size": OWN}, ("squash", None, "bilinear")),
    "without mean and std": ({**_SQUASH, "do_normalize": False}, ("squash", None, "bicubic")),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_the_transform_is_the_image_processor_in_numbers(case: str, tmp_path: Path) -> None:
    processor, expected = PROCESSORS[case]
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    name = save_model(transformers.ViTModel(tiny("vit")), tmp_path, {**processor, **statistics})
    transform = ZOO.transform(name)
    assert (transform.resize, transform.resize_size, transform.interpolation) == expected
    # Pillow's own resizing, of noise: the same operation, so the same pixels.
    processing = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    # Margins are even: for odd ones the library rounds the centre down, torchvision to even.
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    pixels = processing(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    ours = transform.normalize(torch.from_numpy(transform.resize_image(image).copy()).permute(2, 0, 1)[None])
    if transform.resize_size is not None and (transform.resize_size - OWN) % 2:
        ours, pixels = ours.mean(dim=(2, 3)), pixels.mean(dim=(2, 3))
        torch.testing.assert_close(ours, pixels, rtol=0, atol=0.05)
    else:
        torch.testing.assert_close(ours, pixels, rtol=0, atol=1e-6)


def test_dinov3s_processor_which_has_no_form_for_pillow_is_understood(tmp_path: Path) -> None:
    published = {**_SQUASH, "image_processor_type": "DINOv3ViTImageProcessorFast", "resample": 2}
    transform = ZOO.transform(save_model(transformers.ViTModel(tiny("vit")), tmp_path, published))
    assert (transform.image_size, transform.resize, transform.mean) == (OWN, "squash", (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rescale_factor": 1 / 127.5}, "expected rescale_factor 1/255"),
        ({"do_rescale": False}, "expected rescale_factor 1/255"),
        ({"do_resize": False}, "expected do_resize true"),
        ({"resample": 0}, r"expected resample 2 \(bilinear\) or 3 \(bicubic\), got 0"),
        ({"resample": 1}, "got 1"),
        ({"size": {"height": 64, "width": 48}}, r"size \{'height': 64, 'width': 48\}"),
        ({"size": {"shortest_edge": 64}}, r"size \{'shortest_edge': 64\} with crop_size None"),
        ({"image_mean": [0.5]}, "expected three numbers as image_mean"),
        # DeiT's squashes and crops.
        (
            {"image_processor_type": "DeiTImageProcessor", "do_center_crop": True, "crop_size": 48},
            "with crop_size {'height': 48, 'width': 48}",
        ),
        ({"image_processor_type": "MobileViTImageProcessor", "do_center_crop": False}, "changes pixels"),
        ({"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True}, "changes pixels"),
        ({"image_processor_type": "EfficientNetImageProcessor", "include_top": True}, "changes pixels"),
    ],
)
def test_what_a_transform_cannot_express_is_named(changes: Mapping[str, Any], reason: str, tmp_path: Path) -> None:
    name = save_model(transformers.ViTModel(tiny("vit")), tmp_path, {**_SQUASH, **changes})
    with pytest.raises(InvalidOption, match=reason) as caught:
        ZOO.transform(name)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", [None, "{", "[1]", '{"model_type": "vit", "patch_size": "x", "image_mean": 3}'])
def test_a_description_that_is_missing_or_wrong_is_named(file: str, content: str | None, tmp_path: Path) -> None:
    name = tiny_vit(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(InvalidOption) as caught:
        ZOO.build(name, OWN) if file == "config.json" else ZOO.transform(name)
    assert file in caught.value.message or "image_mean" in caught.value.message


@pytest.mark.parametrize("name", ["hf:resnet", "hf:", "hf:a/b/c", "hf:/no/such/folder"])
def test_a_malformed_name_is_unknown(name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        ZOO.build(name, OWN)
    assert "hf:" in str(caught.value.hint)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra) as caught:
        ZOO.transform("hf:org/model")
    assert caught.value.hint == "pip install 'featcache[transformers]'"


def test_only_default_weights_exist(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="IMAGENET1K_V1"):
        ZOO.source_of(tiny_vit(tmp_path), "IMAGENET1K_V1")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local cache of the hub's client, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit_of.cache_clear()
    return tmp_path


def test_a_model_that_was_downloaded_needs_no_network(offline_hub: Path) -> None:
    repository = offline_hub / "models--org--model"
    snapshot = repository / "snapshots" / COMMIT
    tiny_vit(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in ("hf:org/model", f"hf:org/model@{COMMIT}"):
        weights = ZOO.weights(name, "default")
        assert weights.source == ZOO.source_of(name, "default") == f"hf:org/model@{COMMIT}"
        assert set(weights.tensors) == set(ZOO.build(name, OWN).root.get_submodule("network").state_dict())


def test_a_model_that_is_not_here_is_a_download_error(offline_hub: Path) -> None:
    with pytest.raises(DownloadError, match="org/model could not be downloaded") as caught:
        ZOO.build("hf:org/model", OWN)
    assert "hf:FOLDER" in str(caught.value.hint)


def test_all_files_of_a_model_are_of_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[str | None, list[str]]] = []

    def snapshot(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        requests.append((revision, allow_patterns))
        return str(tmp_path / COMMIT)

    tiny_vit(tmp_path / COMMIT)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    commit_of.cache_clear()
    ZOO.weights("hf:org/model@v1", "default")
    commit_of.cache_clear()
    assert [revision for revision, _ in requests] == ["v1", *[COMMIT] * (len(requests) - 1)]
    wanted = {pattern for _, patterns in requests for pattern in patterns}
    assert {pattern.rpartition(".")[2] for pattern in wanted} == {"json", "safetensors"}
    # Descriptions are downloaded without the weights.
    assert requests[0][1] == ["config.json", "preprocessor_config.json"]
