"""Whether the tensors beside a configuration of transformers are those of the network that it describes."""

from collections.abc import Mapping

from wbar.catalog import catalog_name
from wbar.errors import ArchitectureMismatch
from wbar.spec import Network
from wbar_averaging.quoting import quoted
from wbar_training.networks import transformers_models
from wbar_training.networks.architectures import shapes_of
from wbar_training.networks.differences import Shapes, compare
from wbar_training.networks.fresh_layers import head_of


def own_names(
    network: Network, names: Mapping[str, str], architecture: str | None, num_classes: int | None
) -> dict[str, str]:
    """Return the network's own name of every tensor in a file, by the file's.

    names: without the part before the network's own, by the file's.
    architecture, num_classes: as the uploader gave them.

    Raises ArchitectureMismatch where these say something else than the configuration.
    """
    if architecture is not None and catalog_name(architecture) != network.name:
        raise ArchitectureMismatch(
            f"`architecture` is {quoted(architecture)} and config.json says {network.name}: leave `architecture` out"
        )
    if num_classes is not None and num_classes != network.num_classes:
        raise ArchitectureMismatch(
            f"`num_classes` is {num_classes} and config.json has {network.num_classes} classes: leave `num_classes` out"
        )
    own = transformers_models.own_names(network, names.values())
    return {name: own[plain] for name, plain in names.items()}


def check(network: Network, shapes: Shapes) -> None:
    """Raise ArchitectureMismatch, saying what differs, unless the tensors are the network's.

    shapes: under the network's own names.
    """
    difference = compare(shapes, shapes_of(network))
    if difference.is_empty:
        return
    heads = head_of(network) if difference.mis_shaped and not difference.missing else set()
    wrong = [(name, here, there) for name, here, there in difference.mis_shaped if name in heads]
    if wrong and len(wrong) == len(difference.mis_shaped):
        name, here, _ = wrong[0]
        raise ArchitectureMismatch(
            f"config.json has {network.num_classes} classes (id2label), and the head in the file has {here[0] if here else 0} "
            f"outputs ({name}: {here}): write one name for each output"
        )
    strange = [name for name in difference.unexpected if not transformers_models.is_ignored(network, name)]
    rest = compare(
        {name: shape for name, shape in shapes.items() if name not in difference.unexpected}, shapes_of(network)
    )
    if strange or not rest.is_empty:
        raise difference.error(network.name)
