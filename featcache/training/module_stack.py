"""A stack of one head with a custom module or a custom loss, which cannot be batched with other heads.

The stack's tensors share the memory of the module's parameters, with a leading dimension of 1. So the step, its
penalties and its optimizer are the same as for built-in heads. Random numbers of the module come from torch's global
generators, which are seeded for each step and restored afterwards: a resumed training draws the same numbers.
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
        # The first name of each tensor: a module can have several names for one tensor.
        first = {id(tensor): name for name, tensor in reversed(self._state().items())}
        self._names = {name: first[id(tensor)] for name, tensor in self._state().items()}
        super().__init__(heads, target)

    @property
    def draws(self) -> bool:
        """Whether a step needs random numbers; always True, since a module may use dropout or noise."""
        return True

    @property
    def has_batch_norm(self) -> bool:
        """Whether the module has a batch norm."""
        return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self.module.modules())

    def tensors_of(self, head: int) -> dict[str, Tensor]:
        """Copies of the head's tensors, by all names that its module has for them."""
        return {name: self.tensors[first][0].detach().clone() for name, first in self._names.items()}

    def _stack_tensors(self, heads: Sequence[InitialHead]) -> dict[str, Tensor]:
        state = self._state()
        return {name: state[name].detach()[None] for name in dict.fromkeys(self._names.values())}

    def _parameter_names(self) -> list[str]:
        state = self._state()
        return [name for name in self.tensors if isinstance(state[name], nn.Parameter) and state[name].requires_grad]

    def _require_gradients(self) -> None:
        """Nothing to do: the module's own parameters require gradients."""

    def _gradients(self, losses: Tensor, weights: Tensor) -> list[Tensor]:
        state = self._state()
        parameters = [state[name] for name in self._trained]
        gradients = torch.autograd.grad(losses, parameters, weights, materialize_grads=True)
        return [gradient[None] for gradient in gradients]

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
        """Update the stack's tensors where the module has replaced a buffer by a new tensor."""
        state = self._state()
        for name, tensor in self.tensors.items():
            if state[name].data_ptr() != tensor.data_ptr():
                self.tensors[name] = state[name].detach()[None]

    def _state(self) -> dict[str, Tensor]:
        return self.module.state_dict(keep_vars=True)
