"""The layers of a network by depth, for rates that fall toward the input: d^k for a layer k below the classifier.

timm's networks say it themselves (`group_matcher`). Of other networks a layer is a block: whatever a list of blocks holds,
or a module beside such lists. A normalization that stands by itself belongs to the layer before it, and so do tables of
positions; a class token that comes first belongs to the embedding after it.

Bao et al. 2022, "BEiT: BERT pre-training of image transformers", appendix; Clark et al. 2020 for language.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import nn

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
OTHER_NORMS = ("rmsnorm", "simplenorm")  # in the names of what libraries have beside torch's
LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Classes of transformers that hold a list of convolutions, and are one block all the same.
BLOCKS = ("RegNetXLayer", "RegNetYLayer", "ResNetBasicLayer", "ResNetBottleNeckLayer")


def depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter by name, from 0 at the input; the classifier's is the greatest."""
    matcher: Callable[..., Any] | None = getattr(model, "group_matcher", None)
    if matcher is not None:
        from timm.models._manipulate import group_parameters

        found: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
        deepest = max(found.values(), default=0)
        return {name: found.get(name, deepest) for name, _ in model.named_parameters()}
    return _by_blocks(model)


def scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return what the rate of every parameter is multiplied by: decay^(the layers above it)."""
    depth = depths(model)
    deepest = max(depth.values())
    return {name: decay ** (deepest - at) for name, at in depth.items()}


def _by_blocks(model: nn.Module) -> dict[str, int]:
    layers: dict[str, int] = {}
    found: dict[str, int] = {}
    only_tables = False  # whether all layers so far are parameters of the lists themselves
    for name, _ in model.named_parameters():
        path, module = _layer(model, name)
        if path not in layers:
            joins = layers and (_is_norm(module) or _is_opened(module) or only_tables)
            only_tables = (not layers or only_tables) and _is_opened(module)
            layers[path] = max(layers.values(), default=-1) + (0 if joins else 1)
        found[name] = layers[path]
    return found


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return isinstance(module, NORMS) or any(part in name for part in OTHER_NORMS)


def _layer(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Return the path and module of the layer that a parameter belongs to."""
    module, path = model, ""
    for part in name.split(".")[:-1]:
        module = module.get_submodule(part)
        path = f"{path}.{part}" if path else part
        if not _is_opened(module):
            break
    return path, module


def _is_opened(module: nn.Module) -> bool:
    """Return whether a module is looked into: a plain list, or one that holds a list of blocks, such as an encoder."""
    if type(module) in LISTS:
        return True
    if type(module).__name__ in BLOCKS:
        return False
    for inner in module.modules():
        kinds = Counter(type(child) for child in inner.children() if any(True for _ in child.children()))
        if any(count > 1 and not issubclass(kind, nn.Sequential) for kind, count in kinds.items()):
            return True
    return False
