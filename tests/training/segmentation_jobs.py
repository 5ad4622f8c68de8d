"""Small real jobs of segmentation: drawn shapes, and an LR-ASPP fresh from its initialization."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.shapes import CLASSES, write_archive
from tests.training.jobs import METHOD, LocalJob, make_job
from wbar.method import Soup, Training
from wbar.recipe import Normalization
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

NAME = "lraspp_mobilenet_v3_large"


def make_segmentation_job(
    folder: Path,
    method: Training | Soup = METHOD,
    network: Network | None = None,
    train: int = 8,
    val: int = 4,
    sizes: Sequence[tuple[int, int]] = ((32, 32),),
    **changes: object,
) -> LocalJob:
    """A job in `folder`, as `make_job` makes one; crops of 32 × 32 pixels."""
    recipe = {
        "recipe_image_size": (32, 32),
        "recipe_batch_size": 4,
        "recipe_augment": "scale_crop_flip",
        "recipe_normalize": Normalization(mean=[0.5] * 3, std=[0.25] * 3),
    }
    job = make_job(folder, method, **(recipe | changes))  # type: ignore[arg-type]
    archive, network = folder / "shapes.zip", network or Network(NAME, len(CLASSES))
    write_archive(archive, train, val, sizes, void_edge=True)
    pack(archive, job.dataset, UploadLimits(), "segmentation")
    torch.manual_seed(7)
    write_safetensors(job.start, initialized(network).state_dict(), {})
    start = job.spec.start.model_copy(update={"network": network})
    return job.changed(network=network, start=start)
