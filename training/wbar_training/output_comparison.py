"""How far the probabilities of two networks on the same images are apart, whatever an image is asked.

What an image is asked are distributions: one over all classes; one over the categories of each attribute; of each label
(1 − p, p), no and yes. With distributions p and q of an image, shares and means over images and their distributions:

    agreement        share with argmax p = argmax q
    divergence       Σ_k p_k·(log p_k − log q_k), nats
    change           ½·Σ_k |p_k − q_k|, by image
    stability        share with argmax p′ = argmax p, and mean of |p′_y − p_y| with y = argmax p

All tensors are (N, distributions, categories); distributions of fewer categories end with zeros, which count nowhere.
"""

import torch
from torch import Tensor


def share_agreeing(p: Tensor, q: Tensor) -> float:
    """Return the share of predictions that are the same."""
    same: Tensor = p.argmax(dim=2) == q.argmax(dim=2)
    return same.double().mean().item()


def divergence(p: Tensor, q: Tensor) -> float:
    """Return the mean of KL(p ‖ q) in nats; 0·log 0 is 0, and of q the least float64 stands for 0."""
    least = torch.finfo(torch.float64).tiny
    terms: Tensor = torch.special.xlogy(p, p) - torch.special.xlogy(p, q.clamp_min(least))
    return terms.sum(dim=2).mean().item()


def change(p: Tensor, q: Tensor) -> Tensor:
    """Return how far each distribution of each image is apart, (N, distributions), in [0, 1]."""
    halves: Tensor = ((p - q).abs().sum(dim=2) / 2).clamp_max(1)
    return halves


def stability(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return the share of unchanged predictions, and the mean change of the predicted category's probability."""
    gaps = (after - before).abs().gather(2, before.argmax(dim=2, keepdim=True))
    return share_agreeing(before, after), gaps.mean().item()
