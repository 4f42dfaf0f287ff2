"""Batched heads: heads of one shape are trained as one module, whose parameters have the heads as first dimension.

Heads are in G groups of K. A group reads one order of the rows (one seed), so its first layer is one wide matrix
product (B, D) x (D, K O), even if learning rates differ. What a head computes does not depend on the other heads: after
any number of steps it equals, within rounding, the head that would have been trained alone. A head that is trained
alone is a stack of one.

Gradients come from autograd, steps from training/optimizers.py, which explains how heads with different learning rates
share one step: parameters are then stored divided by the rate, and each layer multiplies its outputs (a few numbers per
image) by the rate, instead of the optimizer multiplying every weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.heads.architectures import ACTIVATIONS
from featcache.heads.config import HeadConfig
from featcache.rows.target import HeadTarget
from featcache.training.augmentation import Randomness, StepRandom
from featcache.training.losses import losses_of
from featcache.training.optimizers import FusedOptimizer, OptimizerName
from featcache.training.trial import rate_at_epoch

# The defaults of torch's BatchNorm1d.
_NORM_MOMENTUM = 0.1
_NORM_EPSILON = 1e-5
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class StackShape:
    """The options that are equal for all heads of a stack; all others may differ."""

    hidden: tuple[int, ...]
    activation: str
    batch_norm: bool
    randomness: Randomness
    optimizer: OptimizerName
    momentum: float
    loss: str
    own: tuple[str, object, str | None] | None = None

    @classmethod
    def of(cls, config: HeadConfig) -> Self:
        """The shape of a head with these options."""
        hidden = config.architecture.hidden
        return cls(
            hidden=hidden,
            activation=config.activation if hidden else "",
            batch_norm=config.batch_norm,
            randomness=Randomness(dropout=config.dropout, mixup=config.mixup, noise=config.noise),
            optimizer=config.optimizer,
            momentum=config.momentum,
            loss=config.loss,
            own=(config.head, config.head_arguments, config.own_loss) if is_own(config) else None,
        )


def is_own(config: HeadConfig) -> bool:
    """Whether a head cannot be batched with others, because its module or its loss is a custom one."""
    return config.architecture.own or config.own_loss is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class InitialHead:
    """A head before it is stacked.

    Attributes:
        config: Its options.
        tensors: Its initial tensors, by name.
        class_weights: The weight of each class in the loss, float32 (C,).
        module: The module, for a head that cannot be batched with others.
    """

    config: HeadConfig
    tensors: Mapping[str, Tensor]
    class_weights: Tensor | None = None
    module: nn.Module | None = None


class Stack(ABC):
    """G groups of K heads of one shape, with their optimizer.

    The heads of a group read the same batches (one seed). Lists and tensors over all heads (G K) have the heads of the
    first group first. Features are float32 (G, B, D), one batch per group; targets (G, B) or (G, B, C).
    """

    def __init__(self, heads: Sequence[Sequence[InitialHead]], target: HeadTarget) -> None:
        flat = [head for group in heads for head in group]
        first = flat[0]
        self.groups, self.members = len(heads), len(heads[0])
        self.target = target
        self.shape = StackShape.of(first.config)
        self.tensors = self._stack_tensors(flat)
        self.device = next(iter(self.tensors.values())).device
        self._trained = self._parameter_names()
        self._losses = losses_of([head.config for head in flat], [head.class_weights for head in flat], target).to(
            self.device
        )
        self._decay, self._l1 = (
            torch.tensor([getattr(head.config, name) for head in flat], dtype=torch.float32, device=self.device)
            for name in ("weight_decay", "l1")
        )
        self._penalized = {"l1": bool(self._l1.any()), "decay": bool(self._decay.any())}
        # The numbers that parameters are stored divided by, one per head; None for no division.
        self._scales: Tensor | None = None
        self._rate = rate_at_epoch(first.config, 0)
        self._rates = [rate_at_epoch(head.config, 0) for head in flat]
        self._require_gradients()
        self._optimizer = FusedOptimizer(self.shape.optimizer, self.parameters, momentum=self.shape.momentum)
        self.set_rates(self._rates)

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.groups * self.members

    @property
    def draws(self) -> bool:
        """Whether a step needs random numbers."""
        return bool(self.shape.randomness)

    @property
    def has_batch_norm(self) -> bool:
        """Whether the heads have batch norms."""
        return self.shape.batch_norm

    @property
    def parameters(self) -> list[Tensor]:
        """The trainable tensors, (G K, ...) each."""
        return [self.tensors[name] for name in self._trained]

    @property
    def weights(self) -> int:
        """Number of elements of the weight matrices of all heads."""
        return sum(tensor.numel() for tensor in self.parameters if tensor.dim() > 2)

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of each head from the next step on.

        `rates`: one for each head (G K), those of the first group first.
        """
        equal = len(set(rates)) == 1
        scales = None if equal else torch.tensor(rates, dtype=torch.float64)
        self._rescale(scales)
        self._rate = rates[0] if equal else 1.0
        self._rates = list(rates)

    def tensors_of(self, head: int) -> dict[str, Tensor]:
        """Copies of the tensors of one head, numbered through all groups, by the names of its module."""
        scale = None if self._scales is None else self._scales[head]
        return {
            name: tensor[head].detach().clone() if scale is None or name not in self._trained
            else tensor[head].detach() * scale
            for name, tensor in self.tensors.items()
        }  # fmt: skip

    def step(self, features: Tensor, targets: Tensor, random: StepRandom | None) -> Tensor:
        """Train every head for one step, and return their mean losses on the batch, float32 (G K,), without penalties.

        `random`: the step's random numbers; None if none are needed.
        """
        mixture = None
        if random is not None and self.shape.randomness.noise:
            features = random.add_noise(features, self.shape.randomness.noise)
        if random is not None and self.shape.randomness.mixup:
            features, mixture = random.mix(features, targets, self.shape.randomness.mixup)
        with torch.enable_grad():
            outputs = self._forward(features, training=True, random=random)
            losses = self._losses(outputs, self.for_each_head(targets))
            if mixture is not None:
                own = mixture.shares.repeat_interleave(self.members)
                losses = own * losses + (1 - own) * self._losses(outputs, self.for_each_head(mixture.partners))
        # Gradients with respect to the parameters, even if these are stored divided by the rate.
        weights = torch.ones_like(losses) if self._scales is None else 1 / self._scales
        gradients = self._gradients(losses, weights)
        with torch.no_grad():
            self._optimizer.step(self._penalize(gradients), self._rate)
        return losses.detach()

    def outputs(self, features: Tensor) -> Tensor:
        """Outputs in eval mode: float32 (G, B, D), or (1, B, D) for all groups -> float32 (G K, B, C)."""
        with torch.inference_mode():
            return self._forward(features, training=False, random=None)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each head, float32 (G K,), without class weights and smoothing.

        Outputs are float32 (G K, B, C). Targets are (G K, B, ...), or (1, B, ...) for all heads.
        """
        return self._losses.plain()(outputs, targets.expand(len(outputs), *targets.shape[1:]))

    def for_each_head(self, targets: Tensor) -> Tensor:
        """Repeat the targets of each group for its heads: (G, B, ...) -> (G K, B, ...)."""
        return targets.repeat_interleave(self.members, dim=0) if self.heads > self.groups else targets

    def select(self, chosen: Sequence[Sequence[int]]) -> Self:
        """A stack of some of the heads with their optimizer state; `chosen` (G', K'): numbers through all groups."""
        heads = torch.tensor([number for group in chosen for number in group], device=self.device)
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.groups, other.members = len(chosen), len(chosen[0])
        other.tensors = {name: tensor.detach()[heads] for name, tensor in self.tensors.items()}
        other._decay, other._l1 = self._decay[heads], self._l1[heads]
        other._losses = self._losses.select(heads)
        other._scales = None if self._scales is None else self._scales[heads]
        other._require_gradients()
        other._optimizer = self._optimizer.select(other.parameters, heads)
        other.set_rates([self._rates[number] for number in heads.tolist()])
        return other

    def state(self) -> dict[str, Tensor]:
        """All tensors that the next step depends on, without copies; `restore` takes them."""
        kept = {f"tensor.{name}": tensor.detach() for name, tensor in self.tensors.items()}
        kept |= {f"optimizer.{name}": tensor for name, tensor in self._optimizer.state().items()}
        return kept if self._scales is None else kept | {"scales": self._scales}

    def restore(self, state: Mapping[str, Tensor], rates: Sequence[float]) -> None:
        """Restore such a state, with these learning rates. Raises KeyError or RuntimeError if it does not fit."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state[f"tensor.{name}"])
        self._optimizer.restore(_part(state, "optimizer"))
        self._scales = state["scales"].to(self.device) if "scales" in state else None
        self.set_rates(rates)

    @abstractmethod
    def _forward(self, features: Tensor, *, training: bool, random: StepRandom | None) -> Tensor:
        """Outputs float32 (G K, B, C) for features (G, B, D), or (1, B, D) if all groups read the same rows."""

    def _stack_tensors(self, heads: Sequence[InitialHead]) -> dict[str, Tensor]:
        """The tensors of all heads by name, (G K, ...) each."""
        return {name: torch.stack([head.tensors[name] for head in heads]).contiguous() for name in heads[0].tensors}

    def _parameter_names(self) -> list[str]:
        return [name for name in self.tensors if not name.endswith(_STATISTICS)]

    def _gradients(self, losses: Tensor, weights: Tensor) -> Sequence[Tensor]:
        """The gradients of the weighted sum of all heads' losses with respect to the parameters."""
        return torch.autograd.grad(losses, self.parameters, weights)

    def _require_gradients(self) -> None:
        for tensor in self.parameters:
            tensor.requires_grad_()

    def _rescale(self, scales: Tensor | None) -> None:
        """Store parameters divided by these numbers, float64 (H,); None for no division."""
        if scales is None and self._scales is None:
            return
        before = torch.ones(self.heads) if self._scales is None else self._scales
        after = torch.ones(self.heads).double() if scales is None else scales
        factors = before.cpu().double() / after
        if bool((factors != 1).any()):
            with torch.no_grad():
                for tensor in self.parameters:
                    tensor.mul_(_along(factors.to(tensor.device, torch.float32), tensor))
        self._scales = None if scales is None else scales.to(self.device, torch.float32)

    def _penalize(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Add the gradients of the penalties; for adamw, apply weight decay to the parameters directly."""
        new = []
        for tensor, gradient in zip(self.parameters, gradients, strict=True):
            if self._penalized["l1"]:
                gradient = self._add_product(gradient, tensor.detach().sign(), _along(self._l1, tensor))
            if self._penalized["decay"]:
                decay = self._decay if self._scales is None else self._decay * self._scales
                if self.shape.optimizer == "adamw":
                    rates = self._rate * self._decay if self._scales is None else decay
                    tensor.detach().mul_(_along(1 - rates, tensor))
                else:
                    gradient = self._add_product(gradient, tensor.detach(), _along(decay, tensor))
            new.append(gradient)
        return new

    def _add_product(self, gradient: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """A gradient plus a product, as a new tensor: gradients of a custom module may share memory."""
        return torch.addcmul(gradient, first, second)


class PerceptronStack(Stack):
    """A stack of linear layers with activations between them: the heads `linear` and `mlp`."""

    def __init__(self, heads: Sequence[Sequence[InitialHead]], target: HeadTarget) -> None:
        super().__init__(heads, target)
        self._activation = _activation(self.shape.activation)

    def _add_product(self, gradient: Tensor, first: Tensor, second: Tensor) -> Tensor:
        # In place: gradients of linear layers share no memory, and for wide layers a copy costs more than the sum.
        return gradient.addcmul_(first, second)

    def _forward(self, features: Tensor, *, training: bool, random: StepRandom | None) -> Tensor:
        names = [f"hidden{number}" for number in range(1, len(self.shape.hidden) + 1)]
        values = self._first_layer(features, [*names, "output"][0])
        for number, following in enumerate([*names, "output"][1:], start=1):
            if self.shape.batch_norm:
                values = self._batch_norm(values, f"norm{number}", training=training)
            assert self._activation is not None
            values = self._activation(values)
            if random is not None and self.shape.randomness.dropout:
                values = self._dropout(values, random)
            values = self._layer(values, following)
        return values

    def _first_layer(self, features: Tensor, name: str) -> Tensor:
        """The first layer, (1 or G, B, D) -> (H, B, O), as one matrix product for all heads that read the same rows."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        heads, wide, deep = weight.shape
        if len(features) == 1:
            flat = None if bias is None else bias.view(-1)
            values = F.linear(features[0], weight.view(-1, deep), flat).view(-1, heads, wide)
            return self._times_scale(values, 1).transpose(0, 1)
        grouped = weight.view(self.groups, self.members * wide, deep).transpose(1, 2)
        values = torch.bmm(features, grouped)
        if bias is not None:
            values = values + bias.view(self.groups, 1, -1)
        values = values.view(self.groups, -1, self.members, wide).transpose(1, 2).reshape(heads, -1, wide)
        return self._times_scale(values, 0)

    def _layer(self, values: Tensor, name: str) -> Tensor:
        """Another layer: (H, B, I) -> (H, B, O)."""
        weight, bias = self.tensors[f"{name}.weight"].transpose(1, 2), self.tensors.get(f"{name}.bias")
        if bias is None:
            return self._times_scale(torch.bmm(values, weight), 0)
        return self._times_scale(torch.baddbmm(bias[:, None], values, weight), 0)

    def _batch_norm(self, values: Tensor, name: str, *, training: bool) -> Tensor:
        """Normalize each head's (B, O) over its rows, as one batch norm whose channels are the values of all heads."""
        heads, rows, wide = values.shape
        gain, shift = (
            self._times_scale(self.tensors[f"{name}.{part}"], 0, trailing=1).reshape(-1) for part in ("weight", "bias")
        )
        mean, variance = (self.tensors[f"{name}.{part}"].view(-1) for part in _STATISTICS)
        flat = F.batch_norm(
            values.transpose(0, 1).reshape(rows, heads * wide),
            mean,
            variance,
            gain,
            shift,
            training=training,
            momentum=_NORM_MOMENTUM,
            eps=_NORM_EPSILON,
        )
        return flat.view(rows, heads, wide).transpose(0, 1)

    def _dropout(self, values: Tensor, random: StepRandom) -> Tensor:
        factors = random.dropout_factors(values.shape[1], values.shape[2], self.shape.randomness.dropout)
        if self.groups == 1:
            return values * factors
        return values * factors.repeat_interleave(self.members, dim=0)

    def _times_scale(self, values: Tensor, heads: int, *, trailing: int = 2) -> Tensor:
        """Values times the numbers that parameters are stored divided by; `heads` is the dimension of the heads."""
        if self._scales is None:
            return values
        return values * self._scales.view(-1, *(1,) * (trailing - heads))


def _along(values: Tensor, tensor: Tensor) -> Tensor:
    # One value per head, in a shape that broadcasts over the head's numbers.
    return values.view(-1, *(1,) * (tensor.dim() - 1))


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _activation(name: str) -> Callable[[Tensor], Tensor] | None:
    if not name:
        return None
    module: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return module
