"""The start with a recipe's changes: layers that begin afresh, layers that are frozen, another dropout rate.

    Kaiming   N(0, √(2/n_in))            (He et al. 2015, equation 10)
    Xavier    N(0, √(2/(n_in + n_out)))  (Glorot & Bengio 2010, equation 12)
    normal    N(0, 1/√n_in)

Biases are 0; normalization layers begin as the identity, and where a whole residual block is fresh its last BatchNorm's γ
is 0, so that the block begins as its shortcut (Goyal et al. 2017, section 5.1). These blocks are those of He et
al. 2016, which end with a BatchNorm: in torchvision's ResNet, ResNeXt and Wide ResNet, and in the CIFAR ResNets. Blocks of
other families (the pre-activation and wide CIFAR networks, whose blocks end with a convolution, and RegNet, MobileNet,
EfficientNet, …) begin as their layers do; `recipe.zero_gamma` changes nothing there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from wbar.errors import NothingMatches
from wbar.recipe import Recipe
from wbar.spec import Network
from wbar_training.draws import generator, key
from wbar_training.networks.architectures import build, initialized, load, shapes_of
from wbar_training.networks.stochastic_depth import set_drop_path
from wbar_training.networks.timm_models import is_timms

LISTED = 12
RESIDUAL_BLOCKS = ("BasicBlock", "Bottleneck")  # class names, of torchvision's ResNets and of the CIFAR ResNets


def prepared(network: Network, tensors: Mapping[str, Tensor], recipe: Recipe, seed: int) -> nn.Module:
    """Build the network with the checkpoint's tensors and the recipe's changes, float32, on the CPU.

    tensors: the checkpoint's, under the network's own names.
    seed: the job's; fresh weights follow from it and their names.

    Raises NothingMatches where a pattern of `freeze` or `reset` names no parameter, nothing is left to train, or
    `dropout` or `drop_path` is set and the network has no such layer.
    """
    fresh = head_of(network) if recipe.head == "reset" else set[str]()
    names = [name for name, _ in build(network).named_parameters()]
    fresh |= _matching(names, recipe.reset, "reset")
    kept = {name: tensor for name, tensor in tensors.items() if name not in fresh}
    blank = {name: torch.zeros(shapes_of(network)[name]) for name in fresh}
    model, _ = load(network, {**kept, **blank}, recipe.drop_path if is_timms(network.name) else None)
    if fresh:
        _initialize(model, network, fresh, recipe, seed)
    frozen = _matching(names, recipe.freeze, "freeze")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if len(frozen) == len(names):
        raise NothingMatches(
            f"recipe.freeze {recipe.freeze} freezes all {len(names)} parameters: nothing is left to train"
        )
    if recipe.dropout is not None:
        _set_dropout(model, recipe.dropout, network.name)
    if recipe.drop_path is not None:
        set_drop_path(model, recipe.drop_path, network.name)
    return model


def head_of(network: Network) -> set[str]:
    """Return the names of the parameters whose shapes follow the number of classes."""
    plain, wider = (shapes_of(replace(network, num_classes=n)) for n in (10, 11))
    return {name for name in plain if plain[name] != wider[name]}


def _matching(names: Sequence[str], patterns: Iterable[str], field: str) -> set[str]:
    matches = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            first_names = ", ".join(names[:LISTED])
            raise NothingMatches(
                f"recipe.{field} {pattern!r} names no parameter; the network's begin with: {first_names}"
            )
        matches |= matched
    return matches


def _own_initialization(network: Network, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "init"))
        return initialized(network).state_dict()


def _initialize(model: nn.Module, network: Network, fresh: set[str], recipe: Recipe, seed: int) -> None:
    initial = _own_initialization(network, seed)
    for path, module in model.named_modules():
        drawn = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        for name, parameter in module.named_parameters(recurse=False):
            whole = f"{path}.{name}" if path else name
            if whole not in fresh:
                continue
            if network.architecture.outputs == "boxes":
                # Its bias says how rare boxes are: from 0 the first losses would be far too high (Lin et al. 2017, 4.1).
                parameter.data.copy_(initial[whole])
            elif parameter.dim() > 1 and (drawn or name == "in_proj_weight"):
                _draw(parameter.data, recipe.init, seed, whole)
            elif name == "bias":
                parameter.data.zero_()
            else:
                parameter.data.copy_(
                    initial[whole]
                )  # γ, a layer's scale, a class token: as the architecture initializes it
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{path}.weight" in fresh:
            module.reset_running_stats()
    if recipe.zero_gamma:
        for path, block in model.named_modules():
            last = _last_norm(block)
            inside = {f"{path}.{name}" for name, _ in block.named_parameters()}
            if last is not None and inside <= fresh:
                last.weight.data.zero_()


def _draw(weight: Tensor, how: str, seed: int, name: str) -> None:
    draws = generator(seed, f"init/{name}")
    inputs = weight[0].numel()
    if how == "kaiming":
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=draws)
    elif how == "xavier":
        nn.init.xavier_normal_(weight, generator=draws)
    else:
        nn.init.normal_(weight, std=inputs**-0.5, generator=draws)


def _last_norm(block: nn.Module) -> nn.modules.batchnorm._BatchNorm | None:
    """Return the BatchNorm that ends a block of RESIDUAL_BLOCKS; None for other modules."""
    if type(block).__name__ not in RESIDUAL_BLOCKS:
        return None
    norms = [m for name, m in block.named_children() if name.startswith("bn")]
    last = norms[-1] if norms else None
    return last if isinstance(last, nn.modules.batchnorm._BatchNorm) else None


def _set_dropout(model: nn.Module, rate: float, name: str) -> None:
    layers = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    if not layers:
        raise NothingMatches(f"recipe.dropout is {rate} and {name} has no dropout layer: leave it out")
    for layer in layers:
        layer.p = rate
