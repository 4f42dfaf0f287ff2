"""Compares heads with bare PyTorch: `python benchmarks/heads.py [--only sweep] [--cache CACHE]`.

Each part compares featcache with loops that do the same arithmetic and nothing else, in one run. Ratios are featcache's
seconds over those of the loop: below 1, featcache is faster. Parts that are not run keep their results.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from features import CLASSES, write_features
from head_epochs import part_epochs, part_logreg, part_streaming
from machine import RESULTS, machine, write
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.cache import FeatureCache
from featcache.heads.architectures import build_head
from featcache.heads.config import HeadConfig
from featcache.rows.batches import epoch_order
from featcache.rows.cuts import cut_cache
from featcache.runs.fit import fit_head
from featcache.sweeps.plan import SweepPlan
from featcache.sweeps.sweeping import sweep_heads
from featcache.training.stacking import head_shape

BATCH = 64


# --- bare loops --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Train and val in memory as float16, with mean and scale for standardisation."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, cache: FeatureCache) -> Rows:
        """The rows that train_head would use."""
        cut = cut_cache(cache, val_fraction=0.2, val_seed=42)
        train, val = (
            torch.from_numpy(np.asarray(cache[part.source].features.gather(part.rows))) for part in (cut.train, cut.val)
        )
        labels: list[NDArray[np.int64]] = [cut.train.targets, cut.val.targets]
        deviation, mean = torch.std_mean(train.float(), dim=0, correction=0)
        train_labels, val_labels = map(torch.from_numpy, labels)
        return cls(
            train=train, train_labels=train_labels, val=val, val_labels=val_labels, mean=mean, scale=1 / deviation
        )

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in featcache's order."""
        row_bytes = 2 * self.train.shape[1]
        order = epoch_order(len(self.train), batch_size=BATCH, row_bytes=row_bytes, seed=0, epoch=number)
        for chosen in torch.split(order, BATCH):
            yield self.standardise(self.train.index_select(0, chosen)), self.train_labels.index_select(0, chosen)

    def standardise(self, stored: Tensor) -> Tensor:
        """float16 -> float32 with mean 0 and standard deviation 1."""
        return (stored.float() - self.mean).mul_(self.scale)

    def val_loss(self, logits: Callable[[Tensor], Tensor]) -> float:
        """The loss on val, of one head, or the sum over several heads."""
        with torch.inference_mode():
            losses = [
                _loss(logits(self.standardise(features)), labels)
                for features, labels in zip(
                    torch.split(self.val, 4096), torch.split(self.val_labels, 4096), strict=True
                )
            ]
        return float(sum(losses))


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    # (B, C), or (H, B, C) for the sum over the heads of their mean losses.
    if logits.dim() == 2:
        return F.cross_entropy(logits, labels)
    heads = len(logits)
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(heads)) * heads


def bare_single(rows: Rows, config: HeadConfig) -> float:
    """Seconds to train one head in a plain loop, as in a notebook."""
    torch.manual_seed(config.seed)
    head = build_head(config.architecture, head_shape(config, rows.train.shape[1], CLASSES))
    optimizer = torch.optim.Adam(head.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    began = time.perf_counter()
    for epoch in range(config.max_epochs):
        head.train()
        for features, labels in rows.epoch(epoch):
            optimizer.zero_grad()
            torch.autograd.backward(_mixup_loss(head, features, labels, config.mixup))
            optimizer.step()
        rows.val_loss(head.eval())
    return time.perf_counter() - began


def _mixup_loss(head: Callable[[Tensor], Tensor], features: Tensor, labels: Tensor, mixup: float) -> Tensor:
    """The loss of a batch; with mixup, of the batch mixed with itself in another order."""
    if not mixup:
        return _loss(head(features), labels)
    share, partner = float(torch.distributions.Beta(mixup, mixup).sample()), torch.randperm(len(labels))
    logits = head(torch.lerp(features[partner], features, share))
    return share * _loss(logits, labels) + (1 - share) * _loss(logits, labels[partner])


def bare_stacked(rows: Rows, configs: Sequence[HeadConfig]) -> float:
    """Seconds to train all heads as stacked tensors (H, O, I), with one parameter group per learning rate.

    `configs` with the same learning rate must be adjacent. Weight decay is added to the gradients.
    """
    head = _StackedHeads(configs, rows.train.shape[1])
    optimizer = torch.optim.Adam(head.groups(), fused=True)
    began = time.perf_counter()
    for epoch in range(configs[0].max_epochs):
        for features, labels in rows.epoch(epoch):
            torch.autograd.backward(_mixup_loss(head, features, labels, configs[0].mixup))
            head.split_gradients()
            optimizer.step()
        head.training = False
        rows.val_loss(head)
        head.training = True
    return time.perf_counter() - began


class _StackedHeads:
    """One tensor per layer for all heads; the optimiser gets a view of it for every learning rate."""

    def __init__(self, configs: Sequence[HeadConfig], wide: int) -> None:
        sizes = (wide, *configs[0].architecture.hidden, CLASSES)
        self.heads = len(configs)
        self.decay = torch.tensor([config.weight_decay for config in configs])
        self.rates = [config.lr for config in configs]
        self.tensors: list[Tensor] = []
        self.training, self.normed = True, configs[0].batch_norm
        self.statistics = [(torch.zeros(self.heads * out), torch.ones(self.heads * out)) for out in sizes[1:-1]]
        for deep, out in itertools.pairwise(sizes):
            layer = nn.Linear(deep, out)
            # Gains and shifts of the batch norm after a hidden layer.
            more = (
                (torch.ones(out), torch.zeros(out)) if self.normed and len(self.tensors) < 4 * len(sizes[1:-1]) else ()
            )
            for tensor in (layer.weight, layer.bias, *more):
                self.tensors.append(tensor.detach().repeat(self.heads, *(1,) * tensor.dim()).requires_grad_())
        starts = [number for number in range(self.heads) if number == 0 or self.rates[number] != self.rates[number - 1]]
        self.parts = [slice(a, b) for a, b in zip(starts, [*starts[1:], self.heads], strict=True)]
        self.views = [[tensor.detach()[part] for tensor in self.tensors] for part in self.parts]

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the optimiser, one per learning rate."""
        return [
            {"params": views, "lr": self.rates[part.start]} for part, views in zip(self.parts, self.views, strict=True)
        ]

    def split_gradients(self) -> None:
        """Move the gradients of the tensors to their views, with weight decay added."""
        for number, tensor in enumerate(self.tensors):
            assert tensor.grad is not None
            tensor.grad.addcmul_(tensor.detach(), self.decay.view(-1, *(1,) * (tensor.dim() - 1)))
            for part, views in zip(self.parts, self.views, strict=True):
                views[number].grad = tensor.grad[part]
            tensor.grad = None

    def __call__(self, features: Tensor) -> Tensor:
        """(B, D) -> (H, B, C)."""
        each = 4 if self.normed else 2
        weight, bias = self.tensors[0], self.tensors[1]
        values = F.linear(features, weight.flatten(0, 1), bias.flatten()).view(len(features), self.heads, -1)
        values = values.transpose(0, 1)
        for number, at in enumerate(range(each, len(self.tensors), each)):
            if self.normed:
                values = self._norm(values, number, self.tensors[at - 2], self.tensors[at - 1])
            deep, offset = self.tensors[at], self.tensors[at + 1]
            values = torch.baddbmm(offset[:, None], torch.relu(values), deep.transpose(1, 2))
        return values

    def _norm(self, values: Tensor, number: int, gain: Tensor, shift: Tensor) -> Tensor:
        flat = values.transpose(0, 1).flatten(1)
        mean, variance = self.statistics[number]
        normed = F.batch_norm(flat, mean, variance, gain.flatten(), shift.flatten(), training=self.training)
        return normed.view(len(flat), self.heads, -1).transpose(0, 1)


# --- parts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Size:
    """The sizes of a part; `cache`: real features, for the part that needs them."""

    rows: int
    heads: int
    epochs: int
    cache: Path | None


def part_sweep(folder: Path, size: Size) -> dict[str, Any]:
    """A grid of heads in one sweep, against bare stacked tensors, bare loops per head, and one run per head."""
    cases: tuple[tuple[str, int, dict[str, Any]], ...] = (
        ("linear", 64, {}),
        ("linear", 2048, {}),
        ("mlp:128,64", 2048, {}),
        ("mlp:128,64", 2048, {"batch_norm": True}),
        ("mlp:128,64", 2048, {"mixup": 0.2}),
    )
    return {
        " ".join([f"{head} on {wide}", *more]): _measure_sweep(folder / f"{wide}-{number}", head, wide, size, more)
        for number, (head, wide, more) in enumerate(cases)
    }


def _measure_sweep(folder: Path, head: str, wide: int, size: Size, more: Mapping[str, Any]) -> dict[str, Any]:
    rates = [1e-4 * 2**step for step in range(8)]
    decays = [0.0, *(1e-6 * 10**step for step in range(size.heads // 8 - 1))]
    options = {"head": head, "max_epochs": size.epochs, "patience": size.epochs, "head_batch_size": BATCH, **more}
    plan = SweepPlan.of(options, {"lr": rates, "weight_decay": decays})
    configs = [one.config for one in plan.combinations]
    some = configs[:: max(1, len(configs) // 4)][:4]
    with write_features(folder, {"train": size.rows}, wide) as cache:
        rows = Rows.of(cache)
        bare_single(rows, some[0])
        single = sum(bare_single(rows, config) for config in some) / len(some)
        stacked = bare_stacked(rows, configs)
        began = time.perf_counter()
        runs = [fit_head(cache, config, runs_dir=folder / "runs") for config in some]
        run = (time.perf_counter() - began) / len(some)
        found = sweep_heads([cache], plan, runs_dir=folder / "runs")
    assert {row.heads[0].epochs for row in found.rows} == {size.epochs} == {one.training.epochs for one in runs}
    bare = min(single * len(configs), stacked)
    return {
        "heads": len(configs),
        "stacks": list(found.stacks),
        "sweep_s": round(found.seconds, 2),
        "bare_stacked_s": round(stacked, 2),
        "bare_single_s": round(single * len(configs), 2),
        "runs_s": round(run * len(configs), 2),
        "single_and_runs_measured_on": len(some),
        "over_the_faster_bare": round(found.seconds / bare, 2),
        "over_runs": round(found.seconds / (run * len(configs)), 3),
    }


# Each part with its default rows and epochs.
PARTS: Mapping[str, tuple[Callable[[Path, Size], dict[str, Any]], int, int]] = {
    "epochs": (lambda folder, size: part_epochs(folder, size.rows, size.epochs), 40_000, 6),
    "sweep": (part_sweep, 10_000, 3),
    "streaming": (lambda folder, size: part_streaming(folder, size.rows, size.epochs), 22_000, 3),
    "logreg": (lambda folder, size: part_logreg(folder, size.cache), 0, 0),
}


def main(
    only: Annotated[list[str] | None, typer.Option(help="A part; may be repeated. [default: all]")] = None,
    rows: int | None = None,
    heads: int = 64,
    epochs: int | None = None,
    cache: Annotated[Path | None, typer.Option(help="A cache of real features, for logreg.")] = None,
    folder: Path | None = None,
    keep: Annotated[bool, typer.Option(help="Write results/heads.json.")] = True,
) -> None:
    """Measure the parts in a temporary folder, and write results/heads.json."""
    torch.manual_seed(0)
    path = RESULTS / "heads.json"
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    for name in only or PARTS:
        part, usual_rows, usual_epochs = PARTS[name]
        size = Size(rows=rows or usual_rows, heads=heads, epochs=epochs or usual_epochs, cache=cache)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            measured = part(Path(scratch), size)
        parts[name] = {"date": machine()["date"], "threads": torch.get_num_threads(), **measured}
        print(json.dumps({name: parts[name]}, indent=2), flush=True)
        if keep:
            write("heads", {"parts": parts})


if __name__ == "__main__":
    typer.run(main)
