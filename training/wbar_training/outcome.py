"""What a run gives back: the result, and the two files of the averaged weights."""

from dataclasses import dataclass
from pathlib import Path

from wbar.results import JobResult


@dataclass(frozen=True)
class Outcome:
    """weights: safetensors, the file that `result.weights` describes; pytorch: the same tensors as torch.save writes them."""

    result: JobResult
    weights: Path
    pytorch: Path
