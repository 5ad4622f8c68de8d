"""A class for every pixel.

loss      Σ_pixels (−w_y·log p_y) / Σ_pixels w_y over the labelled pixels of the batch
          + 0.5 × the same of the auxiliary head, where the network has one
          + δ·mean_i (1 − mean_k 2Σp_k·y_k / (Σp_k + Σy_k)) over the classes k of image i     (Drozdzal et al. 2016)
score     pixel accuracy and, by class, intersection over union, from one confusion matrix
verdict   an image's loss is the mean −log p of its labelled pixels
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wbar.method import SelectBy
from wbar.recipe import Recipe
from wbar.scores import Score
from wbar_training.data.augment import Preparer
from wbar_training.data.examples import Batch, Examples
from wbar_training.data.masks import VOID, MaskFeed, MaskSplit, joined_masks, load_masks
from wbar_training.data.packed import Packed
from wbar_training.evaluate import Outputs
from wbar_training.losses import Loss, Target, class_logits
from wbar_training.tasks.mask_picture import MaskPicture
from wbar_training.tasks.task import Reading, Task

AUXILIARY = 0.5  # weight of the auxiliary head's loss, as torchvision's references have it
BATCH_NORM_PIXELS = 2**20


class SegmentationLoss(Loss):
    """Cross-entropy of the labelled pixels, and Dice where asked for. labels: (B, H, W) int64 classes, or VOID.

    outputs: torchvision's, a dict with `out` and perhaps `aux`, (B, outputs, H, W) each.
    """

    def __init__(self, recipe: Recipe, classes: int, counts: Tensor | None, device: torch.device) -> None:
        super().__init__(recipe, classes, counts, device)
        self.dice = recipe.dice

    def normed(self, target: Target) -> Target:
        """Return the target with the sum of the pixels' weights, and the labelled pixels for each image of the batch."""
        labelled = target.labels != VOID
        pixels = labelled.sum().double()
        weights = pixels
        if self.weights is not None:
            of_void = torch.cat([self.weights, self.weights.new_zeros(1)])
            weights = of_void[torch.where(labelled, target.labels, len(self.weights))].sum().double()
        # A batch of void alone has a loss of 0.
        return replace(target, norms=(_or_one(weights), _or_one(pixels) / len(target.labels)))

    def __call__(self, outputs: Mapping[str, Tensor], target: Target, images: int) -> Tensor:
        logits = class_logits(outputs["out"].float())
        loss = self._hard(logits, target.labels).sum()
        if "aux" in outputs:
            loss = loss + AUXILIARY * self._hard(class_logits(outputs["aux"].float()), target.labels).sum()
        loss = loss / target.norms[0]
        return loss + self.dice * dice_losses(logits, target.labels).sum() / images if self.dice else loss

    def correct(self, outputs: Mapping[str, Tensor], target: Target) -> Tensor:
        """Return the right pixels over the labelled pixels of an image of the batch, which stands for right images."""
        return self._right(outputs["out"], target.labels).sum() / target.norms[1]

    def _norm(self, labels: Tensor) -> float | Tensor:
        return float(len(labels))

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        # As a list of pixels: torch's loss of images has no repeatable CUDA kernel.
        flat = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
        losses: Tensor = F.cross_entropy(
            flat,
            labels.flatten(),
            weight=self.weights,
            ignore_index=VOID,
            label_smoothing=self.smoothing,
            reduction="none",
        )
        return losses.view(len(labels), -1).sum(dim=1)

    def _right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (class_logits(logits).argmax(dim=1) == labels).flatten(1).sum(dim=1).float()

    def _divergence(self, scaled: Tensor, soft: Tensor) -> Tensor:
        raise NotImplementedError("the service refuses distillation in segmentation")


def _or_one(total: Tensor) -> Tensor:
    return torch.where(total > 0, total, torch.ones_like(total))


def dice_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 − the mean Dice coefficient of the classes that each image has, (B,); 0 for an image that is all void.

    logits: (B, classes, H, W).
    labels: (B, H, W) int64, or VOID.
    """
    labelled = labels != VOID
    truth = F.one_hot(torch.where(labelled, labels, 0), logits.shape[1]).permute(0, 3, 1, 2) * labelled[:, None]
    p = logits.softmax(dim=1) * labelled[:, None]
    sums = truth.flatten(2).sum(dim=2)
    dice = 2 * (p * truth).flatten(2).sum(dim=2) / (p.flatten(2).sum(dim=2) + sums).clamp_min(1e-6)
    present = (sums > 0).float()
    return (present * (1 - dice)).sum(dim=1) / present.sum(dim=1).clamp_min(1)


class Segmentation(Task):
    """A class for every pixel.

    Answers: (N, 3, classes) int64, pixels of each class by image: right ones, by the outputs, by the labels. Labels of a batch:
    (B, H, W) int64; of a split: (N, classes), the classes that each image has.
    """

    name = "segmentation"
    averages_answers = False

    def load(self, path: Path, split: str, reading: Reading) -> MaskSplit:
        return load_masks(path, split, reading.order, self.network.classes)

    def joined(self, parts: Sequence[MaskSplit]) -> MaskSplit:
        return joined_masks(parts)

    def feed(
        self, train: MaskSplit, path: Path, prepare: Preparer, image_size: tuple[int, int], loaders: int  # noqa: ARG002
    ) -> MaskFeed:  # fmt: skip
        return MaskFeed(train, prepare, image_size, loaders)

    def batch_norm_batch(self, image_size: tuple[int, int]) -> int:
        return max(8, min(512, BATCH_NORM_PIXELS // (image_size[0] * image_size[1])))

    def loss(self, recipe: Recipe, train: Examples, packed: Packed, device: torch.device) -> SegmentationLoss:  # noqa: ARG002
        counts = torch.zeros(self.network.classes, dtype=torch.int64)
        for name, pixels in zip(packed.classes, packed.class_pixels or [], strict=False):
            counts[self.names.index(name)] = pixels
        return SegmentationLoss(recipe, self.network.classes, counts, device)

    def target(self, recipe: Recipe, batch: Batch, seed: int, step: int) -> tuple[Tensor, Target]:  # noqa: ARG002
        return batch.inputs, Target(batch.labels)

    def softened(self, logits: Tensor) -> Tensor:
        raise NotImplementedError("the service refuses distillation in segmentation")

    def outputs(self, outputs: Mapping[str, Tensor], labels: Tensor) -> Outputs:
        return self._kept(torch.log_softmax(class_logits(outputs["out"].float()), dim=1), labels)

    def probabilities(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return class_logits(outputs["out"].float()).softmax(dim=1).cpu()

    def outputs_of(self, probabilities: Tensor, labels: Tensor) -> Outputs:
        return self._kept(probabilities.clamp_min(1e-38).log(), labels)

    def _kept(self, logs: Tensor, labels: Tensor) -> Outputs:
        labels = labels.cpu()
        labelled = labels != VOID
        known = torch.where(labelled, labels, 0)
        of_label = logs.gather(1, known[:, None].to(logs.device)).squeeze(1).double().cpu()
        predicted, classes = logs.argmax(dim=1).cpu(), logs.shape[1]
        # A crop of a training image may be void everywhere: it has a loss of 0.
        losses = -(of_label * labelled).flatten(1).sum(dim=1) / labelled.flatten(1).sum(dim=1).clamp_min(1)
        image = torch.arange(len(labels))[:, None, None].expand_as(labels)
        places = ((image * classes + known) * classes + predicted)[labelled]
        confusion = torch.bincount(places, minlength=len(labels) * classes * classes).view(-1, classes, classes)
        right = confusion.diagonal(dim1=1, dim2=2)
        return Outputs(torch.stack([right, confusion.sum(dim=1), confusion.sum(dim=2)], dim=1), losses)

    def score(self, answers: Tensor, labels: Tensor, losses: Tensor | None = None) -> Score:  # noqa: ARG002
        """Return the score of N images; the losses must be given."""
        assert losses is not None
        right, predicted, labelled = answers.sum(dim=0)
        either = predicted + labelled - right
        iou = {
            name: right[k].item() / either[k].item() if either[k] > 0 else None
            for k, name in enumerate(self.names[: len(right)])
        }
        known = [value for value in iou.values() if value is not None]
        return Score(
            accuracy=right.sum().item() / max(1, labelled.sum().item()),
            loss=losses.mean().item(),
            mean_iou=sum(known) / max(1, len(known)),
            iou=iou,
        )

    def calibrated(
        self, score: Score, answers: Tensor, labels: Tensor, fitted_on: tuple[Tensor, Tensor] | None  # noqa: ARG002
    ) -> Score:  # fmt: skip
        """Return the score as it is: a temperature is of one answer for an image."""
        return score

    def per_image(self, outputs: Outputs, labels: Tensor, by: SelectBy) -> Tensor:  # noqa: ARG002
        """Return the loss of each image, or the share of its pixels that are wrong."""
        if by == "loss":
            return outputs.losses
        right, _, labelled = outputs.answers.double().sum(dim=2).unbind(dim=1)
        return 1 - right / labelled

    def mean_loss(self, outputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        logs = torch.log_softmax(class_logits(outputs["out"]), dim=1)
        labelled = labels != VOID
        of_label = logs.gather(1, torch.where(labelled, labels, 0)[:, None]).squeeze(1) * labelled
        return -(of_label.flatten(1).sum(dim=1) / labelled.flatten(1).sum(dim=1)).mean()

    def chance(self, labels: Tensor) -> float:
        """Return the accuracy of a guess among the classes that held-out images have."""
        return 1 / max(1, int((labels > 0).any(dim=0).sum()))

    def draw(
        self,
        model: nn.Module,
        weights: Mapping[str, Callable[[], Mapping[str, Tensor]]],
        examples: Any,
        prepare: Preparer,
    ) -> Any:
        return MaskPicture(model, examples, prepare).drawn(weights)
