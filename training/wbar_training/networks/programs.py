"""A network as a program without code: the operations of an exported graph as one document of plain values.

A program is made from a stranger's file by `wbar_training.uploads.exported_program`, is checked and built by
`wbar_training.networks.exported`, and travels in the metadata of the weights that belong to it, so that whoever has a
weights file has its network, too. It holds no code and no expression that anything evaluates: names, numbers, and the names
of operations, each of which must be in `wbar_training.networks.operators`.
"""

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import safe_open
from typing_extensions import TypeAliasType

from wbar.catalog import EXPORTED, Architecture
from wbar.spec import JobSpec, Network
from wbar_averaging.quoting import quoted, shown
from wbar_training.workspace import Workspace

METADATA = "wbar.program"
MOST_BYTES = 32 * 1024 * 1024  # of a document; the constants that tensors of a graph hold are in it
Dtype = Literal["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
_STRICT = ConfigDict(strict=True, extra="forbid", ser_json_inf_nan="constants")


class InvalidProgram(ValueError):
    """Raised for a document that is no program; the message says why."""


@dataclass(frozen=True, config=_STRICT)
class Of:
    """An argument that is a value of the graph: a tensor or a number, by its name."""

    of: str


@dataclass(frozen=True, config=_STRICT)
class Named:
    """An argument that torch has a name for, such as `float32`. A device is always the one of the input."""

    kind: Literal["dtype", "memory_format", "layout", "device"]
    name: str


Value = TypeAliasType("Value", "bool | int | float | str | Of | Named | tuple[Value, ...] | None")


@dataclass(frozen=True, config=_STRICT)
class Node:
    """One operation. target: `aten.conv2d.default`. arguments: by their names, in order. outputs: the names of its results."""

    target: str
    arguments: dict[str, Value]
    outputs: tuple[str, ...]


@dataclass(frozen=True, config=_STRICT)
class State:
    """A tensor that the weights hold: its value in the graph, its shape, and its dtype. parameter: or a buffer.

    tied: another name of a parameter that is this one, too.
    """

    value: str
    shape: tuple[int, ...]
    dtype: Dtype
    parameter: bool
    tied: tuple[str, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class Constant:
    """A tensor that belongs to the program and not to the weights. data: its numbers, little-endian, in base64."""

    value: str
    shape: tuple[int, ...]
    dtype: Dtype
    data: str


@dataclass(frozen=True, config=_STRICT)
class Interface:
    """The facts about the images that go into a network, and about its outputs.

    channels, height, width: of the images that it was exported with; any_size: it takes others, too, from min_size on.
    classes: columns of its output. input, output: their values in the graph.
    """

    channels: int
    height: int
    width: int
    any_size: bool
    min_size: int
    classes: int
    input: str
    output: str


@dataclass(frozen=True, config=_STRICT)
class Program(Interface):
    """One network. state, constants: by the names that they have in it."""

    state: dict[str, State]
    constants: dict[str, Constant]
    nodes: tuple[Node, ...]
    version: Literal[1] = 1

    def document(self) -> bytes:
        """Return the JSON: equal programs, equal bytes."""
        return _PROGRAM.dump_json(self)

    @property
    def digest(self) -> str:
        """The sha256 of the document, which is the network's name in a JobSpec."""
        return hashlib.sha256(self.document()).hexdigest()

    @property
    def network(self) -> Network:
        """The network that the program is, with its entry of the catalog."""
        normalized = any(node.target.startswith("aten.batch_norm") for node in self.nodes)
        entry = Architecture(
            EXPORTED,
            EXPORTED,
            size=self.height,
            min_size=min(self.min_size, self.height),
            fixed_size=not self.any_size,
            optimizer="sgd" if normalized else "adamw",
            peak_lr=0.05 if normalized else 1.25e-4,
            reproducible=False,
            library=EXPORTED,
        )
        side = None if self.any_size else self.height
        return Network(EXPORTED, self.classes, self.channels, side, entry=entry, program=self.digest)

    def differing(self, tensors: Mapping[str, tuple[tuple[int, ...], bool]]) -> str | None:
        """Return a sentence about the first tensor that weights lack or have otherwise; None: they fit.

        tensors: the shape of each, and whether it holds floating-point numbers.
        """
        for name, one in self.state.items():
            for each in (name, *one.tied):
                if each not in tensors:
                    return f"{quoted(each)} is missing: the program has it"
                shape, floating = tensors[each]
                if shape != one.shape:
                    return f"{shown(each)}: {shape} in the checkpoint, {one.shape} in its program"
                if floating != ("float" in one.dtype):
                    return (
                        f"{shown(each)} holds {'fractions' if floating else 'integers'}, and {one.dtype} in its program"
                    )
        return None


_PROGRAM = TypeAdapter(Program)
_known: dict[str, Program] = {}


def metadata_of(program: Program) -> dict[str, str]:
    """Return the metadata that a weights file carries its program in."""
    return {METADATA: base64.b64encode(zlib.compress(program.document(), 9)).decode()}


def in_metadata(metadata: Mapping[str, str]) -> Program | None:
    """Return the program in a weights file's metadata, None where there is none. Raises InvalidProgram."""
    packed = metadata.get(METADATA)
    if packed is None:
        return None
    unpacking = zlib.decompressobj()
    try:
        document = unpacking.decompress(base64.b64decode(packed, validate=True), MOST_BYTES)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InvalidProgram(f"the metadata {METADATA} cannot be unpacked ({error})") from None
    if not unpacking.eof:
        raise InvalidProgram(f"the metadata {METADATA} unpacks to more than {MOST_BYTES} bytes, or was cut off")
    return parsed(document)


def parsed(document: bytes) -> Program:
    """Return the program in a document. Raises InvalidProgram."""
    try:
        return _PROGRAM.validate_json(document)
    except (ValidationError, RecursionError) as error:
        where = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "nested too deeply"}
        place = ".".join(map(str, where["loc"]))[:80]
        raise InvalidProgram(f"the program is not well formed: {place}: {where['msg']}") from None


def learn(program: Program) -> Network:
    """Make a program known to this process, in which a network is built by its digest; return the network."""
    network = program.network
    assert network.program is not None
    _known[network.program] = program
    return network


def learn_from(path: Path) -> None:
    """Make the program in a weights file known to this process, if there is one. Raises InvalidProgram."""
    with safe_open(path, framework="pt") as file:
        program = in_metadata(file.metadata() or {})
    if program is not None:
        learn(program)


def learn_all(spec: JobSpec, workspace: Workspace) -> None:
    """Make the programs of a job's networks known: of its start, its ingredients and its teachers. Raises InvalidProgram."""
    for weights in (spec.start, *spec.ingredients, *spec.teachers):
        if weights.network.program is not None:
            learn_from(workspace.input(weights.blob))


def known(digest: str) -> Program:
    """Return a program by its digest. Raises LookupError where no weights file of it was read."""
    if digest not in _known:
        raise LookupError(f"the program {digest[:12]} of the network is not here: its weights file was not read")
    return _known[digest]
