"""A network on held-out images, a batch at a time; how two networks compare there, and how well one is calibrated."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor, nn

from wbar.results import Verdict
from wbar_training.data.examples import Batch
from wbar_training.distributed.ranks import Ranks

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


def evaluation_parts(count: int, image_size: Sequence[int]) -> list[slice]:
    """Return the batches that `count` images of (height, width) pixels are evaluated in."""
    most_at_once = max(8, min(EVALUATION_BATCH, EVALUATION_PIXELS // (image_size[0] * image_size[1])))
    return list(even_slices(count, most_at_once))


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network on N images, on the CPU.

    answers: (N, …), what the task keeps of them for its scores.
    losses: (N,) float64, −log p of the label, in nats; of several labels, known attributes or pixels their
        mean; of regression the mean squared error of standardized targets.
    """

    answers: Tensor
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
    parts: Sequence[slice],
    batch_of: Callable[[slice, int], Batch],
    answered: Callable[[nn.Module, Batch], Outputs],
    autocast: torch.dtype | None,
    tick: Callable[[int], None],
) -> Outputs:
    """Return what is kept of the outputs on all images, and the loss of each, in eval mode.

    parts: the batches, as slices of the images.
    batch_of: makes the batch of a slice, which has the given number (from 0).
    answered: what is kept of the network on a batch.
    autocast: the dtype of convolutions and products; None: float32.
    tick: called after every batch with its number of images.
    """
    was_training = model.training
    model.eval()
    kept: list[Outputs] = []
    ranks = Ranks.here()
    batches = list(enumerate(parts))
    for index, part in batches[ranks.share(len(batches))]:
        batch = batch_of(part, index)
        with torch.autocast(batch.inputs.device.type, dtype=autocast, enabled=autocast is not None):
            kept.append(answered(model, batch))
        tick(len(batch.inputs))
    ranks.settle(parts[-1].stop, sum(len(one.losses) for one in kept), tick)
    model.train(was_training)
    return joined([one for share in ranks.gathered(kept) for one in share])


def joined(outputs: Sequence[Outputs]) -> Outputs:
    """Return the outputs on one batch after another as those on all images."""
    return Outputs(torch.cat([one.answers for one in outputs]), torch.cat([one.losses for one in outputs]))


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
