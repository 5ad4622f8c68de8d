"""Checked state dicts of uploaded files: nothing but tensors is unpickled, and every claim of a file is checked.

safetensors headers are checked by `averaging.read_header`; PyTorch files go through `torch.load(weights_only=True)` and
nothing else, after their zip directory was checked. There is no second try with less care.
"""

import os
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wbar.errors import (
    ArchitectureMismatch,
    ContentTooLarge,
    CorruptFile,
    NonFiniteWeights,
    NotAStateDict,
    UnsafePickle,
)
from wbar.spec import Network
from wbar_averaging import InvalidSafetensors, read_header, write_safetensors
from wbar_averaging.pytorch_file import find_state_dict
from wbar_training.networks import architectures, recognition
from wbar_training.networks.tensors import read_tensors

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
COUNTERS = ("n_averaged",)  # AveragedModel's own count, no tensor of the network
UNSAFE = ("Unsupported global", "Unsupported class", "Trying to", "blocklisted", "not allowed", "Can only")
OBJECT_OPCODES = {
    "GLOBAL",
    "STACK_GLOBAL",
    "INST",
    "OBJ",
    "NEWOBJ",
    "NEWOBJ_EX",
    "REDUCE",
    "BUILD",
    "EXT1",
    "EXT2",
    "EXT4",
}
MAX_EXPANSION = 1.05  # PyTorch writes its archives uncompressed: one that grows is not one
MAX_ENTRIES = 200_000
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
          torch.uint8, torch.bool)  # fmt: skip


@dataclass(frozen=True)
class ValidCheckpoint:
    """The facts about a valid checkpoint.

    parameters: how many numbers the network's parameters have, buffers not counted.
    tensors: how many tensors the file has.
    prefix: the part of the uploaded names before the network's own.
    ambiguous_with: see `wbar.checkpoints.NetworkArchitecture`.
    """

    format: Literal["safetensors", "pytorch"]
    parameters: int
    tensors: int
    network: Network
    source: Literal["given", "detected"]
    prefix: str
    ambiguous_with: list[str] | None


def validate(path: Path, architecture: str | None, num_classes: int | None, out: Path) -> ValidCheckpoint:
    """Read the file, find its state dict, name its network, and write the tensors to `out` as safetensors.

    architecture, num_classes: as the uploader gave them; None leaves them to the tensors. A given architecture is not
        ambiguous.

    Raises a class of wbar.errors.Rejected that says what is wrong with the file.
    """
    kind, tensors = read(path)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)}
    _check_kinds(tensors)
    prefix = common_prefix(tensors)
    shapes = {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in tensors.items()}
    network = recognition.identify(architecture, shapes, num_classes) if architecture else recognition.detect(shapes)
    if num_classes is not None and network.num_classes != num_classes:
        network = recognition.identify(network.name, shapes, num_classes)
    check_finite(tensors)
    trained = {name for name, _ in architectures.build(network).named_parameters()}
    integers = [n for n, t in tensors.items() if n.removeprefix(prefix) in trained and not t.is_floating_point()]
    if integers:
        raise ArchitectureMismatch(
            f"{integers[0]}: {tensors[integers[0]].dtype} in the checkpoint, a floating-point dtype expected"
        )
    write_safetensors(out, tensors, {})
    return ValidCheckpoint(
        format=kind,
        parameters=sum(t.numel() for name, t in tensors.items() if name.removeprefix(prefix) in trained),
        tensors=len(tensors),
        network=network,
        source="given" if architecture else "detected",
        prefix=prefix,
        ambiguous_with=None if architecture else list(recognition.NEAR_RELATIVES.get(network.name, ())) or None,
    )


def _check_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Raise NotAStateDict for tensors that are no plain numbers: sparse, quantized, without memory, complex, float8."""
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.dtype not in DTYPES:
            raise NotAStateDict(
                f"{name} is a {tensor.dtype} tensor ({tensor.layout}, {tensor.device}): dense float32, float16, bfloat16 or "
                "float64 weights can be fine-tuned"
            )


def read(path: Path) -> tuple[Literal["safetensors", "pytorch"], dict[str, Tensor]]:
    """Return the file's format and its flat state dict. Raises CorruptFile, UnsafePickle, NotAStateDict or ContentTooLarge."""
    with open(path, "rb") as file:
        head = file.read(16)
    if len(head) < 10:
        raise CorruptFile(f"the file has {len(head)} bytes: it is no safetensors and no PyTorch file")
    if head[8:9] == b"{" and head[:2] != b"PK":
        return "safetensors", _read_safetensors(path)
    if head[:4] == b"PK\x03\x04":
        _check_zip(path)
    elif head[:1] != b"\x80":
        raise CorruptFile(
            f"the file starts with {head[:8].hex(' ')}: it is no safetensors and no PyTorch file "
            "(torch.save or safetensors.torch.save_file write what can be uploaded)"
        )
    return "pytorch", state_dict_of(_load_pytorch(path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        read_header(path)
        return read_tensors(path)
    except InvalidSafetensors as error:
        raise CorruptFile(f"not a well-formed safetensors file: {error}") from None
    except Exception as error:
        # safetensors raises its own type for dtypes that this torch does not know.
        raise CorruptFile(f"the safetensors file cannot be read: {_line(error)}") from None


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise CorruptFile(f"the zip directory cannot be read: {_line(error)}; was the upload cut off?") from None
    if len(entries) > MAX_ENTRIES:
        raise ContentTooLarge(f"the archive has {len(entries)} entries, more than the limit of {MAX_ENTRIES}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CorruptFile("the archive is compressed; PyTorch writes uncompressed ones: save it with torch.save")
    if sum(entry.file_size for entry in entries) > MAX_EXPANSION * os.path.getsize(path):
        raise CorruptFile("the archive claims more content than the file holds")


def _load_pytorch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # torch warns of unusual pickle protocols; an error follows below if the file cannot be read.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if any(word in text for word in UNSAFE) or _asks_for_objects(path):
            raise UnsafePickle(
                f"the file asks to run or build something other than tensors ({_reason(text)}), which is never done: "
                "save model.state_dict(), not the model or a whole training object"
            ) from None
        raise CorruptFile(f"the PyTorch file cannot be read: {_reason(text)}") from None
    except MemoryError:
        raise ContentTooLarge("the file needs more memory than an upload may use") from None
    except Exception as error:
        # A damaged pickle or archive surfaces as almost any exception; all mean the same to the user.
        raise CorruptFile(f"the PyTorch file cannot be read ({type(error).__name__}: {_line(error)})") from None


def _asks_for_objects(path: Path) -> bool:
    """Return whether a bare pickle names anything to import or call. Reads opcodes only; nothing is executed."""
    if zipfile.is_zipfile(path):
        return False
    asks = False
    with open(path, "rb") as file:
        try:
            for opcode, _, _ in pickletools.genops(file):
                asks = asks or opcode.name in OBJECT_OPCODES
        except Exception:
            return asks  # cut off or damaged: the opcodes before that count
    return asks


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _reason(text: str) -> str:
    """Return the line of torch's long message that names the cause."""
    lines = [line.strip() for line in text.splitlines() if "Unsupported" in line or "WeightsUnpickler error" in line]
    return (lines[-1] if lines else text.splitlines()[0]).removeprefix("WeightsUnpickler error: ")[:300]


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
        if tensor.is_floating_point():
            count = int((~torch.isfinite(tensor)).sum())
            if count:
                bad.append(f"{name}: {count} of {tensor.numel()}")
    if bad:
        more = f" and {len(bad) - 20} more tensors" if len(bad) > 20 else ""
        raise NonFiniteWeights(f"values are NaN or infinite in {', '.join(bad[:20])}{more}")
