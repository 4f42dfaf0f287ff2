"""The tensors of a weights file, and the names that a network has for them.

A file may hold several state dicts, each under a key of its own (`state_dict`, `model_ema`, `teacher`), beside what
training left there; and the names in it may begin with what the network was wrapped in (`module.`, `backbone.`).
`read_checkpoint` finds the state dict, `fit_names` the names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbones.foreign_files import MOST_LISTED, listed, plain
from featcache.backbones.weights_files import WeightsFile, is_module, read_weights_file, whole_module
from featcache.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    _Tensors = Mapping[str, Tensor]
    _Keys = tuple[str, ...]

_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "backbone",
    "encoder",
    "student",
    "params",
    "weights",
)
# Averages of the weights over training steps.
_AVERAGED = re.compile(r"(^|[._])(ema|swa|teacher|shadow|averaged|momentum|target)([._]|$)", re.IGNORECASE)
# What optimisers and loops keep has tensors too, and they are no weights.
_OF_TRAINING = ("optim", "sched", "lr_sched", "scaler", "callback", "loops", "rng", "amp")
# torch puts these into names, at any depth, where a part of a network is wrapped.
_WRAPPED_PARTS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# What a file that holds a network's parts one by one (`encoder`, `head`) is tried as, after each part.
_PARTS = "all its parts"
_DEEPEST = 4
_MOST_EXPECTED = 4
# Some names (`norm.weight`) match by chance, and with a prefix taken off many do: the least share of the expected names
# that must match.
_LEAST = 0.1
_LEAST_CHANGED = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """One state dict of a weights file, on the CPU, with names, dtypes and shapes as stored.

    `metadata`: of safetensors. `others`: further state dicts of the same file by their keys, in the order in which
    they are tried. `key`: where `tensors` lie in the file (`model.state_dict`; empty: at its top).
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()
    key: str = ""
    others: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """The state dict of a weights file: safetensors, an index of its shards, or a file of torch.save.

    Nothing in the file is executed. Where it holds several state dicts, an average over training (EMA, a teacher) is
    taken only if there is no other; which one was taken is a note, and so is what is left out.

    Args:
        path: the file; its content decides how it is read.

    Returns:
        The tensors; they may be mapped into memory, so the file must stay as it is while they are used.

    Raises:
        WeightsError: there is no such file, it cannot be opened now, or it holds no state dict.
    """
    file = read_weights_file(path)
    found = dict(_state_dicts(file.content, ()))
    if not found:
        raise _no_state_dict(path, file)
    first, *rest = _in_order(found)
    others = {".".join(keys): found[keys] for keys in rest}
    if len(found) > 1:
        others[_PARTS] = {
            ".".join((*keys, name)): value for keys, part in found.items() for name, value in part.items()
        }
    return Checkpoint(
        path=path,
        tensors=found[first],
        metadata=file.metadata,
        notes=(*file.notes, *_several(first, rest), *_left_out(file.content, first, rest)),
        key=".".join(first),
        others=others,
    )


# --- the state dict ----------------------------------------------------------------------------------------


def _state_dicts(content: object, keys: _Keys) -> Iterator[tuple[_Keys, _Tensors]]:
    """Every mapping of names to tensors in `content`, by the keys that lead to it."""
    import torch

    if not isinstance(content, Mapping) or len(keys) > _DEEPEST:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    if tensors := {key: value for key, value in named.items() if torch.is_tensor(value)}:
        yield keys, tensors
    for key, value in named.items():
        if not key.lower().startswith(_OF_TRAINING):
            yield from _state_dicts(value, (*keys, key))


def _in_order(found: Mapping[_Keys, _Tensors]) -> list[_Keys]:
    """The state dicts as they are tried; small ones (a head, a loss, single numbers) are left out."""
    most = max(len(tensors) for tensors in found.values())
    whole = [keys for keys, tensors in found.items() if 4 * len(tensors) >= most]
    return sorted(whole, key=lambda keys: (*_rank(".".join(keys)), -len(found[keys])))


def _rank(key: str) -> tuple[bool, int]:
    """Smaller is preferred."""
    return _is_averaged(key), 2 if key == _PARTS else int(key.rpartition(".")[2] not in ("", *_WRAPPERS))


def _is_averaged(text: str) -> bool:
    return _AVERAGED.search(text) is not None


def _several(first: _Keys, rest: Collection[_Keys]) -> tuple[str, ...]:
    if not rest:
        return ()
    others = listed([_place(".".join(keys)) for keys in rest])
    return (f"the file holds {len(rest) + 1} state dicts: read {_place('.'.join(first))}, not {others}",)


def _place(key: str) -> str:
    return plain(key) or "the one at its top"


def _left_out(content: object, first: _Keys, rest: Collection[_Keys]) -> tuple[str, ...]:
    """What lies beside the state dict, and in it, and is none of its tensors."""
    import torch

    beside = []
    for depth in range(len(first) + 1):
        entries: Mapping[object, object] = content if isinstance(content, Mapping) else {}
        ways = {keys[depth] for keys in (first, *rest) if keys[:depth] == first[:depth] and len(keys) > depth}
        kept = {name for name, value in entries.items() if isinstance(name, str) and torch.is_tensor(value)}
        is_state_dict = first[:depth] in (first, *rest)
        passed = ways | (kept if is_state_dict else set())
        beside += [f"{name} ({_type_of(value)})" for name, value in entries.items() if name not in passed]
        content = entries.get(first[depth]) if depth < len(first) else None
    return (f"left out: {listed(beside)}",) if beside else ()


def _type_of(value: object) -> str:
    return type(value).__qualname__


def _no_state_dict(path: Path, file: WeightsFile) -> WeightsError:
    if is_module(file.classes):
        return whole_module(path, file.classes)
    content = file.content
    if not isinstance(content, Mapping):
        got = plain(_type_of(content))
    else:
        got = listed([f"{key} ({_type_of(value)})" for key, value in content.items()]) or "an empty mapping"
    return WeightsError(
        f"{path}: expected a state dict (names and tensors), got {got}",
        hint="save it with torch.save(network.state_dict(), PATH), or as safetensors",
    )


# --- the names ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    """One way to bring names to those that are expected."""

    key: str
    tensors: _Tensors
    off: str = ""
    on: str = ""
    without_wrapped: bool = False
    matched: frozenset[str]
    instead_of: tuple[str, ...] = ()

    @property
    def preference(self) -> tuple[int, int, int, bool, int]:
        """Smaller is preferred; ways that differ in nothing here must not differ in their tensors."""
        averaged, rank = _rank(self.key)
        steps = 2 * bool(self.on) + bool(self.on and self.off)
        return -len(self.matched), averaged or _is_averaged(self.off), rank, self.without_wrapped, steps

    @property
    def least(self) -> float:
        """The share of the expected names below which this is chance."""
        return _LEAST_CHANGED if self.off or self.on or self.without_wrapped else _LEAST

    @property
    def shown(self) -> str:
        names = self.off or "the names as they are"
        return plain(f"{self.key}: {names}" if self.key else names)


def fit_names(checkpoint: Checkpoint, expected: Collection[str]) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """The checkpoint's tensors by the names that a network has for them.

    A prefix that the names have in common (`module.`, `encoder.backbone.`, ...) is taken off, or one that all expected
    names have is put on: whichever makes most expected names match. A further state dict of the same file is taken
    where it matches more.

    Args:
        checkpoint: what `read_checkpoint` returned, or the same with `tensors` replaced by converted ones.
        expected: the network's own names.

    Returns:
        The tensors by their new names, further ones included, with dtypes and shapes as stored; and
        notes on what was changed. A name that is expected and not in the file is left to the caller.

    Raises:
        WeightsError: hardly any name matches; two prefixes match equally well and their tensors differ; or a tensor
            that is expected is quantised, complex, sparse or without data.
    """
    wanted = frozenset(expected)
    # Of state dicts under keys that say nothing, none is taken without a look at the others.
    chosen = not checkpoint.others or not _rank(checkpoint.key)[1]
    if not wanted or (chosen and wanted <= checkpoint.tensors.keys()):
        taken = _Fit(key=checkpoint.key, tensors=checkpoint.tensors, matched=wanted)
    else:
        taken = _best_fit(checkpoint, wanted)
    for name in sorted(taken.matched):
        _refuse_unusual(checkpoint.path, name, taken.tensors[name])
    return taken.tensors, _changes(checkpoint, taken)


def _best_fit(checkpoint: Checkpoint, wanted: frozenset[str]) -> _Fit:
    state_dicts = {checkpoint.key: checkpoint.tensors, **checkpoint.others}
    ways = (fit for key, tensors in state_dicts.items() for fit in _fits(key, tensors, wanted))
    fits = [fit for fit in ways if len(fit.matched) >= fit.least * len(wanted)]
    if not fits:
        raise _nothing_matches(checkpoint, wanted)
    # Of equal ones, that of the state dict that comes first, with the shortest prefix.
    best = min(fits, key=lambda fit: (fit.preference, [*state_dicts].index(fit.key), len(fit.off)))
    # Among keys that are known their order is a rule, among others it is not.
    rivals = [fit for fit in fits if fit.preference == best.preference and (fit.key == best.key or best.preference[2])]
    if differing := [fit for fit in rivals if not _same(fit, best)]:
        shown = list(dict.fromkeys(fit.shown for fit in (best, *differing)))
        raise WeightsError(
            f"{checkpoint.path}: {len(best.matched)} of {len(wanted)} expected names are found in {len(shown)} ways, "
            f"with different tensors: {listed(shown, separator=' | ')}",
            hint="save the state dict that you mean as a file of its own, without the others",
        )
    same_way = [fit for fit in fits if (fit.key, fit.without_wrapped) == (best.key, best.without_wrapped)]
    averaged = [fit.off for fit in same_way if _is_averaged(fit.off) and len(fit.matched) == len(best.matched)]
    return replace(best, instead_of=tuple(dict.fromkeys(off for off in averaged if off != best.off)))


def _fits(key: str, tensors: _Tensors, wanted: frozenset[str]) -> Iterator[_Fit]:
    """Every prefix that makes a name match, for one state dict."""
    yield from _prefixed(key, tensors, wanted, without_wrapped=False)
    shorter = {name: ".".join(part for part in name.split(".") if part not in _WRAPPED_PARTS) for name in tensors}
    if len({*shorter.values()}) == len(shorter) and any(name != short for name, short in shorter.items()):
        renamed = {short: tensors[name] for name, short in shorter.items()}
        yield from _prefixed(key, renamed, wanted, without_wrapped=True)


def _prefixed(key: str, tensors: _Tensors, wanted: frozenset[str], *, without_wrapped: bool) -> Iterator[_Fit]:
    for on in _common_prefixes(wanted):
        rests = {name.removeprefix(on) for name in wanted}
        counted = Counter(off for name in tensors for off, rest in _splits(name) if rest in rests)
        most = max(counted.values(), default=0)
        for off in (off for off, count in counted.items() if count == most):
            renamed = {on + name.removeprefix(off): value for name, value in tensors.items() if name.startswith(off)}
            matched = wanted & renamed.keys()
            yield _Fit(
                key=key, tensors=renamed, off=off, on=on, without_wrapped=without_wrapped, matched=frozenset(matched)
            )


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """`a.b.c` -> ("", "a.b.c"), ("a.", "b.c"), ("a.b.", "c")."""
    yield "", name
    for place, letter in enumerate(name[:-1], start=1):
        if letter == ".":
            yield name[:place], name[place:]


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """The dotted prefixes that all names have, the empty one first."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = takewhile(lambda column: len(set(column)) == 1, columns)
    return ["", *accumulate(f"{column[0]}." for column in shared)]


def _same(one: _Fit, other: _Fit) -> bool:
    import torch

    def equal(left: Tensor, right: Tensor) -> bool:
        if left is right:
            return True
        usual = not _unusual("", left) and not _unusual("", right)
        return usual and left.dtype == right.dtype and torch.equal(left, right)

    return one.matched == other.matched and all(equal(one.tensors[name], other.tensors[name]) for name in one.matched)


def _nothing_matches(checkpoint: Checkpoint, wanted: Collection[str]) -> WeightsError:
    return WeightsError(
        f"{checkpoint.path}: its {len(checkpoint.tensors):,} names are not the {len(wanted):,} of the network: got "
        f"{listed(checkpoint.tensors, MOST_LISTED)}; expected {listed(sorted(wanted), _MOST_EXPECTED)}",
        hint="these are weights of another network, or of another library's version of it",
    )


def _changes(checkpoint: Checkpoint, taken: _Fit) -> tuple[str, ...]:
    notes = []
    if taken.key != checkpoint.key:
        notes.append(
            f"taken from the file: {_place(taken.key)}, which has more of the network's names than "
            f"{_place(checkpoint.key)}"
        )
    if taken.without_wrapped:
        parts = {part for name in checkpoint.tensors for part in name.split(".")} & _WRAPPED_PARTS
        notes.append(f"taken out of the names: {listed(sorted(parts))}")
    if taken.off:
        instead = f" (not {listed(taken.instead_of)}, which fits as well)" if taken.instead_of else ""
        notes.append(f"taken off the names: {plain(taken.off)}{instead}")
    if taken.on:
        notes.append(f"put before the names: {plain(taken.on)}")
    return tuple(notes)


# --- kinds of tensors --------------------------------------------------------------------------------------


def _refuse_unusual(path: Path, name: str, tensor: Tensor) -> None:
    if unusual := _unusual(name, tensor):
        raise WeightsError(
            f"{path}: expected {plain(name)} as float32, float64, float16 or bfloat16, got {unusual}",
            hint="give the weights as they were before that conversion",
        )


def _unusual(name: str, tensor: Tensor) -> str | None:
    """What makes a tensor unusable as weights; None for a usual one."""
    import torch

    if tensor.is_quantized or (tensor.is_floating_point() and tensor.element_size() == 1):
        return f"a quantised tensor ({_dtype(tensor)})"
    if tensor.is_complex():
        return f"a complex tensor ({_dtype(tensor)})"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_meta:
        return "a tensor without data (device meta)"
    # Buffers may be integers (tables of indices, counters); packed weights are quantised ones.
    if name.endswith(("weight", "bias")) and not tensor.is_floating_point():
        return f"integers ({_dtype(tensor)}), as quantised weights are stored"
    return None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
