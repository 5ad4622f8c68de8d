"""Small real jobs of regression: the ink of digits and where it lies, in units of their own, and a small ResNet."""

import csv
import io
import zipfile
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.training.jobs import METHOD, LocalJob, make_job
from wbar.method import Soup, Training
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

TARGETS = ("ink", "height")


def write_digits(path: Path, train: int = 100, val: int = 40) -> Path:
    """Write an archive of digits with two targets: the ink in thousands, the height of its centre in hundredths."""
    pixels = load_digits().images[: train + val]
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["image", *TARGETS])
    with zipfile.ZipFile(path, "w") as archive:
        for index, image in enumerate(pixels):
            name = f"{'train' if index < train else 'val'}/{index:04d}.png"
            data = io.BytesIO()
            Image.fromarray((image * 15).astype("uint8")).save(data, "PNG")
            archive.writestr(name, data.getvalue())
            centre = (image.sum(axis=1) @ range(8)) / image.sum()
            rows.writerow([name, 1000 * image.sum(), 0.01 * centre])
        archive.writestr("targets.csv", table.getvalue())
    return path


def make_regression_job(
    folder: Path, method: Training | Soup = METHOD, train: int = 100, val: int = 40, **changes: object
) -> LocalJob:
    """A job in `folder`, as `make_job` makes one, of a ResNet-20 fresh from its initialization."""
    job = make_job(folder, method, **({"recipe_augment": "none"} | changes))  # type: ignore[arg-type]
    pack(write_digits(folder / "digits.zip", train, val), job.dataset, UploadLimits(), "regression")
    network = Network("resnet20", len(TARGETS))
    torch.manual_seed(7)
    write_safetensors(job.start, initialized(network).state_dict(), {})
    start = job.spec.start.model_copy(update={"network": network})
    return job.changed(network=network, start=start)
