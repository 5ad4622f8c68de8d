"""A `.pt2` archive of torch.export, read as data: its graph is JSON, its weights are numbers, and the rest is not looked at.

`torch.export.load` is not used. It unpickles what the archive calls pickled (weights, constants, objects, example inputs)
without a limit of what that may run, evaluates the expressions of symbolic sizes with sympy's `sympify`, and compiles the
guards. Here the program is rebuilt from what needs none of that: names of operations, values and numbers. Symbolic sizes are
not evaluated: at run time they are sizes of tensors. Three layouts are known:

    <name>/models/model.json, <name>/data/weights/{model_weights_config.json, weight_N}, …     torch 2.9 and later
    the same, with <name>/data/weights/model.pt, which torch.save wrote                        before
    serialized_exported_program.json, serialized_state_dict.pt, serialized_constants.pt        torch 2.1 to 2.7
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wbar.errors import ContentTooLarge, CorruptFile, NothingMatches, UnsafePickle, UnsupportedProgram
from wbar_averaging.quoting import quoted, reason
from wbar_averaging.safetensors_file import InvalidSafetensors, read_layout
from wbar_averaging.zip_directory import STORED, Entry, InvalidZip, ZipTooLarge, check_content, read_directory
from wbar_training.networks.bounds import MOST_CLASSES
from wbar_training.networks.exported import with_classes
from wbar_training.networks.programs import Constant, Dtype, Node, Of, Program, State, Value, in_metadata
from wbar_training.uploads import program_graph
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.program_graph import DTYPES, Graph

ENTRIES_BESIDE_TENSORS = 100
CONSTANT_BYTES = 8 * 1024 * 1024  # of all tensors that belong to the program
OLD_PROGRAM = "serialized_exported_program.json"
_PROGRAM = re.compile(r"(?:[^/]+/)?models/([^/]+)\.json")
_DATA = re.compile(r"(?:[^/]+/)?(?:data/|archive_format$|archive_version$|byteorder$)")
_KNOWN = re.compile(
    r"(?:models/[^/]+\.json|data/(?:weights|constants)/[\w.-]+|data/sample_inputs/[\w.-]+\.pt|archive_format|archive_version|"
    r"version|byteorder|\.data/[\w.-]+|\.format_version|\.storage_alignment|extra/[\w./-]+|serialized_\w+\.(?:pt|json)|debug/.*)"
)
LoadTensors = Callable[[Path], dict[str, Tensor]]


@dataclass(frozen=True)
class ReadProgram:
    """A program and the tensors of its state, by their names in the network. format: of the file."""

    program: Program
    tensors: dict[str, Tensor]
    format: Literal["pt2", "safetensors"] = "pt2"


def find(path: Path, limits: UploadLimits, scratch: Path, load: LoadTensors) -> ReadProgram | None:
    """Return the program in a file and its tensors: an archive's, or of weights that a job made of one; None: of none.

    scratch: a name for a file that torch.save wrote into the archive.
    load: reads the tensors of a file, checked, with `weights_only=True`.

    Raises CorruptFile, UnsafePickle, UnsupportedProgram or ContentTooLarge.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    if _is_archive(path, head, limits):
        return read(path, limits, scratch, load)
    if head[8:9] != b"{" or head[:2] == b"PK":
        return None
    try:
        header, _ = read_layout(path, limits.header_bytes, limits.tensors)
        said = header.get("__metadata__") or {}
        program = in_metadata(said)
        if program is not None and "wbar.num_classes" in said:  # a job may have given it another head
            program = with_classes(program, _classes(said["wbar.num_classes"]))
    except InvalidSafetensors:
        return None  # whoever reads it next says what is wrong
    except (ValueError, NothingMatches) as error:
        raise CorruptFile(f"the file's metadata has no program that can be read: {error}") from None
    return None if program is None else ReadProgram(program, load(path), "safetensors")


def _classes(text: str) -> int:
    classes = int(text) if text.isascii() and text.isdecimal() and len(text) < 8 else 0
    if not 0 < classes <= MOST_CLASSES:
        raise ValueError(f"wbar.num_classes is {quoted(text)}: 1 to {MOST_CLASSES} can be taken")
    return classes


def _is_archive(path: Path, head: bytes, limits: UploadLimits) -> bool:
    """Return whether a file is an archive of torch.export. head: its first bytes."""
    if head[:4] != b"PK\x03\x04":
        return False
    try:
        entries = read_directory(path, limits.tensors + ENTRIES_BESIDE_TENSORS)
    except InvalidZip:
        return False  # whoever reads it as another archive says what is wrong
    names = [entry.name for entry in entries]
    if OLD_PROGRAM in names:
        return True
    # A model's folder may be called `models`, too, and has no data beside it.
    return any(map(_PROGRAM.fullmatch, names)) and any(_DATA.match(name) for name in names)


def read(path: Path, limits: UploadLimits, scratch: Path, load: LoadTensors) -> ReadProgram:
    """Return the program in an archive, and its weights. See `find`."""
    archive = _Archive(path, limits)
    try:
        graph = program_graph.parse(archive.json(archive.program), archive.program)
        if archive.is_old:
            state, constants = _pickled_state(archive, graph, scratch, load)
        else:
            name = archive.program.rpartition("/")[2].removesuffix(".json")
            state = archive.tensors("weights", name, scratch, load)
            # Of a program without constants torch 2.8 writes an empty file, which is no state dict.
            constants = archive.tensors("constants", name, scratch, load) if graph.constants else {}
        return _assembled(graph, state, constants)
    except (
        KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError, RuntimeError
    ) as error:  # fmt: skip
        raise CorruptFile(
            f"the archive is not as torch.export.save writes it ({type(error).__name__}: {reason(error)})"
        ) from None


class _Archive:
    """The entries of an archive, checked: stored, apart, with true checksums, and of the names that torch.export writes."""

    def __init__(self, path: Path, limits: UploadLimits) -> None:
        self.path, self.limits = path, limits
        try:
            entries = read_directory(path, limits.tensors + ENTRIES_BESIDE_TENSORS)
            packed = next((entry for entry in entries if entry.method != STORED and not entry.is_folder), None)
            if packed:
                raise CorruptFile(
                    f"{quoted(packed.name)} is compressed; torch.export.save writes uncompressed archives: save it again "
                    f"with that"
                )
            check_content(path, entries)
        except ZipTooLarge as error:
            raise ContentTooLarge(str(error)) from None
        except InvalidZip as error:
            raise CorruptFile(
                f"the archive cannot be trusted: {error}. Upload it again, or save it again with torch.export.save"
            ) from None
        self.is_old = any(entry.name == OLD_PROGRAM for entry in entries)
        self.entries = self._named(entries)
        programs = [OLD_PROGRAM] if self.is_old else [n for n in self.entries if n.startswith("models/")]
        if len(programs) != 1:
            raise UnsupportedProgram(f"the archive has {len(programs)} programs: save the one that is to be trained")
        self.program = programs[0]
        order = self.entries.get("byteorder")
        if order is not None and self.bytes("byteorder") != b"little":
            raise CorruptFile("the archive's numbers are big-endian: save it again on a little-endian machine")

    def _named(self, entries: list[Entry]) -> dict[str, Entry]:
        """Return the entries by their names below the archive's one folder."""
        named: dict[str, Entry] = {}
        roots = {entry.name.partition("/")[0] for entry in entries if not self.is_old}
        if len(roots) > 1:
            raise CorruptFile(f"the archive has {len(roots)} folders, and torch.export.save writes one")
        for entry in entries:
            name = entry.name if self.is_old else entry.name.partition("/")[2]
            if entry.is_folder or name == "":
                continue
            if name.startswith("data/aotinductor/"):
                raise UnsupportedProgram(
                    f"{quoted(name)} is compiled code (AOTInductor), which is never run: save the exported program"
                )
            if not _KNOWN.fullmatch(name) or ".." in name.split("/"):
                raise CorruptFile(f"{quoted(entry.name)} is no part of what torch.export.save writes")
            if name in named:
                raise CorruptFile(f"{quoted(entry.name)} is in the archive twice")
            named[name] = entry
        return named

    def bytes(self, name: str, most: int | None = None) -> bytes:
        """Return an entry's content. most: the limit of its size; None: of a header."""
        entry = self.entries.get(name)
        if entry is None:
            raise CorruptFile(f"the archive has no {quoted(name)}: was it written by torch.export.save?")
        most = self.limits.header_bytes if most is None else most
        if entry.size > most:
            raise ContentTooLarge(f"{quoted(name)} has {entry.size} bytes, more than the limit of {most}")
        with open(self.path, "rb") as file:
            file.seek(entry.start)
            return file.read(entry.size)

    def json(self, name: str) -> Any:
        """Return the JSON in an entry. Raises CorruptFile."""
        try:
            return json.loads(self.bytes(name))
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"{quoted(name)} is no JSON: {reason(error)}") from None

    def unpacked(self, name: str, scratch: Path, load: LoadTensors) -> dict[str, Tensor]:
        """Return the tensors of a file that torch.save wrote into the archive."""
        scratch.write_bytes(self.bytes(name, self.path.stat().st_size))
        try:
            return _without_file(load(scratch))
        finally:
            scratch.unlink()

    def tensors(self, kind: str, model: str, scratch: Path, load: LoadTensors) -> dict[str, Tensor]:
        """Return the weights or the constants by their names."""
        pickled, config = f"data/{kind}/{model}.pt", f"data/{kind}/{model}_{kind}_config.json"
        if pickled in self.entries:
            return self.unpacked(pickled, scratch, load)
        flat: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name, payload in self.json(config)["config"].items():
            meta, file = payload["tensor_meta"], payload["path_name"]
            if payload["use_pickle"] or not isinstance(meta, dict) or not re.fullmatch(r"(weight|tensor)_\d+", file):
                raise UnsafePickle(
                    f"{quoted(name)} is an object that only unpickling could read ({quoted(file)}), which is never done: plain "
                    "tensors can be fine-tuned"
                )
            dtype = _dtype(meta["dtype"], name)
            if file not in flat:
                data = bytearray(self.bytes(f"data/{kind}/{file}", self.path.stat().st_size))
                usable = len(data) - len(data) % dtype.itemsize
                flat[file] = (
                    torch.frombuffer(data, dtype=torch.uint8)[:usable].view(dtype)
                    if data
                    else torch.zeros(0, dtype=dtype)
                )
            if flat[file].dtype is not dtype:
                raise CorruptFile(f"{quoted(name)} is {dtype} and shares its bytes with tensors of {flat[file].dtype}")
            found[name] = _strided(flat[file], meta, name)
        return found


def _without_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whose memory is no file's. Those that share it go on sharing it: they are one parameter."""
    storages: dict[int, torch.UntypedStorage] = {}
    found = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]  # torch does not type it
        place = tensor.storage_offset(), tensor.shape, tensor.stride()
        found[name] = torch.empty(0, dtype=tensor.dtype).set_(storages[storage.data_ptr()], *place)
    return found


def _dtype(number: Any, name: str) -> torch.dtype:
    if number not in DTYPES:
        raise UnsupportedProgram(
            f"{quoted(name)} is of torch's type {quoted(number)}, which no weight has that can be fine-tuned"
        )
    return getattr(torch, DTYPES[number])  # type: ignore[no-any-return]


def _strided(flat: Tensor, meta: Mapping[str, Any], name: str) -> Tensor:
    sizes, strides = ([program_graph.number(one, name) for one in meta[key]] for key in ("sizes", "strides"))
    offset = program_graph.number(meta["storage_offset"], name)
    if min([*sizes, *strides, offset], default=0) < 0 or len(sizes) != len(strides):
        raise CorruptFile(f"{quoted(name)} has the sizes {sizes} and the strides {strides}")
    last = (
        offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) if 0 not in sizes else -1
    )
    if last >= flat.numel():
        raise CorruptFile(f"{quoted(name)} needs {last + 1} numbers, and its file holds {flat.numel()}")
    return torch.as_strided(flat, sizes, strides, offset) if flat.numel() else torch.zeros(sizes, dtype=flat.dtype)


def _pickled_state(
    archive: _Archive, graph: Graph, scratch: Path, load: LoadTensors
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    state = archive.unpacked("serialized_state_dict.pt", scratch, load)
    constants = archive.unpacked("serialized_constants.pt", scratch, load) if graph.constants else {}
    return state, constants


def _assembled(graph: Graph, state: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> ReadProgram:
    """Put the graph and its tensors together. Raises UnsupportedProgram, ContentTooLarge."""
    missing = [name for name in graph.state if name not in state] + [n for n in graph.constants if n not in constants]
    if missing:
        raise CorruptFile(f"the archive does not hold {quoted(missing[0])}, which its program uses")
    for names, tensors in ((graph.state, state), (graph.constants, constants)):
        for name, value in names.items():
            here = str(tensors[name].dtype).removeprefix("torch."), tuple(tensors[name].shape)
            if here != graph.kinds[value]:
                raise CorruptFile(
                    f"{quoted(name)} is {here[0]} of the shape {here[1]}, and {graph.kinds[value][0]} of the shape "
                    f"{graph.kinds[value][1]} in the program: were weights and program exported together?"
                )
    tied = _tied(graph, state)
    others = {other: name for name, names in tied.items() for other in names}
    same = {graph.state[other]: graph.state[name] for other, name in others.items() if other in graph.state}
    held = {}
    for name, value in graph.state.items():
        if name in others:
            continue
        tensor = state[name]
        if graph.is_parameter[name] and tensor.dtype is not torch.float32:
            raise UnsupportedProgram(
                f"{quoted(name)} is a {tensor.dtype} parameter: export the network in float32 (model.float()); a job trains in "
                "bfloat16 where its recipe says so"
            )
        dtype, shape = graph.kinds[value]
        held[name] = State(value, shape, dtype, graph.is_parameter[name], tuple(sorted(tied[name])))
    size = sum(constants[name].numel() * constants[name].element_size() for name in graph.constants)
    if size > CONSTANT_BYTES:
        raise ContentTooLarge(
            f"the tensors that are no parameters and no persistent buffers have {size} bytes, more than the limit of "
            f"{CONSTANT_BYTES}: register large ones as persistent buffers"
        )
    fixed = {name: _constant(value, graph.kinds[value][0], constants[name]) for name, value in graph.constants.items()}
    program = Program(
        **vars(graph.interface),
        state=held,
        constants=fixed,
        nodes=tuple(_renamed(node, same) for node in graph.nodes),
    )
    return ReadProgram(program, {name: state[name] for name in dict.fromkeys((*graph.state, *state))})


def _tied(graph: Graph, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the other names of every parameter: those whose numbers are the same bytes, in the graph and beside it."""
    tied: dict[str, list[str]] = {name: [] for name in graph.state}
    first: dict[tuple[object, ...], str] = {}
    for name in (*graph.state, *(n for n in state if n not in graph.state)):
        if graph.is_parameter.get(name, True) and state[name].numel():
            one = first.setdefault(_place(state[name]), name)
            if one != name and one in graph.state:
                tied[one].append(name)
    return tied


def _renamed(node: Node, same: Mapping[str, str]) -> Node:
    """Return an operation on other values. same: those that take the place of others."""

    def of(value: Value) -> Value:
        if isinstance(value, tuple):
            return tuple(map(of, value))
        return Of(same.get(value.of, value.of)) if isinstance(value, Of) else value

    return (
        Node(node.target, {name: of(value) for name, value in node.arguments.items()}, node.outputs) if same else node
    )


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _constant(value: str, dtype: Dtype, tensor: Tensor) -> Constant:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return Constant(value, tuple(tensor.shape), dtype, base64.b64encode(raw).decode())
