"""Scores of weights on held-out images: accuracy, negative log-likelihood and calibration."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wbar.results import Score, Verdict
from wbar_training.distributed.ranks import Ranks
from wbar_training.losses import class_logits

BINS = 15
PIXELS_PER_BATCH = 2**20  # a BatchNorm batch holds about this many pixels of input
EVALUATION_PIXELS = 2**24
EVALUATION_BATCH = 256  # larger ones are slower on a CPU (they leave its caches) and no faster on a GPU


def forward_batch(image_size: tuple[int, int]) -> int:
    """Return the images of a BatchNorm batch, by the image size alone, so that the hardware never changes a result."""
    return max(128, min(2048, PIXELS_PER_BATCH // (image_size[0] * image_size[1])))


def even_slices(count: int, most: int) -> Iterator[slice]:
    """Yield range(count) in the fewest slices of at most `most`, as equal as possible: no tiny last batch."""
    parts = -(-count // most)
    for part in range(parts):
        yield slice(count * part // parts, count * (part + 1) // parts)


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network on N images, on the CPU.

    probabilities: (N, classes) float32; of several labels float64.
    losses: (N,) float64, −log p of the label, in nats.
    """

    probabilities: Tensor
    losses: Tensor


@dataclass(frozen=True)
class HeldOutOutputs:
    """The outputs on both held-out splits and, by name, on evaluation sets; `selection` is None where nothing is selected."""

    report: Outputs
    selection: Outputs | None
    sets: dict[str, Outputs] = field(default_factory=dict)


@torch.no_grad()
def predict(
    model: nn.Module,
    labels: Tensor,
    inputs_of: Callable[[slice, int], Tensor],
    image_size: Sequence[int],
    autocast: torch.dtype | None,
    tick: Callable[[int], None],
) -> Outputs:
    """Return the softmax outputs and per-image losses of all images, in eval mode.

    labels: (N,) int64 classes, or (N, outputs) of 0 and 1.
    inputs_of: makes the normalized inputs of a slice of the images, which is the batch of the given number (from 0).
    image_size: (height, width) in pixels, which the batch size depends on.
    autocast: the dtype of convolutions and products; None: float32.
    tick: called after every batch with its number of images.
    """
    was_training = model.training
    model.eval()
    probabilities, losses = [], []
    ranks = Ranks.here()
    most_at_once = max(8, min(EVALUATION_BATCH, EVALUATION_PIXELS // (image_size[0] * image_size[1])))
    batches = list(enumerate(even_slices(len(labels), most_at_once)))
    for index, chunk in batches[ranks.share(len(batches))]:
        inputs = inputs_of(chunk, index)
        with torch.autocast(inputs.device.type, dtype=autocast, enabled=autocast is not None):
            logits = model(inputs)
        batch_probabilities, batch_losses = _outputs(logits.double().cpu(), labels[chunk].cpu())
        probabilities.append(batch_probabilities)
        losses.append(batch_losses)
        tick(len(inputs))
    ranks.settle(len(labels), sum(map(len, losses)), tick)
    model.train(was_training)
    shares = ranks.gathered((probabilities, losses))
    return Outputs(
        torch.cat([p for share, _ in shares for p in share]), torch.cat([x for _, share in shares for x in share])
    )


def _outputs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities, float32, and the loss of each image, float64.

    The loss is −log p of the image's class; of several labels, their mean −log p.
    """
    if labels.dim() == 1:
        logs = torch.log_softmax(class_logits(logits), dim=1)
        return logs.exp().float(), -logs.gather(1, labels[:, None]).squeeze(1)
    losses = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none").mean(dim=1)
    return logits.sigmoid(), losses  # float64: 1 − p must not round away


def score(probabilities: Tensor, labels: Tensor, losses: Tensor | None = None) -> Score:
    """Return accuracy, mean NLL in nats and ECE; the losses follow from the probabilities where they are not given.

    probabilities: (N, classes).
    labels: (N,) int64 classes, or (N, classes) of 0 and 1; then accuracy is the share of right answers, and the average
        precision of each class that an image has is added.
    losses: (N,) float64.
    """
    if labels.dim() > 1:
        return _score_of_labels(probabilities, labels, losses)
    confidence, predicted = probabilities.max(dim=1)
    correct = predicted == labels
    if losses is None:
        losses = -probabilities.gather(1, labels[:, None]).squeeze(1).double().clamp_min(1e-300).log()
    return Score(
        accuracy=correct.double().mean().item(),
        loss=losses.mean().item(),
        ece=calibration_error(confidence, correct),
    )


def _score_of_labels(probabilities: Tensor, labels: Tensor, losses: Tensor | None) -> Score:
    from sklearn.metrics import average_precision_score  # seconds to import, and for this task only

    p, y = probabilities.double(), labels.double()
    if losses is None:
        # As for classes: a probability that was rounded to 0 must not make the loss infinite.
        losses = -(y * p.clamp_min(1e-300).log() + (1 - y) * (1 - p).clamp_min(1e-300).log()).mean(dim=1)
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


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Return the expected calibration error over 15 equal bins of confidence (Guo et al. 2017, equation 3).

    confidence: (N,) in [0, 1].
    correct: (N,) bool.
    """
    bins = (confidence.double() * BINS).ceil().sub(1).clamp(0, BINS - 1).long()
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, confidence.double() - correct.double())
    return (gaps.abs().sum() / len(confidence)).item()


def verdict(averaged: Tensor, start: Tensor) -> Verdict:
    """Compare paired losses, (N,): `better` below −2 standard errors of the mean difference, `worse` above +2, else `same`.

    A single image has no standard error, and tells nothing.
    """
    difference = averaged.double() - start.double()
    if len(difference) < 2:
        return "same"
    mean, error = difference.mean().item(), difference.std(unbiased=True).item() / sqrt(len(difference))
    if mean < -2 * error:
        return "better"
    return "worse" if mean > 2 * error else "same"
