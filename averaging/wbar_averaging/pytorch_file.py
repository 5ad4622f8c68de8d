"""A PyTorch file's state dict, by torch.load(weights_only=True) and nothing else, mapped and not read where it can be.

torch is imported here and only when such a file is opened.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wbar_averaging.quoting import quoted, reason, shown
from wbar_averaging.zip_directory import STORED, InvalidZip, check_content, read_directory

if TYPE_CHECKING:
    from torch import Tensor

NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "model_ema",
          "ema", "ema_state_dict", "state_dict_ema")  # fmt: skip
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
LEVELS = 4
MAX_ENTRIES = 200_000


class UnreadableCheckpoint(ValueError):
    """The file, folder or index is no checkpoint that can be read; the message says why."""


def is_pytorch(head: bytes) -> bool:
    """Return whether a file that begins with `head` may be a PyTorch file: a zip archive, or a pickle as before 1.6."""
    return head.startswith((ZIP, PICKLE))


def is_mapped(path: Path) -> bool:
    """Return whether `load_state_dict` leaves the file's tensors in it until they are used."""
    with open(path, "rb") as file:
        return file.read(4) == ZIP


def load_state_dict(path: Path) -> dict[str, "Tensor"]:
    """Return names mapped to dense tensors on the CPU, from the file itself or from under one of the usual keys.

    Raises UnreadableCheckpoint: for what torch.load(weights_only=True) refuses, for files without a state dict, for
    sparse, quantized or complex tensors.
    """
    try:
        import torch
    except ImportError:
        raise UnreadableCheckpoint(f"{path}: a PyTorch file needs torch: pip install 'wbar[average]'") from None
    mapped = is_mapped(path)
    if mapped:
        _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of unusual pickle protocols
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise UnreadableCheckpoint(
            f"{path}: more than tensors, or damaged; save model.state_dict() ({_reason(error)})"
        ) from None
    except Exception as error:
        # A damaged pickle or archive surfaces as almost any exception.
        raise UnreadableCheckpoint(f"{path}: cannot be read as a PyTorch file ({_reason(error)})") from None
    tensors = find_state_dict(loaded)
    if isinstance(tensors, str):
        raise UnreadableCheckpoint(f"{path}: {tensors}")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise UnreadableCheckpoint(
                f"{path}: {shown(name)} is a {tensor.dtype} tensor ({tensor.layout}), not dense numbers"
            )
    return tensors


def _check_archive(path: Path) -> None:
    """Compare every entry with its checksum, which torch does not (3 GB/s), and refuse what cannot be mapped as it is.

    Compressed entries would be taken for numbers as they lie there.
    """
    try:
        entries = read_directory(path, MAX_ENTRIES)
        if any(entry.method != STORED for entry in entries):
            raise UnreadableCheckpoint(f"{path}: the archive is compressed; torch.save writes uncompressed ones")
        check_content(path, entries)
    except InvalidZip as error:
        raise UnreadableCheckpoint(f"{path}: the archive cannot be trusted: {error}") from None


def find_state_dict(loaded: Any) -> "dict[str, Tensor] | str":
    """Return the flat mapping of names to tensors inside what torch.load gave: itself, or under one of the usual keys.

    Where there is none, return a sentence that says what the file holds instead.
    """
    from torch import Tensor

    candidate, keys = loaded, list[str]()
    for _ in range(LEVELS):
        if not isinstance(candidate, Mapping):
            break
        if _is_state_dict(candidate):
            return {name: tensor.detach() for name, tensor in candidate.items() if isinstance(tensor, Tensor)}
        nested = next((key for key in NESTED if isinstance(candidate.get(key), Mapping)), None)
        if nested is None:
            break
        keys.append(nested)
        candidate = candidate[nested]
    where = f" under {'.'.join(keys)}" if keys else ""
    held = (
        f"keys [{', '.join(quoted(key) for key in list(candidate)[:5])}]"
        if isinstance(candidate, Mapping)
        else f"a {type(candidate).__name__}"
    )
    return (
        f"no state dict was found{where}: the file holds {held}. Expected names mapped to tensors, directly or under one of "
        f"{', '.join(NESTED[:4])} …"
    )


def _is_state_dict(mapping: Mapping[Any, Any]) -> bool:
    from torch import Tensor

    tensors = sum(isinstance(value, Tensor) for value in mapping.values())
    others = sum(isinstance(value, Mapping | list | tuple) for value in mapping.values())
    return tensors > 0 and others == 0 and all(isinstance(key, str) for key in mapping)


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    culprit = [line.strip() for line in lines if "Unsupported" in line or "WeightsUnpickler error" in line]
    return reason(f"{type(error).__name__}: {(culprit or lines)[-1 if culprit else 0]}")
