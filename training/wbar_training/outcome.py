"""The outcome of a run: the result, and the files of the averaged weights."""

from dataclasses import dataclass
from pathlib import Path

from wbar.results import JobResult


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    weights: safetensors, the file that `result.weights` describes.
    pytorch: the same tensors as torch.save writes them.
    losses: JSON, the loss of each held-out image of the report split, for w̄ and for the start.
    onnx: the file of that format, where the job asked for it and it could be had.
    """

    result: JobResult
    weights: Path
    pytorch: Path
    losses: Path | None = None
    onnx: Path | None = None
