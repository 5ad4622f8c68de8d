"""State dicts of uploaded files: nothing but tensors is unpickled, and every claim of a file is checked first.

safetensors headers are checked by `wbar_averaging.safetensors_file`; PyTorch files go through
`torch.load(weights_only=True)` and nothing else, after `pytorch_archive` has checked their container and the globals that
they name. There is no second try with less care. What the format has no checksum for (the numbers of a safetensors file
and of PyTorch's legacy format) is checked by the upload's own digest only.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wbar.errors import ContentTooLarge, CorruptFile, NotAStateDict, UnsafePickle
from wbar_averaging import InvalidSafetensors
from wbar_averaging.pytorch_file import find_state_dict
from wbar_averaging.quoting import reason
from wbar_averaging.safetensors_file import HeaderTooLarge, read_layout
from wbar_training.networks.tensors import read_tensors
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.pytorch_archive import check_archive, check_bare_pickle, check_mapped

UNSAFE = (
    "Unsupported global",
    "Unsupported class",
    "Trying to",
    "blocklisted",
    "not allowed",
    "Can only create",
    "Can only build",
)
TOO_LARGE = "the file needs more memory than an upload may use"
TAR_FORMAT = (b"sys_info\0", b"pickle\0\0\0", b"storages\0", b"tensors\0\0")  # its first entry, in any order


def read(path: Path, limits: UploadLimits) -> tuple[Literal["safetensors", "pytorch"], dict[str, Tensor]]:
    """Return the file's format and its flat state dict. Raises CorruptFile, UnsafePickle, NotAStateDict or ContentTooLarge."""
    with open(path, "rb") as file:
        head = file.read(512)
    if len(head) < 10:
        raise CorruptFile(f"the file has {len(head)} bytes: it is no safetensors and no PyTorch file")
    if head[8:9] == b"{" and head[:2] != b"PK":
        return "safetensors", _read_safetensors(path, limits)
    if head[:4] == b"PK\x03\x04":
        entries = check_archive(path, limits)
        tensors = state_dict_of(_load_pytorch(path, mapped=True))
        check_mapped(tensors, entries)
        return "pytorch", tensors
    if head[257:262] == b"ustar" or head[:9] in TAR_FORMAT:
        raise UnsafePickle(
            "the file is a tar archive, as PyTorch wrote before 0.1.10: its pickles cannot be read without running them. "
            "Load it with torch, and save model.state_dict()"
        )
    _check_other(path, head, limits)
    return "pytorch", state_dict_of(_load_pytorch(path, mapped=False))


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
        if _is_out_of_memory(error):
            raise ContentTooLarge(TOO_LARGE) from None
        # safetensors raises its own type for dtypes that this torch does not know.
        raise CorruptFile(f"the safetensors file cannot be read: {reason(error)}") from None


def _load_pytorch(path: Path, mapped: bool) -> Any:
    try:
        with warnings.catch_warnings():
            # torch warns of unusual pickle protocols; an error follows below if the file cannot be read.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        text = str(error)
        if any(word in text for word in UNSAFE):
            raise UnsafePickle(
                f"the file asks to run or build something other than tensors ({_cause(text)}), which is never done: "
                "save model.state_dict(), not the model or a whole training object"
            ) from None
        raise CorruptFile(f"the PyTorch file cannot be read: {_cause(text)}") from None
    except Exception as error:
        if _is_out_of_memory(error):
            raise ContentTooLarge(TOO_LARGE) from None
        # A damaged pickle or archive surfaces as almost any exception; all mean the same to the user.
        raise CorruptFile(f"the PyTorch file cannot be read ({type(error).__name__}: {reason(error)})") from None


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that there is no memory for numbers, or no room for a mapping: torch has no type for it."""
    said = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in said or "Cannot allocate memory" in said


def _cause(text: str) -> str:
    """Return the line of torch's long message that names the cause."""
    lines = [line.strip() for line in text.splitlines() if "Unsupported" in line or "WeightsUnpickler error" in line]
    return reason(lines[-1] if lines else text).removeprefix("WeightsUnpickler error: ")


def state_dict_of(loaded: Any) -> dict[str, Tensor]:
    """Return the flat state dict in an object of torch.load: the object itself, or under one of the usual keys.

    Raises NotAStateDict if there is none.
    """
    tensors_or_reason = find_state_dict(loaded)
    if isinstance(tensors_or_reason, str):
        raise NotAStateDict(tensors_or_reason)
    return tensors_or_reason
