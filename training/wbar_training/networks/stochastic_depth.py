"""Stochastic depth: the branch of block l of L is left out with probability rate·(l − 1)/(L − 1) (Huang et al. 2016).

timm and transformers build their `…DropPath` layers with such rates themselves, where they are given one (`timm_models`,
`transformers_models`); some of their families have none. torchvision's `StochasticDepth` layers are always there.
"""

import re

from torch import nn
from torchvision.ops import StochasticDepth

from wbar.errors import NothingMatches

BUILT_WITH_RATES = "DropPath"  # ends the names of their classes


def set_drop_path(model: nn.Module, rate: float, name: str) -> None:
    """Set the rates of torchvision's layers. Raises NothingMatches where the network has no such layers at all.

    name: of the network, for the error.
    """
    if any(type(module).__name__.endswith(BUILT_WITH_RATES) for module in model.modules()):
        return
    layers = {path: module for path, module in model.named_modules() if isinstance(module, StochasticDepth)}
    if not layers:
        raise no_stochastic_depth(rate, name)
    # The layers of one block (after attention, after the MLP, of both attentions in MaxViT) have one rate.
    blocks = list(dict.fromkeys(map(_block, layers)))
    for path, layer in layers.items():
        layer.p = rate * blocks.index(_block(path)) / max(1, len(blocks) - 1)


def _block(path: str) -> str:
    """Return the path of the block that a layer is in: up to its last number, its place in a list of blocks."""
    numbered = re.match(r"(.*\.\d+)\.", path)
    return path.rpartition(".")[0] if numbered is None else numbered[1]


def no_stochastic_depth(rate: float, name: str) -> NothingMatches:
    """Return the error for a network that has no such layers."""
    return NothingMatches(f"recipe.drop_path is {rate} and {name} has no stochastic depth: leave it out")
