"""The networks of segmentation-models-pytorch by name, `smp/<decoder>-<encoder>`; nothing here where it is not installed.

Its decoders take sides that are multiples of 32 alone. Images of other sizes are continued by their last row and column, and
the outputs are cut back, so that whole images of any size can be evaluated. The outputs are those of torchvision's networks
of masks: a dict with `out`.

The library is imported where a network of it is built, since that takes seconds. No pretrained weights are looked for.
"""

import importlib.util
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch.nn.functional as F
from torch import Tensor, nn

from wbar.catalog import SMP, SMP_DECODERS, Architecture, similar_names
from wbar.errors import UnknownArchitecture
from wbar.spec import Network
from wbar_averaging.quoting import quoted
from wbar_training.networks.differences import Shapes

PACKAGE = "segmentation-models-pytorch"
MULTIPLE = 32  # pixels
SIZE = 512
# Encoders (by how their names begin) whose last stages cannot be dilated, which these decoders do.
DILATING = frozenset({"deeplabv3", "deeplabv3plus", "pan"})
NOT_DILATED = ("vgg", "densenet", "inception", "xception")
# Transformers with one stage less, which these decoders do not take.
ALL_STAGES = frozenset({"unetplusplus", "linknet"})
MIX_TRANSFORMERS = "mit_"
PYRAMID_POOLING = 128  # pixels: the pyramid of `pan` pools the last stage three times


def installed() -> str | None:
    """Return the library's version; None where it is not installed."""
    try:
        return version(PACKAGE) if importlib.util.find_spec("segmentation_models_pytorch") else None
    except PackageNotFoundError:
        return None


@cache
def names() -> tuple[str, ...]:
    """Return the catalog names of its networks, sorted; none where it is not installed."""
    if not installed():
        return ()
    from segmentation_models_pytorch.encoders import get_encoder_names

    encoders = get_encoder_names()
    return tuple(sorted(f"{SMP}{one}-{encoder}" for one in SMP_DECODERS for encoder in encoders if _fit(one, encoder)))


def _fit(decoder: str, encoder: str) -> bool:
    if encoder.startswith(MIX_TRANSFORMERS):
        return decoder not in ALL_STAGES
    return not (decoder in DILATING and encoder.startswith(NOT_DILATED))


def _parts(name: str) -> tuple[str, str]:
    """Return the decoder and the encoder of a catalog name. Raises UnknownArchitecture, also where nothing is installed."""
    if name not in names():
        missing = "" if names() else f" (they are known where it is installed: pip install 'wbar[{SMP[:-1]}]')"
        raise UnknownArchitecture(
            f"{quoted(name)} is not a network of {PACKAGE}{similar_names(name, names())}{missing}; GET /v1/architectures "
            "lists the names"
        )
    decoder, _, encoder = name.removeprefix(SMP).partition("-")
    return decoder, encoder


def entry(name: str) -> Architecture:
    """Return the catalog's entry of one of its networks. Raises UnknownArchitecture."""
    decoder, encoder = _parts(name)
    transformer = encoder.startswith(MIX_TRANSFORMERS)
    return Architecture(
        name,
        decoder,
        SIZE,
        _smallest(decoder),
        optimizer="adamw" if transformer else "sgd",
        peak_lr=1.25e-4 if transformer else 0.08,
        reproducible=False,
        library="smp",
    )


def _smallest(decoder: str) -> int:
    return PYRAMID_POOLING if decoder == "pan" else MULTIPLE


def entries() -> Iterator[Architecture]:
    """Yield the entries of all of them."""
    return map(entry, names())


def module(network: Network) -> nn.Module:
    """Build a network with freshly initialized weights. Raises UnknownArchitecture."""
    decoder, encoder = _parts(network.name)
    made: nn.Module = _class_of(decoder)(
        encoder_name=encoder, encoder_weights=None, in_channels=network.channels, classes=network.num_classes
    )
    return made


@cache
def _class_of(decoder: str) -> type[nn.Module]:
    from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING

    own = MODEL_ARCHITECTURES_MAPPING[decoder]
    return type(own.__name__, (_AnySize, own), {"__module__": __name__, "smallest": _smallest(decoder)})


class _AnySize(nn.Module):
    """What is put before a class of the library: images of any size go in, torchvision's kind of answer comes out."""

    smallest: int

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        below, right = (max(self.smallest, side + -side % MULTIPLE) - side for side in (height, width))
        # One that is smaller than the border it lacks could not be mirrored; its edge can always be repeated.
        padded = F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images
        return {"out": super().forward(padded)[..., :height, :width]}  # of the library's class


def read_off(name: str, shapes: Shapes, num_classes: int | None) -> Network:
    """Return the network of this name with the classes and channels of a checkpoint's tensors, as far as they are there.

    Raises UnknownArchitecture.
    """
    head = shapes.get("segmentation_head.0.weight", ())
    stem = next((shape for key, shape in shapes.items() if key.startswith("encoder.") and len(shape) == 4), ())
    classes = num_classes or (head[0] if head and head[0] else 1)
    return Network(name, classes, channels=stem[1] if stem and stem[1] in (1, 2, 3, 4) else 3, entry=entry(name))


def looks_like_one(shapes: Shapes) -> bool:
    """Return whether tensors are named as those of the library's networks: an encoder, a decoder, a segmentation head."""
    beginnings = {name.partition(".")[0] for name in shapes}
    return {"encoder", "decoder", "segmentation_head"} <= beginnings
