"""A backbone and its head as one module of torch, to train both together.

    from model import load

    model = load()                                    # or load(FOLDER)
    images = model.transform(Image.open(path).convert("RGB"))[None]
    outputs = model(images)                           # logits of classes, or numbers

`featcache export RUN --format torch` writes this file as model.py, with config.json and model.safetensors beside it. It
needs torch, torchvision and safetensors (and timm, for a backbone of timm's), but not featcache.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import transforms


def load(folder: str | Path | None = None) -> ImageClassifier:
    """Read an exported folder (None: the folder of this file): the module in eval mode, on the CPU."""
    folder = Path(__file__).parent if folder is None else Path(folder)
    model = ImageClassifier(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


class ImageClassifier(nn.Module):
    """Backbones and a head: images (N, 3, S, S) -> logits of classes, or numbers in their units, (N, C).

    Attributes:
        config: The content of config.json; `config["target"]` names the C outputs.
        transform: A Pillow image in RGB -> uint8 (3, S, S), the input. For training, random changes may follow.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.transform = _transform(config["image"])
        self.backbones = nn.ModuleList(Backbone(backbone) for backbone in config["backbones"])
        layers = ((name, getattr(nn, kind)(*arguments)) for name, kind, arguments in config["head"])
        self.head = nn.Sequential(OrderedDict(layers))

    def forward(self, images: Tensor) -> Tensor:
        """Images as uint8, or as floats from 0 to 1."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        features = [values for backbone in self.backbones for values in backbone(pixels)]
        outputs: Tensor = self.head(torch.cat(features, dim=1))
        return outputs

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities of classes, or numbers: (N, C). Call `eval()` before."""
        outputs: Tensor = self(images)
        kind = self.config["target"]["kind"]
        if kind == "classes":
            return outputs.softmax(dim=1)
        return outputs.sigmoid() if kind == "lists" else outputs


class Backbone(nn.Module):
    """A network and the layers that are read from it: floats from 0 to 1 (N, 3, S, S) -> a list of (N, D).

    `network` is the library's own module; parts that no layer needs are replaced by nn.Identity.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.library: str = config["library"]
        self.layers: list[dict[str, Any]] = config["layers"]
        self.network = _network(config)
        for path in config["unused"]:
            self.network.set_submodule(path, nn.Identity())
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name]).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        values = self._read(pixels)
        return [
            _pool(values[layer["name"]], layer["pooling"]) * layer["scale"] + layer["offset"] for layer in self.layers
        ]

    def _read(self, pixels: Tensor) -> dict[str, Tensor]:
        """The layers' values; the network runs until all of them were computed."""
        if self.library == "pixels":
            return {layer["name"]: pixels * 255 for layer in self.layers}
        reading = _Reading(self.layers, self.network)
        try:
            images = (pixels - self.mean) / self.std
            if self.library == "timm":
                reading.note("tokens", self.network.forward_features(images))
                reading.note("pre_logits", self.network.forward_head(reading.tokens, pre_logits=True))
                reading.note("logits", self.network.forward_head(reading.tokens))
            else:
                self.network(images)
        except _AllRead:
            return reading.values
        finally:
            reading.end()
        raise RuntimeError(f"the network computed none of {[layer['name'] for layer in self.layers]}")


class _AllRead(Exception):
    """All layers were computed: the rest of the network can be skipped."""


class _Reading:
    """One forward pass: notes the values of layers where modules get or give them."""

    def __init__(self, layers: list[dict[str, Any]], network: nn.Module) -> None:
        self.values: dict[str, Tensor] = {}
        self.tokens: Any = None
        self._calls = {layer["name"]: layer["calls"] for layer in layers}
        self._hooks = [self._watch(network, layer) for layer in layers if layer["module"] is not None]

    def _watch(self, network: nn.Module, layer: dict[str, Any]) -> Any:
        module, name = network.get_submodule(layer["module"]), layer["name"]
        if layer["side"] == "input":
            return module.register_forward_pre_hook(lambda _, arguments: self.note(name, arguments))
        return module.register_forward_hook(lambda _, arguments, output: self.note(name, output))

    def note(self, name: str, value: Any) -> None:
        """Keep a layer's value: that of the last call."""
        if name == "tokens":
            self.tokens = value
        if name not in self._calls:
            return
        self._calls[name] -= 1
        if self._calls[name] > 0:
            return
        while not isinstance(value, Tensor):
            value = next(iter(value.values() if isinstance(value, dict) else value))
        # Later operations may change it in place.
        self.values[name] = value.clone()
        if len(self.values) == len(self._calls):
            raise _AllRead

    def end(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


def _network(config: dict[str, Any]) -> Any:
    if config["library"] == "pixels":
        return nn.Identity()
    if config["library"] == "timm":
        import timm

        return timm.create_model(config["name"], **config["arguments"])
    from torchvision.models import get_model

    return get_model(config["name"], weights=None, **config["arguments"])


def _transform(image: dict[str, Any]) -> transforms.Compose:
    """Resize by Pillow, and take the centre where the images were cropped."""
    side, shorter = image["size"], image["shorter_side"]
    resize = transforms.Resize(
        [side, side] if shorter is None else shorter, transforms.InterpolationMode(image["interpolation"])
    )
    return transforms.Compose([resize, transforms.CenterCrop(side), transforms.PILToTensor()])


def _pool(values: Tensor, pooling: dict[str, Any]) -> Tensor:
    """(N, ...) -> (N, D): flattened, averaged over positions, or the class token."""
    parts = []
    if pooling["name"] == "none":
        parts.append(values)
    if pooling["name"] in ("cls", "cls+avg"):
        parts.append(values[:, 0])
    if pooling["name"] in ("avg", "cls+avg"):
        parts.append(
            values[:, pooling["prefix"] :].mean(dim=pooling["positions"])
            if pooling["prefix"]
            else values.mean(dim=pooling["positions"])
        )
    return torch.cat([part.flatten(start_dim=1) for part in parts], dim=1)
