"""Small real jobs of attributes: whether a digit is odd, how large it is, and how much ink it has, and a small ResNet."""

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

CLASSES = ["parity=even", "parity=odd", "size=large", "size=medium", "size=small", "ink=little", "ink=much"]
ATTRIBUTES = {"parity": ["even", "odd"], "size": ["large", "medium", "small"], "ink": ["little", "much"]}


def write_digits(path: Path, train: int = 100, val: int = 40, unknown: bool = True) -> Path:
    """Write an archive of digits with three attributes. unknown: of every third image the ink is not known, and of every
    fifth the size is not."""
    digits = load_digits()
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["image", *ATTRIBUTES])
    with zipfile.ZipFile(path, "w") as archive:
        for index, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            if index == train + val:
                break
            name = f"{'train' if index < train else 'val'}/{index:04d}.png"
            data = io.BytesIO()
            Image.fromarray((image * 15).astype("uint8")).save(data, "PNG")
            archive.writestr(name, data.getvalue())
            size = "small" if digit < 3 else "medium" if digit < 7 else "large"
            ink = "much" if image.sum() > 310 else "little"
            hidden = (unknown and index % 5 == 1, unknown and index % 3 == 2)
            rows.writerow([name, "odd" if digit % 2 else "even", "" if hidden[0] else size, "" if hidden[1] else ink])
        archive.writestr("attributes.csv", table.getvalue())
    return path


def make_attribute_job(
    folder: Path,
    method: Training | Soup = METHOD,
    train: int = 100,
    val: int = 40,
    unknown: bool = True,
    **changes: object,
) -> LocalJob:
    """A job in `folder`, as `make_job` makes one, of a ResNet-20 fresh from its initialization."""
    job = make_job(folder, method, **({"recipe_augment": "none"} | changes))  # type: ignore[arg-type]
    pack(write_digits(folder / "digits.zip", train, val, unknown), job.dataset, UploadLimits(), "attributes")
    network = Network("resnet20", len(CLASSES))
    torch.manual_seed(7)
    write_safetensors(job.start, initialized(network).state_dict(), {})
    start = job.spec.start.model_copy(update={"network": network})
    return job.changed(network=network, start=start)
