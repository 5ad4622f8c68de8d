"""The optimizer of a job, torch's own, weight decay on convolution and linear weights only."""

from typing import Any

import torch
from torch import nn

from wbar_training.plan import Plan

OPTIMIZERS: dict[str, type[Any]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def decayed(model: nn.Module) -> set[str]:
    """Return the names of the parameters that weight decay acts on: weights of convolutions and linear maps.

    Biases, normalization's γ and β, class tokens and position tables are left alone (He et al. 2019, "no bias decay").
    """
    names = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            names.add(f"{prefix}weight")
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            names.add(f"{prefix}in_proj_weight")
    return names


def make_optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Make a fresh optimizer over two groups, decayed and not; the loop sets the rate at every step.

    Frozen parameters are in neither group. Fused kernels where torch has one for the device; RMSProp runs on lists of
    tensors.
    """
    options = plan.recipe.optimizer
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decay = decayed(model) if options.no_bias_decay else set(parameters)
    groups = [
        {"params": [p for name, p in parameters.items() if name in decay], "weight_decay": plan.weight_decay},
        {"params": [p for name, p in parameters.items() if name not in decay], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rest: dict[str, dict[str, Any]] = {
        "sgd": {"momentum": options.momentum, "nesterov": options.nesterov and options.momentum > 0, "fused": True},
        "adam": {"betas": options.betas, "fused": True},
        "adamw": {"betas": options.betas, "fused": True},
        "rmsprop": {"alpha": options.alpha, "momentum": options.momentum, "foreach": True},
        "adagrad": {"fused": True} if next(iter(parameters.values())).device.type == "cpu" else {"foreach": True},
    }
    made: torch.optim.Optimizer = OPTIMIZERS[options.name](groups, lr=1.0, **rest[options.name])
    return made
