"""The optimizer of a job: SGD or AdamW, weight decay on convolution and linear weights only."""

import torch
from torch import nn

from training.plan import Plan


def decayed(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay acts on: weights of convolutions and linear maps.

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
    """A fresh optimizer over two groups, decayed and not; the loop sets the rate at every step."""
    chosen = decayed(model)
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in parameters.items() if name in chosen], "weight_decay": plan.weight_decay},
        {"params": [p for name, p in parameters.items() if name not in chosen], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=plan.momentum, nesterov=plan.nesterov, fused=True)
    return torch.optim.AdamW(groups, lr=1.0, betas=plan.betas, fused=True)
