"""The training loss, as a sum over images divided by one number for the whole batch.

However the batch is cut into parts or shared among ranks, the parts add up to the same loss. What is here is the same for
all tasks; the losses themselves are the tasks' (`wbar_training.tasks`).

    mixed         λ·L(labels) + (1 − λ)·L(labels of the other image)                        (Zhang et al. 2018; Yun et al. 2019)
    distilled     (1 − a)·L + a·T²·KL(p_T(teacher) ‖ p_T(student))                          (Hinton et al. 2015)
    penalized     L + γ·mean_i ‖∂ℓ_i/∂x_i‖²                                                 (Drucker & LeCun 1992)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wbar.recipe import Distillation, Recipe


@dataclass(frozen=True)
class Target:
    """The targets of B images.

    labels: (B, …), as the task has them.
    other: the labels of the image that was mixed in, shaped as `labels`.
    share: the share of the first image, in [0, 1]; in a CUDA graph a float64 scalar on the device.
    soft: (B, C) float32, the teacher's probabilities at its temperature.
    masks: of detection with masks, see `Batch`.
    norms: the divisors of the sums over `labels` and over `other`; scalars on the device where they are sums of weights.
    """

    labels: Tensor
    other: Tensor | None = None
    share: float | Tensor = 1.0
    soft: Tensor | None = None
    norms: tuple[float | Tensor, float | Tensor] = (1.0, 1.0)
    masks: Tensor | None = None

    def part(self, images: slice) -> "Target":
        """Return the targets of one part of the images; the norms stay the whole batch's."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[images]

        return replace(
            self, labels=self.labels[images], other=cut(self.other), soft=cut(self.soft), masks=cut(self.masks)
        )


def class_logits(logits: Tensor) -> Tensor:
    """Return logits of classes, (B, C). A single output z is a sigmoid between two: softmax(0, z) = (1 − σ(z), σ(z))."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


class Loss(ABC):
    """The training loss of a recipe.

    classes: outputs of the network.
    counts: (classes,) how often each class is in the training images, for `balanced`.
    """

    # Whether a step can be one CUDA graph: no shape in it depends on the labels.
    graphable: ClassVar[bool] = True

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

    def forward(self, module: nn.Module, inputs: Tensor, target: Target) -> Any:  # noqa: ARG002  # tasks with losses inside
        """Return the network's outputs in training; of a network that has its losses inside, these losses."""
        return module(inputs)

    def __call__(self, outputs: Any, target: Target, images: int) -> Tensor:
        """Return a part's share of the batch's loss, a scalar.

        outputs: of `forward`, for the part.
        images: in the whole batch.
        """
        return self._per_image(outputs.float(), target, images).sum()

    def with_penalty(self, outputs: Tensor, target: Target, images: int, inputs: Tensor) -> Tensor:
        """Return the same with γ·‖∂ℓ/∂x‖², where ℓ_i is an image's loss: `images` times its share.

        inputs: (part, C, H, W); must require a gradient.
        """
        loss = self._per_image(outputs.float(), target, images).sum()
        (gradient,) = torch.autograd.grad(loss * images, inputs, create_graph=True)
        return loss + self.penalty * gradient.float().square().sum() / images

    def _per_image(self, logits: Tensor, target: Target, images: int) -> Tensor:
        losses = self._hard(logits, target.labels) * (target.share / target.norms[0])
        if target.other is not None:
            losses = losses + self._hard(logits, target.other) * ((1 - target.share) / target.norms[1])
        if self.distillation is None or target.soft is None:
            return losses
        t, weight = self.distillation.temperature, self.distillation.weight
        return (1 - weight) * losses + weight * t * t / images * self._divergence(logits / t, target.soft)

    def correct(self, outputs: Any, target: Target) -> Tensor:
        """Return how many images of a part are right, a scalar; a mixed image counts for both its labels by their shares."""
        right = self._right(outputs, target.labels)
        other = right if target.other is None else self._right(outputs, target.other)
        return (target.share * right + (1 - target.share) * other).sum()

    @abstractmethod
    def _norm(self, labels: Tensor) -> float | Tensor:
        """Return the divisor of the sum over these images."""

    @abstractmethod
    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each image by its labels, (B,), weighted and not divided yet."""

    @abstractmethod
    def _right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return how far each image is right, (B,) float32 in [0, 1]."""

    @abstractmethod
    def _divergence(self, scaled: Tensor, soft: Tensor) -> Tensor:
        """Return KL(teacher ‖ student) per image, (B,). scaled: the student's logits over the temperature."""


def balanced_weights(classes: int, counts: Tensor) -> Tensor:
    """Return images / (classes · images of the class), (classes,) float32. counts: (classes,) images of each."""
    # A class without training images has weight 0, and must not make the others' weights infinite.
    present = counts > 0
    weights = torch.zeros(classes)
    weights[present] = counts.sum() / (present.sum() * counts[present]).float()
    return weights


def _class_weights(recipe: Recipe, classes: int, counts: Tensor | None) -> Tensor | None:
    if recipe.class_weights is None:
        return None
    if recipe.class_weights == "balanced":
        assert counts is not None
        return balanced_weights(classes, counts)
    return torch.tensor(recipe.class_weights, dtype=torch.float32)
