"""A checkpoint's tensor names and shapes name its network, its classes, its input channels and its image size.

Names and shapes do not say everything: networks that differ in a pooling or an activation without parameters have the
same tensors and give other outputs. Published ones are in `NEAR_RELATIVES`; a checkpoint that was recognized by its
tensors alone carries them as `ambiguous_with`.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from wbar.catalog import ARCHITECTURES, similar_names
from wbar.errors import ArchitectureMismatch, UnknownArchitecture
from wbar.spec import Network
from wbar_averaging.quoting import quoted, shown
from wbar_training.networks.architectures import CIFAR, names, shapes_of

Shapes = Mapping[str, tuple[int, ...]]

# Published networks with all tensor names and shapes of ours and other outputs. From a comparison with every model of
# timm 1.0.31 and of torchvision 0.29, its quantizable ones included (their float weights are uploaded, too).
NEAR_RELATIVES: dict[str, tuple[str, ...]] = {
    # An average pooling or a fixed blur before each stride of 2: no parameters.
    "resnet18": ("timm's resnetblur18",),
    "resnet50": ("timm's resnetaa50", "timm's resnetblur50"),
    # Another normalization of the input inside the network; torchvision's pretrained weights belong to it.
    "googlenet": ("torchvision's googlenet with transform_input=True",),
    "inception_v3": ("torchvision's inception_v3 with transform_input=True",),
    # ReLU in place of ReLU6.
    "mobilenet_v2": ("torchvision's quantization.mobilenet_v2",),
}

# Tensors a checkpoint may hold beyond the network that is trained: auxiliary heads are carried along unchanged (the
# mean of equal tensors), AveragedModel's counter is dropped on upload.
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
COUNTER = "num_batches_tracked"  # BatchNorm's, missing in checkpoints from before PyTorch 0.4.1
PROJECTION = "+projection"
LISTED = 20  # at most this many keys of a kind in a message
LISTED_EACH = 3  # the same, where several networks are compared in one message
NEAREST = 3


def identify(name: str, shapes: Shapes, num_classes: int | None = None) -> Network:
    """Return the network of catalog name `name` that fits tensors of these shapes.

    Raises UnknownArchitecture for a name outside the catalog, ArchitectureMismatch listing the tensors that differ.
    """
    if name not in ARCHITECTURES:
        raise UnknownArchitecture(
            f"{quoted(name)} is not an architecture of this service{similar_names(name)}; GET /v1/architectures lists the names"
        )
    network = _read_off(name, shapes, num_classes)
    difference = compare(shapes, shapes_of(network))
    if not difference.is_empty:
        raise difference.error(name)
    return network


def detect(shapes: Shapes) -> Network:
    """Return the one catalog network whose tensors have these names and shapes.

    `signatures.json` (written by `python -m wbar_training.networks.recognition`, held true by a test) says which few
    networks have these names; only those are built to compare their shapes.

    Raises UnknownArchitecture if no network fits, naming the nearest and what differs.
    """
    network = find(shapes)
    if network is None:
        raise _unknown(shapes)
    return network


def find(shapes: Shapes) -> Network | None:
    """Return what `detect` does, None if no network fits: without looking for the nearest, which takes seconds."""
    table: dict[str, str] = json.loads(files("wbar_training.networks").joinpath("signatures.json").read_text())
    uploaded = signature(shapes)
    for name in (name for name, digest in table.items() if digest == uploaded):
        network = _read_off(name.removesuffix(PROJECTION), shapes, None)
        if compare(shapes, shapes_of(network)).is_empty:
            return network
    return None


def signature(tensor_names: Iterable[str]) -> str:
    """Return a digest of the names that every checkpoint of a network has, whatever its age and its auxiliary heads."""
    kept = (name for name in tensor_names if not name.endswith(COUNTER) and not name.startswith(AUXILIARY))
    return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16]


def signatures() -> dict[str, str]:
    """Compute the table that `detect` looks up from the networks themselves."""
    return {label: signature(shapes_of(network)) for label, network in sorted(_plain_networks().items())}


def _plain_networks() -> dict[str, Network]:
    """Return every network of the catalog with 10 classes, and the CIFAR ResNets with 1×1 shortcuts as well."""
    plain = {name: Network(name, 10) for name in names()}
    with_projection = {
        name + PROJECTION: Network(name, 10, projection=True) for name in CIFAR if name.startswith("resnet")
    }
    return plain | with_projection


def _read_off(name: str, shapes: Shapes, num_classes: int | None) -> Network:
    """Read classes, channels and image size off the tensors where they are there; the defaults where they are not."""
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
        projection=name in CIFAR and "layer2.0.downsample.0.weight" in shapes and name.startswith("resnet"),
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
    # A table of another shape is left to `compare`, which names the expected one.
    return size if side > 0 and side * side == positions[1] - 1 and size <= 4096 else None


@dataclass(frozen=True)
class Difference:
    """How a checkpoint's tensors differ from a network's, each list sorted.

    alike: tensors of one name and shape in both. mis_shaped: name, shape in the checkpoint, shape in the network.
    """

    alike: int
    missing: list[str]
    unexpected: list[str]
    mis_shaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def is_empty(self) -> bool:
        """Whether the tensors fit."""
        return not (self.missing or self.unexpected or self.mis_shaped)

    def text(self, name: str, listed: int = LISTED) -> str:
        """List what differs from network `name`, at most `listed` keys of each kind, with both shapes."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing: {_some(self.missing, listed)}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected: {_some([shown(key) for key in self.unexpected], listed)}")
        if self.mis_shaped:
            lines = [f"{key}: {here} in the checkpoint, {there} in {name}" for key, here, there in self.mis_shaped]
            parts.append(f"{len(lines)} of another shape: {_some(lines, listed)}")
        return "; ".join(parts)

    def details(self) -> dict[str, object]:
        """Return the same for programs."""
        return {
            "missing": self.missing[:LISTED],
            "unexpected": [shown(key) for key in self.unexpected[:LISTED]],  # the file's names, of any length
            "mis_shaped": [
                {"name": key, "checkpoint": list(here), "architecture": list(there)}
                for key, here, there in self.mis_shaped[:LISTED]
            ],
        }

    def error(self, name: str) -> ArchitectureMismatch:
        """Return the error that says what differs from network `name`."""
        error = ArchitectureMismatch(f"the tensors are not {name}'s; {self.text(name)}")
        error.details = self.details()
        return error


def compare(uploaded: Shapes, expected: Shapes) -> Difference:
    """Compare a checkpoint's tensors with those of a network. BatchNorm's counters and auxiliary heads are optional."""
    both = expected.keys() & uploaded.keys()
    mis_shaped = [(key, uploaded[key], expected[key]) for key in sorted(both) if expected[key] != uploaded[key]]
    return Difference(
        alike=len(both) - len(mis_shaped),
        missing=sorted(key for key in expected.keys() - both if not key.endswith(COUNTER)),
        unexpected=sorted(key for key in uploaded.keys() - both if not key.startswith(AUXILIARY)),
        mis_shaped=mis_shaped,
    )


def _some(lines: list[str], listed: int) -> str:
    return ", ".join(lines[:listed]) + (f" and {len(lines) - listed} more" if len(lines) > listed else "")


def nearest(shapes: Shapes, most: int = NEAREST) -> list[tuple[Network, Difference]]:
    """Return the catalog networks that share the most tensors with a checkpoint, the nearest first, and what differs.

    Nearness is the share of one name and shape among all tensors of both (Jaccard's index); networks that share none
    are left out. Every network of the catalog is built as shapes: some seconds.
    """
    pairs = {(key, shape) for key, shape in shapes.items() if not key.endswith(COUNTER)}
    scores: dict[str, float] = {}
    for label, network in _plain_networks().items():
        pairs_of_network = {(key, shape) for key, shape in shapes_of(network).items() if not key.endswith(COUNTER)}
        scores[label] = len(pairs & pairs_of_network) / len(pairs | pairs_of_network)
    ranked = sorted((label for label in scores if scores[label]), key=lambda label: (-scores[label], label))
    fitted = [_read_off(label.removesuffix(PROJECTION), shapes, None) for label in ranked[:most]]
    return [(network, compare(shapes, shapes_of(network))) for network in dict.fromkeys(fitted)]


def _unknown(shapes: Shapes) -> UnknownArchitecture:
    """Return the error for tensors that no network of the catalog has: the nearest ones, and their differences."""
    wrapper = _wrapper(shapes)
    candidates = nearest({name.removeprefix(wrapper): shape for name, shape in shapes.items()})
    first = ", ".join(map(quoted, sorted(shapes)[:3]))
    message = f"no architecture of this service has these {len(shapes)} tensors (first: [{first}]). "
    if candidates:
        behind = f", once {quoted(wrapper)} is taken off every name" if wrapper else ""
        each = [f"{network.name} ({_likeness(network.name, difference)})" for network, difference in candidates]
        message += f"The nearest{behind}: {'; '.join(each)}. Give `architecture` to see all that differs from one; "
    else:
        message += "None has a tensor of one of these names and shapes; "
    error = UnknownArchitecture(message + "GET /v1/architectures lists what there is")
    error.details = {
        "nearest": [
            {"name": network.name, "alike": difference.alike} | difference.details()
            for network, difference in candidates
        ]
    }
    return error


def _likeness(name: str, difference: Difference) -> str:
    rest = difference.text(name, LISTED_EACH)
    return f"{difference.alike} tensors alike, {rest or 'nothing differs: rename them'}"


def _wrapper(tensor_names: Collection[str]) -> str:
    """Return the beginning that all names share up to the first dot, `backbone.` for instance; empty where they differ."""
    beginnings = {name.partition(".")[0] for name in tensor_names if "." in name}
    return f"{beginnings.pop()}." if len(beginnings) == 1 and all("." in name for name in tensor_names) else ""


if __name__ == "__main__":
    from pathlib import Path

    Path(__file__).with_name("signatures.json").write_text(json.dumps(signatures(), indent=0) + "\n")
