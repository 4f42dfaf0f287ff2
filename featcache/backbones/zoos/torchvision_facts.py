"""A table of torchvision's networks: image size, feature size, parameters, operations and weights file.

It makes these numbers available without torch and without weights. A test measures every network and compares.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The cost of a network's default layer at the image size of its weights; later layers are not included.

    `image_size`: pixels a side. `feature_dim`: D. `parameters`: the number of parameters that the layer depends on.
    `gflops`: 10^9 operations for one image, two operations per multiply-add.
    """

    image_size: int
    feature_dim: int
    parameters: int
    gflops: float


@dataclass(frozen=True, kw_only=True)
class DefaultWeights:
    """The file that `--weights default` downloads once, and its size in megabytes (10^6 bytes)."""

    file: str
    megabytes: float

    @property
    def path(self) -> Path:
        """Where torch stores it after the download."""
        return torch_hub_path(self.file)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The costs and default weights of one of torchvision's networks."""

    costs: Costs
    weights: DefaultWeights


def torch_hub_path(file: str) -> Path:
    """Where torch.hub stores a downloaded file, by its own rule; torch is not imported."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", Path(caches) / "torch")).expanduser()
    return home / "hub" / "checkpoints" / file


def _facts(image_size: int, feature_dim: int, parameters: int, gflops: float, file: str, megabytes: float) -> Facts:
    return Facts(
        costs=Costs(image_size=image_size, feature_dim=feature_dim, parameters=parameters, gflops=gflops),
        weights=DefaultWeights(file=file, megabytes=megabytes),
    )


#: Torchvision's classification networks, by name.
TORCHVISION = {
    "alexnet": _facts(224, 9_216, 2_469_696, 1.31, "alexnet-owt-7be5be79.pth", 244.4),
    "convnext_base": _facts(224, 1_024, 87_564_416, 30.71, "convnext_base-6075fbad.pth", 354.5),
    "convnext_large": _facts(224, 1_536, 196_227_264, 68.72, "convnext_large-ea097f82.pth", 791.2),
    "convnext_small": _facts(224, 768, 49_453_152, 17.37, "convnext_small-0c510722.pth", 201.0),
    "convnext_tiny": _facts(224, 768, 27_818_592, 8.91, "convnext_tiny-983f1562.pth", 114.4),
    "densenet121": _facts(224, 1_024, 6_953_856, 5.67, "densenet121-a639ec97.pth", 32.3),
    "densenet161": _facts(224, 2_208, 26_472_000, 15.45, "densenet161-8d451a50.pth", 115.7),
    "densenet169": _facts(224, 1_664, 12_484_480, 6.72, "densenet169-b2777c0a.pth", 57.4),
    "densenet201": _facts(224, 1_920, 18_092_928, 8.58, "densenet201-c1103571.pth", 81.1),
    "efficientnet_b0": _facts(224, 1_280, 4_007_548, 0.77, "efficientnet_b0_rwightman-7f5810bc.pth", 21.4),
    "efficientnet_b1": _facts(240, 1_280, 6_513_184, 1.37, "efficientnet_b1-c27df63c.pth", 31.6),
    "efficientnet_b2": _facts(288, 1_408, 7_700_994, 2.17, "efficientnet_b2_rwightman-c35c1473.pth", 36.9),
    "efficientnet_b3": _facts(300, 1_536, 10_696_232, 3.65, "efficientnet_b3_rwightman-b3899882.pth", 49.5),
    "efficientnet_b4": _facts(380, 1_792, 17_548_616, 8.78, "efficientnet_b4_rwightman-23ab8bcd.pth", 78.1),
    "efficientnet_b5": _facts(456, 2_048, 28_340_784, 20.53, "efficientnet_b5_lukemelas-1a07897c.pth", 122.5),
    "efficientnet_b6": _facts(528, 2_304, 40_735_704, 38.13, "efficientnet_b6_lukemelas-24a108a5.pth", 173.4),
    "efficientnet_b7": _facts(600, 2_560, 63_786_960, 75.49, "efficientnet_b7_lukemelas-c5b4e57e.pth", 267.0),
    "efficientnet_v2_l": _facts(480, 1_280, 117_234_272, 112.16, "efficientnet_v2_l-59c71312.pth", 476.7),
    "efficientnet_v2_m": _facts(480, 1_280, 52_858_356, 49.16, "efficientnet_v2_m-dc08266a.pth", 218.1),
    "efficientnet_v2_s": _facts(384, 1_280, 20_177_488, 16.73, "efficientnet_v2_s-dd5fe13b.pth", 86.7),
    "googlenet": _facts(224, 1_024, 5_599_904, 2.99, "googlenet-1378be20.pth", 52.1),
    "inception_v3": _facts(299, 2_048, 21_785_568, 11.42, "inception_v3_google-0cc3c7bd.pth", 109.0),
    "maxvit_t": _facts(224, 512, 30_143_944, 11.11, "maxvit_t-bc5ab103.pth", 124.5),
    "mnasnet0_5": _facts(224, 1_280, 937_512, 0.21, "mnasnet0.5_top1_67.823-3ffadce67e.pth", 9.0),
    "mnasnet0_75": _facts(224, 1_280, 1_889_208, 0.43, "mnasnet0_75-7090bc5f.pth", 12.9),
    "mnasnet1_0": _facts(224, 1_280, 3_102_312, 0.63, "mnasnet1.0_top1_73.512-f206786ef8.pth", 17.7),
    "mnasnet1_3": _facts(224, 1_280, 5_001_256, 1.05, "mnasnet1_3-a4c69d6f.pth", 25.4),
    "mobilenet_v2": _facts(224, 1_280, 2_223_872, 0.6, "mobilenet_v2-7ebf99e0.pth", 14.3),
    "mobilenet_v3_large": _facts(224, 960, 2_971_952, 0.43, "mobilenet_v3_large-5c1a4163.pth", 22.1),
    "mobilenet_v3_small": _facts(224, 576, 927_008, 0.11, "mobilenet_v3_small-047dcff4.pth", 10.3),
    "regnet_x_16gf": _facts(224, 2_048, 52_229_536, 31.88, "regnet_x_16gf-ba3796d7.pth", 217.7),
    "regnet_x_1_6gf": _facts(224, 912, 8_277_136, 3.2, "regnet_x_1_6gf-a12f2b72.pth", 37.1),
    "regnet_x_32gf": _facts(224, 2_520, 105_290_560, 63.47, "regnet_x_32gf-6eb8fdc6.pth", 432.1),
    "regnet_x_3_2gf": _facts(224, 1_008, 14_287_552, 6.35, "regnet_x_3_2gf-7071aa85.pth", 61.6),
    "regnet_x_400mf": _facts(224, 400, 5_094_976, 0.83, "regnet_x_400mf-62229a5f.pth", 22.3),
    "regnet_x_800mf": _facts(224, 672, 6_586_656, 1.6, "regnet_x_800mf-94a99ebd.pth", 29.3),
    "regnet_x_8gf": _facts(224, 1_920, 37_651_648, 15.99, "regnet_x_8gf-2b70d774.pth", 158.8),
    "regnet_y_128gf": _facts(384, 7_392, 637_419_894, 749.13, "regnet_y_128gf_swag-c8ce3e52.pth", 2581.1),
    "regnet_y_16gf": _facts(224, 3_024, 80_565_140, 31.82, "regnet_y_16gf-3e4a00f9.pth", 335.0),
    "regnet_y_1_6gf": _facts(224, 888, 10_313_430, 3.22, "regnet_y_1_6gf-0d7bc02a.pth", 45.2),
    "regnet_y_32gf": _facts(224, 3_712, 141_333_770, 64.55, "regnet_y_32gf-8db6d4b5.pth", 581.0),
    "regnet_y_3_2gf": _facts(224, 1_512, 17_923_338, 6.35, "regnet_y_3_2gf-9180c971.pth", 78.2),
    "regnet_y_400mf": _facts(224, 440, 3_903_144, 0.8, "regnet_y_400mf-e6988f5f.pth", 17.6),
    "regnet_y_800mf": _facts(224, 784, 5_647_512, 1.67, "regnet_y_800mf-58fc7688.pth", 26.0),
    "regnet_y_8gf": _facts(224, 2_016, 37_364_472, 16.94, "regnet_y_8gf-dc2b1b54.pth", 158.0),
    "resnet101": _facts(224, 2_048, 42_500_160, 15.6, "resnet101-cd907fc2.pth", 178.8),
    "resnet152": _facts(224, 2_048, 58_143_808, 23.02, "resnet152-f82ba261.pth", 241.7),
    "resnet18": _facts(224, 512, 11_176_512, 3.63, "resnet18-f37072fd.pth", 46.8),
    "resnet34": _facts(224, 512, 21_284_672, 7.33, "resnet34-b627a593.pth", 87.3),
    "resnet50": _facts(224, 2_048, 23_508_032, 8.17, "resnet50-11ad3fa6.pth", 102.5),
    "resnext101_32x8d": _facts(224, 2_048, 86_742_336, 32.82, "resnext101_32x8d-110c445d.pth", 356.2),
    "resnext101_64x4d": _facts(224, 2_048, 81_406_272, 30.92, "resnext101_64x4d-173b62eb.pth", 334.8),
    "resnext50_32x4d": _facts(224, 2_048, 22_979_904, 8.46, "resnext50_32x4d-1a0047aa.pth", 100.5),
    "shufflenet_v2_x0_5": _facts(224, 1_024, 341_792, 0.08, "shufflenetv2_x0.5-f707e7126e.pth", 5.5),
    "shufflenet_v2_x1_0": _facts(224, 1_024, 1_253_604, 0.29, "shufflenetv2_x1-5666bf0f80.pth", 9.2),
    "shufflenet_v2_x1_5": _facts(224, 1_024, 2_478_624, 0.59, "shufflenetv2_x1_5-3c479a10.pth", 14.2),
    "shufflenet_v2_x2_0": _facts(224, 2_048, 5_344_996, 1.16, "shufflenetv2_x2_0-8be3c8ee.pth", 29.8),
    "squeezenet1_0": _facts(224, 512, 735_424, 1.46, "squeezenet1_0-b66bff10.pth", 5.0),
    "squeezenet1_1": _facts(224, 512, 722_496, 0.53, "squeezenet1_1-b8a52dc0.pth", 5.0),
    "swin_b": _facts(224, 1_024, 86_743_224, 30.86, "swin_b-68c6b09e.pth", 351.7),
    "swin_s": _facts(224, 768, 48_837_258, 17.48, "swin_s-5e29d889.pth", 199.0),
    "swin_t": _facts(224, 768, 27_519_354, 8.98, "swin_t-704ceda3.pth", 113.4),
    "swin_v2_b": _facts(256, 1_024, 86_905_848, 40.65, "swin_v2_b-781e5279.pth", 352.7),
    "swin_v2_s": _facts(256, 768, 48_968_442, 23.09, "swin_v2_s-637d8ceb.pth", 199.9),
    "swin_v2_t": _facts(256, 768, 27_582_570, 11.88, "swin_v2_t-b137f0e2.pth", 113.9),
    "vgg11": _facts(224, 25_088, 9_220_480, 14.97, "vgg11-8a719046.pth", 531.5),
    "vgg11_bn": _facts(224, 25_088, 9_225_984, 14.97, "vgg11_bn-6002323d.pth", 531.5),
    "vgg13": _facts(224, 25_088, 9_404_992, 22.37, "vgg13-19584684.pth", 532.2),
    "vgg13_bn": _facts(224, 25_088, 9_410_880, 22.37, "vgg13_bn-abd245e5.pth", 532.2),
    "vgg16": _facts(224, 25_088, 14_714_688, 30.69, "vgg16-397923af.pth", 553.4),
    "vgg16_bn": _facts(224, 25_088, 14_723_136, 30.69, "vgg16_bn-6c64b313.pth", 553.5),
    "vgg19": _facts(224, 25_088, 20_024_384, 39.02, "vgg19-dcbb9e9d.pth", 574.7),
    "vgg19_bn": _facts(224, 25_088, 20_035_392, 39.02, "vgg19_bn-c79401a0.pth", 574.8),
    "vit_b_16": _facts(224, 768, 85_798_656, 35.13, "vit_b_16-c867db91.pth", 346.3),
    "vit_b_32": _facts(224, 768, 87_455_232, 8.82, "vit_b_32-d86f8d99.pth", 353.0),
    "vit_h_14": _facts(518, 1_280, 632_189_440, 2033.43, "vit_h_14_swag-80465313.pth", 2534.0),
    "vit_l_16": _facts(224, 1_024, 303_301_632, 123.11, "vit_l_16-852ce7e3.pth", 1217.4),
    "vit_l_32": _facts(224, 1_024, 305_510_400, 30.75, "vit_l_32-c7638314.pth", 1226.3),
    "wide_resnet101_2": _facts(224, 2_048, 124_837_696, 45.5, "wide_resnet101_2-d733dc28.pth", 508.3),
    "wide_resnet50_2": _facts(224, 2_048, 66_834_240, 22.79, "wide_resnet50_2-9ba9bcbe.pth", 275.9),
}
