"""Compares heads with bare PyTorch loops that do the same arithmetic and nothing else.

Ratios are featcache's seconds over those of the loop: below 1, featcache is faster.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import Bench, measurement, time_of
from storage import CLASSES, make_cache
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.cache import FeatureCache
from featcache.heads.architectures import build_head
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord
from featcache.rows.cuts import cut_cache
from featcache.runs.fit import fit_head
from featcache.sweeps.plan import SweepPlan
from featcache.sweeps.sweeping import sweep_heads
from featcache.training.stacking import head_shape


class Rows:
    """Train and val of a cache in memory as float16; batches are converted to float32, and standardised if asked."""

    def __init__(self, cache: FeatureCache, config: HeadConfig) -> None:
        self.config = config
        cut = cut_cache(cache, val_fraction=config.val_fraction, val_seed=config.val_seed)
        self.train, self.val = (
            torch.from_numpy(cache[part.source].features.gather(part.rows)) for part in (cut.train, cut.val)
        )
        self.train_labels, self.val_labels = torch.from_numpy(cut.train.targets), torch.from_numpy(cut.val.targets)
        deviation, self.mean = torch.std_mean(self.train[:4000].float(), dim=0)
        self.scale = 1 / deviation

    def values(self, stored: Tensor) -> Tensor:
        """float16 -> float32."""
        values = stored.float()
        return values.sub_(self.mean).mul_(self.scale) if self.config.standardize else values

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch in a random order."""
        for chosen in torch.split(torch.randperm(len(self.train)), self.config.head_batch_size):
            yield self.values(self.train[chosen]), self.train_labels[chosen]

    def val_loss(self, logits: Callable[[Tensor], Tensor]) -> float:
        """The loss on val, of one head, or the sum over several heads."""
        parts = zip(torch.split(self.val, 1024), torch.split(self.val_labels, 1024), strict=True)
        with torch.inference_mode():
            return float(sum(_loss(logits(self.values(features)), labels) for features, labels in parts))


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    # (B, C), or (H, B, C) for the sum over the heads of their mean losses.
    if logits.dim() == 2:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits))) * len(logits)


class BareHead:
    """One head in a plain loop, as in a notebook, with fused Adam."""

    def __init__(self, rows: Rows, config: HeadConfig) -> None:
        self.rows, self.config = rows, config
        torch.manual_seed(config.seed)
        self.head = build_head(config.architecture, head_shape(config, rows.train.shape[1], CLASSES))
        rate, decay = config.lr, config.weight_decay
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=rate, weight_decay=decay, fused=True)

    def epoch(self) -> float:
        """Seconds of one epoch, val included."""
        began, total = time.perf_counter(), torch.zeros(())
        self.head.train()
        for features, labels in self.rows.batches():
            self.optimizer.zero_grad(set_to_none=True)
            loss = _loss(self.head(features), labels)
            torch.autograd.backward(loss)
            self.optimizer.step()
            total += loss.detach()
        self.rows.val_loss(self.head.eval())
        return time.perf_counter() - began


class BareStack:
    """All heads as one tensor (H, O, I) per layer; the optimiser gets a view of it for every run of equal rates."""

    def __init__(self, rows: Rows, configs: Sequence[HeadConfig]) -> None:
        self.rows, self.heads = rows, len(configs)
        self.decay = torch.tensor([config.weight_decay for config in configs])
        sizes = (rows.train.shape[1], *configs[0].architecture.hidden, CLASSES)
        layers = [nn.Linear(deep, out) for deep, out in itertools.pairwise(sizes)]
        self.tensors = [
            tensor.detach().repeat(self.heads, *(1,) * tensor.dim()).requires_grad_()
            for layer in layers
            for tensor in (layer.weight, layer.bias)
        ]
        rates = [config.lr for config in configs]
        starts = [number for number in range(self.heads) if number == 0 or rates[number] != rates[number - 1]]
        self.parts = [slice(a, b) for a, b in zip(starts, [*starts[1:], self.heads], strict=True)]
        self.views = [[tensor.detach()[part] for tensor in self.tensors] for part in self.parts]
        groups = zip(self.parts, self.views, strict=True)
        self.optimizer = torch.optim.Adam(
            [{"params": views, "lr": rates[part.start]} for part, views in groups], fused=True
        )  # fmt: skip

    def epoch(self, _: int) -> None:
        """One epoch, val included."""
        for features, labels in self.rows.batches():
            torch.autograd.backward(_loss(self.logits(features), labels))
            self.split_gradients()
            self.optimizer.step()
        self.rows.val_loss(self.logits)

    def split_gradients(self) -> None:
        """Move the gradients of the tensors to their views, with weight decay added."""
        for number, tensor in enumerate(self.tensors):
            assert tensor.grad is not None
            tensor.grad.addcmul_(tensor.detach(), self.decay.view(-1, *(1,) * (tensor.dim() - 1)))
            for part, views in zip(self.parts, self.views, strict=True):
                views[number].grad = tensor.grad[part]
            tensor.grad = None

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) -> (H, B, C)."""
        weight, bias, *deeper = self.tensors
        values = F.linear(features, weight.flatten(0, 1), bias.flatten()).view(len(features), self.heads, -1)
        values = values.transpose(0, 1)
        for deep, offset in zip(deeper[::2], deeper[1::2], strict=True):
            values = torch.baddbmm(offset[:, None], torch.relu(values), deep.transpose(1, 2))
        return values


@measurement("heads:epochs", "20 min", rows=400, wide=(64,), epochs=2)
def epochs(
    bench: Bench, *, rows: int = 40_000, wide: tuple[int, ...] = (2_048, 25_088), epochs: int = 6
) -> dict[str, Any]:
    """Epochs of the notebook's head beside a bare loop's, in turns; the ratio is the median over the pairs."""
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    for deep in wide:
        made = make_cache(bench.scratch / str(deep), {"train": rows, "val": max(10, rows // 10)}, deep)
        for size, standardize in itertools.product((64, 1_024), (False, True)):
            config = HeadConfig(
                head="mlp:128,64", activation="leaky_relu", lr=1e-4, standardize=standardize, head_batch_size=size,
                max_epochs=epochs, patience=epochs,
            )  # fmt: skip
            name = f"{rows} x {deep}, batch {size}" + (", standardised" if standardize else "")
            with FeatureCache.open(made.packed) as cache:
                found[name] = epochs_in_turns(cache, config, bench.scratch / "runs")
    return found


def epochs_in_turns(cache: FeatureCache, config: HeadConfig, runs_dir: Path) -> dict[str, Any]:
    """After each featcache epoch, run one of the bare loop, with torch's number of threads and with featcache's."""
    bare, everything = BareHead(Rows(cache, config), config), torch.get_num_threads()
    pairs: list[tuple[float, float]] = []

    def turn(record: EpochRecord) -> None:
        chosen, seconds = torch.get_num_threads(), []
        for threads in sorted({everything, chosen}):
            torch.set_num_threads(threads)
            # This function is called during validation, where gradients are disabled.
            with torch.enable_grad():
                seconds.append(bare.epoch())
        torch.set_num_threads(chosen)
        # The first epoch of each includes start-up costs and is not counted.
        if record.epoch > 1:
            pairs.append((record.seconds, min(seconds)))

    run = fit_head(cache, config, runs_dir=runs_dir, progress=turn, resident_bytes=1 << 62)
    return {
        "ratio": round(statistics.median(one / bare for one, bare in pairs), 3),
        "ratios": [round(one / bare, 2) for one, bare in pairs],
        "featcache_s": round(statistics.median(one for one, _ in pairs), 3),
        "bare_s": round(statistics.median(bare for _, bare in pairs), 3),
        "threads": run.training.threads,
    }


@measurement("heads:sweep", "15 min", rows=400, heads=8, epochs=1)
def sweep(bench: Bench, *, rows: int = 10_000, heads: int = 64, epochs: int = 3) -> dict[str, Any]:
    """A grid of heads in one sweep, over bare stacked tensors, bare loops per head, and one run per head."""
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    made = {wide: make_cache(bench.scratch / str(wide), {"train": rows}, wide) for wide in (64, 2048)}
    for head, wide in (("linear", 64), ("linear", 2048), ("mlp:128,64", 2048)):
        options = {"head": head, "max_epochs": epochs, "patience": epochs, "head_batch_size": 64}
        decays = [0.0, *(1e-6 * 10**step for step in range(heads // 8 - 1))]
        plan = SweepPlan.of(options, {"lr": [1e-4 * 2**step for step in range(8)], "weight_decay": decays})
        with FeatureCache.open(made[wide].packed) as cache:
            found[f"{head} on {wide}"] = sweep_over_bare(cache, plan, bench.scratch / f"runs-{head}-{wide}")
    return found


def sweep_over_bare(cache: FeatureCache, plan: SweepPlan, runs_dir: Path) -> dict[str, Any]:
    """The sweep, and the others; single heads and runs are measured on four of the heads."""
    configs = [one.config for one in plan.combinations]
    some, rows, last = configs[:: max(1, len(configs) // 4)][:4], Rows(cache, configs[0]), configs[0].max_epochs
    BareHead(rows, some[0]).epoch()
    bare = [BareHead(rows, config) for config in some]
    single = sum(head.epoch() for head in bare for _ in range(last)) / len(some)
    stack = BareStack(rows, configs)
    stacked = time_of(lambda: list(map(stack.epoch, range(last)))).clock
    runs = time_of(lambda: [fit_head(cache, config, runs_dir=runs_dir) for config in some])
    swept = sweep_heads([cache], plan, runs_dir=runs_dir)
    assert {row.heads[0].epochs for row in swept.rows} == {last} == {one.training.epochs for one in runs.result}
    run, single = runs.clock / len(some) * len(configs), single * len(configs)
    seconds = {"sweep_s": swept.seconds, "bare_stacked_s": stacked, "bare_single_s": single, "runs_s": run}
    return {
        "heads": len(configs),
        "stacks": list(swept.stacks),
        **{name: round(one, 2) for name, one in seconds.items()},
        "single_and_runs_measured_on": len(some),
        "over_the_faster_bare": round(swept.seconds / min(single, stacked), 2),
        "over_runs": round(swept.seconds / run, 3),
    }
