"""One class for every image.

loss     Σ_images (−Σ_k w_k·q_k·log p_k) / Σ_images w_y,  q = (1 − ε)·one-hot + ε/C  (Szegedy et al. 2016)
score    accuracy, mean negative log-likelihood, calibration error; a temperature beside them
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wbar.method import SelectBy
from wbar.recipe import Recipe
from wbar.scores import Score
from wbar_training import calibration
from wbar_training.data.augment import RESIZED, Preparer
from wbar_training.data.colour import principal_axes
from wbar_training.data.examples import Batch, Examples
from wbar_training.data.feed import ImageFeed
from wbar_training.data.mixing import mix
from wbar_training.data.packed import Packed, Split, load_encoded, load_split
from wbar_training.evaluate import Outputs, calibration_error, forward_batch
from wbar_training.losses import Loss, Target, class_logits
from wbar_training.tasks.task import Reading, Task


class ClassLoss(Loss):
    """Cross-entropy. labels: (B,) int64 classes."""

    def _norm(self, labels: Tensor) -> float | Tensor:
        return float(len(labels)) if self.weights is None else self.weights[labels].sum().double()

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            class_logits(logits), labels, weight=self.weights, label_smoothing=self.smoothing, reduction="none"
        )

    def _right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (class_logits(logits).argmax(dim=1) == labels).float()

    def _divergence(self, scaled: Tensor, soft: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(class_logits(scaled), dim=1), soft, reduction="none").sum(dim=1)


class ImageTask(Task):
    """The part that tasks share whose labels are of the whole image: a split is one tensor of images, inputs are mixed."""

    def load(self, path: Path, split: str, reading: Reading) -> Split:
        return load_split(
            path, split, reading.image_size, reading.order, reading.centre, self.network.num_classes, reading.fit
        )

    def joined(self, parts: Sequence[Split]) -> Split:
        return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))

    def feed(
        self, train: Split, path: Path, prepare: Preparer, image_size: tuple[int, int], loaders: int  # noqa: ARG002
    ) -> ImageFeed:  # fmt: skip
        if prepare.augment == "imagenet":
            prepare.axes = principal_axes(train.images).to(prepare.device)
        encoded = load_encoded(path, "train") if prepare.augment in RESIZED else None
        return ImageFeed(train, prepare, encoded, loaders)

    def batch_norm_batch(self, image_size: tuple[int, int]) -> int:
        return forward_batch(image_size)

    def target(self, recipe: Recipe, batch: Batch, seed: int, step: int) -> tuple[Tensor, Target]:
        return mix(recipe, batch.inputs, batch.labels, seed, step)

    def draw(self, *_: Any) -> None:
        """Draw nothing: a class is no picture."""

    def calibrated(
        self, score: Score, answers: Tensor, labels: Tensor, fitted_on: tuple[Tensor, Tensor] | None
    ) -> Score:
        return calibration.calibrated(score, answers, labels, fitted_on)


class Classification(ImageTask):
    """One class for every image. Answers: softmax outputs, (N, classes) float32. Labels: (N,) int64 classes."""

    name = "classification"
    tells_order = warns_near_chance = True

    def loss(self, recipe: Recipe, train: Examples, packed: Packed, device: torch.device) -> ClassLoss:  # noqa: ARG002
        counts = torch.bincount(train.labels, minlength=self.network.classes)
        return ClassLoss(recipe, self.network.classes, counts, device)

    def softened(self, logits: Tensor) -> Tensor:
        return class_logits(logits).softmax(dim=1)

    def outputs(self, outputs: Tensor, labels: Tensor) -> Outputs:
        logs = torch.log_softmax(class_logits(outputs.double().cpu()), dim=1)
        return Outputs(logs.exp().float(), -logs.gather(1, labels.cpu()[:, None]).squeeze(1))

    def distributions(self, probabilities: Tensor) -> Tensor:
        return probabilities[:, None]

    def score(self, answers: Tensor, labels: Tensor, losses: Tensor | None = None) -> Score:
        return score(answers, labels, losses)

    def per_image(self, outputs: Outputs, labels: Tensor, by: SelectBy) -> Tensor:
        return per_image(outputs, labels, by)

    def mean_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(class_logits(outputs), labels)

    def chance(self, labels: Tensor) -> float:
        return 1 / len(set(labels.tolist()))

    def strata(self, labels: Tensor) -> Tensor:
        return labels


def score(probabilities: Tensor, labels: Tensor, losses: Tensor | None = None) -> Score:
    """Return accuracy, mean NLL in nats and ECE; the losses follow from the probabilities where they are not given.

    probabilities: (N, classes).
    labels: (N,) int64 classes.
    losses: (N,) float64.
    """
    confidence, predicted = probabilities.max(dim=1)
    correct = predicted == labels
    if losses is None:
        # What float32 rounded to 0 counts as the least that it holds: as a lower bound of that loss.
        losses = -probabilities.gather(1, labels[:, None]).squeeze(1).double().clamp_min(calibration.LEAST).log()
    return Score(
        accuracy=correct.double().mean().item(),
        loss=losses.mean().item(),
        ece=calibration_error(confidence, correct),
    )


def per_image(outputs: Outputs, labels: Tensor, by: SelectBy) -> Tensor:
    """Return what is compared, one per image, (N,) float64; lower is better.

    labels: (N,) int64 classes.
    by: `loss`, −log p of the label; `accuracy`, 1 where the answer is wrong; `brier`, Σ (p − y)² (Brier 1950).
    """
    if by == "loss":
        return outputs.losses
    p = outputs.answers.double()
    if by == "accuracy":
        return (p.argmax(dim=1) != labels).double()
    return (p - F.one_hot(labels, p.shape[1]).to(torch.float64)).square().sum(dim=1)
