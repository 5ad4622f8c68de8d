"""The pull λ‖w̄ − w‖² toward the mean, with w̄ held constant: value, and gradient 2λ(w − w̄) added without autograd.

Where it stands in a step: after backward and unscaling (its gradient is not scaled by a loss scaler), before clipping
(it is part of the loss L′, so the norm that is clipped contains it) and before the optimizer's weight decay (which is
no part of the clipped gradient in torch's optimizers either).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def add_pull_gradient(parameters: Sequence[Tensor], mean: Sequence[Tensor], strength: float) -> None:
    """grad += 2λ(w − w̄) for every parameter that has a gradient, in place and without model-sized temporaries.

    parameters, mean: tensors of equal shapes, dtypes and devices, in the same order; strength: λ ≥ 0.
    """
    if strength == 0:
        return
    grads, weights, anchors = [], [], []
    for weight, anchor in zip(parameters, mean, strict=True):
        if weight.grad is not None:
            grads.append(weight.grad)
            weights.append(weight)
            anchors.append(anchor)
    torch._foreach_add_(grads, weights, alpha=2 * strength)
    torch._foreach_add_(grads, anchors, alpha=-2 * strength)


@torch.no_grad()
def distance(parameters: Sequence[Tensor], mean: Sequence[Tensor]) -> Tensor:
    """‖w − w̄‖₂ over all parameters, a float32 scalar on their device. Works tensor by tensor."""
    parts = [torch.linalg.vector_norm(w - m) for w, m in zip(parameters, mean, strict=True)]
    total: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return total


def pull_loss(distance_to_mean: float, strength: float) -> float:
    """λ‖w̄ − w‖² from the distance that `distance` gave."""
    return strength * distance_to_mean * distance_to_mean
