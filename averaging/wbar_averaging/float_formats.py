"""Stored floating-point numbers and numpy's: widened without loss, rounded once to nearest, ties to even.

numpy knows no bfloat16. Its bits are the upper half of a float32's, which widens it; rounding is done on the integer bits of
the wider number in one step, since float64 → float32 → bfloat16 would round twice.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
STORED: dict[str, "np.dtype[Any]"] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
NAMES = {
    "F16": "F16", "BF16": "BF16", "F32": "F32", "F64": "F64",
    "FLOAT16": "F16", "BFLOAT16": "BF16", "FLOAT32": "F32", "FLOAT64": "F64",
    "HALF": "F16", "FLOAT": "F32", "DOUBLE": "F64", "FP16": "F16", "FP32": "F32", "FP64": "F64",
}  # fmt: skip
EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80}  # all of these bits set: infinite or NaN
BF16_NORMAL = 2.0**-126  # below, bfloat16's steps are all 2⁻¹³³
BF16_STEPS = 1.5 * 2.0 ** (52 - 133)  # float64's own steps are 2⁻¹³³ here: adding it rounds to them


def dtype_named(name: str) -> str:
    """Return the format's name of a dtype: F32 for F32, f32, float32 and torch.float32.

    Raises ValueError for any but F16, BF16, F32 and F64 under one of their names.
    """
    code = NAMES.get(name.removeprefix("torch.").upper())
    if code is None:
        raise ValueError(f"{name!r} is no dtype of a mean: F16, BF16, F32 or F64")
    return code


def widen(raw: Array, dtype: str, scratch: Array) -> Array:
    """Return bytes (uint8, n·size) as n numbers without loss.

    They are the same memory under another dtype, or for BF16 float32 numbers in `scratch` (float32, ≥ n).
    """
    stored = raw.view(STORED[dtype])
    if dtype != "BF16":
        return stored
    bits = scratch[: len(stored)].view(np.uint32)
    np.copyto(bits, stored)
    np.left_shift(bits, 16, out=bits)
    return scratch[: len(stored)]


def narrow(values: Array, dtype: str, raw: Array, scratch: Array) -> None:
    """Round n float32 or float64 numbers to `dtype`, into `raw` (uint8, n·size). For BF16 `values` are overwritten.

    scratch: float64, ≥ n. Arrays made anew would cost more than the rounding, a page fault for every page.
    """
    stored = raw.view(STORED[dtype])
    if dtype != "BF16":
        np.copyto(stored, values, casting="same_kind")
        return
    scratch = scratch[: len(values)]
    if values.dtype == np.float32:
        _round_bits(values.view(np.uint32), 16, scratch.view(np.uint32)[: len(values)])
    else:
        _round_small(values, scratch)
        _round_bits(values.view(np.uint64), 45, scratch.view(np.uint64))
        single = scratch.view(np.float32)[: len(values)]
        np.copyto(single, values, casting="same_kind")  # exact, or infinite
        values = single
    stored[:] = values.view(np.uint16)[1::2]


def _round_bits(bits: Array, cut: int, scratch: Array) -> None:
    """Clear the last `cut` bits after adding half a step less one, plus one where the last bit that stays is odd."""
    kind = bits.dtype.type
    np.right_shift(bits, kind(cut), out=scratch)
    np.bitwise_and(scratch, kind(1), out=scratch)
    np.add(bits, scratch, out=bits)
    np.add(bits, kind(2 ** (cut - 1) - 1), out=bits)
    np.bitwise_and(bits, kind(2 ** (8 * bits.itemsize) - 2**cut), out=bits)


def _round_small(values: Array, scratch: Array) -> None:
    """Below its normal numbers bfloat16 has fewer bits: what is rounded here, _round_bits leaves as it is."""
    small = np.flatnonzero(np.abs(values, out=scratch) < BF16_NORMAL)
    if len(small):
        tiny = values[small]
        values[small] = np.copysign((np.abs(tiny) + BF16_STEPS) - BF16_STEPS, tiny)


def finite(raw: Array, dtype: str) -> bool:
    """Return whether all of the stored numbers (uint8, n·size) are finite."""
    stored = raw.view(STORED[dtype])
    if dtype in EXPONENT:
        mask = np.uint16(EXPONENT[dtype])
        return not bool(np.any((stored.view(np.uint16) & mask) == mask))
    return all_finite(stored)


def all_finite(values: Array) -> bool:
    """Return whether all of the numbers are finite.

    One sum tells of any that is not; only a sum that overflowed asks for a second look.
    """
    return bool(np.isfinite(np.add.reduce(values))) or bool(np.isfinite(values).all())
