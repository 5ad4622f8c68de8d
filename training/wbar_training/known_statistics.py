"""The BatchNorm statistics that were recomputed last, and the weights they are of: the same weights need no second pass.

The last point of the curve is evaluated when its snapshot is taken and often delivered a moment later. Statistics are a
function of the weights and of what `key` names; the bits are the same as those of another pass.
"""

import hashlib
from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class KnownStatistics:
    """Remembers one set of statistics, on the device that they were computed on."""

    def __init__(self) -> None:
        self._known: tuple[bytes, Hashable] | None = None
        self._statistics: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Forget them: the images, or their normalization, are others from now on."""
        self._known, self._statistics = None, {}

    @torch.no_grad()
    def restore(self, model: nn.Module, key: Hashable) -> bool:
        """Write the statistics into a model whose weights they are of; False where they are of others.

        key: of all beside the weights that they depend on.
        """
        if self._known is None or self._known[1] != key or self._known[0] != _digest(model):
            return False
        for name, buffer in _statistics(model).items():
            buffer.copy_(self._statistics[name])
        return True

    def keep(self, model: nn.Module, key: Hashable) -> None:
        """Remember the statistics that a model holds, instead of those before."""
        self._known = _digest(model), key
        self._statistics = {name: buffer.clone() for name, buffer in _statistics(model).items()}


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{buffer}": tensor
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for buffer, tensor in module.named_buffers(recurse=False)
    }


def _digest(model: nn.Module) -> bytes:
    """Return the sha256 of everything that the model holds but these statistics."""
    own, digest = _statistics(model), hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if name not in own:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()
