"""The pull λ‖w̄ − w‖² toward the mean, with w̄ held constant: value, and gradient 2λ(w − w̄) added without autograd.

Where it stands in a step, and why:

    backward (all accumulated batches) → unscale → PULL → clip → optimizer.step (weight decay inside)

After unscaling, since it is not scaled by the loss scaler; once for a step, not once for each accumulated batch; before
clipping, since it is part of the loss L′ and the norm that is clipped contains it.

*Folded.* With coupled weight decay the optimizer adds wd·w to the gradient anyway, so 2λ(w − w̄) is wd + 2λ and −2λw̄:
one pass over the weights less. The same number where the optimizer's decay is part of the gradient (SGD, Adam, …), not
with AdamW's, which bypasses it, and not with clipping, which must see the whole gradient of the pull.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from wbar_averaging.blocks import pieces

FOLDED = "folded_pull"  # the key of an optimizer's group that says how much of its weight decay is the pull's


@torch.no_grad()
def add_pull_gradient(parameters: Sequence[Tensor], mean: Sequence[Tensor], strength: float) -> None:
    """grad += 2λ(w − w̄) for every parameter that has a gradient, in place and without temporaries.

    parameters, mean: tensors of equal shapes, dtypes and devices, in the same order; strength: λ ≥ 0.
    """
    if strength == 0:
        return
    triples = [(w.grad, w, m) for w, m in zip(parameters, mean, strict=True) if w.grad is not None]
    if triples:
        grads, weights, anchors = (list(part) for part in zip(*triples, strict=True))
        torch._foreach_add_(grads, weights, alpha=2 * strength)
        torch._foreach_add_(grads, anchors, alpha=-2 * strength)


@torch.no_grad()
def add_folded_pull_gradient(parameters: Sequence[Tensor], mean: Sequence[Tensor], strength: float) -> None:
    """grad += −2λw̄: the part of the pull's gradient that `fold_pull` leaves to be added. Arguments: as `add_pull_gradient`."""
    if strength == 0:
        return
    pairs = [(w.grad, m) for w, m in zip(parameters, mean, strict=True) if w.grad is not None]
    if pairs:
        torch._foreach_add_([grad for grad, _ in pairs], [m for _, m in pairs], alpha=-2 * strength)


def can_fold_pull(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's weight decay is part of the gradient, so that the pull may be folded into it exactly."""
    if isinstance(optimizer, torch.optim.AdamW):
        return False
    coupled = (
        torch.optim.SGD, torch.optim.Adam, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam,
        torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.ASGD,
    )  # fmt: skip
    return isinstance(optimizer, coupled) and not any(
        group.get("decoupled_weight_decay") or group.get("maximize") for group in optimizer.param_groups
    )


def fold_pull(optimizer: torch.optim.Optimizer, strength: float) -> None:
    """Raise every group's weight decay by 2λ; call `add_folded_pull_gradient` before each step. 0 takes it back.

    strength: λ ≥ 0. Calling it again replaces the fold; the amount is kept in the optimizer's state, so that a resumed
    optimizer is not folded twice. Every parameter of the optimizer must be pulled; call it again after adding a group.
    Raises ValueError for an optimizer with which it would not be exact (`can_fold_pull`).
    """
    if not can_fold_pull(optimizer):
        raise ValueError(
            f"the weight decay of {type(optimizer).__name__} is not part of the gradient (decoupled or maximize): "
            "use add_pull_gradient"
        )
    for group in optimizer.param_groups:
        group["weight_decay"] += 2 * strength - group.get(FOLDED, 0.0)
        group[FOLDED] = 2 * strength


@torch.no_grad()
def distance(parameters: Sequence[Tensor], mean: Sequence[Tensor]) -> Tensor:
    """‖w − w̄‖₂ over all parameters, a scalar on their device, float32 or wider. Works block by block."""
    norms: list[Tensor] = []
    for some, anchors in pieces(list(parameters), list(mean)):
        norms += torch._foreach_norm(torch._foreach_sub(some, anchors))
    wide = [norm.to(torch.promote_types(norm.dtype, torch.float32)) for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(wide))
    return total


def pull_loss(distance_to_mean: float, strength: float) -> float:
    """λ‖w̄ − w‖² from the distance that `distance` gave; training needs its gradient only, and reports the value."""
    return strength * distance_to_mean * distance_to_mean
