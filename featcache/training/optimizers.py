"""Steps of Adam, AdamW or SGD for the parameters of many heads at once.

The steps are torch's own fused operators, called without the classes of torch.optim: constructing one of these imports
torch's compiler, which takes longer than many trainings. A test compares them with torch.optim.

Each head has its own learning rate, but an operator takes one rate for all. Heads with equal rates share a step without
further work. If rates differ, a parameter w is stored as w / rate, and the rate of the step is 1: Adam's update of w is
the rate times a term that does not depend on the rate, so the update of w / rate is that term. The same holds for
momentum. The caller passes gradients with respect to w, not to w / rate, so that Adam's epsilon keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from torch import Tensor

OptimizerName = Literal["adam", "adamw", "sgd"]
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class FusedOptimizer:
    """The moments of some parameters, and steps for all of them.

    Args:
        name: `adam`, `adamw` or `sgd`. The caller applies weight decay, which differs between heads, so adamw is the
            same as adam here.
        tensors: The parameters, (K, ...) each; they are changed in place.
        momentum: For sgd; 0 for none.
    """

    def __init__(self, name: OptimizerName, tensors: Sequence[Tensor], *, momentum: float) -> None:
        self.name = name
        self._tensors = [tensor.detach() for tensor in tensors]
        self._momentum = momentum
        self._steps = 0
        self._kept: dict[str, list[Tensor]] = {
            kind: [torch.zeros_like(tensor) for tensor in self._tensors] for kind in self._kinds
        }

    @property
    def _kinds(self) -> tuple[str, ...]:
        if self.name == "sgd":
            return ("momentum",) if self._momentum else ()
        return ("mean", "square")

    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Update the parameters by gradients of the same shapes. `rate`: the learning rate of all heads."""
        # The operators ignore strides: a transposed gradient would silently be applied wrongly.
        grads = [gradient.contiguous() for gradient in gradients]
        self._steps += 1
        if self.name == "sgd":
            torch._fused_sgd_(
                self._tensors,
                grads,
                self._kept.get("momentum", []),
                weight_decay=0.0,
                momentum=self._momentum,
                lr=rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=self._steps == 1,
            )
            return
        device = self._tensors[0].device
        torch._fused_adam_(
            self._tensors,
            grads,
            self._kept["mean"],
            self._kept["square"],
            [],
            [torch.full((), float(self._steps), device=device)] * len(grads),
            lr=rate,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            weight_decay=0.0,
            eps=_EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """The number of steps and the moments, by name, without copies; `restore` takes them."""
        kept = {f"{kind}.{number}": one for kind, some in self._kept.items() for number, one in enumerate(some)}
        return {"steps": torch.tensor(self._steps), **kept}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore such a state. Raises KeyError or RuntimeError if it does not fit the parameters."""
        self._steps = int(state["steps"])
        for kind, some in self._kept.items():
            for number, one in enumerate(some):
                one.copy_(state[f"{kind}.{number}"])

    def select(self, tensors: Sequence[Tensor], heads: Tensor) -> Self:
        """The optimizer for some of the heads, int64 (k,), with the new parameters `tensors`."""
        other = type(self)(self.name, [], momentum=self._momentum)
        other._tensors = [tensor.detach() for tensor in tensors]
        other._steps = self._steps
        other._kept = {kind: [one[heads] for one in some] for kind, some in self._kept.items()}
        return other
