"""Two images in one: mixup blends them, CutMix puts a box of one into the other; the loss weighs both labels.

mixup    x̃ = λx + (1 − λ)x′,  λ ~ Beta(α, α), one per batch                       (Zhang et al. 2018, equation 1)
CutMix   a box of (1 − λ) of the area from x′, at a uniform centre; λ is then the share left of x   (Yun et al. 2019)
boxes    mixup of two images, with the boxes of both, each as a whole label              (after Zhang et al. 2019)
"""

import torch
from torch import Tensor

from wbar.recipe import Recipe
from wbar_training.draws import generator, key
from wbar_training.losses import Target
from wbar_training.to_device import to_device

MIX = "mix"  # names the draws


def mix(recipe: Recipe, inputs: Tensor, labels: Tensor, seed: int, step: int) -> tuple[Tensor, Target]:
    """Mix a step's batch as the recipe says; draws depend on (seed, step) alone.

    inputs: (B, C, H, W), normalized.
    labels: (B, …), on the inputs' device.
    """
    if recipe.mixup is None and recipe.cutmix is None:
        return inputs, Target(labels)
    draws = generator(seed, MIX, step)
    cut = recipe.mixup is None or (recipe.cutmix is not None and bool(torch.rand((), generator=draws) < 0.5))
    alpha = recipe.cutmix if cut else recipe.mixup
    assert alpha is not None
    share = _beta(alpha, seed, step)
    other = to_device(torch.randperm(len(inputs), generator=draws), inputs.device)
    if cut:
        inputs, share = _paste(inputs, inputs[other], share, draws)
    else:
        inputs = inputs * share + inputs[other] * (1 - share)
    return inputs, Target(labels, labels[other], share)


def merged(alpha: float, inputs: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return the blended inputs, and the index of the image that was mixed into each, (B,): draws as of `mix`."""
    draws, share = generator(seed, MIX, step), _beta(alpha, seed, step)
    other = to_device(torch.randperm(len(inputs), generator=draws), inputs.device)
    return inputs * share + inputs[other] * (1 - share), other


def _beta(alpha: float, seed: int, step: int) -> float:
    # torch's Beta takes no generator; the global one is set for this draw and put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, "beta", step))
        return torch.distributions.Beta(torch.tensor(alpha).double(), torch.tensor(alpha).double()).sample().item()


def _paste(inputs: Tensor, others: Tensor, share: float, draws: torch.Generator) -> tuple[Tensor, float]:
    height, width = inputs.shape[-2:]
    side = (1 - share) ** 0.5
    centre = torch.rand(2, generator=draws)
    top, bottom = _span(height, side, centre[0].item())
    left, right = _span(width, side, centre[1].item())
    pasted = inputs.clone()
    pasted[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return pasted, 1 - (bottom - top) * (right - left) / (height * width)


def _span(length: int, side: float, centre: float) -> tuple[int, int]:
    """Return begin and end of a range of side·length pixels around a centre, cut off at the edges."""
    middle, half = int(centre * length), int(side * length) // 2
    return max(0, middle - half), min(length, middle + half)
