"""SWAG: a Gaussian over weights from the snapshots that are averaged anyway (Maddox et al. 2019, arXiv 1902.02476).

    θ = w̄ + (1/√2)·Σ^½ z₁ + (1/√(2(K−1)))·D̂ z₂,   z₁, z₂ standard normal                        (equation 1)

w̄ is the mean of the n points, Σ their variance, tensor element by tensor element, and the K columns of D̂ are the last
deviations w_i − w̄_i from the mean at that time, w_i included (algorithm 1).

*The variance* is kept in Welford's form, M ← M + (w − w̄_before)(w − w̄_after), Σ = M/n, and not as the paper's E[w²] − w̄²:
weights near 1 that vary by 1e-4 have a variance of 1e-8, less than float32's rounding of w², so that the difference of
the two moments is noise that has to be clamped at zero. M never falls, and needs no clamp.

*What is not drawn*: BatchNorm's running statistics are averaged and integer tensors are the latest source's. Both belong to
other weights than the drawn ones, so the statistics are recomputed for every sample: see `bayesian_average`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wbar_averaging.blocks import blocks
from wbar_averaging.points import (
    Recompute,
    check_recompute,
    check_same,
    first_names,
    is_weight,
    preserved,
    random_normal,
    set_tensors,
    tensors_of,
)
from wbar_averaging.sources import Source, first_not_finite


class SWAG:
    """Collects the moments of the points given to `update`, and draws weights from their Gaussian.

    like: a module or a state dict; fixes names, shapes and shared tensors only (n = 0). rank: the largest K, 2 or more, or 0
    for no deviations (SWAG-Diagonal). dtype: float32 or float64, of all that is kept: (rank + 2) copies of the model.
    device: where they live; by default each tensor stays where `like` has it.
    """

    def __init__(
        self,
        like: Source,
        rank: int = 20,
        dtype: torch.dtype = torch.float32,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}")
        if rank < 0 or rank == 1:
            raise ValueError(f"rank must be 0 (no deviations) or at least 2 (equation 1 divides by K - 1), not {rank}")
        self.rank, self.dtype, self.n = rank, dtype, 0
        tensors = tensors_of(like)
        self._like = {name: tensor.to("meta") for name, tensor in tensors.items()}
        self._first = first_names(tensors)
        own = {name: tensor for name, tensor in tensors.items() if self._first[name] == name}
        self._mean = {n: _zeros(t, dtype if t.is_floating_point() else t.dtype, device) for n, t in own.items()}
        self._squares = {n: torch.zeros_like(self._mean[n]) for n, t in own.items() if is_weight(n, t)}
        self._deviations: list[dict[str, Tensor]] = []  # oldest first

    @torch.no_grad()
    def update(self, source: Source) -> None:
        """Take in one more point, a module or a state dict. Raises ValueError, before anything is changed, if names or
        shapes differ or a value is not finite."""
        tensors = tensors_of(source)
        check_same(self._like, tensors, ("SWAG", "the source"))
        if (name := first_not_finite(list(tensors), list(tensors.values()))) is not None:
            raise ValueError(f"{name} is not finite in the source: nothing was changed (n = {self.n})")
        self.n += 1
        column = self._next_column()
        for name, mean in self._mean.items():
            if not mean.is_floating_point():
                mean.copy_(tensors[name])
            elif name in self._squares:
                _take(tensors[name], mean, self._squares[name], column.get(name), self.n)
            else:
                mean.lerp_(tensors[name].to(mean), 1 / self.n)

    def _next_column(self) -> dict[str, Tensor]:
        """Memory for the newest deviation: that of the oldest, once there are `rank`."""
        if not self.rank:
            return {}
        full = len(self._deviations) == self.rank
        column = self._deviations.pop(0) if full else {n: torch.empty_like(m) for n, m in self._squares.items()}
        self._deviations.append(column)
        return column

    @property
    def columns(self) -> int:
        """K, the number of deviations held: min(n, rank). The first point's is zero, as its own mean."""
        return len(self._deviations)

    def mean(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """w̄ by name, as new tensors in `dtype` or each in its own: BatchNorm statistics averaged too, integers the
        latest. Raises ValueError at n = 0."""
        self._require(1)
        return self._every(
            {
                name: mean.to(dtype or self._like[name].dtype, copy=True) if mean.is_floating_point() else mean.clone()
                for name, mean in self._mean.items()
            }
        )

    def variance(self) -> dict[str, Tensor]:
        """Σ, of the weights by name, in the accumulation dtype: M/n, as in the paper, not M/(n − 1). Needs n ≥ 2."""
        self._require(2)
        return self._every({name: squares / self.n for name, squares in self._squares.items()})

    def deviations(self) -> dict[str, Tensor]:
        """D̂ of the weights by name, (K, *shape), oldest first, as new tensors in the accumulation dtype."""
        if not self._deviations:
            return {}
        return self._every({n: torch.stack([column[n] for column in self._deviations]) for n in self._squares})

    @torch.no_grad()
    def sample(
        self,
        generator: torch.Generator | int | None = None,
        scale: float = 1.0,
        diagonal_only: bool = False,
    ) -> dict[str, Tensor]:
        """One draw of a whole state dict, each tensor in its own dtype; BatchNorm statistics and integers as in `mean`.

        generator: a seed, a CPU generator, or None for torch's own. The same seed gives the same draw on every device and
        for any order of the tensors. scale: multiplies the covariance, so the draw's distance from w̄ grows with √scale;
        1 is equation 1, ½(Σ + D̂D̂ᵀ/(K−1)), and 0 is w̄ (the authors' code calls half of this scale `scale`).
        diagonal_only: SWAG-Diagonal, covariance scale·Σ. With rank = 0 nothing else can be drawn.

        K is what is held: with n ≤ rank all n deviations, divided by n − 1, where the authors' code divides by rank − 1.
        Raises ValueError for n < 2, a negative scale, or a generator of another device.
        """
        self._require(2)
        if not 0 <= scale < math.inf:
            raise ValueError(f"scale must be 0 or a positive number, not {scale}")
        generator = _cpu_generator(generator)
        along = torch.randn(self.columns, generator=generator, dtype=torch.float32).double()
        drawn = random_normal({name: squares.shape for name, squares in self._squares.items()}, generator)
        low_rank = bool(self.rank) and not diagonal_only
        own = math.sqrt(scale / 2 if low_rank else scale)
        shared = math.sqrt(scale / (2 * (self.columns - 1))) * along if low_rank else along[:0]
        weights = self.mean(self.dtype)
        for name, squares in self._squares.items():
            value = weights[name]
            value.addcmul_((squares / self.n).sqrt_(), drawn.pop(name).to(value), value=own)
            for factor, column in zip(shared.tolist(), self._deviations, strict=False):
                value.add_(column[name], alpha=factor)
        return {name: tensor.to(self._like[name].dtype) for name, tensor in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on with the same bits: numbers, and tensors by name (not copied)."""
        return {
            "n": self.n,
            "rank": self.rank,
            "mean": dict(self._mean),
            "squares": dict(self._squares),
            "deviations": [dict(column) for column in self._deviations],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises ValueError, before anything is changed, on another rank, number of
        deviations, name, shape or dtype."""
        n, columns = int(state["n"]), state["deviations"]
        if int(state["rank"]) != self.rank or len(columns) != min(n, self.rank):
            raise ValueError(
                f"rank {state['rank']} with {len(columns)} deviations of {n} points in the state, rank {self.rank} here"
            )
        for own, saved in ((self._mean, state["mean"]), *((self._squares, c) for c in (state["squares"], *columns))):
            check_same(own, saved, ("SWAG", "the state"))
            for name, tensor in own.items():
                if saved[name].dtype != tensor.dtype:
                    raise ValueError(f"{name}: {tensor.dtype} in SWAG, {saved[name].dtype} in the state")
        for own, saved in ((self._mean, state["mean"]), (self._squares, state["squares"])):
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        self._deviations = [
            {name: torch.empty_like(squares).copy_(column[name]) for name, squares in self._squares.items()}
            for column in columns
        ]
        self.n = n

    def _require(self, least: int) -> None:
        if self.n < least:
            what = "the mean of no points" if least == 1 else "the spread of fewer than two points"
            raise ValueError(f"{what} is undefined: n = {self.n}, call update first")

    def _every(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Shared tensors as one tensor under each of their names, in the order of `like`."""
        return {name: tensors[self._first[name]] for name in self._like if self._first[name] in tensors}


def bayesian_average(
    model: nn.Module,
    swag: SWAG,
    predict: Callable[[nn.Module], Tensor],
    *,
    samples: int,
    seed: int,
    recompute: Recompute | None = None,
    scale: float = 1.0,
    diagonal_only: bool = False,
) -> Tensor:
    """The mean of `predict(model)` over weights drawn from `swag` (Maddox et al. 2019, algorithm 1), in float64.

    predict: model → probabilities, of any one shape, e.g. (images, classes); called in eval mode without autograd.
    recompute: called before it on every sample, to recompute BatchNorm statistics; a model with BatchNorm is refused
    without. samples: S, all drawn from one generator with `seed`: the first S of more samples are the same.

    Weights, buffers and modes of the model are as before afterwards, whatever was raised. Raises ValueError as
    `SWAG.sample`, if names or shapes differ, or if predictions change their shape or are not finite.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    check_recompute(model, recompute)
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | None = None
    with preserved(model), torch.no_grad():
        for number in range(samples):
            set_tensors(model, swag.sample(generator, scale, diagonal_only))
            if recompute is not None:
                recompute(model)
                model.eval()
            outputs = predict(model).double()
            if total is not None and outputs.shape != total.shape:
                raise ValueError(
                    f"predictions: {tuple(total.shape)} at first, {tuple(outputs.shape)} of sample {number}"
                )
            if not bool(outputs.isfinite().all()):
                raise ValueError(f"the predictions of sample {number} are not finite (scale = {scale:g})")
            total = outputs.clone() if total is None else total.add_(outputs)
    assert total is not None
    return total / samples


def _zeros(like: Tensor, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    return torch.zeros_like(like, dtype=dtype, device=device)


def _take(source: Tensor, mean: Tensor, squares: Tensor, column: Tensor | None, n: int) -> None:
    """w̄ ← w̄ + (w − w̄)/n;  d = w − w̄ = (w − w̄_before)(n − 1)/n;  M ← M + d²·n/(n − 1);  the column becomes d."""
    column = torch.empty_like(mean) if column is None else column
    for w, m, s, d in blocks(source.to(mean.device), mean, squares, column):
        value = w.to(m.dtype)
        m.lerp_(value, 1 / n)
        torch.sub(value, m, out=d)
        if n > 1:
            s.addcmul_(d, d, value=n / (n - 1))


def _cpu_generator(generator: torch.Generator | int | None) -> torch.Generator | None:
    if isinstance(generator, int):
        return torch.Generator().manual_seed(generator)
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"the generator is on {generator.device}: draws are made on the CPU, the same for every device"
        )
    return generator
