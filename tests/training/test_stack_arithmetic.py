"""The steps of a stack equal those of torch.optim on each head alone, whatever the other heads are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.heads.architectures import build_head
from featcache.heads.config import HeadConfig
from featcache.rows.target import HeadTarget
from featcache.training.augmentation import StepRandom
from featcache.training.losses import HeadLosses, balance_class_weights
from featcache.training.optimizers import FusedOptimizer
from featcache.training.stack import InitialHead, PerceptronStack
from featcache.training.stacking import head_shape

WIDE, OUTPUTS, ROWS, STEPS = 12, 3, 16, 40
CLASSES = HeadTarget(kind="classes", columns=("label",), names=("a", "b", "c"))
LISTS = HeadTarget(kind="lists", columns=("tags",), names=("a", "b", "c"))
NUMBERS = HeadTarget(kind="numbers", columns=("x", "y", "z"), names=("x", "y", "z"))
TARGETS = {"classes": CLASSES, "lists": LISTS, "numbers": NUMBERS}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_batches(kind: str, groups: int = 1) -> tuple[Tensor, Tensor]:
    """All batches: float32 (S, G, B, D), and their targets."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(STEPS, groups, ROWS, WIDE, generator=generator)
    if kind == "classes":
        return features, torch.randint(OUTPUTS, (STEPS, groups, ROWS), generator=generator)
    numbers = torch.randn(STEPS, groups, ROWS, OUTPUTS, generator=generator)
    return features, numbers if kind == "numbers" else (numbers > 0.4).float()


def tensors(config: HeadConfig) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(config.seed)
    head = build_head(config.architecture, head_shape(config, WIDE, OUTPUTS))
    kept = {name: one.detach().clone() for name, one in head.state_dict().items() if "num_batches" not in name}
    return head, kept


def alone(config: HeadConfig, kind: str, group: int = 0, weights: Tensor | None = None) -> nn.Module:
    """The head that a plain loop with torch.optim trains on the same batches."""
    head, _ = tensors(config)
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    more = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    optimizer = kinds[config.optimizer](head.parameters(), lr=config.lr, weight_decay=config.weight_decay, **more)
    head.train()
    for features, targets in zip(*make_batches(kind, groups=group + 1), strict=True):
        outputs, wanted = head(features[group]), targets[group]
        if kind == "classes":
            loss = F.cross_entropy(outputs, wanted, weight=weights, label_smoothing=config.label_smoothing)
        elif kind == "lists":
            loss = F.binary_cross_entropy_with_logits(outputs, wanted, pos_weight=weights)
        else:
            losses: dict[str, Any] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
            loss = losses[config.loss](outputs, wanted)
        loss = loss + config.l1 * sum(one.abs().sum() for one in head.parameters())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return head.eval()


def train_stack(
    configs: Sequence[HeadConfig], kind: str, groups: int = 1, weights: Tensor | None = None
) -> PerceptronStack:
    heads = [InitialHead(config=config, tensors=tensors(config)[1], class_weights=weights) for config in configs]
    size = len(heads) // groups
    stack = PerceptronStack([heads[start : start + size] for start in range(0, len(heads), size)], TARGETS[kind])
    for features, targets in zip(*make_batches(kind, groups), strict=True):
        stack.step(features, targets, None)
    return stack


def assert_same(stack: PerceptronStack, number: int, head: nn.Module) -> None:
    expected = head.state_dict()
    for name, tensor in stack.tensors_of(number).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("head", ["linear", "mlp:8", "mlp:8,4"])
@pytest.mark.parametrize("kind", list(TARGETS))
def test_one_head_equals_that_of_a_plain_loop(head: str, kind: str, optimizer: Any) -> None:
    config = HeadConfig(head=head, optimizer=optimizer, lr=0.01, weight_decay=0.05, l1=1e-3)
    assert_same(train_stack([config], kind), 0, alone(config, kind))


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_each_loss_of_numbers_is_torchs(loss: Any) -> None:
    config = HeadConfig(head="mlp:8", loss=loss, lr=0.01)
    assert_same(train_stack([config], "numbers"), 0, alone(config, "numbers"))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_is_that_of_torchs_sgd(momentum: float) -> None:
    config = HeadConfig(head="linear", optimizer="sgd", momentum=momentum, lr=0.05)
    assert_same(train_stack([config], "classes"), 0, alone(config, "classes"))


@pytest.mark.parametrize("kind", list(TARGETS))
@pytest.mark.parametrize("batch_norm", [False, True])
def test_heads_with_different_rates_do_not_affect_each_other(kind: str, batch_norm: bool) -> None:
    base = HeadConfig(head="mlp:8,4", activation="tanh", batch_norm=batch_norm)
    configs = [
        HeadConfig.from_json({**base.to_json(), **changes})
        for changes in (
            {"lr": 0.05},
            {"lr": 1e-3, "weight_decay": 0.1},
            {"lr": 0.01, "l1": 1e-2},
            {"lr": 0.02, "l1": 1e-4, "weight_decay": 1e-3, "seed": 4},
        )
    ]
    stack = train_stack(configs, kind)
    for number, config in enumerate(configs):
        assert_same(stack, number, alone(config, kind))


def test_groups_are_trained_on_different_batches() -> None:
    configs = [HeadConfig(head="mlp:8", lr=lr, seed=seed) for seed, lr in itertools.product((0, 1), (0.01, 0.03))]
    stack = train_stack(configs, "classes", groups=2)
    singles = [alone_in_groups(config, number // 2) for number, config in enumerate(configs)]
    for number, head in enumerate(singles):
        assert_same(stack, number, head)


def alone_in_groups(config: HeadConfig, group: int) -> nn.Module:
    head, _ = tensors(config)
    optimizer = torch.optim.Adam(head.parameters(), lr=config.lr)
    for features, targets in zip(*make_batches("classes", 2), strict=True):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(head(features[group]), targets[group]))
        optimizer.step()
    return head


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 4.0]])
def test_weighted_and_smoothed_losses_are_torchs(smoothing: float, weights: list[float] | None) -> None:
    weight = None if weights is None else torch.tensor(weights)
    config = HeadConfig(head="linear", label_smoothing=smoothing, lr=0.01)
    assert_same(train_stack([config], "classes", weights=weight), 0, alone(config, "classes", weights=weight))
    if not smoothing:
        assert_same(train_stack([config], "lists", weights=weight), 0, alone(config, "lists", weights=weight))


def test_a_stack_that_shrinks_continues_unchanged() -> None:
    configs = [HeadConfig(head="mlp:8", lr=lr, weight_decay=0.01) for lr in (0.01, 0.03, 0.002)]
    whole = train_stack(configs, "classes")
    heads = [InitialHead(config=config, tensors=tensors(config)[1]) for config in configs]
    stack = PerceptronStack([heads], CLASSES)
    for number, (features, targets) in enumerate(zip(*make_batches("classes"), strict=True)):
        if number == STEPS // 2:
            stack = stack.select([[0, 2]])
        stack.step(features, targets, None)
    for number, in_whole in ((0, 0), (1, 2)):
        for name, tensor in stack.tensors_of(number).items():
            torch.testing.assert_close(tensor, whole.tensors_of(in_whole)[name])


def test_a_restored_state_continues_to_the_bit_even_if_rates_change() -> None:
    configs = [HeadConfig(head="mlp:8", batch_norm=True, lr=lr, l1=1e-4) for lr in (0.01, 0.03)]

    def train(stopped: bool) -> PerceptronStack:
        heads = [InitialHead(config=config, tensors=tensors(config)[1]) for config in configs]
        stack = PerceptronStack([heads], CLASSES)
        for number, (features, targets) in enumerate(zip(*make_batches("classes"), strict=True)):
            rates = [0.01, 0.03] if number < 20 else [0.01, 0.003]
            if number in (10, 20, 30):
                if stopped:
                    state = {name: one.clone() for name, one in stack.state().items()}
                    stack = PerceptronStack([heads], CLASSES)
                    stack.restore(state, [0.01, 0.03] if number <= 20 else rates)
                stack.set_rates(rates)
            stack.step(features, targets, None)
        return stack

    whole, resumed = train(False), train(True)
    for number in range(2):
        for name, tensor in whole.tensors_of(number).items():
            assert torch.equal(tensor, resumed.tensors_of(number)[name])


def test_setting_equal_rates_after_unequal_ones_changes_no_weights() -> None:
    stack = train_stack([HeadConfig(head="linear", lr=lr) for lr in (0.01, 0.03)], "classes")
    before = [stack.tensors_of(number) for number in range(2)]
    stack.set_rates([0.02, 0.02])
    for number in range(2):
        for name, tensor in stack.tensors_of(number).items():
            torch.testing.assert_close(tensor, before[number][name])


def test_random_changes_of_a_head_do_not_depend_on_other_heads() -> None:
    config = HeadConfig(head="mlp:16", dropout=0.5, mixup=0.4, noise=0.3, lr=0.01)
    others = [replace(config, lr=lr) for lr in (0.1, 1e-3)]
    features, targets = make_batches("classes")
    found = []
    for configs in ([config], [config, *others]):
        heads = [InitialHead(config=one, tensors=tensors(one)[1]) for one in configs]
        stack = PerceptronStack([heads], CLASSES)
        for number in range(STEPS):
            stack.step(features[number].clone(), targets[number], StepRandom([7], 0, number, torch.device("cpu")))
        found.append(stack.tensors_of(0))
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-5)


def test_dropout_sets_the_requested_share_to_zero_and_keeps_the_mean() -> None:
    factors = StepRandom([1, 2], 0, 0, torch.device("cpu")).dropout_factors(400, 50, 0.3)
    assert factors.shape == (2, 400, 50) and not torch.equal(factors[0], factors[1])
    assert float((factors == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(factors.mean()) == pytest.approx(1.0, abs=0.02)


def test_another_step_epoch_or_seed_draws_other_numbers() -> None:
    drawn = {
        tuple(StepRandom([seed], epoch, step, torch.device("cpu")).add_noise(torch.zeros(1, 1, 4), 1.0)[0, 0].tolist())
        for seed, epoch, step in itertools.product((0, 1), repeat=3)
    }
    assert len(drawn) == 8


def test_mixtures_are_of_two_rows_and_their_targets() -> None:
    features, targets = torch.eye(6)[None], torch.arange(6)[None]
    mixed, mixture = StepRandom([3], 1, 2, torch.device("cpu")).mix(features, targets, 0.4)
    share = float(mixture.shares[0])
    for row, partner in enumerate(mixture.partners[0].tolist()):
        expected = share * features[0, row] + (1 - share) * features[0, partner]
        torch.testing.assert_close(mixed[0, row], expected)


def test_balanced_weights_give_every_class_the_same_total_weight() -> None:
    weights = balance_class_weights(torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1]), CLASSES)
    assert weights.tolist() == pytest.approx([9 / (2 * 3), 9 / (2 * 6), 1.0])
    weights = balance_class_weights(torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]), LISTS)
    assert weights.tolist() == pytest.approx([1.0, 3.0, 1.0])


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_transposed_gradient_is_applied_correctly(name: Any) -> None:
    gradient = torch.randn(4, 3)
    found = []
    for one in (gradient.T.contiguous(), gradient.T):
        tensor = torch.zeros(3, 4)
        optimizer = FusedOptimizer(name, [tensor], momentum=0.9)
        optimizer.step([one], 0.1)
        found.append(tensor)
    assert torch.equal(found[0], found[1])


def test_losses_without_weights_have_none() -> None:
    assert HeadLosses.of([HeadConfig()], [None], CLASSES).weights is None
