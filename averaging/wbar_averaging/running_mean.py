"""w̄ ← w̄ + (w − w̄)·f, in an explicit accumulation dtype: f = 1/n is the mean (Izmailov et al. 2018, algorithm 1).

*Compensated*, the mean is kept as an anchor m and a small correction c, w̄ = m + c, both in the accumulation dtype:

    c ← (1 − f)·c + f·(w − m)                                  every update: one fused pass, nothing else is written
    t = fl(m + c);  c ← c − (t − m);  m ← t                    when half of the mean's weight is new (Dekker's fast sum)

Rounding then happens relative to c, which shrinks as the mean settles, and what was rounded once is diluted by every
later update: the error is that of a single rounding after ten updates and after a thousand, where a plain float32 mean
loses √n roundings. Integer tensors (BatchNorm's counter of batches) are copied from the latest source.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from wbar_averaging.blocks import alike, blocks, converted, zeros_in_one
from wbar_averaging.fused_passes import fold_corrections, move_corrections, move_means
from wbar_averaging.sources import Reader, Source, first_not_finite, named_tensors

FOLD_AT = 0.5  # the share of new weight in w̄ at which c is folded into m
FOLD_EVERY = 64


class WeightMean(ABC):
    """The base of the means: checks a source, takes it in by f, reads w̄ and resumes. Subclasses choose f.

    like: a module or a dict of names to tensors; fixes names and shapes only, its values do not enter (n = 0).
    dtype: the accumulation dtype, float32 or float64, whatever the sources' (a bfloat16 mean over 300 updates was
    measured to lose the whole gain). compensated: see the module; costs one more copy of the model in `dtype`.
    check_finite: refuse a source with a NaN or an infinity before it touches w̄; costs one more read of the source.
    device: where w̄ lives; by default each tensor stays where `like` has it.
    """

    def __init__(
        self,
        like: Source,
        dtype: torch.dtype = torch.float32,
        compensated: bool = True,
        check_finite: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}")
        self.dtype, self.compensated, self.check_finite = dtype, compensated, check_finite
        self.n = 0
        self._reader = Reader(like)
        tensors = named_tensors(like)
        complex_ones = [name for name, tensor in tensors.items() if tensor.is_complex()]
        if complex_ones:
            raise ValueError(f"{complex_ones[0]} is complex: means are of real tensors")
        self._dtypes = {name: tensors[name].dtype for name in self._reader.names}
        own = [tensors[name].detach() for name in self._reader.names]
        self._floating = [i for i, tensor in enumerate(own) if tensor.is_floating_point()]
        self._others = [i for i, tensor in enumerate(own) if not tensor.is_floating_point()]
        self._mean = [tensor if tensor.is_floating_point() else _zeros_like(tensor, device) for tensor in own]
        for i, mean in zip(self._floating, zeros_in_one([own[i] for i in self._floating], dtype, device), strict=True):
            self._mean[i] = mean
        self._layouts = [(m.dtype, m.device, m.stride()) for m in (self._mean[i] for i in self._floating)]
        self._correction = zeros_in_one([self._mean[i] for i in self._floating], dtype) if compensated else []
        self._new_weight, self._since_fold = 0.0, 0

    # Updating.

    def update(self, source: Source, weight: float = 1.0) -> None:
        """Take one more point into the mean, in place and without temporaries larger than a block.

        weight: relative to the other points'. Raises ValueError, before anything is changed, if names or shapes differ,
        a value is not finite (with `check_finite`) or the weight is not a positive number.
        """
        _check_weight(weight)
        tensors = self._reader.read(source)
        if self.check_finite and (name := first_not_finite(self._reader.names, tensors)) is not None:
            raise ValueError(f"{name} is not finite in the source: the mean was left as it was (n = {self.n})")
        self._take(tensors, weight)

    @abstractmethod
    def _fraction(self, weight: float) -> float:
        """f for the next point, whose count is n + 1; called once for each."""

    @torch.no_grad()
    def _take(self, tensors: list[Tensor], weight: float) -> None:
        fraction = self._fraction(weight)
        self._take_others(tensors)
        means = [self._mean[i] for i in self._floating]
        if not means:
            return
        sources = [tensors[i] for i in self._floating]
        if fraction == 1.0:
            torch._foreach_copy_(means, sources)
            if self.compensated:
                torch._foreach_zero_(self._correction)
            self._new_weight, self._since_fold = 0.0, 0
        elif self.compensated:
            self._correct(means, sources, fraction)
        else:
            self._blend(means, sources, fraction)

    def _take_others(self, tensors: list[Tensor]) -> None:
        self.n += 1
        if self._others:
            torch._foreach_copy_([self._mean[i] for i in self._others], [tensors[i] for i in self._others])

    def _fits(self, means: list[Tensor], sources: list[Tensor]) -> list[bool]:
        """Which sources can be combined with their means as they lie in memory. Usually all can, which one comparison shows."""
        if [(source.dtype, source.device, source.stride()) for source in sources] == self._layouts:
            return [True] * len(sources)
        return [alike(mean, source) for mean, source in zip(means, sources, strict=True)]

    def _blend(self, means: list[Tensor], sources: list[Tensor], fraction: float) -> None:
        fits = self._fits(means, sources)
        if any(fits):
            move_means(list(compress(means, fits)), list(compress(sources, fits)), fraction)
        for mean, source, fit in zip(means, sources, fits, strict=True) if not all(fits) else ():
            for part, value in converted(mean, source) if not fit else ():
                part.lerp_(value, fraction)

    def _correct(self, means: list[Tensor], sources: list[Tensor], fraction: float) -> None:
        fits = self._fits(means, sources)
        if any(fits):
            m, w, c = (list(compress(tensors, fits)) for tensors in (means, sources, self._correction))
            move_corrections(m, w, c, fraction)
        rows = zip(means, sources, self._correction, fits, strict=True)
        for mean, source, correction, fit in rows if not all(fits) else ():
            pieces = zip(converted(mean, source), blocks(correction), strict=True) if not fit else ()
            for (part, value), (small,) in pieces:
                move_corrections([part], [value], [small], fraction)
        self._new_weight, self._since_fold = self._new_weight + fraction, self._since_fold + 1
        if self._new_weight >= FOLD_AT or self._since_fold >= FOLD_EVERY:
            self._fold(means)

    def _fold(self, means: list[Tensor]) -> None:
        """t = fl(m + c), c ← c − (t − m), m ← t: w̄ = m + c is unchanged, and c becomes a rounding's size."""
        fold_corrections(means, self._correction)
        self._new_weight, self._since_fold = 0.0, 0

    # Reading.

    def mean(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """w̄ by name, as new tensors in `dtype`, or in each source tensor's own dtype, rounded once (by way of float32 to less).

        Shared tensors come as one tensor under each of their names. Raises ValueError at n = 0.
        """
        means = {
            name: value.to(dtype or self._dtypes[name], copy=True) if value.is_floating_point() else value.clone()
            for name, value in self._values()
        }
        return {name: means[self._reader.aliases.get(name, name)] for name in self._reader.every}

    @torch.no_grad()
    def copy_to(self, target: Source) -> None:
        """Write w̄ into the parameters and buffers of `target`, each rounded once to its own dtype.

        Raises ValueError, before anything is written, at n = 0 or if names or shapes differ.
        """
        self._check_not_empty()
        tensors = named_tensors(target)
        self._reader.check_names(tensors, self._reader.every)
        for name, value in self._values():
            for each in self._reader.names_of(name):  # those of a shared tensor may be several in the target
                tensors[each].copy_(value)

    def _check_not_empty(self) -> None:
        if self.n == 0:
            raise ValueError("the mean of no points is undefined: call update first")

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        """w̄ tensor by tensor, to be copied: m + c in float64, where there is a c."""
        self._check_not_empty()
        corrections = dict(zip(self._floating, self._correction, strict=True)) if self.compensated else {}
        for i, name in enumerate(self._reader.names):
            yield name, self._mean[i].double() + corrections[i] if i in corrections else self._mean[i]

    # Resuming.

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on with the same bits: numbers, and tensors by name (not copied)."""
        floating = [self._reader.names[i] for i in self._floating]
        return {
            "n": self.n,
            "mean": dict(zip(self._reader.names, self._mean, strict=True)),
            "correction": dict(zip(floating, self._correction, strict=True)) if self.compensated else None,
            "new_weight": self._new_weight,
            "since_fold": self._since_fold,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises ValueError, before anything is changed, on other names, shapes or dtypes."""
        names = self._reader.names
        self._reader.check_names(state["mean"], names)
        for name, mean in zip(names, self._mean, strict=True):
            if state["mean"][name].dtype != mean.dtype:
                raise ValueError(f"{name}: {state['mean'][name].dtype} in the state, {mean.dtype} in the mean")
        if (state["correction"] is not None) != self.compensated:
            raise ValueError(f"compensated is {not self.compensated} in the state and {self.compensated} in the mean")
        floating = {names[i]: self._mean[i].shape for i in self._floating}
        for name, shape in floating.items() if self.compensated else ():
            if name not in state["correction"] or state["correction"][name].shape != shape:
                raise ValueError(f"{name}: the state has no correction of shape {tuple(shape)}")
        for name, mean in zip(names, self._mean, strict=True):
            mean.copy_(state["mean"][name])
        for i, correction in zip(self._floating, self._correction, strict=False):
            correction.copy_(state["correction"][names[i]])
        self.n = int(state["n"])
        self._new_weight, self._since_fold = float(state["new_weight"]), int(state["since_fold"])


class RunningMean(WeightMean):
    """The mean of every source given to `update`, each with its weight (1 by default): f = weight / total weight.

    In float64 it is the sum that is kept, and divided when it is read: sums of float32 and narrower values are exact there
    (2⁵³ leaves 29 bits for their number and spread), so the mean is the true one, rounded once. `compensated` then adds
    nothing and is ignored.
    """

    def __init__(
        self,
        like: Source,
        dtype: torch.dtype = torch.float32,
        compensated: bool = True,
        check_finite: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(like, dtype, compensated and dtype is not torch.float64, check_finite, device)
        self.total_weight = 0.0
        self._summed = dtype is torch.float64

    def _fraction(self, weight: float) -> float:
        self.total_weight += weight
        return weight / self.total_weight

    @torch.no_grad()
    def _take(self, tensors: list[Tensor], weight: float) -> None:
        if not self._summed:
            super()._take(tensors, weight)
            return
        self.total_weight += weight
        self._take_others(tensors)
        means, sources = ([several[i] for i in self._floating] for several in (self._mean, tensors))
        pairs = list(zip(means, sources, strict=True))
        if pairs and all(mean.is_cuda and mean.device == source.device for mean, source in pairs):
            # There the kernel widens what it reads: nothing is converted before, and the bits are the same.
            torch._foreach_add_(means, sources, alpha=weight)
            return
        for mean, source in pairs:
            for part, value in converted(mean, source):
                part.add_(value, alpha=weight)

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in super()._values():
            yield name, value / self.total_weight if self._summed and value.is_floating_point() else value

    @torch.no_grad()
    def merge(self, other: "RunningMean") -> None:
        """Take in another mean with all its points, as if they had been given to this one; `other` is left as it was.

        What replicas and reductions need. Integer tensors come from `other`, as the later one. Raises ValueError on
        other names or shapes.
        """
        if other.n == 0:
            return
        names, n = self._reader.names, self.n + other.n
        same_kind = self._summed == other._summed and self.compensated == other.compensated
        pairs = zip(other._reader.names, other._mean, strict=True) if same_kind else other._values()
        others = dict(pairs)
        self._reader.check_names(others, names)
        before = self.total_weight
        self._take([others[name] for name in names], 1.0 if same_kind and self._summed else other.total_weight)
        self.n, self.total_weight = n, before + other.total_weight
        if same_kind and self.compensated:
            small = dict(zip((other._reader.names[i] for i in other._floating), other._correction, strict=True))
            for i, correction in zip(self._floating, self._correction, strict=True):
                share = other.total_weight / self.total_weight
                correction.add_(small[names[i]].to(correction.device, correction.dtype), alpha=share)
            self._fold([self._mean[i] for i in self._floating])

    def state_dict(self) -> dict[str, Any]:
        """As `WeightMean.state_dict`, with the total weight; in float64 with `sum` in the place of `mean`."""
        state = super().state_dict() | {"total_weight": self.total_weight}
        return state if not self._summed else {**state, "sum": state.pop("mean")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises ValueError as `WeightMean.load_state_dict`, or for another kind's state."""
        kept = "sum" if self._summed else "mean"
        if kept not in state or "total_weight" not in state:
            raise ValueError(f"the state is of another kind of mean: it has {sorted(state)}, and a {kept} was expected")
        super().load_state_dict({**state, "mean": state[kept]})
        self.total_weight = float(state["total_weight"])


class ExponentialMean(WeightMean):
    """w̄ ← d·w̄ + (1 − d)·w, the first source as it is: the exponential moving average (Polyak & Juditsky 1992).

    decay: d in [0, 1). warmup: d_t = min(decay, (1 + t)/(10 + t)) after t updates, so that the start is soon forgotten
    (TensorFlow's and timm's rule). A source of weight k counts as k equal sources: d becomes d^k.
    """

    def __init__(self, like: Source, decay: float = 0.999, warmup: bool = True, **options: Any) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), not {decay}")
        super().__init__(like, **options)
        self.decay, self.warmup = decay, warmup

    def decay_at(self, t: int) -> float:
        """d for the update after t others."""
        return min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay

    def _fraction(self, weight: float) -> float:
        return 1.0 if self.n == 0 else 1.0 - self.decay_at(self.n) ** weight


class WindowMean:
    """The mean of the last L sources (LAWA; Kaddour 2022), with the methods of the other means.

    window: L, 1 or more. Every source is kept in its own dtype, L copies of the model, on `device`: what leaves the window
    leaves no rounding behind. The mean is computed when it is asked for, by a `RunningMean` with the other options.
    """

    def __init__(
        self,
        like: Source,
        window: int,
        dtype: torch.dtype = torch.float32,
        compensated: bool = True,
        check_finite: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window, self.n = window, 0
        self._reader, self._check_finite, self._device = Reader(like), check_finite, device
        self._dtype, self._compensated = dtype, compensated
        self._kept: deque[tuple[dict[str, Tensor], float]] = deque(maxlen=window)

    def update(self, source: Source, weight: float = 1.0) -> None:
        """Copy one more point in; the oldest leaves when there are more than `window`. Raises ValueError as RunningMean."""
        _check_weight(weight)
        tensors = self._reader.read(source)
        if self._check_finite and (name := first_not_finite(self._reader.names, tensors)) is not None:
            raise ValueError(f"{name} is not finite in the source: the mean was left as it was (n = {self.n})")
        self._kept.append((self._copied(tensors), weight))
        self.n += 1

    def _copied(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        """Copies by name, a shared tensor once; of the values alone, however large the storage that they are a view of."""
        pairs = zip(self._reader.names, tensors, strict=True)
        copies = {name: tensor.detach().to(self._device, copy=True) for name, tensor in pairs}
        return {name: copies[self._reader.aliases.get(name, name)] for name in self._reader.every}

    def mean(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """w̄ by name, as RunningMean.mean."""
        return self._averaged().mean(dtype)

    def copy_to(self, target: Source) -> None:
        """Write w̄ into `target`, as RunningMean.copy_to."""
        self._averaged().copy_to(target)

    def _averaged(self) -> RunningMean:
        if not self._kept:
            raise ValueError("the mean of no points is undefined: call update first")
        mean = RunningMean(self._kept[0][0], self._dtype, self._compensated, check_finite=False)
        for tensors, weight in self._kept:
            mean.update(tensors, weight)
        return mean

    def state_dict(self) -> dict[str, Any]:
        """The window's sources, oldest first."""
        return {
            "n": self.n,
            "kept": [dict(tensors) for tensors, _ in self._kept],
            "weights": [w for _, w in self._kept],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises ValueError on other names or shapes, or more sources than the window."""
        if len(state["kept"]) > self.window:
            raise ValueError(f"the state has {len(state['kept'])} sources and the window is {self.window}")
        copies = [self._copied(self._reader.read(tensors)) for tensors in state["kept"]]
        self._kept.clear()
        self._kept.extend(zip(copies, map(float, state["weights"]), strict=True))
        self.n = int(state["n"])


@torch.inference_mode(False)
def _zeros_like(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    return torch.zeros_like(tensor, device=device)


def _check_weight(weight: float) -> None:
    if not 0 < weight < float("inf"):
        raise ValueError(f"the weight of a point must be a positive number, not {weight}")
