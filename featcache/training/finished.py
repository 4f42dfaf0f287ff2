"""A head after its training: a plain module on features as they are, whatever was done to them meanwhile."""

from __future__ import annotations

import torch
from torch import nn

from featcache.heads.architectures import build_head, without_norms
from featcache.heads.own_module import OwnHead
from featcache.heads.target_scale import TargetScale
from featcache.rows.devices import seeded
from featcache.rows.target import HeadTarget
from featcache.training.stacking import head_shape
from featcache.training.trial import Scaling, Trial


def finished_head(trial: Trial, scaling: Scaling, target: HeadTarget, in_features: int) -> nn.Module:
    """The head of a trial's best epoch, in eval mode: float32 (B, `in_features`) -> outputs float32 (B, C).

    Batch norms, the standardisation of features and that of numbers are folded into its layers; a module of one's own
    has them put around it.
    """
    config = trial.config
    if config.architecture.own:
        return _own_head(trial, scaling, target, in_features)
    with torch.device("meta"):
        head = build_head(config.architecture, head_shape(config, in_features, target.outputs))
    # Counts of batches, which nothing depends on, were not kept.
    tensors = {name: trial.best[name].clone() if name in trial.best else torch.zeros(()) for name in head.state_dict()}
    head.load_state_dict(tensors, assign=True)
    head = without_norms(head) if config.batch_norm else head
    if scaling.features is not None:
        scaling.features.fold_into(head)
    if scaling.targets is not None:
        fold_scale(head, scaling.targets)
    return head.eval()


def _own_head(trial: Trial, scaling: Scaling, target: HeadTarget, in_features: int) -> nn.Module:
    config = trial.config
    with seeded(config.seed, torch.device("cpu")):
        module = build_head(config.architecture, head_shape(config, in_features, target.outputs))
    module.load_state_dict({name: tensor.clone() for name, tensor in trial.best.items()})
    head = OwnHead(module, in_features, target.outputs, features=scaling.features, targets=scaling.targets)
    return head.to(next(iter(trial.best.values())).device).eval()


def fold_scale(head: nn.Module, scale: TargetScale) -> None:
    """Make of a head that gives deviations one that gives numbers as they are: its last linear layer is changed."""
    last = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        weight, bias = scale.folded(last.weight.cpu().double().numpy(), last.bias.cpu().double().numpy())
        last.weight.copy_(torch.from_numpy(weight))
        last.bias.copy_(torch.from_numpy(bias))


def numbers_in(head: nn.Module) -> int:
    """How many parameters a head has."""
    return sum(parameter.numel() for parameter in head.parameters())
