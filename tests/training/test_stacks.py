"""Heads that are trained in a stack equal those that are trained alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_caches import Blobs, blobs, write_cache
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.cache.reader import FeatureCache
from featcache.heads.config import HeadConfig
from featcache.heads.stopping import Interruption
from featcache.rows.batches import Batches
from featcache.rows.features import FeatureRows
from featcache.rows.target import HeadTarget
from featcache.training import stacking
from featcache.training.engine import Engine
from featcache.training.finished import final_head
from featcache.training.fit_result import FitResult
from featcache.training.fitting import fit_batches, scaling_of
from featcache.training.preparation import open_prepared, prepare
from featcache.training.stack import Stack
from featcache.training.stacking import Setting
from featcache.training.threads import training_threads
from featcache.training.trial import Source, Trial

CPU = torch.device("cpu")
TARGET = HeadTarget(kind="classes", columns=("label",), names=("ant", "bee", "cow"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """120 train images in three clouds that overlap, of which 20 are rare `cow`."""
    plain = blobs(150, distance=0.7)
    kept = np.flatnonzero((plain.labels < 2) | (np.arange(150) % 5 < 2))
    train = Blobs(features=plain.features[kept], labels=plain.labels[kept])
    return write_cache(tmp_path_factory.mktemp("stacks"), {"train": train})


def fifty_steps(config: HeadConfig) -> HeadConfig:
    """96 train rows in batches of 32 are 3 steps an epoch, and 51 in 17."""
    return replace(config, max_epochs=17, patience=17, head_batch_size=32)


def make_batches(cache: FeatureCache, config: HeadConfig, resident_bytes: int | None = None) -> tuple[Batches, Batches]:
    return open_prepared(prepare(cache, config, device=CPU), config, resident_bytes=resident_bytes)


def train_together(
    cache: FeatureCache, configs: Sequence[HeadConfig], *, size: int | None = None, resident_bytes: int | None = None
) -> tuple[list[Trial], tuple[int, ...]]:
    """Train all heads at once; they have the same batch size and standardisation."""
    train, val = make_batches(cache, configs[0], resident_bytes)
    scaling = scaling_of(train, configs[0], TARGET)
    seeds = list(dict.fromkeys(config.seed for config in configs))
    rows = configs[0].head_batch_size
    sources = [
        Source(batches=train.with_order(draw=False, seed=seed, batch_size=rows), scaling=scaling) for seed in seeds
    ]
    trials = [Trial(config, source=seeds.index(config.seed)) for config in configs]
    engine = Engine(trials, sources, val, target=TARGET, interruption=Interruption(), setting=Setting(size=size))
    return trials, engine.train()


def train_alone(cache: FeatureCache, config: HeadConfig) -> FitResult:
    return fit_batches(*make_batches(cache, config), TARGET, config)


def assert_same(cache: FeatureCache, trial: Trial, fitted: FitResult) -> None:
    """Compare epochs, losses and weights, within rounding errors."""
    assert (len(trial.history), trial.best_epoch) == (len(fitted.history), fitted.best_epoch)
    for name in ("train_loss", "val_loss", "rate"):
        values, expected_values = ([getattr(epoch, name) for epoch in each.history] for each in (trial, fitted))
        assert values == pytest.approx(expected_values, rel=2e-4)
    train, _ = make_batches(cache, trial.config)
    head = final_head(trial, scaling_of(train, trial.config, TARGET), TARGET, 16)
    assert isinstance(fitted.head, nn.Module)
    expected = fitted.head.state_dict()
    assert list(head.state_dict()) == list(expected)
    assert all(parameter.requires_grad for parameter in head.parameters())
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def singles() -> dict[HeadConfig, FitResult]:
    """The heads that have already been trained alone."""
    return {}


def configs_of_stack(base: HeadConfig) -> list[HeadConfig]:
    """Configs with all options that may differ inside a stack, with two seeds."""
    varied = [
        replace(base, lr=1e-2),
        replace(base, lr=3e-3, weight_decay=0.1, label_smoothing=0.1),
        replace(base, lr=1e-3, l1=1e-3, class_weights="balanced"),
        replace(base, lr=2e-2, schedule="cosine", class_weights="balanced", label_smoothing=0.2),
        replace(base, lr=5e-2, schedule="plateau", patience=4, l1=1e-4, weight_decay=1e-3),
    ]
    return [replace(one, seed=seed) for one in varied for seed in (0, 3)]


@pytest.mark.parametrize("size", [3, 10])
@pytest.mark.parametrize(
    "base",
    [
        HeadConfig(head="linear"),
        HeadConfig(head="mlp:8", standardize=False),
        HeadConfig(head="mlp:8,4", activation="tanh"),
        HeadConfig(head="mlp:8", optimizer="adamw"),
        HeadConfig(head="linear", optimizer="sgd", momentum=0.8),
        HeadConfig(head="mlp:8", batch_norm=True),
        HeadConfig(head="mlp:16", dropout=0.4, mixup=0.3, noise=0.2),
    ],
    ids=lambda base: f"{base.head} {base.optimizer} {base.standardize} {base.batch_norm} {base.dropout}",
)
def test_each_head_of_a_stack_equals_that_of_a_single_training(
    cache: FeatureCache, base: HeadConfig, size: int, singles: dict[HeadConfig, FitResult]
) -> None:
    configs = configs_of_stack(fifty_steps(base))
    trials, sizes = train_together(cache, configs, size=size)
    assert max(sizes) == size and sum(sizes) == len(configs)
    for trial in trials:
        if trial.config not in singles:
            singles[trial.config] = train_alone(cache, trial.config)
        assert_same(cache, trial, singles[trial.config])


def test_streamed_features_give_the_same_heads_to_the_bit(cache: FeatureCache) -> None:
    configs = configs_of_stack(fifty_steps(HeadConfig(head="mlp:8")))
    resident, _ = train_together(cache, configs, size=10)
    streamed, _ = train_together(cache, configs, size=10, resident_bytes=0)
    losses = [[[epoch.val_loss for epoch in one.history] for one in each] for each in (resident, streamed)]
    assert losses[0] == losses[1]


def test_heads_of_several_shapes_share_the_rows_they_read(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    reading = FeatureRows.read

    def spy(rows: FeatureRows, positions: np.ndarray[tuple[int], np.dtype[np.int64]], out: Sequence[Any]) -> None:
        read.append(len(positions))
        reading(rows, positions, out)

    monkeypatch.setattr(FeatureRows, "read", spy)
    counts = []
    for heads in (["linear"], ["linear", "mlp:8", "mlp:8,4", "mlp:16"]):
        read.clear()
        configs = [HeadConfig(head=head, lr=lr, max_epochs=4, patience=4) for head in heads for lr in (1e-2, 1e-3)]
        train_together(cache, configs, resident_bytes=0, size=2)
        counts.append(sum(read))
    assert counts[0] == counts[1] > 0


# --- stopping ----------------------------------------------------------------------------------------------


def test_a_head_that_is_over_does_not_change(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": blobs(150, distance=0.0)})
    base = HeadConfig(head="mlp:32", patience=3, min_delta=0.0, max_epochs=30)
    configs = [
        replace(base, lr=lr, seed=seed, max_epochs=epochs)
        for lr, epochs in ((0.03, 30), (0.01, 30), (1e-3, 30), (1e-4, 7))
        for seed in (0, 1)
    ]
    trials, _ = train_together(cache, configs, size=8)
    lengths = [len(trial.history) for trial in trials]
    assert len(set(lengths)) > 2 and lengths[-1] == 7
    for trial in trials:
        assert_same(cache, trial, train_alone(cache, trial.config))
        assert not trial.interrupted and trial.val is not None
        assert trial.val.loss == min(epoch.val_loss for epoch in trial.history)


def test_a_head_that_diverges_does_not_affect_others(cache: FeatureCache) -> None:
    base = fifty_steps(HeadConfig(head="mlp:8,8"))
    trials, _ = train_together(cache, [replace(base, lr=1e30), base, replace(base, lr=1e37, optimizer="adamw")], size=3)
    assert [trial.trouble is None for trial in trials] == [False, True, False]
    assert "diverged" in str(trials[0].trouble) and "lr 1e+30" in str(trials[0].trouble)
    assert trials[0].val is None and trials[0].over
    assert_same(cache, trials[1], train_alone(cache, base))


def test_ctrl_c_ends_training_between_two_blocks(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.training.engine.PROGRESS_EVERY_S", 0.0)
    interruption = Interruption()

    def advance(share: float) -> None:
        interruption.requested = trial.history != [] and share > 0

    train, val = make_batches(cache, HeadConfig())
    trial = Trial(HeadConfig(head="linear", max_epochs=400, patience=400))
    engine = Engine([trial], [Source(batches=train)], val, target=TARGET, interruption=interruption, advance=advance)
    with pytest.raises(KeyboardInterrupt):
        engine.train()
    assert trial.interrupted and trial.val is not None and 1 <= len(trial.history) < 400


# --- size of stacks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fastest", [1, 4, 16, 20])
def test_the_size_of_a_stack_is_the_fastest_by_measurement(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, fastest: int
) -> None:
    tried: list[int] = []

    def seconds(stack: Stack, features: Tensor, targets: Tensor) -> float:
        tried.append(stack.heads)
        assert features.shape == (1, 64, 16) and targets.shape == (1, 64)
        assert torch.get_num_threads() == 1
        return tried[-1] * (1.0 if tried[-1] == fastest else 1.1)

    monkeypatch.setattr(stacking, "step_seconds", seconds)
    monkeypatch.setattr(stacking, "FEWEST_STEPS_TO_TRY", 1)
    configs = [HeadConfig(head="linear", lr=lr, max_epochs=1) for lr in np.geomspace(1e-4, 1e-1, 20).tolist()]
    _, sizes = train_together(cache, configs)
    assert tried == [1, 4, 16, 20]
    assert max(sizes) == fastest and sum(sizes) == 20


@pytest.mark.parametrize(("fast", "expected"), [(0.5, 2), (0.95, 1)])
def test_all_threads_are_used_if_they_are_clearly_faster(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, fast: float, expected: int
) -> None:
    def seconds(stack: Stack, features: Tensor, targets: Tensor) -> float:
        return fast if torch.get_num_threads() == 2 else 1.0

    monkeypatch.setattr(stacking, "step_seconds", seconds)
    monkeypatch.setattr(stacking, "FEWEST_STEPS_TO_TRY", 1)
    monkeypatch.setattr(stacking, "SMALL_STEP", 1)
    with training_threads(2):
        trials, _ = train_together(cache, [HeadConfig(head="linear", max_epochs=1)])
        assert torch.get_num_threads() == 2
    assert trials[0].threads == expected


def test_measuring_does_not_change_the_heads(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = configs_of_stack(fifty_steps(HeadConfig(head="mlp:8")))
    plain, _ = train_together(cache, configs, size=10)
    monkeypatch.setattr(stacking, "FEWEST_STEPS_TO_TRY", 1)
    tried, _ = train_together(cache, configs)
    for one, other in zip(plain, tried, strict=True):
        losses, expected = ([epoch.val_loss for epoch in each.history] for each in (other, one))
        assert losses == pytest.approx(expected, rel=1e-3)


def test_dropout_is_off_on_val(cache: FeatureCache) -> None:
    base = fifty_steps(HeadConfig(head="mlp:32", dropout=0.5, lr=0.01))
    trials, _ = train_together(cache, [base, replace(base, weight_decay=1e-9)], size=2)
    train, val = make_batches(cache, base)
    head = final_head(trials[0], scaling_of(train, base, TARGET), TARGET, 16)
    features, labels = next(val.in_order())
    assert trials[0].val is not None
    assert float(F.cross_entropy(head(features), labels).detach()) == pytest.approx(trials[0].val.loss, rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_nearly_the_heads_of_the_cpu(cache: FeatureCache) -> None:
    config = fifty_steps(HeadConfig(head="mlp:8"))
    prepared = prepare(cache, config, device=torch.device("cuda:0"))
    train, val = open_prepared(prepared, config)
    trial = Trial(config)
    source = Source(batches=train, scaling=scaling_of(train, config, TARGET))
    Engine([trial], [source], val, target=TARGET, interruption=Interruption()).train()
    assert [epoch.val_loss for epoch in trial.history] == pytest.approx(
        [epoch.val_loss for epoch in train_alone(cache, config).history], rel=1e-3
    )
