"""Short names of popular backbones of timm.

`dinov2_vits14` stands for `timm:vit_small_patch14_dinov2.lvd142m`, the name that a cache records.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ShortName:
    """One short name.

    `timm`: timm's name with the tag of the weights. `licence`: the licence of the weights according to timm; None if
    unknown. `gated`: whether the download requires that the licence was accepted on the hub.
    """

    name: str
    timm: str
    licence: str | None
    gated: bool
    about: str


_APACHE, _MIT, _NON_COMMERCIAL, _DINOV3 = "apache-2.0", "mit", "cc-by-nc-4.0", "dinov3-license"

# OpenAI trained CLIP with QuickGELU: timm's networks without it compute other features with the same weights.
_ROWS: tuple[tuple[str, str, str | None, str], ...] = (
    ("beitv2_b16", "beitv2_base_patch16_224.in1k_ft_in22k", _APACHE, "BEiT v2, ViT-B/16, tuned on ImageNet-22k"),
    ("clip_vitb16", "vit_base_patch16_clip_quickgelu_224.openai", _APACHE, "CLIP of OpenAI, ViT-B/16"),
    ("clip_vitb32", "vit_base_patch32_clip_quickgelu_224.openai", _APACHE, "CLIP of OpenAI, ViT-B/32"),
    ("clip_vitl14", "vit_large_patch14_clip_quickgelu_224.openai", _APACHE, "CLIP of OpenAI, ViT-L/14"),
    ("dinov2_vitb14", "vit_base_patch14_dinov2.lvd142m", _APACHE, "DINOv2, ViT-B/14"),
    ("dinov2_vitb14_reg", "vit_base_patch14_reg4_dinov2.lvd142m", _APACHE, "DINOv2 with registers, ViT-B/14"),
    ("dinov2_vitg14", "vit_giant_patch14_dinov2.lvd142m", _APACHE, "DINOv2, ViT-g/14"),
    ("dinov2_vitg14_reg", "vit_giant_patch14_reg4_dinov2.lvd142m", _APACHE, "DINOv2 with registers, ViT-g/14"),
    ("dinov2_vitl14", "vit_large_patch14_dinov2.lvd142m", _APACHE, "DINOv2, ViT-L/14"),
    ("dinov2_vitl14_reg", "vit_large_patch14_reg4_dinov2.lvd142m", _APACHE, "DINOv2 with registers, ViT-L/14"),
    ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m", _APACHE, "DINOv2, ViT-S/14"),
    ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m", _APACHE, "DINOv2 with registers, ViT-S/14"),
    ("dinov3_convnext_base", "convnext_base.dinov3_lvd1689m", _DINOV3, "DINOv3, ConvNeXt base"),
    ("dinov3_convnext_large", "convnext_large.dinov3_lvd1689m", _DINOV3, "DINOv3, ConvNeXt large"),
    ("dinov3_convnext_small", "convnext_small.dinov3_lvd1689m", _DINOV3, "DINOv3, ConvNeXt small"),
    ("dinov3_convnext_tiny", "convnext_tiny.dinov3_lvd1689m", _DINOV3, "DINOv3, ConvNeXt tiny"),
    ("dinov3_vit7b16", "vit_7b_patch16_dinov3.lvd1689m", _DINOV3, "DINOv3, ViT-7B/16"),
    ("dinov3_vitb16", "vit_base_patch16_dinov3.lvd1689m", _DINOV3, "DINOv3, ViT-B/16"),
    ("dinov3_vith16plus", "vit_huge_plus_patch16_dinov3.lvd1689m", _DINOV3, "DINOv3, ViT-H+/16"),
    ("dinov3_vitl16", "vit_large_patch16_dinov3.lvd1689m", _DINOV3, "DINOv3, ViT-L/16"),
    ("dinov3_vits16", "vit_small_patch16_dinov3.lvd1689m", _DINOV3, "DINOv3, ViT-S/16"),
    ("dinov3_vits16plus", "vit_small_plus_patch16_dinov3.lvd1689m", _DINOV3, "DINOv3, ViT-S+/16"),
    ("eva02_b14", "eva02_base_patch14_224.mim_in22k", _MIT, "EVA-02 base at 224, without fine-tuning"),
    ("eva02_l14", "eva02_large_patch14_224.mim_m38m", _MIT, "EVA-02 large at 224, without fine-tuning"),
    ("ijepa_vith14", "vit_huge_patch14_gap_224.in22k_ijepa", _NON_COMMERCIAL, "I-JEPA, ViT-H/14, ImageNet-22k"),
    ("mae_vitb16", "vit_base_patch16_224.mae", _NON_COMMERCIAL, "MAE, ViT-B/16, without fine-tuning"),
    ("openclip_vitb32", "vit_base_patch32_clip_224.laion2b", _APACHE, "CLIP of LAION (2 billion pairs), ViT-B/32"),
    ("openclip_vitl14", "vit_large_patch14_clip_224.laion2b", _APACHE, "CLIP of LAION (2 billion pairs), ViT-L/14"),
    ("pe_core_b16", "vit_pe_core_base_patch16_224.fb", _APACHE, "Perception Encoder core, ViT-B/16 at 224"),
    ("pe_core_l14", "vit_pe_core_large_patch14_336.fb", _APACHE, "Perception Encoder core, ViT-L/14 at 336"),
    ("resnet50_clip", "resnet50_clip.openai", _MIT, "CLIP of OpenAI, ResNet-50"),
    ("siglip2_b16", "vit_base_patch16_siglip_224.v2_webli", _APACHE, "SigLIP 2, ViT-B/16 at 224"),
    ("siglip2_so400m", "vit_so400m_patch14_siglip_224.v2_webli", _APACHE, "SigLIP 2, ViT-SO400M/14 at 224"),
    ("siglip_b16", "vit_base_patch16_siglip_224.webli", _APACHE, "SigLIP, ViT-B/16 at 224"),
)
# Meta's own repositories of DINOv3 are gated; these names stand for timm's copies, which have the same licence and are
# not gated.
_TABLE = {
    name: ShortName(name=name, timm=timm, licence=licence, about=about, gated=False)
    for name, timm, licence, about in _ROWS
}


def short_names() -> tuple[ShortName, ...]:
    """All short names, sorted."""
    return tuple(_TABLE.values())


def full_name(name: str) -> str:
    """`timm:NAME.TAG` for a short name; every other name unchanged."""
    return f"timm:{_TABLE[name].timm}" if name in _TABLE else name
