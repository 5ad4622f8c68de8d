"""Tensors of the host on their way to the device, by pinned memory: from pageable memory the host would wait for the device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device. To a GPU it is copied in the order of the work there, and the host goes on at once."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
