"""Heads of one shape as one module: every parameter has a leading dimension, the heads, and a step takes all of them.

Heads stand in G groups of K. A group reads one order of the rows (one seed), so its first layer is one wide matrix
product (B, D) x (D, K O), whatever the learning rates are. What a head computes does not depend on its neighbours:
after any number of steps it is, within rounding, the head that would have been trained alone; a head that is trained
alone is a stack of one.

Gradients come from autograd, the step from training/optimizers.py, which says how heads with learning rates of their
own share one: parameters are then stored divided by the rate, and the layers multiply by it what they give (a few
numbers an image), instead of the optimizer every weight.
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
from featcache.training.trial import scheduled_rate

# As torch's BatchNorm1d has them.
_NORM_MOMENTUM = 0.1
_NORM_EPSILON = 1e-5
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class StackShape:
    """What the heads of a stack have in common; all else may differ from head to head."""

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
        """That of one head."""
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
    """Whether a head trains as a module by itself: its module or its loss is one's own."""
    return config.architecture.own or config.own_loss is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class InitialHead:
    """A head before it is stacked: its options, its tensors by name, and what each class counts, float32 (C,).

    `module`: the head itself, where it trains as a module by itself.
    """

    config: HeadConfig
    tensors: Mapping[str, Tensor]
    class_weights: Tensor | None = None
    module: nn.Module | None = None


class Stack(ABC):
    """G groups of K heads of one shape, with their optimizer.

    Features are float32 (G, B, D), a batch a group; targets (G, B) or (G, B, C).
    """

    def __init__(self, heads: Sequence[Sequence[InitialHead]], target: HeadTarget) -> None:
        flat = [head for group in heads for head in group]
        first = flat[0]
        self.groups, self.members = len(heads), len(heads[0])
        self.target = target
        self.shape = StackShape.of(first.config)
        self.tensors = self._stacked(flat)
        self.device = next(iter(self.tensors.values())).device
        self._trained = self._trained_names()
        self._losses = losses_of([head.config for head in flat], [head.class_weights for head in flat], target).to(
            self.device
        )
        self._decay, self._l1 = (
            torch.tensor([getattr(head.config, name) for head in flat], dtype=torch.float32, device=self.device)
            for name in ("weight_decay", "l1")
        )
        self._penalized = {"l1": bool(self._l1.any()), "decay": bool(self._decay.any())}
        # What parameters are stored divided by, one number a head; None for nothing.
        self._scales: Tensor | None = None
        self._rate = scheduled_rate(first.config, 0)
        self._rates = [scheduled_rate(head.config, 0) for head in flat]
        self._require_gradients()
        self._optimizer = FusedOptimizer(self.shape.optimizer, self.parameters, momentum=self.shape.momentum)
        self.set_rates(self._rates)

    @property
    def heads(self) -> int:
        """How many heads there are."""
        return self.groups * self.members

    @property
    def draws(self) -> bool:
        """Whether a step needs random numbers."""
        return bool(self.shape.randomness)

    @property
    def normed(self) -> bool:
        """Whether a batch is normalized over its rows."""
        return self.shape.batch_norm

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained, (G K, ...) each."""
        return [self.tensors[name] for name in self._trained]

    @property
    def weights(self) -> int:
        """How many numbers the weight matrices of all heads have."""
        return sum(tensor.numel() for tensor in self.parameters if tensor.dim() > 2)

    def set_rates(self, rates: Sequence[float]) -> None:
        """The learning rate of each head, group by group, from the next step on."""
        alike = len(set(rates)) == 1
        scales = None if alike else torch.tensor(rates, dtype=torch.float64)
        self._rescale(scales)
        self._rate = rates[0] if alike else 1.0
        self._rates = list(rates)

    def tensors_of(self, head: int) -> dict[str, Tensor]:
        """The tensors of one head, counted through all groups, by the names of its module: copies."""
        scale = None if self._scales is None else self._scales[head]
        return {
            name: tensor[head].detach().clone() if scale is None or name not in self._trained
            else tensor[head].detach() * scale
            for name, tensor in self.tensors.items()
        }  # fmt: skip

    def step(self, features: Tensor, targets: Tensor, random: StepRandom | None) -> Tensor:
        """One step of every head; their mean losses on the batch, float32 (G K,), without penalties.

        `random`: the step's random numbers; None where nothing is drawn.
        """
        mixture = None
        if random is not None and self.shape.randomness.noise:
            features = random.noisy(features, self.shape.randomness.noise)
        if random is not None and self.shape.randomness.mixup:
            features, mixture = random.mixed(features, targets, self.shape.randomness.mixup)
        with torch.enable_grad():
            outputs = self._forward(features, training=True, random=random)
            losses = self._losses(outputs, self.for_each_head(targets))
            if mixture is not None:
                own = mixture.shares.repeat_interleave(self.members)
                losses = own * losses + (1 - own) * self._losses(outputs, self.for_each_head(mixture.partners))
        # By the parameters themselves, also where they are stored divided by something.
        weights = torch.ones_like(losses) if self._scales is None else 1 / self._scales
        gradients = self._gradients(losses, weights)
        with torch.no_grad():
            self._optimizer.step(self._penalize(gradients), self._rate)
        return losses.detach()

    def outputs(self, features: Tensor) -> Tensor:
        """float32 (G, B, D), or (1, B, D) for all groups -> outputs float32 (G K, B, C), as in use."""
        with torch.inference_mode():
            return self._forward(features, training=False, random=None)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean plain loss of each head, float32 (G K,): without weights of classes and without smoothing.

        Outputs float32 (G K, B, C), targets (1, B) or (1, B, C), the same for all heads.
        """
        return self._losses.plain()(outputs, targets.expand(len(outputs), *targets.shape[1:]))

    def for_each_head(self, targets: Tensor) -> Tensor:
        """(G, B, ...) -> (G K, B, ...)."""
        return targets.repeat_interleave(self.members, dim=0) if self.heads > self.groups else targets

    def narrowed(self, chosen: Sequence[Sequence[int]]) -> Self:
        """A stack of some of the heads, with all that their optimizer knows: numbers (G', K') through all groups."""
        heads = torch.tensor([number for group in chosen for number in group], device=self.device)
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.groups, other.members = len(chosen), len(chosen[0])
        other.tensors = {name: tensor.detach()[heads] for name, tensor in self.tensors.items()}
        other._decay, other._l1 = self._decay[heads], self._l1[heads]
        other._losses = self._losses.narrowed(heads)
        other._scales = None if self._scales is None else self._scales[heads]
        other._require_gradients()
        other._optimizer = self._optimizer.narrowed(other.parameters, heads)
        other.set_rates([self._rates[number] for number in heads.tolist()])
        return other

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, as it lies; `restore` takes it."""
        kept = {f"tensor.{name}": tensor.detach() for name, tensor in self.tensors.items()}
        kept |= {f"optimizer.{name}": tensor for name, tensor in self._optimizer.state().items()}
        return kept if self._scales is None else kept | {"scales": self._scales}

    def restore(self, state: Mapping[str, Tensor], rates: Sequence[float]) -> None:
        """Go on from such a state, with these learning rates. Raises KeyError or RuntimeError for another stack's."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state[f"tensor.{name}"])
        self._optimizer.restore(_part(state, "optimizer"))
        self._scales = state["scales"].to(self.device) if "scales" in state else None
        self.set_rates(rates)

    @abstractmethod
    def _forward(self, features: Tensor, *, training: bool, random: StepRandom | None) -> Tensor:
        """Outputs float32 (G K, B, C) of features (G, B, D), or (1, B, D) where all groups read the same."""

    def _stacked(self, heads: Sequence[InitialHead]) -> dict[str, Tensor]:
        """The tensors of all heads by name, (G K, ...) each."""
        return {name: torch.stack([head.tensors[name] for head in heads]).contiguous() for name in heads[0].tensors}

    def _trained_names(self) -> list[str]:
        return [name for name in self.tensors if not name.endswith(_STATISTICS)]

    def _gradients(self, losses: Tensor, weights: Tensor) -> Sequence[Tensor]:
        """Of the losses of all heads, each times a weight, by the parameters."""
        return torch.autograd.grad(losses, self.parameters, weights)

    def _require_gradients(self) -> None:
        for tensor in self.parameters:
            tensor.requires_grad_()

    def _rescale(self, scales: Tensor | None) -> None:
        """Store parameters divided by these numbers, float64 (H,), from now on."""
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
        """Gradients by the parameters, with those of the penalties; adamw takes decay off the parameters itself."""
        new = []
        for tensor, gradient in zip(self.parameters, gradients, strict=True):
            if self._penalized["l1"]:
                gradient = self._added(gradient, tensor.detach().sign(), _along(self._l1, tensor))
            if self._penalized["decay"]:
                decay = self._decay if self._scales is None else self._decay * self._scales
                if self.shape.optimizer == "adamw":
                    rates = self._rate * self._decay if self._scales is None else decay
                    tensor.detach().mul_(_along(1 - rates, tensor))
                else:
                    gradient = self._added(gradient, tensor.detach(), _along(decay, tensor))
            new.append(gradient)
        return new

    def _added(self, gradient: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """A gradient plus a product. A new tensor: of a module that is not known, gradients may be the same memory."""
        return torch.addcmul(gradient, first, second)


class PerceptronStack(Stack):
    """Heads that are linear layers with an activation between them: `linear` and `mlp`."""

    def __init__(self, heads: Sequence[Sequence[InitialHead]], target: HeadTarget) -> None:
        super().__init__(heads, target)
        self._activation = _activation(self.shape.activation)

    def _added(self, gradient: Tensor, first: Tensor, second: Tensor) -> Tensor:
        # Of linear layers each gradient is memory of its own; for wide ones another copy costs more than the sum.
        return gradient.addcmul_(first, second)

    def _forward(self, features: Tensor, *, training: bool, random: StepRandom | None) -> Tensor:
        names = [f"hidden{number}" for number in range(1, len(self.shape.hidden) + 1)]
        values = self._first_layer(features, [*names, "output"][0])
        for number, following in enumerate([*names, "output"][1:], start=1):
            if self.shape.batch_norm:
                values = self._normed(values, f"norm{number}", training=training)
            assert self._activation is not None
            values = self._activation(values)
            if random is not None and self.shape.randomness.dropout:
                values = self._dropped(values, random)
            values = self._layer(values, following)
        return values

    def _first_layer(self, features: Tensor, name: str) -> Tensor:
        """(1 or G, B, D) -> (H, B, O): as wide a product as the heads that read the same rows allow."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        heads, wide, deep = weight.shape
        if len(features) == 1:
            flat = None if bias is None else bias.view(-1)
            values = F.linear(features[0], weight.view(-1, deep), flat).view(-1, heads, wide)
            return self._scaled(values, 1).transpose(0, 1)
        grouped = weight.view(self.groups, self.members * wide, deep).transpose(1, 2)
        values = torch.bmm(features, grouped)
        if bias is not None:
            values = values + bias.view(self.groups, 1, -1)
        values = values.view(self.groups, -1, self.members, wide).transpose(1, 2).reshape(heads, -1, wide)
        return self._scaled(values, 0)

    def _layer(self, values: Tensor, name: str) -> Tensor:
        """(H, B, I) -> (H, B, O)."""
        weight, bias = self.tensors[f"{name}.weight"].transpose(1, 2), self.tensors.get(f"{name}.bias")
        if bias is None:
            return self._scaled(torch.bmm(values, weight), 0)
        return self._scaled(torch.baddbmm(bias[:, None], values, weight), 0)

    def _normed(self, values: Tensor, name: str, *, training: bool) -> Tensor:
        """Each head's (B, O) normalized over its rows: heads and values together are the channels of one norm."""
        heads, rows, wide = values.shape
        gain, shift = (
            self._scaled(self.tensors[f"{name}.{part}"], 0, trailing=1).reshape(-1) for part in ("weight", "bias")
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

    def _dropped(self, values: Tensor, random: StepRandom) -> Tensor:
        factors = random.kept(values.shape[1], values.shape[2], self.shape.randomness.dropout)
        if self.groups == 1:
            return values * factors
        return values * factors.repeat_interleave(self.members, dim=0)

    def _scaled(self, values: Tensor, heads: int, *, trailing: int = 2) -> Tensor:
        """Values times the numbers that parameters are stored divided by; dimension `heads` of them is the heads."""
        if self._scales is None:
            return values
        return values * self._scales.view(-1, *(1,) * (trailing - heads))


def _along(values: Tensor, tensor: Tensor) -> Tensor:
    # A value a head, for every number of the head.
    return values.view(-1, *(1,) * (tensor.dim() - 1))


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _activation(name: str) -> Callable[[Tensor], Tensor] | None:
    if not name:
        return None
    module: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return module
