"""How far the weights went, and how flat the loss is where they stand.

    distance      ‖w − w₀‖, of all weights and of each tensor and layer; by epoch ‖w_end − w_begin‖ and ‖w_t − w_{t−1}‖
    ε-sharpness   100·(max_{|y_i| ≤ ε(|w_i|+1)} f(w + y) − f(w)) / (1 + f(w))     (Keskar et al. 2017, equations 3 and 4)
    top eigenvalue of ∇²f(w), by power iteration:  v ← Hv/‖Hv‖,  λ = vᵀHv

*BatchNorm.* Sharpness and Hessian take f as the network that is used: eval mode, with the statistics held fixed. In train
mode f would depend on how images are cut into batches and every call would move the buffers; recomputing the statistics
inside the maximization would change f under the gradient that climbs it. Both say something about the very weights *and*
statistics given: recompute the statistics before, not during. (`loss_surface` compares points far apart, and recomputes.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wbar_averaging.points import check_same, preserved, random_normal, tensors_of, weights_of
from wbar_averaging.sources import Source

Loss = Callable[[nn.Module], Tensor]
UPDATE_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the norms of an epoch's updates, in `Epoch`
BINS_PER_DECADE, FIRST_DECADE, LAST_DECADE = 8, -9, 3  # of the histogram of these norms: the same edges for every job
TWICE_DIFFERENTIABLE = SDPBackend.MATH  # attention's fused kernels have no second derivative


# Distances.


@dataclass(frozen=True)
class Distances:
    """Euclidean distances in weight space: of all weights, and by tensor name in the model's order."""

    total: float
    tensors: dict[str, float]

    @property
    def layers(self) -> dict[str, float]:
        """By the module that holds the tensors: `layer1.0.conv1` for `layer1.0.conv1.weight`; "" for the root's own."""
        squares: dict[str, float] = {}
        for name, value in self.tensors.items():
            layer = name.rpartition(".")[0]
            squares[layer] = squares.get(layer, 0.0) + value * value
        return {layer: math.sqrt(square) for layer, square in squares.items()}


def distances(a: Source, b: Source) -> Distances:
    """‖b − a‖ of the weights, computed in float64. Raises ValueError if names or shapes differ, naming tensor and shapes."""
    left, right = tensors_of(a), tensors_of(b)
    check_same(left, right, ("the first", "the second"))
    norms = {
        name: float(torch.linalg.vector_norm(right[name].to(tensor.device, torch.float64) - tensor.double()))
        for name, tensor in weights_of(left).items()
    }
    return Distances(math.hypot(*norms.values()), norms)


@dataclass(frozen=True)
class Epoch:
    """One epoch of a `Trajectory`.

    epoch: its number from 1. distance: ‖w_end − w_begin‖ of this epoch, what the literature on batch sizes calls the
    per-epoch distance. distance_from_start: ‖w − w₀‖ at its end. update_norms: the quantiles `UPDATE_QUANTILES` of
    ‖w_t − w_{t−1}‖ over its `updates` calls of `Trajectory.update`, interpolated linearly; None if there were none.
    update_counts: how many of these norms lie in each bin [10^(k/8), 10^((k+1)/8)) from 1e-9 to 1e3, those beyond in the
    outermost; empty if there were none.
    """

    epoch: int
    distance: float
    distance_from_start: float
    update_norms: tuple[float, ...] | None
    updates: int
    update_counts: tuple[int, ...] = ()


class Trajectory:
    """Distances and update norms per epoch: `update` after each step (or epoch), then `end_epoch`.

    start: kept by reference if it is a dict (its tensors must not change: the caller holds the start checkpoint anyway); a
    module's weights are copied. Two copies of the weights are kept beside it: the previous ones and the epoch's first.
    Differences are taken in the weights' own dtype, where those of close numbers are exact or nearly so.
    """

    def __init__(self, start: Source) -> None:
        tensors = tensors_of(start)
        weights = weights_of(tensors)
        self._start = {n: t.clone() for n, t in weights.items()} if isinstance(start, nn.Module) else weights
        if not weights:
            raise ValueError("the start has no weights")
        self._shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
        self._previous = {name: tensor.clone() for name, tensor in weights.items()}
        self._begin = {name: tensor.clone() for name, tensor in weights.items()}
        self._norms: list[Tensor] = []
        self.epochs: list[Epoch] = []

    @torch.no_grad()
    def update(self, source: Source) -> None:
        """Take the weights after one more step. Raises ValueError if names or shapes differ. No temporaries."""
        tensors = tensors_of(source)
        check_same(self._shapes, tensors, ("the start", "the source"))
        previous = list(self._previous.values())
        now = [tensors[name].to(old.device, old.dtype) for name, old in self._previous.items()]
        torch._foreach_sub_(previous, now)
        norms = [torch.linalg.vector_norm(difference, dtype=torch.float64) for difference in previous]
        torch._foreach_copy_(previous, now)
        # Read at the end of the epoch: a GPU need not be waited for at every step.
        self._norms.append(torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms])))

    def end_epoch(self) -> Epoch:
        """Close the epoch with the weights last taken, and add it to `epochs`."""
        norms = [float(norm) for norm in self._norms]
        epoch = Epoch(
            epoch=len(self.epochs) + 1,
            distance=distances(self._begin, self._previous).total,
            distance_from_start=distances(self._start, self._previous).total,
            update_norms=_quantiles(norms) if norms else None,
            updates=len(norms),
            update_counts=_histogram(norms) if norms else (),
        )
        self._norms = []
        torch._foreach_copy_(list(self._begin.values()), list(self._previous.values()))
        self.epochs.append(epoch)
        return epoch

    def end_last_epoch(self) -> None:
        """Close an epoch that was begun, where training ended within one."""
        if self._norms:
            self.end_epoch()

    def state_dict(self) -> dict[str, object]:
        """Return the state beside the current weights: plain numbers, and the weights that the epoch began with."""
        return {
            "norms": [float(norm) for norm in self._norms],
            "epochs": [vars(epoch) for epoch in self.epochs],
            "begin": self._begin,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], source: Source) -> None:
        """Go on where `state_dict` was taken, with the weights as they stood then. The start is the constructor's."""
        tensors = tensors_of(source)
        check_same(self._shapes, tensors, ("the start", "the source"))
        for name, previous in self._previous.items():
            previous.copy_(tensors[name])
            self._begin[name].copy_(state["begin"][name])
        self._norms = [torch.tensor(norm, dtype=torch.float64) for norm in state["norms"]]
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    levels = torch.tensor(UPDATE_QUANTILES, dtype=torch.float64)
    return tuple(torch.quantile(torch.tensor(values, dtype=torch.float64), levels).tolist())


def _histogram(norms: Sequence[float]) -> tuple[int, ...]:
    counts = [0] * (BINS_PER_DECADE * (LAST_DECADE - FIRST_DECADE))
    for norm in norms:
        if math.isnan(norm):
            continue  # it is in no bin; whoever trains sees it by the loss
        # Clipped first: of a norm of 0 there is no logarithm.
        clipped = min(max(norm, 10.0**FIRST_DECADE), 10.0**LAST_DECADE)
        bin_ = math.floor(BINS_PER_DECADE * (math.log10(clipped) - FIRST_DECADE))
        counts[min(bin_, len(counts) - 1)] += 1
    return tuple(counts)


# Sharpness and curvature.


@dataclass(frozen=True)
class Sharpness:
    """The result of `sharpness`.

    percent: 100·(highest − loss)/(1 + loss), the metric; never below 0. loss: at the weights themselves. highest: the
    largest loss seen in the box of `epsilon`. steps: gradients taken.
    """

    percent: float
    loss: float
    highest: float
    epsilon: float
    steps: int


def sharpness(
    model: nn.Module, loss: Loss | Sequence[Loss], *, epsilon: float = 1e-3, steps: int = 20, seed: int = 0
) -> Sharpness:
    """ε-sharpness in the full space (Keskar et al. 2017, arXiv 1609.04836, metric 2.1 with A = I).

    The maximum is sought by projected sign-gradient ascent, y ← clip(y + (2.5/steps)·r·sign ∇f, ±r), r = ε(|w| + 1):
    `steps` gradients and one more value; the largest loss seen counts, so the result is a lower bound of the metric (the
    paper climbs by ten iterations of L-BFGS-B). Where the first gradient is exactly zero a sign is drawn with `seed`.

    loss: loss(model) → a scalar tensor above −1, the same at every call; a sequence of losses (one for each batch of
    equal size) stands for their mean, and holds one graph at a time. Statistics of BatchNorm are fixed: see the module.
    Raises ValueError for weights below float32 (ε is lost in their rounding), no trainable weights, a loss that is not
    finite, or arguments out of range.
    """
    if not (epsilon > 0 and steps >= 1):
        raise ValueError(f"epsilon must be above 0 and steps at least 1, not {epsilon} and {steps}")
    parameters = _trainable(model)
    with preserved(model):
        centre = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        values: list[float] = []
        for step in range(steps):
            value, gradients = _value_and_gradients(model, loss, parameters)
            values.append(value)
            signs = [gradient.sign_() for gradient in gradients]
            if step == 0:
                _draw_missing_signs(parameters, signs, seed)
            _climb(parameters, centre, signs, epsilon, 2.5 / steps)
        values.append(_value(model, loss))
    highest = max(values)
    if values[0] <= -1:
        raise ValueError(f"the loss is {values[0]:g}, and sharpness divides by 1 + loss: it must be above -1")
    return Sharpness(100 * (highest - values[0]) / (1 + values[0]), values[0], highest, epsilon, steps)


@torch.no_grad()
def _draw_missing_signs(parameters: dict[str, nn.Parameter], signs: list[Tensor], seed: int) -> None:
    drawn = random_normal({name: p.shape for name, p in parameters.items()}, torch.Generator().manual_seed(seed))
    for name, sign in zip(parameters, signs, strict=True):
        sign.copy_(torch.where(sign == 0, drawn[name].to(sign).sign(), sign))


@torch.no_grad()
def _climb(
    parameters: dict[str, nn.Parameter], centre: dict[str, Tensor], signs: list[Tensor], epsilon: float, rate: float
) -> None:
    for (name, parameter), sign in zip(parameters.items(), signs, strict=True):
        radius = epsilon * (centre[name].abs() + 1)
        target = parameter + rate * radius * sign
        parameter.copy_(torch.clamp(target, centre[name] - radius, centre[name] + radius))


@dataclass(frozen=True)
class TopEigenvalue:
    """The result of `top_eigenvalue`.

    value: λ = vᵀHv for a unit v. residual: ‖Hv − λv‖; some eigenvalue is no further from λ. steps: products Hv taken.
    converged: whether the residual fell below the tolerance within the steps allowed.
    """

    value: float
    residual: float
    steps: int
    converged: bool


def top_eigenvalue(
    model: nn.Module, loss: Loss | Sequence[Loss], *, seed: int = 0, tolerance: float = 1e-3, max_steps: int = 100
) -> TopEigenvalue:
    """The eigenvalue of largest magnitude of the loss's Hessian over the trainable weights, by power iteration.

    Stops when residual ≤ tolerance·|λ|, or after `max_steps` products; `converged` says which. It is negative where the
    most curved direction bends down, as it may far from a minimum. The start vector is drawn with `seed`, on the CPU, so
    that it is the same on every device. loss, BatchNorm and what is raised: as in `sharpness`.
    """
    if max_steps < 1 or not tolerance > 0:
        raise ValueError(f"max_steps must be at least 1 and tolerance above 0, not {max_steps} and {tolerance}")
    parameters = _trainable(model)
    drawn = random_normal({n: p.shape for n, p in parameters.items()}, torch.Generator().manual_seed(seed))
    vector = [drawn[name].to(parameter) for name, parameter in parameters.items()]
    norm = math.sqrt(_dot(vector, vector))
    with preserved(model), sdpa_kernel(TWICE_DIFFERENTIABLE):
        product = _HessianProduct(model, loss, parameters)
        for step in range(1, max_steps + 1):
            torch._foreach_div_(vector, norm)
            image = product(vector)
            value, norm = _dot(vector, image), math.sqrt(_dot(image, image))
            if not math.isfinite(norm):
                raise ValueError(f"the Hessian is not finite along the vector of step {step}")
            torch._foreach_mul_(vector, -value)
            torch._foreach_add_(vector, image)
            residual = math.sqrt(_dot(vector, vector))
            if residual <= tolerance * abs(value) or norm == 0:
                return TopEigenvalue(value, residual, step, True)
            vector = image
    return TopEigenvalue(value, residual, step, False)


def hessian_vector_product(
    model: nn.Module, loss: Loss | Sequence[Loss], vector: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """∇²f(w)·v by differentiating twice (Pearlmutter 1994), by parameter name; `vector` as `model.named_parameters()`.

    Only parameters with `requires_grad` take part. loss, BatchNorm and what is raised: as in `sharpness`.
    """
    parameters = _trainable(model)
    check_same(parameters, vector, ("the model", "the vector"))
    with preserved(model), sdpa_kernel(TWICE_DIFFERENTIABLE):
        product = _HessianProduct(model, loss, parameters)
        return dict(zip(parameters, product([vector[n].to(p) for n, p in parameters.items()]), strict=True))


class _HessianProduct:
    """v ↦ Hv. The gradient's graph is kept where there is one loss, and built for each of several, one at a time."""

    def __init__(self, model: nn.Module, loss: Loss | Sequence[Loss], parameters: Mapping[str, nn.Parameter]) -> None:
        self._model, self._losses, self._parameters = model, _losses(loss), list(parameters.values())
        self._kept = self._gradients(self._losses[0]) if len(self._losses) == 1 else None

    def _gradients(self, loss: Loss) -> list[Tensor]:
        with torch.enable_grad():
            return _gradients(_called(loss, self._model), self._parameters, create_graph=True)

    def __call__(self, vector: list[Tensor]) -> list[Tensor]:
        total = [torch.zeros_like(parameter) for parameter in self._parameters]
        for loss in self._losses:
            gradients = self._kept or self._gradients(loss)
            pairs = [(g, v) for g, v in zip(gradients, vector, strict=True) if g.requires_grad]
            if not pairs:
                continue  # a loss that is linear in the weights
            outputs, along = zip(*pairs, strict=True)
            products = torch.autograd.grad(
                outputs, self._parameters, along,
                retain_graph=self._kept is not None, allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            torch._foreach_add_(total, products, alpha=1 / len(self._losses))
        return total


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError("the model has no parameters with requires_grad")
    for name, parameter in trainable.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {parameter.dtype}: flatness needs weights in float32 or float64")
    return trainable


def _losses(loss: Loss | Sequence[Loss]) -> list[Loss]:
    losses = list(loss) if isinstance(loss, Sequence) else [loss]
    if not losses:
        raise ValueError("there are no losses")
    return losses


def _called(loss: Loss, model: nn.Module) -> Tensor:
    value = loss(model)
    if not isinstance(value, Tensor) or value.numel() != 1:
        shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss(model) must return a scalar tensor, not {shown}")
    if not bool(value.detach().isfinite()):
        raise ValueError(f"the loss is {float(value.detach())} at this point")
    return value.reshape(())


@torch.no_grad()
def _value(model: nn.Module, loss: Loss | Sequence[Loss]) -> float:
    losses = _losses(loss)
    return sum(float(_called(one, model)) for one in losses) / len(losses)


def _value_and_gradients(
    model: nn.Module, loss: Loss | Sequence[Loss], parameters: Mapping[str, nn.Parameter]
) -> tuple[float, list[Tensor]]:
    losses, total, summed = _losses(loss), 0.0, [torch.zeros_like(parameter) for parameter in parameters.values()]
    for one in losses:
        with torch.enable_grad():
            value = _called(one, model)
            torch._foreach_add_(summed, _gradients(value, list(parameters.values())), alpha=1 / len(losses))
        total += float(value.detach())
    return total / len(losses), summed


def _gradients(value: Tensor, parameters: list[nn.Parameter], create_graph: bool = False) -> list[Tensor]:
    if not value.requires_grad:
        raise ValueError("the loss does not depend on the weights: was it computed under no_grad, or detached?")
    return list(
        torch.autograd.grad(value, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    )


def _dot(left: list[Tensor], right: list[Tensor]) -> float:
    """Within a tensor in its own dtype, which is a copy less than float64 and far finer than any tolerance."""
    return sum(float(torch.dot(a.flatten(), b.flatten())) for a, b in zip(left, right, strict=True))
