"""Boxes with classes, by a network that computes its losses itself.

loss      the sum of the network's own losses on the batch (torchvision's, each with the weight 1)
score     COCO's average precision; `accuracy` is AP, the mean over thresholds and classes
verdict   an image's loss is the same sum on that image alone, its layers in eval mode: pairs of numbers, which AP has none of

A Mask R-CNN has the loss of its masks among its own, and a second score, of masks: AP is that of boxes all the same, so that
detectors compare.

A network that draws among its candidates (Faster R-CNN, 256 anchors and 512 proposals of an image) begins its draws from one
seed, for every image and every network: the same weights give the same loss.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wbar.method import SelectBy
from wbar.recipe import Recipe
from wbar.scores import Score
from wbar.spec import Network
from wbar_training.data.augment import Preparer
from wbar_training.data.boxes import (
    CLASS,
    COLUMNS,
    CORNERS,
    NO_BOX,
    BoxFeed,
    BoxSplit,
    joined_boxes,
    load_boxes,
    targets_of,
)
from wbar_training.data.examples import Batch, Examples
from wbar_training.data.instance_masks import of_bits
from wbar_training.data.mixing import merged
from wbar_training.data.packed import Packed
from wbar_training.draws import seed_torch
from wbar_training.evaluate import Outputs
from wbar_training.losses import Loss, Target
from wbar_training.networks.detectors import found_by, found_with_losses, loss_of
from wbar_training.tasks.box_picture import BoxPicture
from wbar_training.tasks.coco_scores import SCORE, Overlaps, box_score, check_installed
from wbar_training.tasks.mask_overlaps import Window, pixels_of, windows
from wbar_training.tasks.task import Reading, Task

MOST = 100  # detections of an image that are scored, as COCO has it
NOTHING = 0.02  # of AP: what a few boxes come to by chance on a few images
DRAWS = 20  # the seed of the networks' own draws in evaluation
BATCH_NORM_BATCH = 8


class DetectionLoss(Loss):
    """The network's own losses. labels: (B, most, 7), see `data.boxes`; outputs: their sum, a scalar.

    Of a batch in parts it is the mean of the parts' by their images: each normalizes by its own boxes.
    """

    graphable = False  # the shapes inside depend on the boxes

    def forward(self, module: nn.Module, inputs: Tensor, target: Target) -> Tensor:
        return loss_of(module, inputs, targets_of(target.labels, target.masks, size_of(inputs)))

    def __call__(self, outputs: Tensor, target: Target, images: int) -> Tensor:
        return outputs * (len(target.labels) / images)

    def correct(self, outputs: Tensor, target: Target) -> Tensor:  # noqa: ARG002
        """Return NaN, which stands for none: in training a detector gives no answers."""
        return torch.full_like(outputs, torch.nan)

    def _norm(self, labels: Tensor) -> float | Tensor:
        return float(len(labels))

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError("a detector computes its losses itself")

    def _right(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError("a detector computes its losses itself")

    def _divergence(self, scaled: Tensor, soft: Tensor) -> Tensor:
        raise NotImplementedError("the service refuses distillation in detection")


class Detection(Task):
    """Boxes with classes.

    Answers: (N, 100 + most, 7) float32: the detections of an image by their scores, then its labelled boxes, so that what is
    kept says all that the scores need, of augmented images too. With masks, (N, 100 + most, 8 + most): beside each box the
    pixels of its mask, and beside a detection those that it has in common with each labelled one. Labels: (B, most, 7) and
    (N, most, 7) float32.
    """

    name = "detection"
    averages_answers = False
    has_ensemble: ClassVar[bool] = False

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        super().__init__(network, names)
        check_installed()
        self.masks = network.architecture.finds_masks

    def load(self, path: Path, split: str, reading: Reading) -> BoxSplit:
        return load_boxes(path, split, reading.order, self.masks)

    def joined(self, parts: Sequence[BoxSplit]) -> BoxSplit:
        return joined_boxes(parts)

    def feed(
        self, train: BoxSplit, path: Path, prepare: Preparer, image_size: tuple[int, int], loaders: int
    ) -> BoxFeed:
        return BoxFeed(train, prepare, image_size, Packed.read(path).mean, loaders)

    def batch_norm_batch(self, image_size: tuple[int, int]) -> int:  # noqa: ARG002  # the network resizes its images
        return BATCH_NORM_BATCH

    def loss(self, recipe: Recipe, train: Examples, packed: Packed, device: torch.device) -> DetectionLoss:  # noqa: ARG002
        return DetectionLoss(recipe, self.network.num_classes, None, device)

    def target(self, recipe: Recipe, batch: Batch, seed: int, step: int) -> tuple[Tensor, Target]:
        if recipe.mixup is None:
            return batch.inputs, Target(batch.labels, masks=batch.masks)
        inputs, other = merged(recipe.mixup, batch.inputs, seed, step)
        theirs = batch.labels[other]
        itself = other == torch.arange(len(other), device=other.device)
        theirs[itself, :, CLASS] = NO_BOX  # its boxes are there
        masks = None if batch.masks is None else torch.cat([batch.masks, batch.masks[other]], dim=1)
        return inputs, Target(torch.cat([batch.labels, theirs], dim=1), masks=masks)

    def softened(self, logits: Tensor) -> Tensor:
        raise NotImplementedError("the service refuses distillation in detection")

    def forward(self, model: nn.Module, inputs: Tensor) -> list[dict[str, Tensor]]:
        return found_by(model, inputs)

    def answered(self, model: nn.Module, batch: Batch) -> Outputs:
        device, size = batch.inputs.device, size_of(batch.inputs)
        masks = None if batch.masks is None else batch.masks.to(device)
        targets = targets_of(batch.labels.to(device), masks, size)
        every, losses = found_with_losses(model, batch.inputs, targets, lambda: seed_torch(DRAWS, device))
        found = [surest(one) for one in every]
        answers = torch.cat([torch.stack([_rows(one) for one in found]), batch.labels.cpu()], dim=1)
        if batch.masks is not None:
            rows = zip(found, batch.masks.cpu(), batch.labels.cpu(), strict=True)
            pixels = [_pixels(one, own, labels, size) for one, own, labels in rows]
            answers = torch.cat([answers, torch.stack(pixels)], dim=2)
        return Outputs(answers, torch.stack(losses).double().cpu())

    def outputs(self, outputs: Any, labels: Tensor) -> Outputs:
        raise NotImplementedError("a detector's losses need the network: see `answered`")

    def score(self, answers: Tensor, labels: Tensor, losses: Tensor | None = None) -> Score:  # noqa: ARG002
        """Return the score of N images; the losses must be given."""
        assert losses is not None
        detections, truth = answers[:, :MOST, :COLUMNS], answers[:, MOST:, :COLUMNS]
        boxes = box_score(detections, truth, self.names)
        masks = None
        if self.masks:
            pixels = answers[..., COLUMNS]
            overlaps = Overlaps(pixels[:, :MOST], pixels[:, MOST:], answers[:, :MOST, COLUMNS + 1 :])
            masks = box_score(detections, truth, self.names, overlaps=overlaps)
        return Score(accuracy=boxes.ap or 0.0, loss=losses.mean().item(), boxes=boxes, masks=masks)

    def calibrated(
        self, score: Score, answers: Tensor, labels: Tensor, fitted_on: tuple[Tensor, Tensor] | None  # noqa: ARG002
    ) -> Score:  # fmt: skip
        """Return the score as it is: a temperature is of one answer for an image."""
        return score

    def per_image(self, outputs: Outputs, labels: Tensor, by: SelectBy) -> Tensor:  # noqa: ARG002
        """Return the loss of each image; the service refuses others, since an average precision is of many images."""
        assert by == "loss"
        return outputs.losses

    def mean_loss(self, outputs: Any, labels: Tensor) -> Tensor:
        raise NotImplementedError("the service refuses flatness in detection")

    def chance(self, labels: Tensor) -> float:  # noqa: ARG002
        """Return an AP that is as good as none: a start below it has learned nothing that could be forgotten."""
        return NOTHING

    def draw(
        self,
        model: nn.Module,
        weights: Mapping[str, Callable[[], Mapping[str, Tensor]]],
        examples: Any,
        prepare: Preparer,
    ) -> Any:
        return BoxPicture(model, examples, prepare, self.names).drawn(weights)


def size_of(images: Tensor) -> tuple[int, int]:
    """Return height and width of images, (B, C, H, W), in pixels."""
    return images.shape[-2], images.shape[-1]


def surest(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the 100 surest detections of an image, the surest first."""
    order = found["scores"].float().cpu().sort(descending=True, stable=True).indices[:MOST].to(found["scores"].device)
    return {name: one[order] for name, one in found.items()}


def _rows(surest: Mapping[str, Tensor]) -> Tensor:
    """Return the detections of an image, (100, 7)."""
    rows, count = torch.zeros(MOST, COLUMNS), len(surest["scores"])
    rows[:, CLASS] = NO_BOX
    rows[:count, CLASS] = surest["labels"].float().cpu()
    rows[:count, CORNERS] = surest["boxes"].float().cpu()
    rows[:count, SCORE] = surest["scores"].float().cpu()
    return rows


def _pixels(surest: Mapping[str, Tensor], bits: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the numbers of pixels of an image's masks, (100 + most, 1 + most). bits: (most, bytes). labels: (most, 7)."""
    found = {name: surest[name].float().cpu() for name in ("boxes", "masks")}
    own = (of_bits(one[None], size)[0] for one, label in zip(bits, labels, strict=True) if label[CLASS] != NO_BOX)
    return pixels_of(windows(found, size), map(Window.of, own), (MOST, len(labels)))
