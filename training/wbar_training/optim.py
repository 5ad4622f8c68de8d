"""The optimizer of a job, torch's own: weight decay on convolution and linear weights only, rates that may fall with depth."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from wbar_training.networks.layers import scales
from wbar_training.plan import Plan

SCALE = "rate_scale"  # in an optimizer's group: what the schedule's rate is multiplied by; 1 where it is missing
OPTIMIZERS: dict[str, type[Any]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def decayed(model: nn.Module) -> set[str]:
    """Return the names of the parameters that weight decay acts on: weights of convolutions and linear maps.

    Biases, normalization's γ and β, class tokens, position tables and layer scales are left alone (He et al. 2019, "no bias
    decay"), and what a network of timm's lists itself.
    """
    names = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            names.add(f"{prefix}weight")
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            names.add(f"{prefix}in_proj_weight")
    return {name for name in names if not any(fnmatchcase(name, f"*{own}*") for own in _own_list(model))}


def _own_list(model: nn.Module) -> set[str]:
    """Return what timm's network says itself that weight decay leaves alone: names, or parts of names."""
    listed: Callable[[], Iterable[str]] | None = getattr(model, "no_weight_decay", None)
    return set(listed()) if listed is not None else set()


def make_optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Make a fresh optimizer over groups of parameters, decayed and not, for each layer where rates fall with depth.

    The loop sets the rate at every step: the schedule's times the group's SCALE. Frozen parameters are in no group. Fused
    kernels where torch has one for the device; RMSProp runs on lists of tensors.
    """
    options, layer_decay = plan.recipe.optimizer, plan.recipe.layer_decay
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decay = decayed(model) if options.no_bias_decay else set(parameters)
    scale = dict.fromkeys(parameters, 1.0) if layer_decay is None else scales(model, layer_decay)
    groups = [
        {"params": chosen, "weight_decay": plan.weight_decay if decays else 0.0} | ({SCALE: one} if one != 1 else {})
        for one in sorted({scale[name] for name in parameters}, reverse=True)
        for decays in (True, False)
        if (chosen := [p for name, p in parameters.items() if (name in decay) == decays and scale[name] == one])
    ]
    rest: dict[str, dict[str, Any]] = {
        "sgd": {"momentum": options.momentum, "nesterov": options.nesterov and options.momentum > 0, "fused": True},
        "adam": {"betas": options.betas, "fused": True},
        "adamw": {"betas": options.betas, "fused": True},
        "rmsprop": {"alpha": options.alpha, "momentum": options.momentum, "foreach": True},
        "adagrad": {"fused": True} if next(iter(parameters.values())).device.type == "cpu" else {"foreach": True},
    }
    made: torch.optim.Optimizer = OPTIMIZERS[options.name](groups, lr=1.0, **rest[options.name])
    return made
