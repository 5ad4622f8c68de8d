"""The in-place passes of a mean over its tensors, by torch's fused SGD kernel where that does what they need.

    move_means         m ← m − f·(m − w)
    move_corrections   c ← (1 − f)·c + f·(w − m),  the difference taken first, m left as it is

and the seldom one, `fold_corrections`, of public operations on lists.

`torch._fused_sgd_`, the kernel behind `SGD(fused=True)`, is the one elementwise kernel that reads three tensors and
writes one in a single pass, and takes hundreds of tensors in one call; its name is private, so that a release may change
or drop it. It is therefore tried on a few numbers whose result is known, on the CPU when this module is imported and on
any other device before its first use there; where it fails, the same passes are made of public-behaviour `_foreach`
operations, piece by piece, a little slower and rounded a little differently.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from wbar_averaging.blocks import pieces

Tensors = list[Tensor]


class Passes(NamedTuple):
    """One way to make both passes: move_means(m, w, f), move_corrections(m, w, c, f); lists of one device and dtype."""

    move_means: Callable[[Tensors, Tensors, float], None]
    move_corrections: Callable[[Tensors, Tensors, Tensors, float], None]


def move_means(means: Tensors, sources: Tensors, fraction: float) -> None:
    """m ← m − f·(m − w), in place; w lies in memory as m does and has its dtype and device."""
    for passes, (m, w) in _by_passes(means, sources):
        passes.move_means(m, w, fraction)


def move_corrections(means: Tensors, sources: Tensors, corrections: Tensors, fraction: float) -> None:
    """c ← (1 − f)·c + f·(w − m), in place; m and w are only read, and lie in memory as c does."""
    for passes, (m, w, c) in _by_passes(means, sources, corrections):
        passes.move_corrections(m, w, c, fraction)


def fold_corrections(means: Tensors, corrections: Tensors) -> None:
    """t = fl(m + c), c ← c − (t − m), m ← t, in place: m + c is unchanged, and c becomes a rounding's size."""
    for m, c in pieces(means, corrections):
        totals = torch._foreach_add(m, c)
        torch._foreach_sub_(m, totals)
        torch._foreach_add_(c, m)
        torch._foreach_copy_(m, totals)


def _by_passes(means: Tensors, *others: Tensors) -> Iterator[tuple[Passes, tuple[Tensors, ...]]]:
    """The lists split by device and dtype, which a model may have several of, with the passes for each."""
    kinds = {(tensor.device, tensor.dtype) for tensor in means}
    if len(kinds) == 1:
        yield passes_for(means[0].device.type, means[0].dtype), (means, *others)
        return
    for kind in kinds:
        chosen = [index for index, tensor in enumerate(means) if (tensor.device, tensor.dtype) == kind]
        parts = tuple([tensors[index] for index in chosen] for tensors in (means, *others))
        yield passes_for(kind[0].type, kind[1]), parts


# With the kernel.


def _fused_means(means: Tensors, sources: Tensors, fraction: float) -> None:
    """A step up the "gradient" w with the weight decay 1 and the rate f."""
    torch._fused_sgd_(
        means, sources, [],
        weight_decay=1.0, momentum=0.0, lr=fraction, dampening=0.0, nesterov=False, maximize=True, is_first_step=False,
    )  # fmt: skip


def _fused_corrections(means: Tensors, sources: Tensors, corrections: Tensors, fraction: float) -> None:
    """What a step does to its momentum buffer c: the weight decay −1 makes its "gradient" w − m; momentum and dampening
    are 1 − f; a rate of 0 leaves m as it is."""
    keep = 1.0 - fraction
    torch._fused_sgd_(
        means, sources, corrections,
        weight_decay=-1.0, momentum=keep, lr=0.0, dampening=keep, nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip


FUSED = Passes(_fused_means, _fused_corrections)


# Without it.


def _foreach_means(means: Tensors, sources: Tensors, fraction: float) -> None:
    torch._foreach_lerp_(means, sources, fraction)


def _foreach_corrections(means: Tensors, sources: Tensors, corrections: Tensors, fraction: float) -> None:
    for m, w, c in pieces(means, sources, corrections):
        torch._foreach_lerp_(c, torch._foreach_sub(w, m), fraction)


FOREACH = Passes(_foreach_means, _foreach_corrections)


# Which of them.


@cache
def passes_for(device_type: str, dtype: torch.dtype) -> Passes:
    """FUSED where torch's kernel gives what it should on such a device in such a dtype, else FOREACH."""
    threads = torch.get_num_threads()
    # In this thread alone: a process that has started OpenMP's threads cannot be forked any more, and a server that forks
    # (multiprocessing's forkserver) imports this module.
    torch.set_num_threads(1)
    try:
        return FUSED if _does_what_is_needed(FUSED, device_type, dtype) else FOREACH
    except (AttributeError, TypeError, RuntimeError):  # not there, other arguments, not for this device
        return FOREACH
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode(False)
@torch.no_grad()
def _does_what_is_needed(passes: Passes, device_type: str, dtype: torch.dtype) -> bool:
    """Both passes on numbers that tell: differences of one unit in the last place, corrections far below it.

    37 elements are whole vectors of the processor and a rest; two tensors are a list.
    """
    place = torch.device(device_type)
    unit, fraction, count = torch.finfo(dtype).eps, 0.125, 37
    steps = torch.arange(count, dtype=dtype, device=place)

    def pair(tensor: Tensor) -> Tensors:
        return [tensor.clone(), tensor[:5].clone()]

    means, sources, corrections = pair(1 + 0 * steps), pair(1 + unit * steps), pair(unit**2 * steps)
    passes.move_corrections(means, sources, corrections, fraction)
    expected = (1 - fraction) * unit**2 * steps + fraction * unit * steps
    kept = torch.equal(means[0], torch.ones_like(steps)) and torch.equal(sources[0], 1 + unit * steps)
    corrected = all(
        torch.allclose(c, e, rtol=8 * unit, atol=0) for c, e in zip(corrections, pair(expected), strict=True)
    )
    moving, goals = pair(steps), pair(2 * steps)
    passes.move_means(moving, goals, fraction)
    moved = all(torch.allclose(m, e, rtol=8 * unit) for m, e in zip(moving, pair((1 + fraction) * steps), strict=True))
    return kept and corrected and moved


for _dtype in (torch.float32, torch.float64):
    passes_for("cpu", _dtype)
