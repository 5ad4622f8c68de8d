"""The tensors of a weights file."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, by name, in their own dtype, on the CPU."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a safetensors handle is no dict
