"""Finds the state dict in a weights file, and matches its names to those of a network.

A file may hold several state dicts, each under its own key (`state_dict`, `model_ema`, `teacher`), together with the
state of the training; and its names may begin with the name of a wrapper (`module.`, `backbone.`). `read_checkpoint`
finds the state dict, `fit_names` matches the names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbones.weights_files import STATE_DICT_HINT, first_names, plain, read_weights_file
from featcache.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

# Averages of the weights over training steps: used only if nothing else matches as well.
_AVERAGED = re.compile(r"(^|[._])(ema|swa|teacher|shadow|averaged|momentum|target)([._]|$)", re.IGNORECASE)
# The state of optimisers and training loops contains tensors that are no weights.
_OF_TRAINING = ("optim", "sched", "lr_sched", "scaler", "callback", "loops", "rng", "amp")
# torch inserts these into names, at any depth, if a part of a network is wrapped.
_WRAPPED_PARTS = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_DEEPEST = 4
# The least share of the expected names that must match: without a prefix some (`norm.weight`) match by chance.
_LEAST_MATCHED = 0.5
# Integers of 32 and 64 bits are index tables and counters; smaller integers would be packed weights.
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """One state dict of a weights file, on the CPU, with names, dtypes and shapes as stored.

    Args:
        path: The file.
        held: Every tensor of the file that may be a weight; its name includes the keys that lead to it
            (`state_dict.conv.weight`).
        key: The keys that lead to the state dict, with a dot at the end (`state_dict.`; empty: the top of the file).
        metadata: The metadata of safetensors.
        notes: What was read and what was left out.
    """

    path: Path
    held: Mapping[str, Tensor]
    key: str
    metadata: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The state dict with its own names."""
        return _after(self.key, self.held)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the state dict of a weights file: safetensors, or a file of torch.save.

    Nothing in the file is executed. Of several state dicts the largest is used; an average over training (EMA, a
    teacher) only if there is no other. Notes name the state dict that was used and what was left out.

    Args:
        path: The file; its content decides how it is read.

    Raises:
        WeightsError: There is no such file, it cannot be opened now, or it holds no state dict.
    """
    content, metadata = read_weights_file(path)
    state_dicts = dict(_state_dicts(content, ""))
    if not state_dicts:
        raise _no_state_dict(path, content)
    most = max(len(tensors) for tensors in state_dicts.values())
    # Much smaller ones are heads, losses or single numbers, not the network.
    whole = {key: len(tensors) for key, tensors in state_dicts.items() if 4 * len(tensors) >= most}
    key = max(whole, key=lambda key: (not _AVERAGED.search(key), whole[key]))
    held = {keys + name: tensor for keys, tensors in state_dicts.items() for name, tensor in tensors.items()}
    unused = [
        name for name in content if name not in held and not any(keys.startswith(f"{name}.") for keys in state_dicts)
    ]
    others = [_printable(other) for other in whole if other != key]
    choice = f"the file holds {len(whole)} state dicts: read {_printable(key)}, not {first_names(others)}"
    several = choice if others else ""
    left_out = f"left out: {first_names(map(str, unused))}" if unused else ""
    notes = tuple(note for note in (several, left_out) if note)
    return Checkpoint(path=path, held=held, key=key, metadata=metadata, notes=notes)


def fit_names(checkpoint: Checkpoint, expected: Collection[str]) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """The checkpoint's tensors under the names of a network.

    Removes the prefix (`module.`, `encoder.backbone.`, `state_dict.`, ...) with which most expected names match.

    Args:
        checkpoint: What `read_checkpoint` returned.
        expected: The network's own names.

    Returns:
        All tensors with the prefix under their new names, with dtypes and shapes as stored; and notes on what was
        changed. Expected names may be missing: the caller checks this.

    Raises:
        WeightsError: Almost no name matches; two prefixes match equally well; or an expected tensor is
            quantised, complex, sparse or without data.
    """
    wanted = frozenset(expected)
    held, key, notes = checkpoint.held, checkpoint.key, []
    unwrapped = {_WRAPPED_PARTS.sub("", name): tensor for name, tensor in held.items()}
    counted, counted_unwrapped = _matches(held, wanted), _matches(unwrapped, wanted)
    if max(counted.values(), default=0) < max(counted_unwrapped.values(), default=0):
        held, key, counted = unwrapped, _WRAPPED_PARTS.sub("", key), counted_unwrapped
        notes.append("removed from the names: the wrappers of parts of the network (module, _orig_mod, ...)")
    prefix = _best_prefix(checkpoint, counted, wanted)
    tensors = _after(prefix, held)
    for name in sorted(wanted & tensors.keys()):
        _refuse_unusual(checkpoint.path, name, tensors[name])
    if not prefix.startswith(key):
        notes.append(f"more of the network's names match under {_printable(prefix)} than under {_printable(key)}")
    elif prefix != key:
        notes.append(f"removed from the names: {plain(prefix.removeprefix(key))}")
    return tensors, tuple(notes)


# --- the state dict ----------------------------------------------------------------------------------------


def _state_dicts(content: object, key: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every mapping of names to tensors in `content`, by the keys that lead to it."""
    import torch

    if not isinstance(content, Mapping) or key.count(".") > _DEEPEST:
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    if tensors := {name: value for name, value in named.items() if torch.is_tensor(value)}:
        yield key, tensors
    for name, value in named.items():
        if not name.lower().startswith(_OF_TRAINING):
            yield from _state_dicts(value, f"{key}{name}.")


def _no_state_dict(path: Path, content: object) -> WeightsError:
    got = plain(type(content).__qualname__)
    if isinstance(content, Mapping):
        got = first_names(f"{key} ({type(value).__qualname__})" for key, value in content.items()) or "an empty mapping"
    return WeightsError(f"{path}: expected a state dict (names and tensors), got {got}", hint=STATE_DICT_HINT)


def _printable(key: str) -> str:
    return plain(key.removesuffix(".")) or "the top of the file"


# --- the names ---------------------------------------------------------------------------------------------


def _matches(held: Collection[str], wanted: Collection[str]) -> Counter[str]:
    """For each prefix of the names in a file: how many names match the network's after its removal."""
    # `a.b.c` has the prefixes "", "a." and "a.b.".
    splits = ((name, end) for name in held for end in (0, *(dot.end() for dot in re.finditer(r"\.", name))))
    return Counter(name[:end] for name, end in splits if name[end:] in wanted)


def _after(prefix: str, held: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}


def _best_prefix(checkpoint: Checkpoint, counted: Counter[str], wanted: Collection[str]) -> str:
    most = max(counted.values(), default=0)
    best = [prefix for prefix, count in counted.items() if count == most]
    if most == 0 or ("" not in best and most < _LEAST_MATCHED * len(wanted)):
        raise _nothing_matches(checkpoint, wanted)
    # Unchanged names are preferred, and averages are the last choice.
    best = [""] if "" in best else [prefix for prefix in best if not _AVERAGED.search(prefix)] or best
    if len(best) > 1:
        raise WeightsError(
            f"{checkpoint.path}: {most} of {len(wanted)} expected names are found under each of {first_names(best)}",
            hint="save the state dict that you mean as a file of its own, without the others",
        )
    return best[0]


def _nothing_matches(checkpoint: Checkpoint, wanted: Collection[str]) -> WeightsError:
    return WeightsError(
        f"{checkpoint.path}: its {len(checkpoint.tensors):,} names are not the {len(wanted):,} of the network: got "
        f"{first_names(checkpoint.tensors)}; expected {first_names(sorted(wanted))}",
        hint="these are weights of another network, or of another library's version of it",
    )


def _refuse_unusual(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse tensors that cannot be converted to floats correctly: quantised, complex, sparse, without data."""
    dtype, layout = (str(kind).removeprefix("torch.") for kind in (tensor.dtype, tensor.layout))
    if dtype not in _DTYPES or layout != "strided" or tensor.is_meta:
        raise WeightsError(
            f"{path}: expected {plain(name)} as plain numbers ({', '.join(_DTYPES)}), got {dtype}, {layout}, on "
            f"{tensor.device}",
            hint="give the weights as they were before they were converted",
        )
