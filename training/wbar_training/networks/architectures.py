"""A catalog name becomes a module; the shapes of a checkpoint decide classes, channels and image size.

Networks are first built as shapes only (their tensors on torch's meta device), so that naming the right one among a
hundred costs milliseconds, and a job builds its network without initializing weights that are replaced at once.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from wbar.catalog import ARCHITECTURES
from wbar.errors import ArchitectureMismatch, UnknownArchitecture
from wbar.spec import Network
from wbar_training.networks.cifar import CifarPreResNet, CifarResNet, CifarVGG, CifarWideResNet

Shapes = Mapping[str, tuple[int, ...]]

# Tensors a checkpoint may hold beyond the network that is trained: auxiliary heads are carried along unchanged (the
# mean of equal tensors), AveragedModel's counter is dropped on upload.
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_PROJECTION = "+projection"
LISTED = 20  # at most this many keys of a kind in a message

_CIFAR: dict[str, Callable[..., nn.Module]] = {
    **{
        f"resnet{depth}": lambda projection=False, depth=depth, **kw: CifarResNet(depth, projection=projection, **kw)
        for depth in (20, 32, 44, 56, 110)
    },
    **{f"preresnet{depth}": lambda depth=depth, **kw: CifarPreResNet(depth, **kw) for depth in (110, 164)},
    "wide_resnet28_10": lambda **kw: CifarWideResNet(28, 10, **kw),
    "cifar_vgg16_bn": lambda **kw: CifarVGG(**kw),
}


def names() -> list[str]:
    """Every name that `build` takes."""
    return sorted([*_CIFAR, *models.list_models(module=models)])


class _OnMeta(TorchFunctionMode):
    """Parameters and buffers come into being without memory; small computations (arange, tensor) stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build(network: Network) -> nn.Module:
    """The module with its tensors on the meta device: fill it with `load_state_dict(..., assign=True)`."""
    with _OnMeta():
        return initialized(network)


def initialized(network: Network) -> nn.Module:
    """The module with freshly initialized weights on the CPU."""
    if network.name in _CIFAR:
        extra = {"projection": True} if network.projection else {}
        return _CIFAR[network.name](num_classes=network.num_classes, channels=network.channels, **extra)
    kwargs: dict[str, Any] = {"num_classes": network.num_classes}
    if network.name in ("googlenet", "inception_v3"):
        kwargs |= {"aux_logits": False, "init_weights": False, "transform_input": False}
    if network.name.startswith("vit_") and network.image_size is not None:
        kwargs["image_size"] = network.image_size
    module: nn.Module = models.get_model(network.name, weights=None, **kwargs)
    if network.channels != 3:
        _replace_first_conv(module, network.channels)
    return module


def _replace_first_conv(module: nn.Module, channels: int) -> None:
    path, old = next((path, child) for path, child in module.named_modules() if isinstance(child, nn.Conv2d))
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )  # fmt: skip
    parent, _, attribute = path.rpartition(".")
    setattr(module.get_submodule(parent), attribute, new)


@cache
def shapes_of(network: Network) -> dict[str, tuple[int, ...]]:
    """Every tensor name and shape of the network's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in build(network).state_dict().items()}


def identify(name: str, shapes: Shapes, num_classes: int | None = None) -> Network:
    """The network of catalog name `name` that fits tensors of these shapes.

    Raises UnknownArchitecture for a name outside the catalog, ArchitectureMismatch listing the tensors that differ.
    """
    if name not in ARCHITECTURES:
        raise UnknownArchitecture(
            f"{name!r} is not an architecture of this service; GET /v1/architectures lists the names"
        )
    network = _read_off(name, shapes, num_classes)
    difference = compare(shapes, shapes_of(network), name)
    if difference is not None:
        raise difference
    return network


def detect(shapes: Shapes) -> Network:
    """The one catalog network whose tensors have these names and shapes. Raises UnknownArchitecture if none does.

    `signatures.json` (written by `python -m wbar_training.networks.architectures`, held true by a test) says which few
    networks have these names; only those are built to compare their shapes.
    """
    table: dict[str, str] = json.loads(files("wbar_training.networks").joinpath("signatures.json").read_text())
    mine = signature(shapes)
    for name in (name for name, theirs in table.items() if theirs == mine):
        network = _read_off(name.removesuffix(_PROJECTION), shapes, None)
        if compare(shapes, shapes_of(network), network.name) is None:
            return network
    raise UnknownArchitecture(
        f"no architecture of this service has these {len(shapes)} tensors (first: {sorted(shapes)[:3]}); name it with "
        "?architecture= to see what differs, and GET /v1/architectures for what there is"
    )


def signature(names: Iterable[str]) -> str:
    """A digest of the tensor names that every checkpoint of a network has, whatever its age and its auxiliary heads."""
    kept = (name for name in names if not name.endswith("num_batches_tracked") and not name.startswith(AUXILIARY))
    return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16]


def signatures() -> dict[str, str]:
    """The table that `detect` looks up, computed from the networks themselves."""
    table = {name: signature(shapes_of(Network(name, 10))) for name in names()}
    for name in _CIFAR:
        if name.startswith("resnet"):
            table[name + _PROJECTION] = signature(shapes_of(Network(name, 10, projection=True)))
    return dict(sorted(table.items()))


def _read_off(name: str, shapes: Shapes, num_classes: int | None) -> Network:
    """Classes, channels and image size from the tensors where they are there; the defaults where they are not."""
    plain = shapes_of(Network(name, 10))
    wider = shapes_of(Network(name, 11))
    heads = [shapes[key] for key in plain if plain[key] != wider[key] and key in shapes and shapes[key]]
    stem = shapes.get(next((key for key, shape in plain.items() if len(shape) == 4), ""), ())
    channels = stem[1] if len(stem) == 4 else 3
    return Network(
        name,
        num_classes=num_classes or (heads[0][0] if heads else 10),
        channels=channels if channels in (1, 2, 3, 4) else 3,
        image_size=_image_size(name, shapes),
        projection=name in _CIFAR and "layer2.0.downsample.0.weight" in shapes and name.startswith("resnet"),
    )


def _image_size(name: str, shapes: Shapes) -> int | None:
    if name == "maxvit_t":
        return 224
    if not name.startswith("vit_"):
        return None
    positions, stem = shapes.get("encoder.pos_embedding"), shapes.get("conv_proj.weight")
    if positions is None or stem is None or len(positions) != 3 or len(stem) != 4:
        return None
    side = round((positions[1] - 1) ** 0.5)
    size = side * stem[3]
    # A strange table is left to `compare`, which says what was expected.
    return size if side > 0 and side * side == positions[1] - 1 and size <= 4096 else None


def compare(found: Shapes, expected: Shapes, name: str) -> ArchitectureMismatch | None:
    """None where the tensors fit; else the error, listing at most LISTED keys of each kind with both shapes."""
    optional = [key for key in expected if key.endswith("num_batches_tracked")]
    missing = sorted(expected.keys() - found.keys() - set(optional))
    unexpected = sorted(key for key in found.keys() - expected.keys() if not key.startswith(AUXILIARY))
    shaped = sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])
    if not (missing or unexpected or shaped):
        return None
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_some(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {_some(unexpected)}")
    if shaped:
        lines = [f"{key}: {found[key]} in the checkpoint, {expected[key]} in {name}" for key in shaped]
        parts.append(f"{len(shaped)} of another shape: {_some(lines)}")
    error = ArchitectureMismatch(f"the tensors are not {name}'s; " + "; ".join(parts))
    error.details = {
        "missing": missing[:LISTED],
        "unexpected": unexpected[:LISTED],
        "mis_shaped": [
            {"name": key, "checkpoint": list(found[key]), "architecture": list(expected[key])}
            for key in shaped[:LISTED]
        ],
    }
    return error


def _some(lines: list[str]) -> str:
    return ", ".join(lines[:LISTED]) + (f" and {len(lines) - LISTED} more" if len(lines) > LISTED else "")


def load(network: Network, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network in float32 with the checkpoint's weights, and the auxiliary tensors it does not use.

    tensors: the checkpoint's, under the network's own names. A missing `num_batches_tracked` starts at 0.
    """
    module = build(network)
    state: dict[str, Tensor] = {}
    for name, slot in module.state_dict().items():
        if name in tensors:
            state[name] = tensors[name].to(slot.dtype, copy=True)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(slot.shape, dtype=slot.dtype)
        else:
            raise ValueError(f"{name} is missing: these are no tensors of {network.name}")
    module.load_state_dict(state, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    passive = {name: tensor for name, tensor in tensors.items() if name not in state}
    return module, passive


if __name__ == "__main__":
    from pathlib import Path

    Path(__file__).with_name("signatures.json").write_text(json.dumps(signatures(), indent=0) + "\n")
