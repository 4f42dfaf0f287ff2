"""The supported vision models of transformers, and their standard layers.

`pre_logits` is the input of the classifier in the library's own `...ForImageClassification`. Families without such a
class, and image encoders like that of CLIP, use their `pooler_output`. Other families do not, because their checkpoints
may lack the weights of the pooler, and the library would initialise it randomly.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedConfig

from featcache.backbones.zoos import PRE_LOGITS, TOKENS, Architecture, Tap, TokenLayout
from featcache.errors import InvalidOption, WeightsError, one_line


@dataclass(frozen=True, kw_only=True)
class Family:
    """The common properties of the models of one `model_type`.

    `pre_logits`: the class token ("cls"), the mean of the patches ("avg"), both concatenated ("cls+avg"), or
    `pooler_output` ("pooler"). `prefix`: the number of tokens before the patches, without registers; None for
    convolutional networks. `own_pool`: see TokenLayout.
    """

    pre_logits: Literal["cls", "avg", "cls+avg", "pooler"] = "pooler"
    prefix: int | None = None
    own_pool: Literal["cls", "avg", "cls+avg"] | None = None


_CONVOLUTIONS = Family()
FAMILIES = {
    "aimv2_vision_model": Family(prefix=0),
    "beit": Family(prefix=1),
    "bit": _CONVOLUTIONS,
    # The last norm of CLIP, Chinese CLIP and MLCD is only applied to the class token, in `pooler_output`.
    "chinese_clip_vision_model": Family(prefix=1),
    "clip_vision_model": Family(prefix=1),
    "convnext": _CONVOLUTIONS,
    "convnextv2": _CONVOLUTIONS,
    "data2vec-vision": Family(prefix=1),
    "deit": Family(pre_logits="cls", prefix=2, own_pool="cls"),
    "dinov2": Family(pre_logits="cls+avg", prefix=1, own_pool="cls+avg"),
    "dinov2_with_registers": Family(pre_logits="cls+avg", prefix=1, own_pool="cls+avg"),
    # Its first token is the mean of the other tokens, after the norm.
    "dinov3_convnext": Family(prefix=1, own_pool="cls"),
    "dinov3_vit": Family(prefix=1, own_pool="cls"),
    "efficientnet": _CONVOLUTIONS,
    "focalnet": Family(prefix=0, own_pool="avg"),
    "hiera": Family(prefix=0),
    "ijepa": Family(pre_logits="avg", prefix=0, own_pool="avg"),
    "mlcd": Family(prefix=1),
    "mlcd_vision_model": Family(prefix=1),
    "mobilenet_v1": _CONVOLUTIONS,
    "mobilenet_v2": _CONVOLUTIONS,
    "mobilevit": _CONVOLUTIONS,
    "mobilevitv2": _CONVOLUTIONS,
    "regnet": _CONVOLUTIONS,
    "resnet": _CONVOLUTIONS,
    "siglip_vision_model": Family(prefix=0),
    "swin": Family(prefix=0, own_pool="avg"),
    "swinv2": Family(prefix=0, own_pool="avg"),
    "vit": Family(pre_logits="cls", prefix=1, own_pool="cls"),
    "vit_msn": Family(pre_logits="cls", prefix=1, own_pool="cls"),
}
#: Models for images and text, of which only the image encoder is used.
TWO_TOWERS = ("chinese_clip", "clip", "siglip")


class VisionModel(nn.Module):
    """A network of transformers; its standard layers are the outputs of the modules with their names.

    `forward(images)`, with images float32 `(N, 3, S, S)`, returns `pre_logits`, float32 `(N, D)`.
    """

    def __init__(self, config: PreTrainedConfig, image_size: int) -> None:
        super().__init__()
        family = FAMILIES[config.model_type]
        model, options = _class_of(config)
        # The dtype of a checkpoint only matters for its file: features are computed in float32.
        self.network = model._from_config(config, dtype=torch.float32, **options)
        self.tokens, self.pre_logits = nn.Identity(), nn.Identity()
        self.family = family
        self.first_patch = (family.prefix or 0) + getattr(config, "num_register_tokens", 0)
        self.options = _at_size(self.network, config, image_size)

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.network(pixel_values=images, **self.options)
        last = self.tokens(outputs.last_hidden_state)
        pooled: Tensor = self.pre_logits(self._pool(last, outputs).flatten(1))
        return pooled

    def _pool(self, last: Tensor, outputs: Any) -> Tensor:
        if self.family.pre_logits == "pooler":
            pooled: Tensor | None = outputs.pooler_output
            if pooled is None:
                raise InvalidOption("this checkpoint's model has only tokens and no single vector per image")
            return pooled
        parts = {"cls": last[:, 0], "avg": last[:, self.first_patch :].mean(dim=1)}
        return torch.cat([parts[part] for part in self.family.pre_logits.split("+")], dim=1)

    def architecture(self, arguments: Mapping[str, Any]) -> Architecture:
        """The architecture: where the standard layers are, and the token layout."""
        standard, layout = {PRE_LOGITS: Tap(module=PRE_LOGITS)}, None
        if self.family.prefix is not None:
            standard[TOKENS] = Tap(module=TOKENS)
            layout = TokenLayout(
                prefix=self.first_patch, class_token=self.first_patch > 0, own_pool=self.family.own_pool
            )
        root = self.eval().requires_grad_(False)
        return Architecture(root=root, inside="network.", standard=standard, tokens=layout, arguments=arguments)


def tower(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a config for the image encoder. Raises InvalidOption if there is none."""
    part: PreTrainedConfig = config.vision_config if config.model_type in TWO_TOWERS else config
    if part.model_type not in FAMILIES:
        raise InvalidOption(
            f"expected a vision model, got one of the type {part.model_type}",
            hint=f"the types that can be extracted: {', '.join(sorted({*FAMILIES, *TWO_TOWERS}))}",
        )
    part.return_dict = True
    return part


def check_size(model: VisionModel, image_size: int) -> None:
    """Raises InvalidOption unless a model on the meta device accepts images of `image_size` pixels a side."""
    try:
        model.eval()(torch.empty(1, 3, image_size, image_size, device="meta"))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidOption(
            f"a model of this type ({model.network.config.model_type}) cannot take images of {image_size}x{image_size} "
            f"pixels and 3 channels: {one_line(error)}",
            hint="use the size of its weights: leave --image-size out",
        ) from error


def convert_checkpoint(config: PreTrainedConfig, source: Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of this version of transformers, in float32.

    Tensors that the checkpoint lacks are left out, because the library would initialise them randomly.

    Args:
        config: The config of the image encoder.
        source: The tensors under the checkpoint's own names, or a folder with model.safetensors, in one or several
            files.

    Raises:
        WeightsError: There are no safetensors, or the shapes of tensors do not match the config.
    """
    model, options = _class_of(config)
    folder, tensors = (source, None) if isinstance(source, Path) else (None, dict(source))
    try:
        with torch.random.fork_rng(devices=[]):
            network, info = model.from_pretrained(
                folder,
                config=config,
                state_dict=tensors,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"the weights cannot be read according to config.json: {one_line(error)}",
            hint="expected safetensors: pickles (.bin, .pth) can run code and are never read",
        ) from error
    return {key: value for key, value in network.state_dict().items() if key not in info["missing_keys"]}


def _class_of(config: PreTrainedConfig) -> tuple[Any, dict[str, Any]]:
    """AutoModel's class for a config, and its options: it has a pooler only if `pre_logits` needs one."""
    model = MODEL_MAPPING[type(config)]
    if "add_pooling_layer" not in inspect.signature(model.__init__).parameters:
        return model, {}
    return model, {"add_pooling_layer": FAMILIES[config.model_type].pre_logits == "pooler"}


def _at_size(network: nn.Module, config: PreTrainedConfig, image_size: int) -> dict[str, bool]:
    own = getattr(config, "image_size", None)
    can_interpolate = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
    return {"interpolate_pos_encoding": True} if can_interpolate and own not in (image_size, [image_size] * 2) else {}
