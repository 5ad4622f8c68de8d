"""safetensors files: a header that is checked before anything is believed, and a writer whose bytes depend on nothing.

The stock serializer orders several metadata keys at random; here equal tensors and metadata give equal bytes. Numpy and
torch are not needed to read a header.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wbar_averaging.quoting import quoted, reason, shown

if TYPE_CHECKING:
    from torch import Tensor, dtype

MAX_HEADER = 32 * 1024 * 1024  # the format allows 100 MB; no image network comes near this
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 64  # as many as numpy has; a product of more, or larger, numbers could take hours
MAX_SIDE = 2**63 - 1
PARTS = 20  # of a tensor's entry, and of metadata beside it: an empty list is two bytes of JSON and sixty of memory
SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


class InvalidSafetensors(ValueError):
    """The file is not a well-formed safetensors file; the message says where."""


class HeaderTooLarge(InvalidSafetensors):
    """The header is larger, or names more tensors, than is read."""


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the header of a safetensors file, fully checked: `{name: {dtype, shape, data_offsets}}` plus `__metadata__`.

    Raises InvalidSafetensors for a truncated file, a header over MAX_HEADER, holes, overlaps, sizes that do not fit
    their shapes, unknown dtypes and duplicate names. Memory: the header only.
    """
    return read_layout(path)[0]


def read_layout(
    path: str | os.PathLike[str], max_header: int = MAX_HEADER, max_tensors: int = MAX_TENSORS
) -> tuple[dict[str, Any], int]:
    """Return the header and the file's byte at which the tensors begin: their data_offsets count from there.

    max_header: bytes. A header over it, or with more than `max_tensors`, raises HeaderTooLarge.

    Raises what `read_header` does.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise InvalidSafetensors(f"the file has {size} bytes; a safetensors file has at least 8")
        (length,) = struct.unpack("<Q", start)
        if length > max_header:
            raise HeaderTooLarge(f"the header claims {length} bytes, more than the limit of {max_header}")
        if 8 + length > size:
            raise InvalidSafetensors(f"the header claims {length} bytes and the file ends after {size - 8}: truncated?")
        raw = file.read(length)
    header = parse_object(raw, "the header", max(max_tensors, MAX_TENSORS))  # with few tensors, metadata may be long
    if raw[:1] != b"{":
        raise InvalidSafetensors(f"the header begins with {raw[:1]!r}, and the format demands an opening brace")
    if len(header) - ("__metadata__" in header) > max_tensors:
        raise HeaderTooLarge(f"the header names {len(header)} tensors, more than the limit of {max_tensors}")
    _check_layout(header, size - 8 - length)
    return header, 8 + length


def parse_object(raw: bytes, what: str, max_tensors: int = MAX_TENSORS) -> dict[str, Any]:
    """Parse the JSON object in `raw`: UTF-8, no name twice in it. Raises InvalidSafetensors, which calls it `what`."""
    most = PARTS * max_tensors
    if sum(map(raw.count, (b",", b"[", b"{"))) > most:
        raise HeaderTooLarge(f"{what} has more than {most} parts, more than {max_tensors} tensors need")
    try:
        # Decoded here: json would guess UTF-16 and let halves of surrogate pairs through.
        content = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidSafetensors(f"{what} is not JSON: {reason(error)}") from None
    if not isinstance(content, dict):
        raise InvalidSafetensors(f"{what} is a JSON {type(content).__name__}, not an object")
    return content


def _no_number(literal: str) -> None:
    raise ValueError(f"{literal} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    for text in (*members, *(value for value in members.values() if isinstance(value, str))):
        text.encode()  # an escaped half of a surrogate pair cannot be written again: UnicodeEncodeError is a ValueError
    return members


def _check_layout(header: dict[str, Any], data_bytes: int) -> None:
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
                raise InvalidSafetensors("__metadata__ is not an object of strings")
            continue
        dtype, shape, begin, end = _entry(name, entry)
        expected = SIZES[dtype] * math.prod(shape)
        if end - begin != expected:
            raise InvalidSafetensors(
                f"{shown(name)}: {dtype} {_sides(shape)} needs {expected} bytes, the offsets span {end - begin}"
            )
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise InvalidSafetensors(
                f"{shown(name)}: starts at byte {begin} where {position} was expected (a hole or overlap)"
            )
        position = end
    if position != data_bytes:
        raise InvalidSafetensors(f"the tensors need {position} bytes and the file holds {data_bytes}: truncated?")


def _entry(name: str, entry: Any) -> tuple[str, list[int], int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        extra = set(entry) - {"dtype", "shape", "data_offsets"}
    except (TypeError, KeyError, ValueError):
        raise InvalidSafetensors(f"{shown(name)}: the entry lacks dtype, shape or data_offsets") from None
    if extra:
        raise InvalidSafetensors(
            f"{shown(name)}: the entry has {quoted(sorted(extra)[0])}, which the format does not know"
        )
    if not isinstance(shape, list) or any(type(value) is not int or value < 0 for value in (*shape, begin, end)):
        raise InvalidSafetensors(f"{shown(name)}: shape and offsets must be non-negative integers")
    if len(shape) > MAX_DIMENSIONS or max(*shape, begin, end) > MAX_SIDE:
        raise InvalidSafetensors(
            f"{shown(name)}: the shape has more than {MAX_DIMENSIONS} sides, or one over {MAX_SIDE}"
        )
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise InvalidSafetensors(f"{shown(name)}: unknown dtype {quoted(dtype, 40)}")
    return dtype, shape, begin, end


def _sides(shape: list[int]) -> str:
    return str(shape) if len(shape) <= 8 else f"of {len(shape)} sides"


def header_bytes(tensors: Iterable[tuple[str, str, list[int]]], metadata: Mapping[str, str]) -> bytes:
    """Return how a file begins whose tensors, as (name, dtype, shape), follow one another in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        end = position + SIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def torch_dtypes() -> "dict[dtype, str]":
    """Return the format's name of each torch dtype that is written."""
    import torch

    return {
        torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16",
        torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.int64: "I64", torch.float64: "F64",
        torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.uint16: "U16", torch.uint32: "U32",
        torch.uint64: "U64",
    }  # fmt: skip


def safetensors_pieces(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file of `tensors`, the header first and then each tensor; a pure function of the content.

    Tensors are laid out by falling alignment, then by name; header keys are sorted. A piece is the tensor's own memory where
    that is contiguous.

    Raises ValueError for a dtype that the format does not have.
    """
    import torch

    codes = torch_dtypes()
    for name, tensor in tensors.items():
        if tensor.dtype not in codes:
            raise ValueError(f"{name}: {tensor.dtype} cannot be written to a safetensors file")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    yield header_bytes(((name, codes[tensors[name].dtype], list(tensors[name].shape)) for name in order), metadata)
    for name in order:
        if tensors[name].numel() == 0:  # its strides may be 0, which no view as bytes takes
            continue
        # .numpy() has no bfloat16; a view as bytes has every dtype. contiguous() undoes channels_last.
        flat = tensors[name].detach().cpu().contiguous().view(-1)
        yield flat.view(torch.uint8).numpy().data


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]
) -> None:
    """Write `tensors` to `path`, synced to disk; the bytes are those of `safetensors_pieces`.

    The file is written to a temporary name beside `path` and renamed, so that a reader sees all of it or nothing.

    Raises ValueError for a dtype that the format does not have, OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            for piece in safetensors_pieces(tensors, metadata):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk would stay full
        raise
    os.replace(temporary, path)
