"""One head of one's own as a stack: whatever module it is, with its own buffers and its own loss.

The module's parameters stay where they are; the stack's tensors are the same memory with a leading 1. So the step, its
penalties and its optimizer are those of every head. What a module draws at random comes from torch's global generators,
which start from a number of each step and are then as before: a training that goes on draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from featcache.errors import FeatcacheError, HeadError
from featcache.rows.target import HeadTarget
from featcache.training.augmentation import StepRandom
from featcache.training.stack import InitialHead, Stack


class ModuleStack(Stack):
    """A stack of one head that is a module."""

    def __init__(self, heads: Sequence[Sequence[InitialHead]], target: HeadTarget) -> None:
        ((head,),) = heads
        assert head.module is not None
        self.module: nn.Module = head.module
        self._name = head.config.head
        # The first name of each tensor, for all names that a module has for it.
        first = {id(tensor): name for name, tensor in reversed(self._state().items())}
        self._names = {name: first[id(tensor)] for name, tensor in self._state().items()}
        super().__init__(heads, target)

    @property
    def draws(self) -> bool:
        """Whether a step needs random numbers: what a module does is not known."""
        return True

    @property
    def normed(self) -> bool:
        """Whether a batch is normalized over its rows."""
        return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self.module.modules())

    def tensors_of(self, head: int) -> dict[str, Tensor]:
        """The tensors of the head by all names that its module has for them: copies."""
        return {name: self.tensors[first][0].detach().clone() for name, first in self._names.items()}

    def _stacked(self, heads: Sequence[InitialHead]) -> dict[str, Tensor]:
        state = self._state()
        return {name: state[name].detach()[None] for name in dict.fromkeys(self._names.values())}

    def _trained_names(self) -> list[str]:
        state = self._state()
        return [name for name in self.tensors if isinstance(state[name], nn.Parameter) and state[name].requires_grad]

    def _require_gradients(self) -> None:
        """The module's own parameters have them."""

    def _gradients(self, losses: Tensor, weights: Tensor) -> list[Tensor]:
        state = self._state()
        found = torch.autograd.grad(losses, [state[name] for name in self._trained], weights, materialize_grads=True)
        return [gradient[None] for gradient in found]

    def _forward(self, features: Tensor, *, training: bool, random: StepRandom | None) -> Tensor:
        if self.module.training != training:
            self.module.train(training)
        try:
            with nullcontext() if random is None else random.global_generators():
                outputs: Tensor = self.module(features[0])
        except FeatcacheError:
            raise
        except Exception as error:
            raise HeadError(
                f"the head {self._name} fails on features float32 {tuple(features.shape[1:])}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if training:
            self._follow_buffers()
        return outputs[None]

    def _follow_buffers(self) -> None:
        """Buffers that the module has put others in the place of."""
        state = self._state()
        for name, tensor in self.tensors.items():
            if state[name].data_ptr() != tensor.data_ptr():
                self.tensors[name] = state[name].detach()[None]

    def _state(self) -> dict[str, Tensor]:
        return self.module.state_dict(keep_vars=True)
