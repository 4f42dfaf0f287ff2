"""Build the final head after training: a module on plain features, with standardisation folded into it."""

from __future__ import annotations

import torch
from torch import nn

from featcache.heads.architectures import build_head, fold_batch_norms
from featcache.heads.own_module import OwnHead
from featcache.heads.target_scale import TargetScale
from featcache.rows.devices import seed_generators
from featcache.rows.target import HeadTarget
from featcache.training.stacking import head_shape
from featcache.training.trial import Scaling, Trial


def final_head(trial: Trial, scaling: Scaling, target: HeadTarget, in_features: int) -> nn.Module:
    """The head of a trial's best epoch, in eval mode: float32 (B, `in_features`) -> outputs float32 (B, C).

    Batch norms, and the standardisation of features and of numbers, are folded into its layers. A custom module is
    wrapped together with the standardisation instead.
    """
    config = trial.config
    if config.architecture.own:
        return _own_head(trial, scaling, target, in_features)
    with torch.device("meta"):
        head = build_head(config.architecture, head_shape(config, in_features, target.outputs))
    # `num_batches_tracked` of batch norms has no effect, and was not stored.
    tensors = {name: trial.best[name].clone() if name in trial.best else torch.zeros(()) for name in head.state_dict()}
    head.load_state_dict(tensors, assign=True)
    head = fold_batch_norms(head) if config.batch_norm else head
    if scaling.features is not None:
        scaling.features.fold_into(head)
    if scaling.targets is not None:
        fold_scale(head, scaling.targets)
    return head.eval()


def _own_head(trial: Trial, scaling: Scaling, target: HeadTarget, in_features: int) -> nn.Module:
    config = trial.config
    with seed_generators(config.seed, torch.device("cpu")):
        module = build_head(config.architecture, head_shape(config, in_features, target.outputs))
    module.load_state_dict({name: tensor.clone() for name, tensor in trial.best.items()})
    head = OwnHead(module, in_features, target.outputs, features=scaling.features, targets=scaling.targets)
    return head.to(next(iter(trial.best.values())).device).eval()


def fold_scale(head: nn.Module, scale: TargetScale) -> None:
    """Change the last linear layer of a head with standardised outputs, so that it gives numbers in their own units."""
    last = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        weight, bias = scale.fold(last.weight.cpu().double().numpy(), last.bias.cpu().double().numpy())
        last.weight.copy_(torch.from_numpy(weight))
        last.bias.copy_(torch.from_numpy(bias))


def parameter_count(head: nn.Module) -> int:
    """Number of parameters of a head."""
    return sum(parameter.numel() for parameter in head.parameters())
