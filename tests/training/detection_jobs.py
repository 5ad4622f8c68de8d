"""Small real jobs of detection: drawn shapes, and a detector fresh from its initialization."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.shapes import CLASSES, write_boxes_archive
from tests.training.jobs import METHOD, LocalJob, make_job
from wbar.method import Soup, Training
from wbar.recipe import Normalization
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

SMALL = "ssdlite320_mobilenet_v3_large"  # the cheapest by far on a CPU
FASTER = "fasterrcnn_mobilenet_v3_large_320_fpn"
MASKED = "maskrcnn_resnet18_96_fpn"


def make_detection_job(
    folder: Path,
    method: Training | Soup = METHOD,
    network: Network | None = None,
    train: int = 4,
    val: int = 3,
    sizes: Sequence[tuple[int, int]] = ((48, 48),),
    **changes: object,
) -> LocalJob:
    """A job in `folder`, as `make_job` makes one; images of 48 × 48 pixels, batches of two."""
    recipe = {
        "recipe_image_size": (48, 48),
        "recipe_batch_size": 2,
        "recipe_augment": "flip",
        "recipe_normalize": Normalization(mean=[0.0] * 3, std=[1.0] * 3),
        "recipe_batch_norm": "frozen",
    }
    job = make_job(folder, method, **(recipe | changes))  # type: ignore[arg-type]
    archive, network = folder / "shapes.zip", network or Network(SMALL, len(CLASSES))
    write_boxes_archive(archive, train, val, sizes, masks=network.architecture.finds_masks)
    pack(archive, job.dataset, UploadLimits(), "detection")
    torch.manual_seed(7)
    write_safetensors(job.start, initialized(network).state_dict(), {})
    start = job.spec.start.model_copy(update={"network": network})
    return job.changed(network=network, start=start)
