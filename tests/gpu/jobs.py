"""Small real jobs on the device, of any architecture of the catalog."""

from pathlib import Path

import torch

from tests.training.jobs import METHOD, LocalJob, make_job
from wbar.catalog import ARCHITECTURES
from wbar.method import Training
from wbar.recipe import Optimizer
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized

COMPILED = ", compiled"


def job_on(device: str, folder: Path, method: Training = METHOD, **changes: object) -> LocalJob:
    """A ResNet-20 on digits, see `make_job`, on the device."""
    return make_job(folder, method, device=device, **changes)


def job_of(name: str, precision: str, device: str, folder: Path) -> LocalJob:
    """One cycle of an architecture at about the smallest image size, with its own optimizer; 56 digits are trained on.

    name: of the catalog; with COMPILED behind it the training steps are compiled.

    The last batch has eight: layers whose maps are one pixel wide cannot normalize two images in a stable way.
    """
    compiled, name = name.endswith(COMPILED), name.removesuffix(COMPILED)
    side = max(ARCHITECTURES[name].min_size, 32)
    rate = 0.02 * ARCHITECTURES[name].peak_lr  # fresh networks, and a few steps of small batches
    method = METHOD.model_copy(
        update={
            "cycles": 1,
            "high": METHOD.high.model_copy(update={"lr": rate}),
            "low": METHOD.low.model_copy(update={"lr": rate / 10}),
        }
    )
    optimizer = Optimizer(name=ARCHITECTURES[name].optimizer, weight_decay=5e-4)
    job = job_on(
        device, folder, method, images=56, recipe_image_size=(side, side), recipe_precision=precision,
        recipe_optimizer=optimizer, recipe_compile=compiled,
    )  # fmt: skip
    network = Network(name=name, num_classes=10, image_size=side if ARCHITECTURES[name].fixed_size else None)
    torch.manual_seed(9)
    write_safetensors(job.start, initialized(network).state_dict(), {})
    return job.changed(network=network, start=job.spec.start.model_copy(update={"network": network}))
