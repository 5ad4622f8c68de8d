"""A checkpoint's tensor names and shapes name its network, its classes, its input channels and its image size.

Names and shapes do not say everything: networks that differ in a pooling or an activation without parameters have the
same tensors and give other outputs. Published ones are in `NEAR_RELATIVES`; a checkpoint that was recognized by its
tensors alone carries them as `ambiguous_with`.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from wbar.catalog import ARCHITECTURES, SMP, catalog_name
from wbar.errors import ArchitectureMismatch, UnknownArchitecture
from wbar.spec import Network
from wbar_averaging.quoting import quoted
from wbar_training.networks import smp_models, timm_models, timm_recognition, timm_table
from wbar_training.networks.architectures import CIFAR, SEGMENTATION, build, names, shapes_of
from wbar_training.networks.detectors import DETECTION, FROZEN
from wbar_training.networks.differences import COUNTER, Difference, Shapes, compare, names_digest

# Published networks with all tensor names and shapes of ours and other outputs. From a comparison with every model of
# timm 1.0.31 and of torchvision 0.29, its quantizable ones included (their float weights are uploaded, too).
NEAR_RELATIVES: dict[str, tuple[str, ...]] = {
    # An average pooling or a fixed blur before each stride of 2: no parameters.
    "resnet18": ("timm's resnetblur18",),
    "resnet50": ("timm's resnetaa50", "timm's resnetblur50"),
    # Another normalization of the input inside the network; torchvision's pretrained weights belong to it.
    "googlenet": ("torchvision's googlenet with transform_input=True",),
    "inception_v3": ("torchvision's inception_v3 with transform_input=True",),
    # The same tensors, and images of another size inside.
    "fasterrcnn_mobilenet_v3_large_320_fpn": ("torchvision's fasterrcnn_mobilenet_v3_large_fpn",),
    # ReLU in place of ReLU6.
    "mobilenet_v2": ("torchvision's quantization.mobilenet_v2",),
}

PROJECTION, AUXILIARY = "+projection", "+auxiliary"
AUXILIARY_HEAD = "aux_classifier.4.weight"
NEARLY_ALL = 0.9  # of the names
LISTED_EACH = 3  # the same, where several networks are compared in one message
NEAREST = 3


@dataclass(frozen=True)
class Recognized:
    """The network of a checkpoint, and published ones with the same tensors and other outputs, by name."""

    network: Network
    ambiguous_with: list[str]


def identify(name: str, shapes: Shapes, num_classes: int | None = None, tables: Path | None = None) -> Network:
    """Return the network of catalog name `name` that fits tensors of these shapes.

    tables: the folder of `timm_table`; None: one of timm's networks is built instead.

    Raises UnknownArchitecture for a name outside the catalog, ArchitectureMismatch listing the tensors that differ.
    """
    name = catalog_name(name)
    if name in ARCHITECTURES:
        network = _read_off(name, shapes, num_classes)
        difference = compare(shapes, shapes_of(network))
    elif name.startswith(SMP):
        network = smp_models.read_off(name, shapes, num_classes)
        difference = compare(shapes, shapes_of(network))
    else:
        row = timm_recognition.row_of(name, timm_table.load(tables) if tables else None)
        network, difference = timm_recognition.read_off(row, shapes, num_classes)
    if not difference.is_empty:
        raise difference.error(name)
    return network


def recognize(shapes: Shapes, said: str | None = None, tables: Path | None = None) -> Recognized:
    """Return the network that has tensors of these names and shapes.

    said: what came with the checkpoint says that it is; believed where it fits.
    tables: the folder of `timm_table`, where timm's networks are to be recognized, too.

    Raises UnknownArchitecture if no network fits, naming the nearest and what differs.
    """
    found = find(shapes, said, tables)
    if found is None:
        raise _unknown(shapes, _table_for(shapes, tables))
    return found


def find(shapes: Shapes, said: str | None = None, tables: Path | None = None) -> Recognized | None:
    """Return what `recognize` does, None if no network fits: without looking for the nearest, which takes seconds."""
    if said is not None:
        try:
            return Recognized(identify(said, shapes, None, tables), [])
        except (UnknownArchitecture, ArchitectureMismatch):
            pass
    network = _of_the_catalog(shapes)
    if network is not None:
        return Recognized(network, list(NEAR_RELATIVES.get(network.name, ())))
    table = _table_for(shapes, tables)
    detected = timm_recognition.detect(shapes, table) if table is not None else None
    return Recognized(*detected) if detected is not None else None


def _table_for(shapes: Shapes, tables: Path | None) -> timm_table.Table | None:
    return timm_recognition.table_for(shapes, tables) if tables and timm_models.installed() else None


def kinds(network: Network, tables: Path | None = None) -> tuple[set[str], set[str]]:
    """Return the names of a network's parameters, and of all its tensors that hold floating-point numbers."""
    table = timm_table.load(tables) if tables and timm_models.is_timms(network.name) else None
    row = table.row(network.name) if table else None
    if row is not None:
        return row.tensors.keys() - set(row.buffers), row.tensors.keys() - set(row.integers)
    module = build(network)
    state = module.state_dict()
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return parameters & state.keys(), {name for name, tensor in state.items() if tensor.is_floating_point()}


def detect(shapes: Shapes) -> Network:
    """Return the one network of ours or torchvision's whose tensors have these names and shapes.

    Raises UnknownArchitecture if no network fits, naming the nearest and what differs.
    """
    return recognize(shapes).network


def _of_the_catalog(shapes: Shapes) -> Network | None:
    """Return the one network of ours or torchvision's that fits, if there is one.

    `signatures.json` (written by `python -m wbar_training.networks.recognition`, held true by a test) says which few
    networks have these names; only those are built to compare their shapes.
    """
    table: dict[str, str] = json.loads(files("wbar_training.networks").joinpath("signatures.json").read_text())
    uploaded = names_digest(shapes)
    for name in (name for name, digest in table.items() if digest == uploaded):
        network = _read_off(_plain(name), shapes, None)
        if compare(shapes, shapes_of(network)).is_empty:
            return network
    return None


def signatures() -> dict[str, str]:
    """Compute the table that `detect` looks up from the networks themselves."""
    return {label: names_digest(shapes_of(network)) for label, network in sorted(_plain_networks().items())}


def _plain_networks() -> dict[str, Network]:
    """Return every network of the catalog with 10 classes, and those with 1×1 shortcuts or an auxiliary head as well."""
    plain = {name: Network(name, 10) for name in names()}
    with_projection = {
        name + PROJECTION: Network(name, 10, projection=True) for name in CIFAR if name.startswith("resnet")
    }
    with_head = {name + AUXILIARY: Network(name, 10, auxiliary=True) for name in SEGMENTATION if "lraspp" not in name}
    return plain | with_projection | with_head


def _plain(label: str) -> str:
    return label.removesuffix(PROJECTION).removesuffix(AUXILIARY)


def _read_off(name: str, shapes: Shapes, num_classes: int | None) -> Network:
    """Read classes, channels and image size off the tensors where they are there; the defaults where they are not."""
    plain = shapes_of(Network(name, 10))
    wider = shapes_of(Network(name, 11))
    heads = [shapes[key] for key in plain if plain[key] != wider[key] and key in shapes and shapes[key]]
    stem = shapes.get(next((key for key, shape in plain.items() if len(shape) == 4), ""), ())
    channels = stem[1] if len(stem) == 4 else 3
    if name in DETECTION:
        # A head has outputs for each anchor, and a detector takes colours alone.
        frozen = name in FROZEN and not any(key.endswith(COUNTER) for key in shapes)
        return Network(name, num_classes or _classes_of_anchors(plain, wider, shapes), frozen_norm=frozen)
    return Network(
        name,
        num_classes=num_classes or (heads[0][0] if heads else 10),
        channels=channels if channels in (1, 2, 3, 4) else 3,
        image_size=_image_size(name, shapes),
        auxiliary=name in SEGMENTATION and "lraspp" not in name and AUXILIARY_HEAD in shapes,
        projection=name in CIFAR and "layer2.0.downsample.0.weight" in shapes and name.startswith("resnet"),
    )


def _classes_of_anchors(plain: Shapes, wider: Shapes, shapes: Shapes) -> int:
    """Return the classes of a detector whose head has these shapes. plain, wider: the shapes with 10 and 11 classes."""
    head = next((key for key in plain if plain[key] != wider[key] and shapes.get(key)), None)
    if head is None:
        return 10
    anchors = wider[head][0] - plain[head][0]
    return max(2, shapes[head][0] // anchors)


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


def nearest(
    shapes: Shapes, most: int = NEAREST, table: timm_table.Table | None = None
) -> list[tuple[Network, Difference]]:
    """Return the networks that share the most tensors with a checkpoint, the nearest first, and what differs.

    table: of timm's networks that are considered, too.

    Nearness is the share of one name and shape among all tensors of both (Jaccard's index); networks that share none
    are left out. Every network of the catalog is built as shapes: some seconds.
    """
    pairs = {(key, shape) for key, shape in shapes.items() if not key.endswith(COUNTER)}
    scores: dict[str, float] = {}
    for label, network in _plain_networks().items():
        pairs_of_network = {(key, shape) for key, shape in shapes_of(network).items() if not key.endswith(COUNTER)}
        scores[label] = len(pairs & pairs_of_network) / len(pairs | pairs_of_network)
    ranked = sorted((label for label in scores if scores[label]), key=lambda label: (-scores[label], label))
    fitted = dict.fromkeys(_read_off(_plain(label), shapes, None) for label in ranked[:most])
    found = [(network, compare(shapes, shapes_of(network))) for network in fitted]
    found += timm_recognition.nearest(shapes, table, most) if table else []
    return sorted(found, key=lambda one: -one[1].likeness)[:most]


def _unknown(shapes: Shapes, table: timm_table.Table | None) -> UnknownArchitecture:
    """Return the error for tensors that no network has: the nearest ones, and their differences."""
    if smp_models.looks_like_one(shapes):
        return UnknownArchitecture(
            f"these {len(shapes)} tensors are named as those of {smp_models.PACKAGE}, whose networks are not recognized by "
            f"their tensors: give `architecture`, the decoder and the encoder, as in {SMP}unet-resnet34; "
            "GET /v1/architectures?q=smp lists the names"
        )
    wrapper, candidates = _wrapper(shapes), nearest(shapes, table=table)
    if wrapper:  # which may be the network's own, such as `features.`
        inside = nearest({name.removeprefix(wrapper): shape for name, shape in shapes.items()}, table=table)
        wrapper, candidates = (wrapper, inside) if _alike(inside) > _alike(candidates) else ("", candidates)
    first = ", ".join(map(quoted, sorted(shapes)[:3]))
    message = f"no architecture of this service has these {len(shapes)} tensors (first: [{first}]). "
    if candidates:
        behind = f", once {quoted(wrapper)} is taken off the names" if wrapper else ""
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


def _alike(candidates: Sequence[tuple[Network, Difference]]) -> int:
    return candidates[0][1].alike if candidates else 0


def _likeness(name: str, difference: Difference) -> str:
    rest = difference.text(name, LISTED_EACH)
    return f"{difference.alike} tensors alike, {rest or 'nothing differs: rename them'}"


def _wrapper(tensor_names: Collection[str]) -> str:
    """Return the beginning that nearly all names share up to the first dot, `backbone.` for instance; empty where they differ.

    A training class has a few tensors beside its network, such as those of its loss.
    """
    beginnings = Counter(name.partition(".")[0] for name in tensor_names if "." in name)
    if not beginnings:
        return ""
    commonest, count = beginnings.most_common(1)[0]
    return f"{commonest}." if count >= NEARLY_ALL * len(tensor_names) else ""


if __name__ == "__main__":
    from pathlib import Path

    Path(__file__).with_name("signatures.json").write_text(json.dumps(signatures(), indent=0) + "\n")
