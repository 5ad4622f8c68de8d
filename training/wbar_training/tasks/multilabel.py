"""Several labels for every image, each a yes or no.

loss     Σ_images (Σ_k w_k·BCE(z_k, (1 − ε)·y_k + ε/2) / Σ_k w_k) / images
score    the share of right answers, their mean −log p, calibration error, average precision by class
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wbar.method import SelectBy
from wbar.recipe import Recipe
from wbar.scores import Score
from wbar_training import calibration
from wbar_training.data.examples import Examples
from wbar_training.data.packed import Packed
from wbar_training.evaluate import Outputs, calibration_error
from wbar_training.losses import Loss
from wbar_training.tasks.classification import ImageTask


class LabelsLoss(Loss):
    """Binary cross-entropies. labels: (B, outputs) of 0 and 1."""

    def _norm(self, labels: Tensor) -> float | Tensor:
        return float(len(labels))

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothed = labels.float() * (1 - self.smoothing) + self.smoothing / 2
        each = F.binary_cross_entropy_with_logits(logits, smoothed, weight=self.weights, reduction="none")
        # Every label is asked of every image, so that weights weigh labels against each other, and not the loss as a whole.
        return each.mean(dim=1) if self.weights is None else each.sum(dim=1) / self.weights.sum()

    def _right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return ((logits > 0) == (labels > 0.5)).float().mean(dim=1)

    def _divergence(self, scaled: Tensor, soft: Tensor) -> Tensor:
        student = torch.stack([F.logsigmoid(scaled), F.logsigmoid(-scaled)])
        teacher = torch.stack([soft, 1 - soft])
        return F.kl_div(student, teacher, reduction="none").sum(dim=0).mean(dim=1)


class Multilabel(ImageTask):
    """Several labels for every image. Answers: sigmoid outputs, (N, outputs) float64. Labels: (N, outputs) of 0 and 1."""

    name = "multilabel"

    def loss(self, recipe: Recipe, train: Examples, packed: Packed, device: torch.device) -> LabelsLoss:  # noqa: ARG002
        return LabelsLoss(recipe, self.network.num_classes, train.labels.sum(dim=0), device)

    def softened(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def outputs(self, outputs: Tensor, labels: Tensor) -> Outputs:
        logits = outputs.double().cpu()
        losses = F.binary_cross_entropy_with_logits(logits, labels.cpu().double(), reduction="none").mean(dim=1)
        return Outputs(logits.sigmoid(), losses)  # float64: 1 − p must not round away

    def distributions(self, probabilities: Tensor) -> Tensor:
        return torch.stack([1 - probabilities, probabilities], dim=2)

    def score(self, answers: Tensor, labels: Tensor, losses: Tensor | None = None) -> Score:
        return score_of_labels(answers, labels, losses)

    def per_image(self, outputs: Outputs, labels: Tensor, by: SelectBy) -> Tensor:
        """Return the mean over an image's labels of what `classification.per_image` says."""
        if by == "loss":
            return outputs.losses
        p, y = outputs.answers.double(), labels.double()
        return ((p > 0.5) != (y > 0.5)).double().mean(dim=1) if by == "accuracy" else (p - y).square().mean(dim=1)

    def mean_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, labels.float())

    def chance(self, labels: Tensor) -> float:
        """Return the accuracy of always giving the commoner answer."""
        present = labels.double().mean(dim=0)
        return torch.maximum(present, 1 - present).mean().item()


def score_of_labels(probabilities: Tensor, labels: Tensor, losses: Tensor | None = None) -> Score:
    """Return the share of right answers, their mean loss in nats, ECE, and the average precision of each class that occurs.

    probabilities: (N, classes).
    labels: (N, classes) of 0 and 1.
    losses: (N,) float64; they follow from the probabilities where they are not given.
    """
    from sklearn.metrics import average_precision_score  # seconds to import, and for this task only

    p, y = probabilities.double(), labels.double()
    if losses is None:
        # As for classes: what was rounded to 0 is as small as it can have been, or less.
        losses = -(y * p.clamp_min(1e-300).log() + (1 - y) * (1 - p).clamp_min(calibration.LEAST_REST).log()).mean(
            dim=1
        )
    by_class = [
        float(average_precision_score(y[:, k].numpy(), p[:, k].numpy())) if bool(y[:, k].any()) else None
        for k in range(y.shape[1])
    ]
    precisions = [value for value in by_class if value is not None]
    correct = (p > 0.5) == (y > 0.5)
    confidence = torch.maximum(p, 1 - p)
    return Score(
        accuracy=correct.double().mean().item(),
        loss=losses.mean().item(),
        ece=calibration_error(confidence.flatten(), correct.flatten()),
        map=sum(precisions) / len(precisions) if precisions else None,
        average_precision=by_class,
    )
