"""Checked state dicts of uploaded files: nothing but tensors is unpickled, and every claim of a file is checked.

safetensors headers are checked by `wbar_averaging.safetensors_file`; PyTorch files go through
`torch.load(weights_only=True)` and nothing else, after `pytorch_archive` has checked their container and the globals that
they name. There is no second try with less care. What the format has no checksum for (the numbers of a safetensors file
and of PyTorch's legacy format) is checked by the upload's own digest only.
"""

import os
import pickle
import warnings
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from wbar.checkpoints import CheckpointFormat
from wbar.errors import (
    ArchitectureMismatch,
    ContentTooLarge,
    CorruptFile,
    NonFiniteWeights,
    NotAStateDict,
    UnsafePickle,
)
from wbar.spec import Network, PretrainedConfig
from wbar_averaging import InvalidSafetensors, write_safetensors
from wbar_averaging.pytorch_file import find_state_dict
from wbar_averaging.quoting import quoted, reason, shown
from wbar_averaging.safetensors_file import SIZES, HeaderTooLarge, read_layout
from wbar_training.networks import recognition
from wbar_training.networks.programs import metadata_of
from wbar_training.networks.recognition import Recognized
from wbar_training.networks.tensors import read_tensors
from wbar_training.uploads import (
    exported_program,
    model_folders,
    pretrained_config,
    transformers_folder,
    transformers_weights,
)
from wbar_training.uploads.exported_program import ReadProgram
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.program_trial import try_out
from wbar_training.uploads.pytorch_archive import check_archive, check_bare_pickle

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
COUNTERS = ("n_averaged",)  # AveragedModel's own count, no tensor of the network
UNSAFE = (
    "Unsupported global",
    "Unsupported class",
    "Trying to",
    "blocklisted",
    "not allowed",
    "Can only create",
    "Can only build",
)
TAR_FORMAT = (b"sys_info\0", b"pickle\0\0\0", b"storages\0", b"tensors\0\0")  # its first entry, in any order
MAX_NAME = 1000  # characters of a tensor's
OVERLAPPING, TIED = 2, 16  # see `check_claims`
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
          torch.uint8, torch.bool)  # fmt: skip


@dataclass(frozen=True)
class ValidCheckpoint:
    """The facts about a valid checkpoint.

    parameters: how many numbers the network's parameters have, buffers not counted (of no known network: all tensors').
    network: None: of no known network.
    tensors: how many tensors the file has.
    prefix: the part of the uploaded names before the network's own.
    ambiguous_with: see `wbar.checkpoints.NetworkArchitecture`.
    pretrained: what came with it about its images.
    """

    format: CheckpointFormat
    parameters: int
    tensors: int
    network: Network | None
    source: Literal["given", "detected"]
    prefix: str
    ambiguous_with: list[str] | None
    pretrained: PretrainedConfig | None = None


def validate(
    path: Path,
    architecture: str | None,
    num_classes: int | None,
    out: Path,
    limits: UploadLimits | None = None,
    tables: Path | None = None,
    any_network: bool = False,
    may_link: bool = False,
) -> ValidCheckpoint:
    """Read the file, find its state dict, name its network, and write the tensors to `out` as safetensors.

    architecture, num_classes: as the uploader gave them; None leaves them to the tensors. A given architecture is not
        ambiguous.
    limits: None: the defaults.
    tables: the folder of `networks.timm_table`, where timm's networks are to be recognized, too.
    any_network: take tensors that fit no known network, too; they can be merged and not trained.
    may_link: `out` may be a hard link to the file, where that has the tensors as they would be written: of a file that is
        not written to any more.

    Raises a class of wbar.errors.Rejected that says what is wrong with the file.
    """
    limits = limits or UploadLimits()
    unpacked = out.with_name(f"{out.name}.unpacked")
    exported = exported_program.find(path, limits, unpacked, lambda one: read(one, limits)[1])
    if exported is not None:
        return _validate_exported(exported, path, out, architecture, num_classes, limits)
    kind, tensors, said, held = _read_with_config(path, unpacked, limits, any_network)
    if len(tensors) > limits.tensors:
        raise ContentTooLarge(f"the file has {len(tensors)} tensors, more than the limit of {limits.tensors}")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)}
    _check_names(tensors)
    _check_kinds(tensors)
    check_claims(tensors, held)
    linked = path if may_link and kind == "safetensors" else None
    prefix = common_prefix(tensors)
    own = {name: name.removeprefix(prefix) for name in tensors}
    if said.network is not None:
        own = transformers_weights.own_names(said.network, own, architecture, num_classes)
    shapes = {own[name]: tuple(tensor.shape) for name, tensor in tensors.items()}
    found: Recognized | None
    if said.network is not None:
        transformers_weights.check(said.network, shapes)
        found = Recognized(said.network, [])
    elif architecture:
        found = Recognized(recognition.identify(architecture, shapes, num_classes, tables), [])
    elif any_network:
        found = recognition.find(shapes, said.architecture, tables)
    else:
        found = recognition.recognize(shapes, said.architecture, tables)
    if found is None:
        check_finite(tensors)
        _write(tensors, out, linked)
        numbers = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
        return ValidCheckpoint(kind, numbers, len(tensors), None, "detected", prefix, None)
    network = found.network
    if num_classes is not None and network.num_classes != num_classes:
        network = recognition.identify(network.name, shapes, num_classes, tables)
    check_finite(tensors)
    trained, floating = recognition.kinds(network, tables)
    integers = [n for n, t in tensors.items() if own[n] in floating and not t.is_floating_point()]
    if integers:
        raise ArchitectureMismatch(
            f"{shown(integers[0])}: {tensors[integers[0]].dtype} in the checkpoint, a floating-point dtype expected"
        )
    _write(tensors, out, linked)
    return ValidCheckpoint(
        format=kind,
        parameters=sum(t.numel() for name, t in tensors.items() if own[name] in trained),
        tensors=len(tensors),
        network=network,
        source="given" if architecture else "detected",
        prefix=prefix,
        ambiguous_with=found.ambiguous_with or None,
        pretrained=said.pretrained,
    )


def _write(tensors: Mapping[str, Tensor], out: Path, linked: Path | None) -> None:
    """Write the tensors to `out`; where the file `linked` has just them, in their own form, make `out` a link to it."""
    if linked is not None and _as_stored(linked, tensors.keys()):
        with suppress(OSError):
            os.link(linked, out)
            return
    write_safetensors(out, tensors, {})


def _as_stored(path: Path, names: Set[str]) -> bool:
    """Return whether a checked safetensors file has these tensors alone, each at a multiple of its numbers' size."""
    header, begin = read_layout(path)
    metadata = header.pop("__metadata__", {})
    return (
        header.keys() == names
        and metadata in ({}, {"format": "pt"})  # which torch's writers put there, and which says nothing
        and all((begin + one["data_offsets"][0]) % SIZES[one["dtype"]] == 0 for one in header.values())
    )


def _validate_exported(
    exported: ReadProgram,
    path: Path,
    out: Path,
    architecture: str | None,
    num_classes: int | None,
    limits: UploadLimits,
) -> ValidCheckpoint:
    """Check and try a network that came with its program, and write its tensors, with the program, to `out`."""
    program, tensors = exported.program, exported.tensors
    if architecture is not None or num_classes not in (None, program.classes):
        raise ArchitectureMismatch(
            f"the file has a program of its own, with {program.classes} outputs: leave out `architecture` and `num_classes` "
            f"({architecture or num_classes})"
        )
    if len(tensors) > limits.tensors:
        raise ContentTooLarge(f"the file has {len(tensors)} tensors, more than the limit of {limits.tensors}")
    _check_names(tensors)
    _check_kinds(tensors)
    check_claims(tensors, path.stat().st_size)
    check_finite(tensors)
    difference = program.differing({name: (tuple(one.shape), one.is_floating_point()) for name, one in tensors.items()})
    if difference:
        raise ArchitectureMismatch(difference)
    try_out(program, tensors)
    write_safetensors(out, tensors, metadata_of(program))
    return ValidCheckpoint(
        format=exported.format,
        parameters=sum(tensors[name].numel() for name, one in program.state.items() if one.parameter),
        tensors=len(tensors),
        network=program.network,
        source="detected",
        prefix="",
        ambiguous_with=None,
    )


def _read_with_config(
    path: Path, unpacked: Path, limits: UploadLimits, any_network: bool
) -> tuple[CheckpointFormat, dict[str, Tensor], pretrained_config.Said, int]:
    """Return the file's format, its flat state dict, what came with it, and the bytes of its weights.

    unpacked: a name for the weights of an archive.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    folder = model_folders.unpack(path, head, unpacked, limits)
    if folder is None:
        kind, tensors = read(path, limits)
        said = _said_in(path, any_network) if kind == "safetensors" else pretrained_config.NOTHING
        return kind, tensors, said, path.stat().st_size
    try:
        tensors = {}
        for part, weights in folder.weights.items():
            kind, found = read(weights, limits)
            if kind != "safetensors":
                raise CorruptFile(
                    f"{part} is no safetensors file but what torch.save writes: save the network with save_pretrained, or "
                    "upload that file alone"
                )
            for name in found:
                if folder.parts and folder.parts.get(name) != part:
                    raise CorruptFile(f"{shown(name)} is in {part}, where the index of the parts does not place it")
            tensors |= {name: tensor.clone() for name, tensor in found.items()}
        if missing := sorted(folder.parts.keys() - tensors.keys()):
            raise CorruptFile(f"{shown(missing[0])} is not in {folder.parts[missing[0]]}, where the index places it")
        said = transformers_folder.said_in(folder, any_network) if folder.config else pretrained_config.NOTHING
        if not folder.config and len(folder.weights) == 1:
            said = _said_in(weights, any_network)
        return folder.format, tensors, said, folder.bytes
    finally:
        folder.remove()


def _said_in(path: Path, any_network: bool) -> pretrained_config.Said:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return transformers_folder.of_metadata(metadata, any_network) or pretrained_config.of_metadata(metadata)


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    """Raise NotAStateDict for names that a weights file cannot carry, such as halves of surrogate pairs."""
    for name in tensors:
        if len(name) > MAX_NAME or not name.isprintable():
            raise NotAStateDict(
                f"{quoted(name)} cannot name a tensor: at most {MAX_NAME} printable characters can, since the file is "
                "written again under its names"
            )


def _check_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Raise NotAStateDict for tensors that are no plain numbers: sparse, quantized, without memory, complex, float8."""
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.dtype not in DTYPES:
            raise NotAStateDict(
                f"{shown(name)} is a {tensor.dtype} tensor ({tensor.layout}, {tensor.device}): dense float32, float16, "
                "bfloat16 or float64 weights can be fine-tuned"
            )


def read(path: Path, limits: UploadLimits) -> tuple[Literal["safetensors", "pytorch"], dict[str, Tensor]]:
    """Return the file's format and its flat state dict. Raises CorruptFile, UnsafePickle, NotAStateDict or ContentTooLarge."""
    with open(path, "rb") as file:
        head = file.read(512)
    if len(head) < 10:
        raise CorruptFile(f"the file has {len(head)} bytes: it is no safetensors and no PyTorch file")
    if head[8:9] == b"{" and head[:2] != b"PK":
        return "safetensors", _read_safetensors(path, limits)
    if head[:4] == b"PK\x03\x04":
        check_archive(path, limits)
    elif head[257:262] == b"ustar" or head[:9] in TAR_FORMAT:
        raise UnsafePickle(
            "the file is a tar archive, as PyTorch wrote before 0.1.10: its pickles cannot be read without running them. "
            "Load it with torch, and save model.state_dict()"
        )
    else:
        _check_other(path, head, limits)
    return "pytorch", state_dict_of(_load_pytorch(path))


def _shown(head: bytes) -> str:
    """Return a file's first bytes as text, where they are text."""
    return repr(head.decode("ascii")) if head.isascii() and head.decode().isprintable() else head[:8].hex(" ")


def _check_other(path: Path, head: bytes, limits: UploadLimits) -> None:
    """Check a file that is neither archive nor safetensors: a pickle, which begins with any byte before protocol 2."""
    try:
        check_bare_pickle(path, limits)
    except (CorruptFile, ContentTooLarge):
        if head[:1] == b"\x80":
            raise
    if head[:1] != b"\x80":
        raise CorruptFile(
            "it is no safetensors and no PyTorch file, which torch.save or safetensors.torch.save_file write "
            f"(it starts with {_shown(head[:16])})"
        )


def _read_safetensors(path: Path, limits: UploadLimits) -> dict[str, Tensor]:
    try:
        read_layout(path, limits.header_bytes, limits.tensors)
        return read_tensors(path)
    except HeaderTooLarge as error:
        raise ContentTooLarge(f"the safetensors file is refused: {error}") from None
    except InvalidSafetensors as error:
        raise CorruptFile(f"not a well-formed safetensors file: {error}") from None
    except Exception as error:
        # safetensors raises its own type for dtypes that this torch does not know.
        raise CorruptFile(f"the safetensors file cannot be read: {reason(error)}") from None


def _load_pytorch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # torch warns of unusual pickle protocols; an error follows below if the file cannot be read.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if any(word in text for word in UNSAFE):
            raise UnsafePickle(
                f"the file asks to run or build something other than tensors ({_cause(text)}), which is never done: "
                "save model.state_dict(), not the model or a whole training object"
            ) from None
        raise CorruptFile(f"the PyTorch file cannot be read: {_cause(text)}") from None
    except MemoryError:
        raise ContentTooLarge("the file needs more memory than an upload may use") from None
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise ContentTooLarge("the file needs more memory than an upload may use") from None
        # A damaged pickle or archive surfaces as almost any exception; all mean the same to the user.
        raise CorruptFile(f"the PyTorch file cannot be read ({type(error).__name__}: {reason(error)})") from None


def _cause(text: str) -> str:
    """Return the line of torch's long message that names the cause."""
    lines = [line.strip() for line in text.splitlines() if "Unsupported" in line or "WeightsUnpickler error" in line]
    return reason(lines[-1] if lines else text).removeprefix("WeightsUnpickler error: ")


def check_claims(tensors: Mapping[str, Tensor], held: int) -> None:
    """Raise ContentTooLarge where the tensors claim more numbers than the file holds.

    held: bytes of the file.

    The rule, in bytes: the storages are at most the file; different views of the storages are together at most OVERLAPPING
    times the storages (a fused weight may stand beside its parts; an expanded one, of stride 0, is refused); and all names
    together are at most TIED times the storages (layers may share one weight, and each name is written out by itself).
    """
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}
    views = {
        (t.untyped_storage().data_ptr(), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype): t.numel()
        * t.element_size()
        for t in tensors.values()
    }
    stored, different = sum(storages.values()), sum(views.values())
    written = sum(t.numel() * t.element_size() for t in tensors.values())
    for what, claimed, most in (
        ("the storages have", stored, held),
        ("different tensors need", different, OVERLAPPING * stored),
        ("all tensors need", written, TIED * stored),
    ):
        if claimed > most:
            raise ContentTooLarge(
                f"{what} {claimed} bytes where {most} are the most: the file holds {held}. Its tensors are expanded or "
                "overlap; save contiguous copies: {name: tensor.clone() for name, tensor in state_dict.items()}"
            )


def state_dict_of(loaded: Any) -> dict[str, Tensor]:
    """Return the flat state dict in an object of torch.load: the object itself, or under one of the usual keys.

    Raises NotAStateDict if there is none.
    """
    tensors_or_reason = find_state_dict(loaded)
    if isinstance(tensors_or_reason, str):
        raise NotAStateDict(tensors_or_reason)
    return tensors_or_reason


def common_prefix(tensors: Mapping[str, Tensor]) -> str:
    """Return the prefix that wrappers put before every name, in any order.

    They are `module.` (DataParallel), `_orig_mod.` (torch.compile), `model.` and `net.` (the attribute of a training
    class).
    """
    prefix = ""
    while True:
        shared = next((one for one in PREFIXES if all(name.startswith(prefix + one) for name in tensors)), None)
        if shared is None or not tensors:
            return prefix
        prefix += shared


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise NonFiniteWeights naming the first tensors with NaN or infinite values and how many they have."""
    bad = []
    for name, tensor in tensors.items():
        # A finite sum has finite terms, and takes a tenth of the time; a sum that is not may also have overflowed.
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
            count = int((~torch.isfinite(tensor)).sum())
            if count:
                bad.append(f"{shown(name)}: {count} of {tensor.numel()}")
    if bad:
        more = f" and {len(bad) - 20} more tensors" if len(bad) > 20 else ""
        raise NonFiniteWeights(f"values are NaN or infinite in {', '.join(bad[:20])}{more}")
