"""What the tensors of timm's networks are called and how large they are: a table of the installed version, made once.

To build all of them takes minutes, even without memory for their tensors; to compare a checkpoint with the table takes a
moment. So the table is written to a folder, under a name with the versions of timm and torch that it is true for. Where it
is not written yet, the few networks whose first and last layer a checkpoint has are built for it alone.

Two networks with the same tensors may compute different things (another activation, another padding). Whether they do is
read off the modules: their classes, and every plain value that they hold.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from pydantic_core import from_json
from torch import nn

from wbar.catalog import Architecture
from wbar.spec import Network
from wbar_training.networks import architectures, timm_models
from wbar_training.networks.differences import Shapes, names_digest

log = logging.getLogger("wbar.training")

TABLES = Path.home() / ".cache" / "wbar"  # of whoever works on files of their own; a worker has a folder for it
CLASSES = 10  # of every network in the table
# What changes nothing in eval mode, or says no more than the name or the tensors do.
_IDLE = (
    "training", "drop", "p", "name", "tag", "url", "checkpoint", "init", "momentum", "fused",
    "img_size", "grid_size", "num_patches", "feat_size", "input_res",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One network with CLASSES outputs and 3 channels.

    signature: `names_digest` of its tensors.
    computes: a digest of what it computes, as far as its modules say: equal for networks that are the same but for a name.
    classifiers, stem: the paths of its classifiers, and of its first convolution.
    tensors: every name and shape of its state dict.
    buffers: those that are no parameters. integers: those that hold no floating-point numbers.
    entry: of the catalog.
    """

    name: str
    signature: str
    computes: str
    classifiers: tuple[str, ...]
    stem: str
    tensors: dict[str, tuple[int, ...]]
    buffers: tuple[str, ...]
    integers: tuple[str, ...]
    entry: Architecture

    def shapes(self, network: Network) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes with a network's classes and channels; its image size is the row's."""
        changed = dict(self.tensors)
        for path in self.classifiers:
            for name in (f"{path}.weight", f"{path}.bias"):
                if changed.get(name, ())[:1] == (CLASSES,):
                    changed[name] = (network.num_classes, *changed[name][1:])
        stem = changed.get(f"{self.stem}.weight", ())
        if len(stem) == 4 and stem[1] == 3:
            changed[f"{self.stem}.weight"] = (stem[0], network.channels, *stem[2:])
        return changed


_ROW = TypeAdapter(Row)


class Table:
    """The rows of the installed timm, each read when it is asked for.

    names: catalog name to signature.
    read: gives a row by its catalog name.
    """

    def __init__(self, names: Mapping[str, str], read: Callable[[str], Row]) -> None:
        self._names, self._read = names, read

    def __len__(self) -> int:
        return len(self._names)

    def row(self, name: str) -> Row | None:
        """Return one row by its catalog name."""
        return self._read(name) if name in self._names else None

    def signed(self, signature: str) -> list[Row]:
        """Return the rows of a signature."""
        return [self._read(name) for name, other in self._names.items() if other == signature]

    def alike(self, shapes: Shapes, most: int) -> list[Row]:
        """Return the rows that share the most tensors with a checkpoint, by Jaccard's index; none that shares none."""
        scored = []
        for name in self._names:
            row = self._read(name)
            same = sum(row.tensors.get(key) == shape for key, shape in shapes.items())
            if same:
                scored.append((-same / (len(row.tensors) + len(shapes) - same), name, row))
                scored = sorted(scored)[:most]
        return [row for _, _, row in scored]


def path_in(folder: Path) -> Path:
    """Return where the table of the installed timm lies in a folder of tables."""
    return folder / f"timm-{timm_models.installed()}-torch-{torch.__version__.partition('+')[0]}.jsonl"


def load(folder: Path) -> Table | None:
    """Return the table; None where it is not written yet, or cannot be read."""
    path = path_in(folder)
    try:
        with open(path, "rb") as file:
            places: dict[str, tuple[str, int, int]] = from_json(file.readline())
            begin = file.tell()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("the table of timm's networks cannot be read (%s): it is made again", type(error).__name__)
        return None

    def read(name: str) -> Row:
        _, start, length = places[name]
        with open(path, "rb") as file:
            file.seek(begin + start)
            return _ROW.validate_json(file.read(length))

    return Table({name: place[0] for name, place in places.items()}, read)


def table_of(rows: Iterable[Row]) -> Table:
    """Return a table of some rows."""
    by_name = {row.name: row for row in rows}
    return Table({name: row.signature for name, row in by_name.items()}, by_name.__getitem__)


def write(folder: Path, names: Sequence[str] | None = None) -> Path:
    """Make the table of the installed timm: minutes. It is written whole or not at all.

    One line says where the row of each name lies, so that a row is read without the others.

    names: of the networks in it; None: all.
    """
    places: dict[str, tuple[str, int, int]] = {}
    lines, end = list[bytes](), 0
    for row in rows_of(timm_models.names() if names is None else names):
        line = _ROW.dump_json(row)
        places[row.name] = (row.signature, end, len(line))
        lines.append(line)
        end += len(line)
    path = path_in(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".timm-", delete=False) as file:
        file.write(json.dumps(places, separators=(",", ":")).encode() + b"\n" + b"".join(lines))
    os.replace(file.name, path)
    return path


def rows_of(names: Iterable[str]) -> Iterator[Row]:
    """Yield the rows of networks by catalog name. One that cannot be built is left out, and logged."""
    for name in names:
        try:
            yield row_of(name)
        except Exception as error:  # of another library, whatever it is
            log.warning("%s cannot be built as shapes, and is not recognized (%s)", name, type(error).__name__)


def row_of(name: str) -> Row:
    """Build one network as shapes, and return its row."""
    module = architectures.build(Network(name, CLASSES))
    classifiers, stem = timm_models.layers_of(name)
    state, parameters = module.state_dict(), {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return Row(
        name=name,
        signature=names_digest(state),
        computes=_computes(module),
        classifiers=classifiers,
        stem=stem,
        tensors={key: tuple(tensor.shape) for key, tensor in state.items()},
        buffers=tuple(key for key in state if key not in parameters),
        integers=tuple(key for key, tensor in state.items() if not tensor.is_floating_point()),
        entry=timm_models.entry(name),
    )


def narrowed(shapes: Shapes) -> Iterator[Row]:
    """Build the networks whose first convolution and classifiers are among a checkpoint's tensors: seconds to a minute."""
    likely = []
    for name in timm_models.names():
        classifiers, stem = timm_models.layers_of(name)
        if f"{stem}.weight" in shapes and all(f"{path}.weight" in shapes for path in classifiers):
            likely.append(name)
    return rows_of(likely)


def _computes(module: nn.Module) -> str:
    """Return a digest of the modules' classes and the plain values that they hold."""
    parts = []
    for path, child in module.named_modules():
        held = {
            key: repr(value)
            for key, value in vars(child).items()
            if isinstance(value, (bool, int, float, str, tuple, type(None))) and not _is_idle(key)
        }
        held |= {key: value.__qualname__ for key, value in vars(child).items() if hasattr(value, "__qualname__")}
        parts.append((path, type(child).__qualname__, sorted(held.items())))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _is_idle(attribute: str) -> bool:
    return any(word in attribute if len(word) > 1 else word == attribute for word in _IDLE)


def plainest(rows: Iterable[Row]) -> list[Row]:
    """Return rows with the plainest name first: the shortest, and of those the first."""
    return sorted(rows, key=lambda row: (len(row.name.removeprefix("timm/")), row.name))


if __name__ == "__main__":
    import sys

    sys.stdout.write(f"{write(Path(sys.argv[1]) if sys.argv[1:] else TABLES)}\n")
