"""Checks of the tensors of a checkpoint, whatever file they came in: names, kinds, sizes against the file's, finite values."""

from collections.abc import Mapping

import torch
from torch import Tensor

from wbar.errors import ContentTooLarge, NonFiniteWeights, NotAStateDict
from wbar_averaging.quoting import quoted, shown

MAX_NAME = 1000  # characters of a tensor's
OVERLAPPING, TIED = 2, 16  # see `check_claims`
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
          torch.uint8, torch.bool)  # fmt: skip


def check_names(tensors: Mapping[str, Tensor]) -> None:
    """Raise NotAStateDict for names that a weights file cannot carry, such as halves of surrogate pairs."""
    for name in tensors:
        if len(name) > MAX_NAME or not name.isprintable():
            raise NotAStateDict(
                f"{quoted(name)} cannot name a tensor: at most {MAX_NAME} printable characters can, since the file is "
                "written again under its names"
            )


def check_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Raise NotAStateDict for tensors that are no plain numbers: sparse, quantized, without memory, complex, float8."""
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.dtype not in DTYPES:
            raise NotAStateDict(
                f"{shown(name)} is a {tensor.dtype} tensor ({tensor.layout}, {tensor.device}): dense float32, float16, "
                "bfloat16 or float64 weights can be fine-tuned"
            )


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
