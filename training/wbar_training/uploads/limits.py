"""The most that one upload may hold, whatever it claims. Torch-free: the worker's settings fill it in."""

from dataclasses import dataclass

MIB, GIB = 1024**2, 1024**3


@dataclass(frozen=True)
class UploadLimits:
    """The limits that every reader of uploads keeps, counted before anything is unpacked or built.

    bytes: what a dataset archive may unpack to, headers and files that are skipped included.
    files: of a dataset archive, those that are skipped included.
    pixels: of one image.
    header_bytes: of a safetensors header, of the pickle in a PyTorch file, of a table of labels (`labels.csv` and its like).
    tensors: of a checkpoint.
    """

    bytes: int = 20 * GIB
    files: int = 2_000_000
    pixels: int = 100_000_000
    header_bytes: int = 32 * MIB
    tensors: int = 100_000
