"""Heads of one shape as one: their weights lie behind each other in tensors, and a step takes all of them at once.

Heads stand in G groups of K. A group reads one order of the rows (one seed), so its first layer is one wide matrix
product (B, D) x (D, K O), whatever the learning rates are. What a head computes does not depend on its neighbours:
after any number of steps it is, within rounding, the head that HeadModule would have trained alone.

Learning rates differ, and Adam wants one call for all: so not the weights w are stored but w / lr. Adam's update of w
is lr times something that does not depend on lr; of w / lr it is that something. The layers multiply by lr what they
give (a few numbers an image), instead of the optimiser every weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.heads.architectures import ACTIVATIONS
from featcache.heads.config import HeadConfig

Layer = tuple[Tensor, Tensor]  # weight (O, I), bias (O,)


@dataclass(frozen=True, kw_only=True)
class StackShape:
    """What the heads of a stack have in common; all else may differ from head to head."""

    hidden: tuple[int, ...]
    activation: str
    dropout: float
    optimizer: str
    momentum: float

    @classmethod
    def of(cls, config: HeadConfig) -> StackShape:
        """That of one head."""
        hidden = config.architecture.hidden
        return cls(
            hidden=hidden,
            activation=config.activation if hidden else "",
            dropout=config.dropout,
            optimizer=config.optimizer,
            momentum=config.momentum,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StackedHead:
    """One head before it is stacked: its options, initial layers, and what each class counts, float32 (C,)."""

    config: HeadConfig
    layers: tuple[Layer, ...]
    class_weights: Tensor | None = None


class HeadStack:
    """G groups of K heads. Features are float32 (G, B, D), a batch a group, or (1, B, D), one for all of them."""

    def __init__(self, heads: Sequence[Sequence[StackedHead]]) -> None:
        self.groups, self.members = len(heads), len(heads[0])
        everyone = [head for group in heads for head in group]
        first = everyone[0]
        device = first.layers[0][0].device
        self.shape = StackShape.of(first.config)
        self._activation = _activation(self.shape.activation)
        self._rates = torch.ones(len(everyone), device=device)
        self._tensors = [
            torch.stack([head.layers[number][kind] for head in everyone]).contiguous()
            for number in range(len(first.layers))
            for kind in (0, 1)
        ]
        self._options = {
            name: torch.tensor([float(getattr(head.config, name)) for head in everyone], device=device)
            for name in ("weight_decay", "l1", "label_smoothing")
        }
        weights = [head.class_weights for head in everyone]
        self.classes = classes = len(first.layers[-1][1])
        self._class_weights = torch.stack([torch.ones(classes, device=device) if w is None else w for w in weights])
        self._plain_loss = all(w is None for w in weights) and not bool(self._options["label_smoothing"].any())
        self._penalised = {name: bool(self._options[name].any()) for name in ("weight_decay", "l1")}
        self._optimizer = self._new_optimizer()
        self.set_rates([head.config.lr for head in everyone])

    @property
    def device(self) -> torch.device:
        """Where all of it lies."""
        return self._rates.device

    @property
    def weights(self) -> int:
        """How many weights all heads have, biases not counted."""
        return sum(tensor.numel() for tensor in self._tensors[::2])

    def set_rates(self, rates: Sequence[float]) -> None:
        """The learning rate of each head, group by group, from the next step on."""
        new = torch.tensor(rates, dtype=torch.float64)
        changed = self._rates.cpu().double() / new
        if bool((changed != 1).any()):
            for tensor in self._tensors:
                tensor.mul_(_along(changed.to(tensor.device, torch.float32), tensor))
        self._rates = new.to(self._rates.device, torch.float32)

    def layers(self, number: int) -> tuple[Layer, ...]:
        """The layers of one head, counted through all groups, as copies."""
        plain = [tensor[number] * self._rates[number] for tensor in self._tensors]
        return tuple(zip(plain[::2], plain[1::2], strict=True))

    def step(self, features: Tensor, labels: Tensor) -> Tensor:
        """One step of every head: labels int64 (G, B) or (1, B) -> mean loss of the batch float32 (G K,)."""
        with torch.no_grad():
            inputs, before = self._forward(features, training=True)
            losses, gradient = self._loss(inputs[-1], self._for_each_head(labels))
            self._backward(features, inputs, before, gradient)
            self._penalise()
            self._optimizer.step()
        return losses

    def logits(self, features: Tensor) -> Tensor:
        """float32 (G, B, D) or (1, B, D) -> logits float32 (G K, B, C), without dropout."""
        with torch.no_grad():
            return self._forward(features, training=False)[0][-1]

    def narrowed(self, chosen: Sequence[Sequence[int]]) -> HeadStack:
        """A stack of some of the heads, with all that their optimiser knows: numbers (G', K') through all groups."""
        numbers = torch.tensor([number for group in chosen for number in group], device=self._rates.device)
        other = HeadStack.__new__(HeadStack)
        other.__dict__.update(self.__dict__)
        other.groups, other.members = len(chosen), len(chosen[0])
        other._rates, other._class_weights = self._rates[numbers], self._class_weights[numbers]
        other._options = {name: values[numbers] for name, values in self._options.items()}
        other._tensors = [tensor[numbers] for tensor in self._tensors]
        other._optimizer = other._new_optimizer()
        for old, new in zip(self._tensors, other._tensors, strict=True):
            # Adam counts its steps in a tensor of its own, without a row a head.
            state = self._optimizer.state[old].items()
            other._optimizer.state[new] = {
                name: value[numbers] if isinstance(value, Tensor) and value.shape == old.shape else value
                for name, value in state
            }
        return other

    # --- one step ----------------------------------------------------------------------------------------------

    def _forward(self, features: Tensor, *, training: bool) -> tuple[list[Tensor], list[Tensor]]:
        """What each layer gives: the activations with the logits last, and what stood before each activation."""
        values, given, before = self._first_layer(features), [], []
        for weight, bias in zip(self._tensors[2::2], self._tensors[3::2], strict=True):
            activated = self._activate(values, training=training)
            before.append(values)
            given.append(activated)
            values = torch.baddbmm(bias[:, None], activated.detach(), weight.transpose(1, 2))
            values *= self._rates[:, None, None]
        return [*given, values], before

    def _first_layer(self, features: Tensor) -> Tensor:
        # (1 or G, B, D) -> (G K, B, O): as wide a product as the heads that read the same rows allow.
        weight, bias = self._tensors[0], self._tensors[1]
        heads, wide, deep = weight.shape
        if len(features) == 1:
            values = torch.addmm(bias.view(-1), features[0], weight.view(-1, deep).T)
            values = values.view(-1, heads, wide).mul_(self._rates[:, None])
            return values.transpose(0, 1)
        grouped = weight.view(self.groups, self.members * wide, deep).transpose(1, 2)
        values = torch.baddbmm(bias.view(self.groups, 1, -1), features, grouped)
        values = values.view(self.groups, -1, self.members, wide).transpose(1, 2).reshape(heads, -1, wide)
        return values.mul_(self._rates[:, None, None])

    def _activate(self, values: Tensor, *, training: bool) -> Tensor:
        assert self._activation is not None
        if not training:
            return self._activation(values)
        with torch.enable_grad():
            activated = self._activation(values.requires_grad_())
            return F.dropout(activated, self.shape.dropout) if self.shape.dropout else activated

    def _backward(self, features: Tensor, inputs: list[Tensor], before: list[Tensor], gradient: Tensor) -> None:
        """Leaves the gradient by the weights (not by what is stored) of every layer in `grad`."""
        for number in range(len(before), 0, -1):
            weight = self._tensors[2 * number]
            activated = inputs[number - 1]
            self._keep(number, torch.bmm(gradient.transpose(1, 2), activated.detach()), gradient.sum(dim=1))
            gradient = torch.bmm(gradient * self._rates[:, None, None], weight)
            (gradient,) = torch.autograd.grad(activated, before[number - 1], gradient)
        self._keep(0, self._first_gradient(features, gradient), gradient.sum(dim=1))

    def _first_gradient(self, features: Tensor, gradient: Tensor) -> Tensor:
        heads, rows, wide = gradient.shape
        if len(features) == 1:
            return (gradient.transpose(0, 1).reshape(rows, heads * wide).T @ features[0]).view(heads, wide, -1)
        grouped = gradient.view(self.groups, self.members, rows, wide).transpose(1, 2).reshape(self.groups, rows, -1)
        return torch.bmm(grouped.transpose(1, 2), features).view(heads, wide, -1)

    def _keep(self, number: int, weight: Tensor, bias: Tensor) -> None:
        self._tensors[2 * number].grad, self._tensors[2 * number + 1].grad = weight, bias

    def _loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean losses (H,) and their gradient by logits (H, B, C): cross-entropy as torch defines it."""
        logs = F.log_softmax(logits, dim=2)
        own = labels[:, :, None]
        picked = logs.gather(2, own)
        if self._plain_loss:
            gradient = logs.exp().scatter_add_(2, own, picked.new_tensor(-1.0).expand_as(picked))
            return -picked.mean(dim=(1, 2)), gradient.div_(labels.shape[1])
        weights, smoothing = self._class_weights[:, None], self._options["label_smoothing"][:, None, None]
        spread = weights * smoothing / logits.shape[2]
        said = self._class_weights.gather(1, labels)[:, :, None]
        total, sharp = said.sum(dim=1, keepdim=True), said * (1 - smoothing)
        losses = -((sharp * picked).sum(dim=(1, 2)) + (spread * logs).sum(dim=(1, 2))) / total[:, 0, 0]
        gradient = logs.exp().mul_(sharp + spread.sum(dim=2, keepdim=True)).sub_(spread)
        return losses, gradient.scatter_add_(2, own, -sharp).div_(total)

    def _for_each_head(self, labels: Tensor) -> Tensor:
        # (1 or G, B) -> (G K, B)
        return labels[:, None].expand(self.groups, self.members, -1).reshape(self.groups * self.members, -1)

    def _penalise(self) -> None:
        for tensor in self._tensors:
            assert tensor.grad is not None
            if self._penalised["l1"]:
                tensor.grad.addcmul_(tensor.sign(), _along(self._options["l1"], tensor))
            if self._penalised["weight_decay"]:
                decay = _along(self._options["weight_decay"] * self._rates, tensor)
                if self.shape.optimizer == "adamw":
                    tensor.mul_(1 - decay)
                else:
                    tensor.grad.addcmul_(tensor, decay)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        # Weight decay differs from head to head and is taken off before the step, so adamw is Adam here.
        if self.shape.optimizer == "sgd":
            return torch.optim.SGD(self._tensors, lr=1.0, momentum=self.shape.momentum, fused=True)
        return torch.optim.Adam(self._tensors, lr=1.0, fused=True)


def _along(values: Tensor, tensor: Tensor) -> Tensor:
    # A value a head, for every number of the head.
    return values.view(-1, *(1,) * (tensor.dim() - 1))


def _activation(name: str) -> Callable[[Tensor], Tensor] | None:
    if not name:
        return None
    module: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return module
