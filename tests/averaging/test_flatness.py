"""Distances equal their float64 twins; sharpness and curvature of quadratics equal what can be written down by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wbar_averaging.flatness import (
    UPDATE_QUANTILES,
    Trajectory,
    distances,
    hessian_vector_product,
    sharpness,
    top_eigenvalue,
)
from wbar_averaging.points import preserved, weights_of


class Quadratic(nn.Module):
    """f(w) = ½ wᵀ A w + c: everything about it is known."""

    def __init__(self, matrix: Tensor, weights: Tensor, constant: float = 0.0) -> None:
        super().__init__()
        self.matrix, self.constant = matrix, constant
        self.first = nn.Parameter(weights[:1].clone())
        self.rest = nn.Parameter(weights[1:].clone())

    def loss(self) -> Tensor:
        weights = torch.cat([self.first, self.rest])
        return 0.5 * weights @ self.matrix @ weights + self.constant


def loss(model: Quadratic) -> Tensor:
    return model.loss()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 4)
    ).double()


def network_loss(images: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda model: nn.functional.cross_entropy(model(images), torch.arange(len(images)) % 4)


def state_of(model: nn.Module) -> list[object]:
    modes = [module.training for module in model.modules()]
    return [modes, [p.grad is None for p in model.parameters()], [t.tolist() for t in model.state_dict().values()]]


# Distance.


def test_distances_are_of_the_weights_by_tensor_and_by_layer() -> None:
    a = {
        "c.weight": torch.zeros(2, 2),
        "c.bias": torch.zeros(1),
        "bn.running_mean": torch.zeros(3),
        "n": torch.tensor(1),
    }
    b = {
        "c.weight": torch.ones(2, 2),
        "c.bias": torch.ones(1) * 2,
        "bn.running_mean": torch.ones(3),
        "n": torch.tensor(9),
    }
    found = distances(a, b)
    assert found.tensors == {"c.weight": 2.0, "c.bias": 2.0}
    assert found.total == pytest.approx(math.sqrt(8))
    assert found.layers == {"c": pytest.approx(math.sqrt(8))}


def test_shared_weights_count_once_and_differences_are_named() -> None:
    tied = nn.ModuleDict({"b": nn.Linear(2, 2, bias=False), "a": nn.Linear(2, 2, bias=False)})
    tied["a"].weight = tied["b"].weight
    assert list(weights_of(tied)) == ["a.weight"]
    with pytest.raises(
        ValueError, match=r"w: \(2,\) in the first, \(3,\) in the second; x: \(1,\) in the first, missing"
    ):
        distances({"w": torch.zeros(2), "x": torch.zeros(1)}, {"w": torch.zeros(3)})


@given(
    seed=st.integers(0, 1000), epochs=st.integers(1, 3), steps=st.integers(1, 5), dtype=st.sampled_from([16, 32, 64])
)
@settings(max_examples=25, deadline=None)
def test_a_trajectory_equals_the_twin_that_keeps_every_step(seed: int, epochs: int, steps: int, dtype: int) -> None:
    torch.manual_seed(seed)
    kind = {16: torch.bfloat16, 32: torch.float32, 64: torch.float64}[dtype]
    path = [{"w": torch.randn(4, 3).to(kind), "b": torch.randn(2).to(kind)} for _ in range(epochs * steps + 1)]
    kept = torch.stack([torch.cat([point["w"].double().flatten(), point["b"].double()]) for point in path])
    trajectory = Trajectory(path[0])
    tolerance = 1e-2 if dtype == 16 else 1e-5
    for epoch in range(epochs):
        for step in range(steps):
            trajectory.update(path[epoch * steps + step + 1])
        found, end = trajectory.end_epoch(), (epoch + 1) * steps
        updates = [(kept[i + 1] - kept[i]).norm().item() for i in range(epoch * steps, end)]
        assert (found.epoch, found.updates) == (epoch + 1, steps)
        assert found.distance_from_start == pytest.approx((kept[end] - kept[0]).norm().item(), rel=1e-9)
        assert found.distance == pytest.approx((kept[end] - kept[epoch * steps]).norm().item(), rel=1e-9)
        assert found.update_norms is not None
        assert found.update_norms == pytest.approx(np.quantile(updates, UPDATE_QUANTILES), rel=tolerance)
        trajectory = resumed(trajectory, path[0], path[end])
    assert len(trajectory.epochs) == epochs


def resumed(trajectory: Trajectory, start: dict[str, torch.Tensor], now: dict[str, torch.Tensor]) -> Trajectory:
    """The same trajectory, from its state."""
    again = Trajectory(start)
    again.load_state_dict(trajectory.state_dict(), now)
    return again


def test_a_trajectory_of_a_module_starts_where_the_module_stood() -> None:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    trajectory = Trajectory(model)
    nn.init.constant_(model.weight, 3.0)
    trajectory.update(model)
    first, second = trajectory.end_epoch(), trajectory.end_epoch()
    assert first.distance == first.distance_from_start == pytest.approx(math.sqrt(18))
    assert (second.distance, second.distance_from_start) == (0, first.distance)
    assert second.update_norms is None
    assert second.update_counts == ()


def test_update_norms_are_counted_in_bins_that_are_the_same_for_every_job() -> None:
    at = {"w": torch.zeros(1, dtype=torch.float64)}
    trajectory = Trajectory({"w": at["w"].clone()})
    for norm in (1e-12, 0.0, 0.01, 1.0, 1.3, 1.34, 1e5):
        at["w"] += norm
        trajectory.update(at)
    counts = trajectory.end_epoch().update_counts
    assert len(counts) == 96
    # 10^(1/8) is 1.334: the third norm is in the next bin. What lies beyond the bins is in the outermost ones.
    assert {at: count for at, count in enumerate(counts) if count} == {0: 2, 7 * 8: 1, 72: 2, 73: 1, 95: 1}


def test_a_step_that_is_not_a_number_is_in_no_bin() -> None:
    trajectory = Trajectory({"w": torch.zeros(1, dtype=torch.float64)})
    for value in (1.0, float("nan")):
        trajectory.update({"w": torch.full((1,), value, dtype=torch.float64)})
    assert sum(trajectory.end_epoch().update_counts) == 1


# Sharpness.


@given(
    curvatures=st.lists(st.floats(0.01, 100), min_size=2, max_size=6),
    seed=st.integers(0, 1000),
    epsilon=st.floats(1e-4, 0.1),
    at_minimum=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_quadratic_is_sharpest_at_a_corner_of_the_box(
    curvatures: list[float], seed: int, epsilon: float, at_minimum: bool
) -> None:
    torch.manual_seed(seed)
    a = torch.tensor(curvatures, dtype=torch.float64)
    w = torch.randn(len(a), dtype=torch.float64) * (0 if at_minimum else 1)
    corner = w.abs() + epsilon * (w.abs() + 1)
    start, highest = float(0.5 * (a * w * w).sum()), float(0.5 * (a * corner * corner).sum())
    found = sharpness(Quadratic(a.diag(), w), loss, epsilon=epsilon, seed=seed)
    assert found.loss == pytest.approx(start, abs=1e-12)
    assert found.highest == pytest.approx(highest, rel=1e-9)
    assert found.percent == pytest.approx(100 * (highest - start) / (1 + start), rel=1e-6)


def test_one_step_along_a_line_reaches_the_corner() -> None:
    model = nn.Linear(3, 1).double()
    images = torch.randn(5, 3, dtype=torch.float64)
    found = sharpness(model, lambda m: m(images).mean().exp(), epsilon=0.01, steps=1)
    slope = torch.cat([images.mean(dim=0), torch.ones(1, dtype=torch.float64)]).abs()
    radius = 0.01 * (torch.cat([model.weight[0], model.bias]).detach().abs() + 1)
    assert math.log(found.highest / found.loss) == pytest.approx(float((slope * radius).sum()), rel=1e-9)


def test_flatness_leaves_the_network_as_it_was_and_repeats_itself() -> None:
    model = network()
    model[1].eval()
    images = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    before = state_of(model)
    one, other = (sharpness(model, network_loss(images), steps=4) for _ in range(2))
    assert one == other
    assert one.percent > 0
    assert top_eigenvalue(model, network_loss(images)) == top_eigenvalue(model, network_loss(images))
    assert state_of(model) == before

    def fail(_model: nn.Module) -> Tensor:
        model.train()
        nn.init.zeros_(model[0].weight)
        raise RuntimeError("no loss today")

    for measure in (sharpness, top_eigenvalue):
        with pytest.raises(RuntimeError, match="no loss today"):
            measure(model, fail)
        assert state_of(model) == before


def test_several_losses_stand_for_their_mean() -> None:
    model, images = network(), torch.randn(8, 2, 4, 4, dtype=torch.float64)
    halves = [network_loss(images[:4]), network_loss(images[4:])]
    whole = sharpness(model, network_loss(images), steps=3)
    assert sharpness(model, halves, steps=3).percent == pytest.approx(whole.percent, rel=1e-9)
    curvature = top_eigenvalue(model, network_loss(images), tolerance=1e-6).value
    assert top_eigenvalue(model, halves, tolerance=1e-6).value == pytest.approx(curvature, rel=1e-9)


@pytest.mark.parametrize("measure", [sharpness, top_eigenvalue])
@pytest.mark.parametrize(
    ("model", "function", "message"),
    [
        (nn.Linear(2, 1).half(), lambda m: m.weight.sum(), "weight is torch.float16"),
        (nn.Linear(2, 1).requires_grad_(False), lambda m: m.weight.sum(), "no parameters with requires_grad"),
        (nn.Linear(2, 1), lambda m: m.weight, r"scalar tensor, not \(1, 2\)"),
        (nn.Linear(2, 1), lambda m: m.weight.sum() * math.nan, "the loss is nan"),
        (nn.Linear(2, 1), lambda m: m.weight.sum().detach(), "does not depend on the weights"),
    ],
)
def test_what_has_no_flatness_is_refused(
    measure: Callable[..., object], model: nn.Module, function: Callable[..., Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(model, function)


def test_a_loss_of_minus_one_or_less_has_no_sharpness() -> None:
    with pytest.raises(ValueError, match="must be above -1"):
        sharpness(Quadratic(torch.eye(2), torch.zeros(2), constant=-1.0), loss)


# Curvature.


@given(
    spectrum=st.lists(st.floats(-5, 5), min_size=2, max_size=7),
    top=st.floats(8, 50),
    sign=st.sampled_from([1, -1]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_power_iteration_finds_the_top_of_a_known_spectrum(
    spectrum: list[float], top: float, sign: int, seed: int
) -> None:
    torch.manual_seed(seed)
    values = torch.tensor([*spectrum, sign * top], dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))
    model = Quadratic(basis @ values.diag() @ basis.T, torch.randn(len(values), dtype=torch.float64))
    found = top_eigenvalue(model, loss, seed=seed, tolerance=1e-4, max_steps=200)
    assert found.converged
    assert found.residual <= 1e-4 * abs(found.value)
    assert (values - found.value).abs().min() <= found.residual + 1e-9
    assert found.value == pytest.approx(sign * top, rel=1e-6)


def test_two_opposite_eigenvalues_do_not_converge_and_it_says_so() -> None:
    found = top_eigenvalue(Quadratic(torch.diag(torch.tensor([3.0, -3.0])), torch.ones(2)), loss, max_steps=7)
    assert (found.converged, found.steps) == (False, 7)
    assert found.residual > 1


def test_a_linear_loss_has_no_curvature() -> None:
    model = nn.Linear(3, 1)
    found = top_eigenvalue(model, lambda m: m(torch.ones(1, 3)).sum())
    assert (found.value, found.residual, found.steps, found.converged) == (0.0, 0.0, 1, True)


def test_products_equal_the_whole_hessian_with_statistics_held_fixed() -> None:
    model, images = network(), torch.randn(6, 2, 4, 4, dtype=torch.float64)
    model(images)  # statistics that are not the initial ones
    names, parameters = zip(*model.named_parameters(), strict=True)
    vector = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    with preserved(model):

        def function(*tensors: Tensor) -> Tensor:
            output = torch.func.functional_call(model, dict(zip(names, tensors, strict=True)), (images,))
            return nn.functional.cross_entropy(output, torch.arange(6) % 4)

        _, expected = torch.autograd.functional.hvp(function, parameters, tuple(vector.values()))
    found = hessian_vector_product(model, network_loss(images), vector)
    for name, want in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], want, rtol=1e-9, atol=1e-12)


def test_attention_can_be_differentiated_twice() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    words = torch.randn(2, 5, 8)
    assert top_eigenvalue(model, lambda m: m(words).square().mean(), max_steps=3).steps == 3


def test_a_vector_of_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bias: \(1,\) in the model, missing in the vector; weight: \(1, 2\) in"):
        hessian_vector_product(nn.Linear(2, 1), lambda m: m.weight.sum(), {"weight": torch.ones(2)})
