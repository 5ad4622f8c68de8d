"""torchvision's detectors: built with the normalization that a checkpoint has, and asked for their own losses.

Where torchvision trains from published weights, the backbone's BatchNorm layers are `FrozenBatchNorm2d`: four buffers and no
counter, ε = 1e-5. Where it does not, they are `BatchNorm2d`, with a counter each. Both have the same other names, and
another ε in MobileNetV3: a checkpoint without counters is of the first kind. There, nothing is tracked or recomputed.

A detector resizes and normalizes its images itself, and computes its losses itself, in training mode, from boxes.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from wbar.catalog import ARCHITECTURES
from wbar_training.networks.small_maskrcnn import small_maskrcnn

OURS: dict[str, Callable[[int], nn.Module]] = {"maskrcnn_resnet18_96_fpn": small_maskrcnn}
DETECTION: list[str] = [*(name for name in models.list_models(module=detection) if name in ARCHITECTURES), *OURS]
# Whose backbone torchvision freezes where it is pretrained.
FROZEN = frozenset(
    {
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "fcos_resnet50_fpn",
    }
)
# What decides by its mode between losses and detections; layers (BatchNorm, dropout) are none of these.
_PARTS = (
    detection.generalized_rcnn.GeneralizedRCNN,
    detection.rpn.RegionProposalNetwork,
    detection.roi_heads.RoIHeads,
    detection.retinanet.RetinaNet,
    detection.fcos.FCOS,
    detection.ssd.SSD,
)


def made(name: str, num_classes: int, frozen_norm: bool) -> nn.Module:
    """Return a detector with freshly initialized weights. num_classes: with the background, which is class 0."""
    if name in OURS:
        return OURS[name](num_classes)
    module: nn.Module = models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)
    if frozen_norm:
        _freeze_norm(module.get_submodule("backbone.body"))
    return module


def _freeze_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        else:
            _freeze_norm(child)


@contextmanager
def _computing(module: nn.Module, losses: bool) -> Iterator[None]:
    """Let the detector compute losses or find boxes, whatever mode its layers are in, and give its own mode back."""
    parts = [part for part in module.modules() if isinstance(part, _PARTS)]
    before = [part.training for part in parts]
    for part in parts:
        part.training = losses
    try:
        yield
    finally:
        for part, mode in zip(parts, before, strict=True):
            part.training = mode


def found_by(module: nn.Module, images: Tensor, pasted: bool = True) -> list[dict[str, Tensor]]:
    """Return the boxes, labels and scores that a detector finds in each image, (B, 3, H, W) with pixels in [0, 1].

    A Mask R-CNN adds `masks`, (boxes, 1, H, W), how surely each pixel is in; of each box alone, (boxes, 1, h, w) and of
    few pixels, where they are not to be pasted into the image: of a photograph, a hundred of them are gigabytes.
    """
    with _computing(module, losses=False), nullcontext() if pasted else _unpasted(module):
        found: list[dict[str, Tensor]] = module(list(images))
    return found


@contextmanager
def _unpasted(module: nn.Module) -> Iterator[None]:
    """Let the network's last step move its boxes to the image and leave its masks as they are."""
    transform: Any = module.transform
    theirs = transform.postprocess

    def postprocess(found: list[dict[str, Tensor]], shapes: Any, sizes: Any) -> list[dict[str, Tensor]]:
        masks = [one.pop("masks", None) for one in found]
        moved: list[dict[str, Tensor]] = theirs(found, shapes, sizes)
        return [one if mask is None else one | {"masks": mask} for one, mask in zip(moved, masks, strict=True)]

    transform.postprocess = postprocess
    try:
        yield
    finally:
        del transform.postprocess


def found_with_losses(
    module: nn.Module, images: Tensor, targets: Sequence[dict[str, Tensor]], draw: Callable[[], None]
) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """Return what `found_by` does, masks not pasted, and each image's losses by itself, from one pass of the backbone.

    images, targets: as of `loss_of`.
    draw: called before each image's losses, for which a detector draws among its candidates.
    """
    losses = list[Tensor]()
    with _features_once(module) as show:
        found = found_by(module, images, pasted=False)
        for index, target in enumerate(targets):
            show(index)
            draw()
            losses.append(loss_of(module, images[index : index + 1], [target]))
    return found, losses


@contextmanager
def _features_once(module: nn.Module) -> Iterator[Callable[[int], None]]:
    """Let the backbone work once, on a batch of images of one size, and give the features of one image from then on.

    Yields what says of which image.
    """
    backbone: Any = module.backbone
    forward, kept, shown = backbone.forward, list[dict[str, Tensor]](), list[int]()

    def features(inputs: Tensor) -> dict[str, Tensor]:
        if not kept:
            kept.append(forward(inputs))
            return kept[0]
        return OrderedDict((name, one[shown[-1] : shown[-1] + 1]) for name, one in kept[0].items())

    backbone.forward = features
    try:
        yield shown.append
    finally:
        del backbone.forward


def loss_of(module: nn.Module, images: Tensor, targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """Return the sum of a detector's losses on a batch, a scalar.

    images: (B, 3, H, W), pixels in [0, 1].
    targets: of `data.boxes.targets_of`, on the same device.
    """
    with _computing(module, losses=True):
        losses: dict[str, Tensor] = module(list(images), list(targets))
    return torch.stack([one.float() for one in losses.values()]).sum()
