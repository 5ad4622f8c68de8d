"""The operations that an exported program may name: those that networks for images are made of, and no others.

torch has operations that open files (`from_file`), that hand out memory as it was left (`empty`), and that change what a
tensor is made of (`set_`); custom ones are code. So a program's operations are looked up in a list, not refused by one.
An operation in place (`relu_`) is allowed where the plain one is.
"""

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch

_POINTWISE = """
abs acos add addcdiv addcmul arange asin atan atan2 bitwise_and bitwise_not bitwise_or ceil celu clamp clamp_max clamp_min
clip copy cos cosh div divide elu eq erf exp exp2 expm1 fill floor floor_divide fmod frac full full_like ge gelu glu greater
greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside le leaky_relu lerp less less_equal linspace log log10
log1p log2 log_sigmoid log_softmax logical_and logical_not logical_or logical_xor lt masked_fill maximum minimum mish mul
multiply ne neg new_full new_ones new_zeros one_hot ones ones_like pow prelu reciprocal relu relu6 remainder round rsqrt rsub
scalar_tensor selu sigmoid sign silu sin sinh softmax softplus softshrink softsign sqrt square sub subtract tan tanh
tanhshrink threshold true_divide trunc where zero zeros zeros_like
"""
_SHAPES = """
alias atleast_2d broadcast_to cat chunk clone concat concatenate constant_pad_nd contiguous detach diagonal
expand expand_as flatten flip gather index index_put index_select lift_fresh_copy meshgrid movedim narrow pad permute
pixel_shuffle pixel_unshuffle channel_shuffle reflection_pad2d repeat repeat_interleave replication_pad2d reshape reshape_as
roll rot90 select slice split split_with_sizes squeeze stack sym_size swapaxes swapdims t tensor_split tile transpose tril
triu type_as to _to_copy unbind unflatten unfold unsqueeze view view_as zero_pad2d float
"""
_LAYERS = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d addmm amax amin argmax argmin avg_pool1d avg_pool2d baddbmm
batch_norm bilinear bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d cosine_similarity count_nonzero cumprod cumsum
dot einsum embedding group_norm instance_norm layer_norm linalg_norm linalg_vector_norm linear local_response_norm
logsumexp matmul max max_pool1d max_pool2d mean median min mm mv norm outer prod
rms_norm scaled_dot_product_attention std sum tensordot topk upsample_bicubic2d upsample_bilinear2d upsample_nearest2d
upsample_nearest_exact2d var var_mean _upsample_bilinear2d_aa
"""
DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
ALLOWED = frozenset((_POINTWISE + _SHAPES + _LAYERS).split()) | DROPOUTS
# Stochastic depth: memory that is filled with ones and zeros at once.
EMPTY, BERNOULLI = frozenset({"empty", "new_empty", "empty_like"}), "bernoulli_"
# What a program says of its own values, which are checked where it is built; nothing follows from them.
CHECKS = frozenset({
    "aten._assert_scalar.default", "aten._assert_tensor_metadata.default", "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default", "aten._assert_async.msg",
})  # fmt: skip
LARGEST = 2**48
NUMBERS: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "eq", "ne", "lt", "le", "gt", "ge", "getitem")
    },
    **{f"math.{name}": getattr(math, name) for name in ("floor", "ceil", "trunc")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min")},
}  # fmt: skip
# Of a graph that was taken apart into other operations, in which training and evaluation are two programs.
DECOMPOSED = re.compile(r"(_?native_batch_norm|cudnn_batch_norm|miopen_batch_norm|_batch_norm|native_dropout)")
_ATEN = re.compile(r"aten\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)")
# Of the operations on shapes, those whose results are always memory of their own. torch's signatures do not tell: many are
# made of others, and give back the argument itself, or a part of it, where there is nothing to do. So does dropout.
_FRESH = frozenset({
    "cat", "clone", "concat", "concatenate", "constant_pad_nd", "flip", "gather", "index", "index_put", "index_select",
    "lift_fresh_copy", "repeat", "repeat_interleave", "replication_pad2d", "reflection_pad2d", "roll", "rot90", "stack",
    "sym_size", "tile", "tril", "triu",
})  # fmt: skip
MAY_ALIAS = (frozenset(_SHAPES.split()) - _FRESH) | DROPOUTS | {"einsum"}


def base(target: str) -> str:
    """Return the plain name of an operation of aten: `aten.relu_.default` is `relu_`; empty for others."""
    match = _ATEN.fullmatch(target)
    return match[1] if match else ""


def is_allowed(target: str) -> bool:
    """Return whether a program may name it."""
    name = base(target)
    plain = name.removesuffix("_")
    return target in NUMBERS or target in CHECKS or name in EMPTY or name == BERNOULLI or plain in ALLOWED


def found(target: str) -> Callable[..., Any] | None:
    """Return the operation of this name; None where it is not allowed, or where this torch has none."""
    if target in NUMBERS:
        return NUMBERS[target]
    match = _ATEN.fullmatch(target)
    if match is None or not is_allowed(target) or "out" in match[2].split("_"):
        return None
    packet = getattr(torch.ops.aten, match[1], None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or match[2] not in packet.overloads():  # type: ignore[no-untyped-call]
        return None
    chosen: Callable[..., Any] = getattr(packet, match[2])
    schema = chosen._schema  # type: ignore[attr-defined]
    if not any("Tensor" in str(one.type) for one in (*schema.arguments, *schema.returns)):
        return None  # of numbers alone: what divides one by zero there ends the process
    written = {one.name for one in schema.arguments if one.alias_info is not None and one.alias_info.is_write}
    return None if written - ({"self"} if match[1].endswith("_") else set()) else chosen


def number(value: Any) -> Any:
    """Return a number of the program, or a list that one is taken from. Raises ValueError for what is too large, or none.

    Sizes that follow from the batch could otherwise become large only where a job runs.
    """
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"a size of {abs(value).bit_length()} bits is no size of a network for images")
    if isinstance(value, str):
        raise ValueError(f"{value[:40]!r} is no number")
    return value
