"""Images without labels, from an archive or a folder: every image in it, wherever it lies, in the order of the names.

They are packed as a training split without classes, so that a job can read them as its probe images.
"""

from pathlib import Path, PurePosixPath

import torch

from wbar.errors import ContentTooLarge, NoImages
from wbar.probe_results import MOST_PROBES
from wbar_training.data.packed import Packed
from wbar_training.uploads.dataset_archives import (
    IMAGES,
    Read,
    common_shape,
    image_tensors,
    sampled_pixels,
    write_packed,
)
from wbar_training.uploads.image_checks import inspected, warnings_about
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.member_names import is_hidden


def pack_unlabelled(read: Read, out: Path, limits: UploadLimits) -> Packed:
    """Pack the images. Raises NoImages, ContentTooLarge for more than MOST_PROBES, or another class of wbar.errors.Rejected."""
    found = list[tuple[str, bytes]]()
    for name, data in read(_is_image):
        found.append((name, data))
        if len(found) > MOST_PROBES:
            raise ContentTooLarge(
                f"the archive has more than {MOST_PROBES} images, which is the most for task=unlabelled: a job keeps every "
                "network's output on each of them. Leave some out"
            )
    if not found:
        raise NoImages("no images were found: an archive of task=unlabelled has *.{jpg,jpeg,png,webp}, in any folder")
    found.sort()
    names, files = [name for name, _ in found], [data for _, data in found]
    images = inspected(found, limits)
    shapes = [(image.height, image.width) for image in images]
    channels, uniform = 1 if all(image.grey for image in images) else 3, len(set(shapes)) == 1
    height, width = common_shape(shapes)
    tensors = image_tensors("train", files, channels, uniform)
    tensors |= {"train.labels": torch.zeros(len(files), dtype=torch.int64)}
    pixels = tensors["train.images"] if uniform else sampled_pixels(files, channels)
    tensors |= {"val.labels": torch.zeros(0, dtype=torch.int64)}
    shape, warnings = (channels, height, width), warnings_about(names, images)
    return write_packed(out, tensors, [], pixels, None, warnings, shape, "unlabelled", names=names)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGES and not is_hidden(name)
