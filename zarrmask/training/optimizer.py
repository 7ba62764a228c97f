"""What moves the weights: detectron2's optimizer, by its keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from zarrmask.training.recipe import Recipe


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Give the optimizer of all parameters that learn; each group knows its `base` rate."""
    groups = parameter_groups(network, recipe)
    if recipe.optimizer == "AdamW":
        return torch.optim.AdamW(groups, lr=recipe.rate)
    return torch.optim.SGD(
        groups, lr=recipe.rate, momentum=recipe.momentum, nesterov=recipe.nesterov
    )


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Group parameters by rate and decay.

    Norms have ``WEIGHT_DECAY_NORM``; what is called a bias, in norms too, has
    ``WEIGHT_DECAY_BIAS`` where that is set, and ``BIAS_LR_FACTOR`` times the rate.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for module in network.modules():
        is_norm = isinstance(module, _NormBase | nn.GroupNorm)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            rate, decay = recipe.rate, recipe.decay
            if is_norm and recipe.norm_decay is not None:
                decay = recipe.norm_decay
            if name == "bias":
                rate *= recipe.bias_rate
                decay = decay if recipe.bias_decay is None else recipe.bias_decay
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give every group this share of its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * share


def clip_gradients(network: nn.Module, recipe: Recipe) -> None:
    """Clip gradients as ``SOLVER.CLIP_GRADIENTS`` says."""
    learning = [one for one in network.parameters() if one.grad is not None]
    if recipe.clip_type == "value":
        nn.utils.clip_grad_value_(learning, recipe.clip_value)
    elif recipe.clip_type == "full_model":
        nn.utils.clip_grad_norm_(learning, recipe.clip_value, recipe.clip_norm)
    else:
        for parameter in learning:
            nn.utils.clip_grad_norm_(parameter, recipe.clip_value, recipe.clip_norm)
