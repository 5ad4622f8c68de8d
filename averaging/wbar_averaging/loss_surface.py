"""The loss along a line and on a plane through weights: what lies between the start and w̄, and around them.

    interpolation        w(α) = (1 − α)·a + α·b                                    (Goodfellow et al. 2015)
    filter-normalized    w + x·d + y·e,  each filter of d Gaussian and as long as the filter of w   (Li et al. 2018, § 4)
    plane of three       w₁ + x·û + y·v̂,  û and v̂ orthonormal                      (Izmailov et al. 2018, figure 1)

*BatchNorm.* Every point has other weights, so its activations have other statistics: `recompute(model)` is called at every
point, the ends and the centre included, before `evaluate(model)`. Statistics of one point used at another show barriers
that are not there. A model with BatchNorm is refused without `recompute`; `lambda model: None` keeps them on purpose.

The functions take the model as a place to evaluate in: its own weights, buffers and modes are as before afterwards,
whatever was raised. `evaluate` runs in eval mode without autograd, and names the numbers it returns.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wbar_averaging.points import (
    Recompute,
    check_recompute,
    check_same,
    first_names,
    is_weight,
    preserved,
    random_normal,
    tensors_of,
    weights_of,
)
from wbar_averaging.sources import Source

Evaluate = Callable[[nn.Module], Mapping[str, float]]
Direction = Mapping[str, Tensor]
ALPHAS = tuple(step / 10 for step in range(-10, 21))  # −1 to 2, with 0 and 1 exactly


@dataclass(frozen=True)
class Line:
    """Numbers along a line. `values[name][i]`: the number that `evaluate` called `name` at positions[i]."""

    positions: list[float]
    values: dict[str, list[float]]


@dataclass(frozen=True)
class Surface:
    """Numbers on a plane. `values[name][row][column]`: what `evaluate` called `name` at (xs[column], ys[row])."""

    xs: list[float]
    ys: list[float]
    values: dict[str, list[list[float]]]


def interpolate(
    model: nn.Module,
    a: Source,
    b: Source,
    evaluate: Evaluate,
    alphas: Sequence[float] = ALPHAS,
    recompute: Recompute | None = None,
) -> Line:
    """Evaluate along the straight line through a (α = 0) and b (α = 1), both of which are hit exactly.

    a, b: whole state dicts (or modules) of this model's architecture. Weights are interpolated in float64 and rounded once;
    integer tensors and BatchNorm statistics, until `recompute` replaces them, are those of the nearer end. Raises
    ValueError if names or shapes differ (naming tensor and shapes), for BatchNorm without `recompute`, or if `evaluate`
    changes the names of its numbers.
    """
    first, second = _copied_if(model, a), _copied_if(model, b)
    check_same(first, second, ("the first weights", "the second weights"))

    def point(alpha: float) -> Callable[[str], Tensor]:
        def at(name: str) -> Tensor:
            if not is_weight(name, first[name]):
                return first[name] if alpha < 0.5 else second[name]
            return torch.lerp(first[name].double(), second[name].to(first[name].device, torch.float64), alpha)

        return at

    return Line(list(alphas), _walk(model, [point(alpha) for alpha in alphas], first, evaluate, recompute))


def filter_normalized_direction(weights: Source, seed: int) -> dict[str, Tensor]:
    """A random direction whose every filter has the norm of the weights' filter: d ← d·‖w‖/‖d‖ (Li et al. 2018, § 4).

    A filter is a slice along the first dimension of a tensor of two or more: what makes one output of a convolution or
    linear layer (transposed convolutions have theirs along the second; as in the authors' code, they are sliced like the
    others). Tensors of one dimension or none, that is biases and BatchNorm's γ and β, get a zero direction, and so
    do filters that are zero. The draws depend on `seed`, names and shapes only.
    """
    by_name = weights_of(weights)
    drawn = random_normal({n: t.shape for n, t in by_name.items()}, torch.Generator().manual_seed(seed))
    return {name: _normalized(drawn[name].to(weight.device), weight) for name, weight in by_name.items()}


def _normalized(direction: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() <= 1 or weight.numel() == 0:
        return torch.zeros_like(weight)
    rows = direction.flatten(1).double()
    wanted = torch.linalg.vector_norm(weight.flatten(1).double(), dim=1, keepdim=True)
    rows *= wanted / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.view(weight.shape).to(weight.dtype)


def line(
    model: nn.Module,
    centre: Source,
    direction: Direction,
    evaluate: Evaluate,
    positions: Sequence[float],
    recompute: Recompute | None = None,
) -> Line:
    """Evaluate at centre + x·direction for x in `positions` (in units of the direction's length).

    centre: a whole state dict of this architecture, or a module (the model itself as well). direction: by weight name;
    a weight that it does not name stays. Raises as `interpolate`.
    """
    row = surface(model, centre, direction, {}, evaluate, positions, [0.0], recompute)
    return Line(row.xs, {name: rows[0] for name, rows in row.values.items()})


def surface(
    model: nn.Module,
    centre: Source,
    x_direction: Direction,
    y_direction: Direction,
    evaluate: Evaluate,
    xs: Sequence[float],
    ys: Sequence[float],
    recompute: Recompute | None = None,
) -> Surface:
    """Evaluate at centre + x·x_direction + y·y_direction for every x in `xs` and y in `ys`.

    At x = y = 0 the weights are the centre's, exactly. Costs len(xs)·len(ys) evaluations (and recomputations). For a
    plane through three points: `surface(model, plane.origin, plane.x_direction, plane.y_direction, …)`. Arguments and
    errors: as `line`.
    """
    if not len(xs) or not len(ys):
        raise ValueError(f"a surface needs at least one x and one y, not {len(xs)} and {len(ys)}")
    middle = _copied_if(model, centre)
    for direction, axis in ((x_direction, "x"), (y_direction, "y")):
        _check_direction(middle, direction, axis)

    def point(x: float, y: float) -> Callable[[str], Tensor]:
        def at(name: str) -> Tensor:
            moved = middle[name]
            for step, direction in ((x, x_direction), (y, y_direction)):
                if step and name in direction:
                    moved = moved.double() + step * direction[name].to(moved.device, torch.float64)
            return moved

        return at

    values = _walk(model, [point(x, y) for y in ys for x in xs], middle, evaluate, recompute)
    rows = {
        name: [numbers[row * len(xs) : (row + 1) * len(xs)] for row in range(len(ys))]
        for name, numbers in values.items()
    }
    return Surface(list(xs), list(ys), rows)


def _check_direction(centre: Mapping[str, Tensor], direction: Direction, axis: str) -> None:
    weights = {name: tensor for name, tensor in centre.items() if name in direction and is_weight(name, tensor)}
    check_same(weights, direction, ("the centre's weights", f"the {axis} direction"))


def _copied_if(model: nn.Module, source: Source) -> dict[str, Tensor]:
    """The source's tensors; copies where they are the model's own, which are about to be overwritten."""
    own = {tensor.data_ptr() for tensor in tensors_of(model).values()}
    tensors = tensors_of(source)
    return {name: tensor.clone() if tensor.data_ptr() in own else tensor for name, tensor in tensors.items()}


def _walk(
    model: nn.Module,
    points: Sequence[Callable[[str], Tensor]],
    like: Mapping[str, Tensor],
    evaluate: Evaluate,
    recompute: Recompute | None,
) -> dict[str, list[float]]:
    """Write each point (a function from name to tensor) into the model, recompute, evaluate; the model is preserved."""
    check_recompute(model, recompute)
    check_same(tensors_of(model), like, ("the model", "the weights"))
    values: dict[str, list[float]] = {}
    with preserved(model), torch.no_grad():
        for number, point in enumerate(points):
            _write(model, point)
            if recompute is not None:
                recompute(model)
                model.eval()
            numbers = evaluate(model)
            if number and numbers.keys() != values.keys():
                raise ValueError(f"evaluate named {sorted(values)} at first and {sorted(numbers)} at point {number}")
            for name, value in numbers.items():
                values.setdefault(name, []).append(float(value))
    return values


def _write(model: nn.Module, point: Callable[[str], Tensor]) -> None:
    """Tensor by tensor, so that a point costs no copy of the model; a shared tensor once, under its first name."""
    targets = tensors_of(model)
    first = first_names(targets)
    for name, target in targets.items():
        if first[name] == name:
            target.copy_(point(name))


@dataclass(frozen=True)
class Plane:
    """A plane in weight space, in Euclidean distance along two orthonormal directions; made by `plane`.

    origin: the first point's whole state dict, at (0, 0). x_direction, y_direction: by weight name, float64.
    """

    origin: dict[str, Tensor]
    x_direction: dict[str, Tensor]
    y_direction: dict[str, Tensor]

    def coordinates(self, point: Source) -> tuple[float, float]:
        """(x, y) of the point's orthogonal projection onto the plane. Raises ValueError if names or shapes differ."""
        away = self._from_origin(point)
        return _dot(away, self.x_direction), _dot(away, self.y_direction)

    def height(self, point: Source) -> float:
        """The Euclidean distance of the point from the plane: 0 (but for rounding) for the three that made it."""
        away = self._from_origin(point)
        x, y = _dot(away, self.x_direction), _dot(away, self.y_direction)
        off = {n: away[n] - x * self.x_direction[n] - y * self.y_direction[n] for n in away}
        return math.sqrt(_dot(off, off))

    def _from_origin(self, point: Source) -> dict[str, Tensor]:
        return _difference(self.origin, tensors_of(point))


def plane(origin: Source, second: Source, third: Source) -> Plane:
    """The plane through three weight vectors: u = w₂ − w₁, v = (w₃ − w₁) − û·⟨w₃ − w₁, û⟩ (Izmailov et al. 2018, § 3).

    The second lies on the positive x axis and the third above it. Costs four copies of the weights in float64. Raises
    ValueError if names or shapes differ, or if the three lie on one line.
    """
    first = tensors_of(origin)
    u, v = _difference(first, tensors_of(second)), _difference(first, tensors_of(third))
    length, reach = math.sqrt(_dot(u, u)), math.sqrt(_dot(v, v))
    x_direction = {name: value / length for name, value in u.items()} if length else u
    along = _dot(v, x_direction)
    v = {name: value - along * x_direction[name] for name, value in v.items()}
    height = math.sqrt(_dot(v, v))
    if not length or not height > 1e-9 * reach:
        raise ValueError(f"the points lie on one line: {length:g} apart, the third {height:g} off the line")
    copied = {name: tensor.clone() for name, tensor in first.items()}
    return Plane(copied, x_direction, {name: value / height for name, value in v.items()})


def _difference(origin: Mapping[str, Tensor], point: Mapping[str, Tensor]) -> dict[str, Tensor]:
    check_same(origin, point, ("the origin", "the point"))
    return {
        name: point[name].to(tensor.device, torch.float64) - tensor.double()
        for name, tensor in weights_of(origin).items()
    }


def _dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    return sum(float((value * right[name]).sum()) for name, value in left.items())
