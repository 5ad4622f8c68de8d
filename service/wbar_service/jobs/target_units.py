"""What leads from a regression's outputs to its targets, from the header of the job's own weights.

It is no part of the job's row: it follows from the training split, which a worker has read. Every file of a job has it; the
start as it was uploaded has not.
"""

import json

from wbar.errors import PredictionFailed
from wbar.predictions import Units
from wbar_store.blobs import Blobs

MOST_HEADER = 32 * 1024 * 1024  # bytes


def units_of(blobs: Blobs, weights: str) -> Units:
    """Return mean and standard deviation of the targets. weights: the blob of a job's safetensors file.

    Raises PredictionFailed (409) where it does not say them.
    """
    try:
        size = int.from_bytes(_read(blobs, weights, 0, 8), "little")
        if size > MOST_HEADER:
            raise PredictionFailed(
                f"the header of the job's weights has {size} bytes, more than the limit of {MOST_HEADER}"
            )
        header = json.loads(_read(blobs, weights, 8, 8 + size))
    except FileNotFoundError:
        raise PredictionFailed("the job's weights were deleted meanwhile") from None
    said = header.get("__metadata__", {}).get("wbar.targets")
    if said is None:
        raise PredictionFailed("the job's weights do not say the units of their targets: train again with this version")
    return Units.model_validate_json(said)


def _read(blobs: Blobs, name: str, begin: int, end: int) -> bytes:
    return b"".join(blobs.chunks(name, begin, end))
