"""Tiny networks with a text encoder and random weights: CLIP, CLIP with a ResNet, SigLIP and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

CLIP, RESNET, SIGLIP = "open_clip:tiny-clip", "open_clip:tiny-resnet", "open_clip:tiny-siglip"
SIDE = 32
_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
_VISION = {"image_size": SIDE, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
_CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-clip": {"embed_dim": 24, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "tiny-clip-quickgelu": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "tiny-resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": _TEXT,
    },
    "tiny-siglip": {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "none",
        },
        "text_cfg": {
            **_TEXT,
            "vocab_size": 64,
            "hf_tokenizer_name": "tiny/tokenizer",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
}


def register(folder: Path) -> None:
    """Make the networks known to open_clip by their names."""
    for name, config in _CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def network_of(name: str, seed: int = 0, **options: Any) -> Any:
    """open_clip's own network, with random tensors: initial zeros and ones would hide missing ones."""
    network = open_clip.create_model(name.removeprefix("open_clip:"), **options)
    generator = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim:
            drawn = torch.empty_like(value).normal_(0.0, 0.2, generator=generator)
            value.copy_(drawn.abs() + 0.5 if key.endswith("running_var") else drawn)
    return network.eval().requires_grad_(False)


def save(network: Any, path: Path) -> Path:
    """Save the weights of a network as safetensors or as a file of torch.save."""
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    return path


def save_tokenizer(folder: Path) -> Path:
    """A tokenizer of words, as files of transformers; returns the path of tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = "a photo of the ant bee cow big small red green blue plane car bird cat deer dog frog horse ship truck"
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder / "tokenizer.json"
