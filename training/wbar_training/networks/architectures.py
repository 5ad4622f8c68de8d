"""The module of a catalog name, with a checkpoint's tensors as its weights.

Networks are first built as shapes only (their tensors on torch's meta device), so that comparing a checkpoint with one
of them costs milliseconds, and a job builds its network without initializing weights that are replaced at once.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from wbar.catalog import SMP
from wbar.spec import Network
from wbar_training.networks import detectors, smp_models, timm_models, transformers_models
from wbar_training.networks.cifar import CifarPreResNet, CifarResNet, CifarVGG, CifarWideResNet
from wbar_training.networks.exported import ExportedNetwork
from wbar_training.networks.meta_device import OnMeta
from wbar_training.networks.programs import known

CIFAR: dict[str, Callable[..., nn.Module]] = {
    **{
        f"resnet{depth}": lambda projection=False, depth=depth, **kw: CifarResNet(depth, projection=projection, **kw)
        for depth in (20, 32, 44, 56, 110)
    },
    **{f"preresnet{depth}": lambda depth=depth, **kw: CifarPreResNet(depth, **kw) for depth in (110, 164)},
    "wide_resnet28_10": lambda **kw: CifarWideResNet(28, 10, **kw),
    "cifar_vgg16_bn": lambda **kw: CifarVGG(**kw),
}

SEGMENTATION: list[str] = models.list_models(module=models.segmentation)
MNASNET_WIDTHS = {"mnasnet0_5": 0.5, "mnasnet0_75": 0.75, "mnasnet1_0": 1.0, "mnasnet1_3": 1.3}


class PlainMNASNet(models.MNASNet):  # type: ignore[misc]  # torchvision has no types
    """torchvision's MNASNet, whose `load_state_dict` takes a plain dict of tensors, too.

    torchvision's own insists on the version of the class in the `_metadata` that `state_dict()` attaches to its answer,
    and no safetensors file has that. The version is 2 wherever the shapes are the network's: version 1 had another
    stem.
    """

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, {"version": self._version, **local_metadata}, *rest)


def names() -> list[str]:
    """Return every name that `build` takes."""
    return sorted([*CIFAR, *models.list_models(module=models), *SEGMENTATION, *detectors.DETECTION])


def build(network: Network, drop_path: float | None = None) -> nn.Module:
    """Build the module with its tensors on the meta device: fill it with `load_state_dict(..., assign=True)`."""
    with OnMeta():
        return initialized(network, drop_path)


def initialized(network: Network, drop_path: float | None = None) -> nn.Module:
    """Build the module with freshly initialized weights on the CPU. drop_path: of timm's and transformers' networks, see there.

    Raises UnknownArchitecture for a name that no catalog has; LookupError for a program that was not read.
    """
    if network.config is not None:
        return transformers_models.made(network, drop_path)
    if network.program is not None:
        return ExportedNetwork(known(network.program), network.num_classes)
    if network.name.startswith(SMP):
        return smp_models.module(network)
    if timm_models.is_timms(network.name):
        return timm_models.module(network, drop_path)
    if network.name in CIFAR:
        extra = {"projection": True} if network.projection else {}
        return CIFAR[network.name](num_classes=network.num_classes, channels=network.channels, **extra)
    module = _torchvision(network)
    if network.channels != 3:
        _replace_first_conv(module, network.channels)
    return module


def _torchvision(network: Network) -> nn.Module:
    if network.name in MNASNET_WIDTHS:
        return PlainMNASNet(MNASNET_WIDTHS[network.name], num_classes=network.num_classes)
    if network.name in detectors.DETECTION:
        return detectors.made(network.name, network.num_classes, network.frozen_norm)
    kwargs: dict[str, Any] = {"num_classes": network.num_classes}
    if network.name in SEGMENTATION:
        kwargs |= {"weights_backbone": None} | ({"aux_loss": True} if network.auxiliary else {})
    if network.name in ("googlenet", "inception_v3"):
        kwargs |= {"aux_logits": False, "init_weights": False, "transform_input": False}
    if network.name.startswith("vit_") and network.image_size is not None:
        kwargs["image_size"] = network.image_size
    module: nn.Module = models.get_model(network.name, weights=None, **kwargs)
    return module


def _replace_first_conv(module: nn.Module, channels: int) -> None:
    path, old = next((path, child) for path, child in module.named_modules() if isinstance(child, nn.Conv2d))
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )  # fmt: skip
    parent, _, attribute = path.rpartition(".")
    setattr(module.get_submodule(parent), attribute, new)


def own_names(network: Network, names: Iterable[str]) -> dict[str, str]:
    """Return the network's own name of every tensor in a file, by the file's, which differ for some of transformers' alone."""
    return {name: name for name in names} if network.config is None else transformers_models.own_names(network, names)


@cache
def shapes_of(network: Network) -> dict[str, tuple[int, ...]]:
    """Return every tensor name and shape of the network's state dict."""
    # A stranger's configuration may ask for any size, and has not been compared with a file yet: nothing of it is real.
    with nullcontext() if network.config is None else torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(network).state_dict().items()}


def load(
    network: Network, tensors: Mapping[str, Tensor], drop_path: float | None = None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build the network in float32 with the checkpoint's weights; return it and the auxiliary tensors it does not use.

    tensors: the checkpoint's, under the network's own names or a file's. A missing `num_batches_tracked` starts at 0.
    drop_path: of timm's and transformers' networks, see there.
    """
    module = build(network, drop_path)
    tensors = {own: tensors[name] for name, own in own_names(network, tensors).items()}
    tied = _tied(module)
    state: dict[str, Tensor] = {}
    for name, slot in module.state_dict().items():
        if name in tensors:
            state[name] = tensors[name].to(slot.dtype, copy=True)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(slot.shape, dtype=slot.dtype)
        else:
            raise ValueError(f"{name} is missing: these are no tensors of {network.name}")
    module.load_state_dict(state, assign=True)
    for name, first in tied.items():
        _place(module, name, module.get_parameter(first))  # one tensor again: what is trained by both is one
    _fill_the_rest(module, network)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    passive = {name: tensor for name, tensor in tensors.items() if name not in state}
    return module, passive


def _tied(module: nn.Module) -> dict[str, str]:
    """Return the names of parameters that are another one, and that one's name."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}


def _fill_the_rest(module: nn.Module, network: Network) -> None:
    """Give buffers that no file has (constants, which are computed where a network is built) the values of a real build."""
    missing = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if not missing:
        return
    with torch.random.fork_rng(devices=[]):
        real = dict(initialized(network).named_buffers())
    for name in missing:
        _place(module, name, real[name])


def _place(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(path), attribute, tensor)


def as_torch_saves(network: Network, tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """Return the mapping that `torch.save` should write, so that torchvision's own class loads it.

    tensors: under the uploaded names, which begin with `prefix`.

    They are returned as they are, but for MNASNet, which asks for the versions of its classes: those are attached as
    `state_dict()` does it.
    """
    if network.name not in MNASNET_WIDTHS:
        return tensors
    built: Any = build(network).state_dict()
    state: Any = OrderedDict(tensors)
    state._metadata = {f"{prefix}{path}".rstrip("."): dict(versions) for path, versions in built._metadata.items()}
    return state  # type: ignore[no-any-return]  # an OrderedDict, with an attribute that no type knows
