"""The training loss, as a sum over images divided by one number for the whole batch.

However the batch is cut into parts or shared among ranks, the parts add up to the same loss.

    classes       Σ_images (−Σ_k w_k·q_k·log p_k) / Σ_images w_y,  q = (1 − ε)·one-hot + ε/C  (Szegedy et al. 2016)
    multi-label   Σ_images mean_k w_k·BCE(z_k, (1 − ε)·y_k + ε/2) / images
    mixed         λ·L(labels) + (1 − λ)·L(labels of the other image)                        (Zhang et al. 2018; Yun et al. 2019)
    distilled     (1 − a)·L + a·T²·KL(p_T(teacher) ‖ p_T(student))                          (Hinton et al. 2015)
    penalized     L + γ·mean_i ‖∂ℓ_i/∂x_i‖²                                                 (Drucker & LeCun 1992)
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from wbar.recipe import Distillation, Recipe


@dataclass(frozen=True)
class Target:
    """The targets of B images.

    labels: (B,) int64 classes, or (B, C) of 0 and 1.
    other: the labels of the image that was mixed in, shaped as `labels`.
    share: the share of the first image, in [0, 1]; in a CUDA graph a float64 scalar on the device.
    soft: (B, C) float32, the teacher's probabilities at its temperature.
    norms: the divisors of the sums over `labels` and over `other`; scalars on the device where they are sums of weights.
    """

    labels: Tensor
    other: Tensor | None = None
    share: float | Tensor = 1.0
    soft: Tensor | None = None
    norms: tuple[float | Tensor, float | Tensor] = (1.0, 1.0)

    def part(self, images: slice) -> "Target":
        """Return the targets of one part of the images; the norms stay the whole batch's."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[images]

        return replace(self, labels=self.labels[images], other=cut(self.other), soft=cut(self.soft))


def class_logits(logits: Tensor) -> Tensor:
    """Return logits of classes, (B, C). A single output z is a sigmoid between two: softmax(0, z) = (1 − σ(z), σ(z))."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


class Loss:
    """The training loss of a recipe.

    classes: outputs of the network.
    counts: (classes,) training images per class, for `balanced`.
    """

    def __init__(self, recipe: Recipe, classes: int, counts: Tensor | None, device: torch.device) -> None:
        self.smoothing, self.penalty = recipe.label_smoothing, recipe.gradient_penalty
        self.distillation: Distillation | None = recipe.distillation
        self.weights = _class_weights(recipe, classes, counts)
        if self.weights is not None:
            self.weights = self.weights.to(device)

    def normed(self, target: Target) -> Target:
        """Return the target with the divisors of this batch's sums."""
        other = target.labels if target.other is None else target.other
        return replace(target, norms=(self._norm(target.labels), self._norm(other)))

    def _norm(self, labels: Tensor) -> float | Tensor:
        if labels.dim() > 1 or self.weights is None:
            return float(len(labels))
        return self.weights[labels].sum().double()

    def __call__(self, logits: Tensor, target: Target, images: int) -> Tensor:
        """Return a part's share of the batch's loss, a scalar.

        logits: (part, outputs).
        images: in the whole batch.
        """
        return self._per_image(logits.float(), target, images).sum()

    def with_penalty(self, logits: Tensor, target: Target, images: int, inputs: Tensor) -> Tensor:
        """Return the same with γ·‖∂ℓ/∂x‖², where ℓ_i is an image's loss: `images` times its share.

        inputs: (part, C, H, W); must require a gradient.
        """
        loss = self._per_image(logits.float(), target, images).sum()
        (gradient,) = torch.autograd.grad(loss * images, inputs, create_graph=True)
        return loss + self.penalty * gradient.float().square().sum() / images

    def _per_image(self, logits: Tensor, target: Target, images: int) -> Tensor:
        losses = self._hard(logits, target.labels) * (target.share / target.norms[0])
        if target.other is not None:
            losses = losses + self._hard(logits, target.other) * ((1 - target.share) / target.norms[1])
        if self.distillation is None or target.soft is None:
            return losses
        t, weight = self.distillation.temperature, self.distillation.weight
        return (1 - weight) * losses + weight * t * t / images * self._divergence(logits / t, target)

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.dim() == 1:
            return F.cross_entropy(
                class_logits(logits), labels, weight=self.weights, label_smoothing=self.smoothing, reduction="none"
            )
        smoothed = labels.float() * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smoothed, weight=self.weights, reduction="none").mean(dim=1)

    @staticmethod
    def _divergence(scaled: Tensor, target: Target) -> Tensor:
        """Return KL(teacher ‖ student) per image; of several labels the mean."""
        assert target.soft is not None
        if target.labels.dim() == 1:
            return F.kl_div(F.log_softmax(class_logits(scaled), dim=1), target.soft, reduction="none").sum(dim=1)
        student = torch.stack([F.logsigmoid(scaled), F.logsigmoid(-scaled)])
        teacher = torch.stack([target.soft, 1 - target.soft])
        return F.kl_div(student, teacher, reduction="none").sum(dim=0).mean(dim=1)


def correct(logits: Tensor, target: Target) -> Tensor:
    """Return how many images of a part are right, a scalar.

    A mixed image counts for each of its two labels by their shares. Of several labels, the share that is on the right
    side of ½ counts.

    logits: (part, outputs).
    """
    if target.labels.dim() > 1:
        predicted = logits > 0
        right = (predicted == (target.labels > 0.5)).float().mean(dim=1)
        other = right if target.other is None else (predicted == (target.other > 0.5)).float().mean(dim=1)
    else:
        predicted = class_logits(logits).argmax(dim=1)
        right = (predicted == target.labels).float()
        other = right if target.other is None else (predicted == target.other).float()
    return (target.share * right + (1 - target.share) * other).sum()


def _class_weights(recipe: Recipe, classes: int, counts: Tensor | None) -> Tensor | None:
    if recipe.class_weights is None:
        return None
    if recipe.class_weights == "balanced":
        assert counts is not None
        # A class without training images has weight 0, and must not make the others' weights infinite.
        present = counts > 0
        weights = torch.zeros(classes)
        weights[present] = counts.sum() / (present.sum() * counts[present]).float()
        return weights
    return torch.tensor(recipe.class_weights, dtype=torch.float32)
