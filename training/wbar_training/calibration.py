"""One temperature beside the weights: softmax(z/T) instead of softmax(z), fitted on images that the score is not from.

    T = argmin Σ −log softmax(zᵢ/T)[yᵢ] + ½ log² T                       (Guo et al. 2017, section 4.2, and a weak prior)

A temperature changes no decision, so that what it gains is calibration alone: a loss that is lower before and not after it
was won by less confidence, not by better features. The prior, one nat at T = e^√2, keeps T finite where every image is
right; from a few dozen images on it does not matter. The temperature is reported and written beside the weights, never
applied to them. Probabilities are kept as float32, so that logits more than 103 apart count as 103 apart (of several labels
37: float64 rounds 1 − p). It is the minimum that Newton's method comes to from T = 1: outputs that are all but equal, and
right, have another one near T = 0.
"""

from collections.abc import Sequence
from math import exp

import torch
from torch import Tensor

from wbar.scores import Score

STEP = 0.5  # the longest step in log T: Newton's may be wild far from the minimum
STEPS = 50
TOLERANCE = 1e-9
LEAST = 2.0**-149  # float32 probabilities below it are 0
LEAST_REST = 2.0**-54  # what is left of 1 where float64 has it, or less


def calibrated(score: Score, probabilities: Tensor, labels: Tensor, fitted_on: tuple[Tensor, Tensor] | None) -> Score:
    """Return the score with its temperature and the loss at that temperature.

    probabilities: (N, classes), of the images that the score is from.
    labels: (N,) int64 classes, or (N, classes) of 0 and 1.
    fitted_on: probabilities and labels of other images, which the temperature is fitted on. None: there are no others;
        the loss of either half of the N images is then at the temperature of the other half, and the temperature is that
        of all. A single image gets neither.
    """
    if fitted_on is not None:
        temperature = fit_temperature(*fitted_on)
        loss = loss_at(temperature, probabilities, labels)
        return score.model_copy(update={"temperature": temperature, "nll_calibrated": loss})
    if len(labels) < 2:
        return score
    halves = [slice(0, None, 2), slice(1, None, 2)]  # files lie class by class: each half has its share of every class
    fits = [fit_temperature(probabilities[half], labels[half]) for half in halves]
    losses = [loss_at(t, probabilities[half], labels[half]) for t, half in zip(reversed(fits), halves, strict=True)]
    counts = [len(labels[half]) for half in halves]
    return score.model_copy(
        update={"temperature": fit_temperature(probabilities, labels), "nll_calibrated": _mean(losses, counts)}
    )


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """Return T for softmax outputs at T = 1, by Newton's method in log T. Shapes as of `calibrated`."""
    logits, targets = _as_logits(probabilities, labels)
    right = logits.gather(1, targets[:, None]).squeeze(1)
    place = 0.0
    for _ in range(STEPS):
        beta = exp(-place)
        p = torch.softmax(logits * beta, dim=1)
        expected = (p * logits).sum(dim=1)
        variance = ((p * logits.square()).sum(dim=1) - expected.square()).clamp_min(0).sum().item()
        excess = (expected - right).sum().item()
        slope, curvature = place - beta * excess, 1 + beta * excess + beta * beta * variance
        step = slope / curvature if curvature > 0 else (STEP if slope > 0 else -STEP)
        place -= max(-STEP, min(STEP, step))
        if abs(step) < TOLERANCE:
            break
    return exp(place)


def loss_at(temperature: float, probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean loss in nats at a temperature. Shapes as of `calibrated`."""
    logits, targets = _as_logits(probabilities, labels)
    logs = torch.log_softmax(logits / temperature, dim=1)
    return -logs.gather(1, targets[:, None]).mean().item()


def _as_logits(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (M, outcomes) float64 and targets (M,); of several labels, each answer is an image of two outcomes."""
    p = probabilities.double()
    if labels.dim() > 1:
        p = torch.stack([1 - p, p], dim=2).clamp_min(LEAST_REST).flatten(0, 1)
        labels = labels.long().flatten()
    return p.clamp_min(LEAST).log(), labels


def _mean(values: Sequence[float], counts: Sequence[int]) -> float:
    return sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
