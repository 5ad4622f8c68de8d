"""The modules of torch's own classes that the tensors of an exported program belong to, by what the program does with them.

Weight decay, rates by depth and fresh layers go by these classes. Only BatchNorm is called; all others hold their tensors.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from wbar_training.networks.programs import Node, State

_CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d, "conv_transpose2d": nn.ConvTranspose2d,
}  # fmt: skip


class Part(nn.Module):
    """A module that only holds others, and tensors."""


class AnyBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm of images, maps and vectors alike: the program says what goes in."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def owner_of(kind: str, own: str, shape: tuple[int, ...], node: Node) -> nn.Module | None:
    """Return the module that a tensor of this shape, its `own`, belongs to; None where it is of no such class."""
    if kind in _CONVOLUTIONS and len(shape) > 2:
        groups = node.arguments.get("groups", 1)
        groups = groups if isinstance(groups, int) and groups > 0 else 1
        first, second = (shape[0], shape[1] * groups)
        inputs, outputs = (first, second) if "transpose" in kind else (second, first)
        if inputs % groups or outputs % groups:
            return None
        return _CONVOLUTIONS[kind](inputs, outputs, shape[2:], groups=groups)
    if kind == "linear" and len(shape) == 2:
        return nn.Linear(shape[1], shape[0]) if own == "weight" else _attention(shape)
    if kind == "layer_norm":
        return nn.LayerNorm(shape)
    if kind == "rms_norm":
        return nn.RMSNorm(shape)
    if kind == "group_norm" and len(shape) == 1:
        groups = node.arguments.get("num_groups")
        fits = isinstance(groups, int) and groups > 0 and shape[0] % groups == 0
        return nn.GroupNorm(groups, shape[0]) if isinstance(groups, int) and fits else None
    if kind == "batch_norm" and len(shape) == 1:
        return AnyBatchNorm(shape[0])
    return None


def _attention(shape: tuple[int, ...]) -> nn.Module | None:
    """Return the module that the joint weight of queries, keys and values belongs to."""
    if shape[0] != 3 * shape[1]:
        return None
    module = nn.MultiheadAttention(shape[1], 1)
    del module.out_proj  # the program has it by its own name
    return module


def holder_of(state: Mapping[str, State], path: str) -> nn.Module:
    """Return a module for others: a list where they are numbered, as lists of blocks are."""
    inside = {name[len(path) + 1 :].split(".")[0] for name in state if name.startswith(f"{path}.")}
    return nn.ModuleList() if all(part.isdecimal() for part in inside) else Part()
