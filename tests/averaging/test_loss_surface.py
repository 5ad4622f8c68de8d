"""Lines hit their ends and surfaces their centre exactly, statistics are recomputed at every point, and the model that
lent itself is as before."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wbar_averaging import recompute_batch_norm
from wbar_averaging.loss_surface import ALPHAS, filter_normalized_direction, interpolate, line, plane, surface

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))


def linear(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def snapshot(model: nn.Module) -> list[object]:
    return [[module.training for module in model.modules()], [t.tolist() for t in model.state_dict().values()]]


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def norm(model: nn.Module) -> dict[str, float]:
    return {"norm": math.sqrt(sum(float(p.detach().double().square().sum()) for p in model.parameters()))}


def apart_from(point: dict[str, Tensor]) -> Callable[[nn.Module], dict[str, float]]:
    return lambda m: {"off": max(float((t - point[name]).abs().max()) for name, t in m.state_dict().items())}


# Lines.


@given(seed=st.integers(0, 1000), dtype=st.sampled_from(DTYPES), scale=st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_interpolation_hits_both_ends_exactly_and_leaves_the_model(seed: int, dtype: torch.dtype, scale: float) -> None:
    a, b = copied(linear(seed, dtype)), {n: t * scale for n, t in copied(linear(seed + 1, dtype)).items()}
    model = linear(seed + 2, dtype)
    before, seen = snapshot(model), []

    def evaluate(m: nn.Module) -> dict[str, float]:
        seen.append(copied(m))
        return norm(m)

    found = interpolate(model, a, b, evaluate, [-1.0, 0.0, 0.5, 1.0, 2.0])
    assert all(torch.equal(seen[1][name], a[name]) and torch.equal(seen[3][name], b[name]) for name in a)
    for name in a:
        beyond = (2 * b[name].double() - a[name].double()).to(dtype)
        torch.testing.assert_close(seen[4][name], beyond, rtol=1e-6 if dtype is torch.float32 else 1e-2, atol=1e-6)
    assert found.positions == [-1.0, 0.0, 0.5, 1.0, 2.0]
    assert len(found.values["norm"]) == 5
    assert snapshot(model) == before


def test_the_usual_line_goes_from_minus_one_to_two_through_both_ends() -> None:
    assert (ALPHAS[0], ALPHAS[-1], len(ALPHAS)) == (-1.0, 2.0, 31)
    assert {0.0, 1.0} <= set(ALPHAS)


def test_statistics_are_those_of_every_point() -> None:
    a, b, model = network(0), network(1), network(2)
    images = torch.randn(10, 2, 4, 4)
    checked = []

    def evaluate(m: nn.Module) -> dict[str, float]:
        assert not m.training
        assert not torch.is_grad_enabled()
        torch.testing.assert_close(m[1].running_mean, m[0](images).mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
        checked.append(1)
        return {"loss": float(m(images).square().mean())}

    before = snapshot(model)
    recompute = lambda m: recompute_batch_norm(m, [images])  # noqa: E731
    interpolate(model, a, b, evaluate, [-1.0, 0.0, 1.0], recompute)
    directions = [filter_normalized_direction(a, seed) for seed in (0, 1)]
    surface(model, a, *directions, evaluate, [0.0, 1.0], [0.0], recompute)
    assert len(checked) == 5
    assert snapshot(model) == before
    for act in (
        lambda: interpolate(model, a, b, evaluate),
        lambda: surface(model, a, *directions, evaluate, [0.0], [0.0]),
    ):
        with pytest.raises(ValueError, match="1 has BatchNorm statistics, which do not fit other weights"):
            act()


def test_without_recomputation_on_purpose_statistics_are_the_nearer_ends() -> None:
    a, b = network(0), network(1)
    b[1].running_var.fill_(9.0)
    found = interpolate(
        network(2), a, b, lambda m: {"v": float(m[1].running_var[0])}, [-1, 0.4, 0.6, 2], lambda m: None
    )
    assert found.values["v"] == [1.0, 1.0, 9.0, 9.0]


def test_the_model_itself_can_be_an_end_and_the_centre() -> None:
    model, other = linear(0), linear(1)
    ends = [norm(model)["norm"], norm(other)["norm"]]
    assert interpolate(model, model, other, norm, [1.0, 0.0]).values["norm"] == ends[::-1]
    found = line(model, model, {"0.weight": torch.ones(4, 3)}, norm, [5.0, 0.0])
    assert found.values["norm"][1] == ends[0]
    assert found.values["norm"][0] > ends[0]


def test_shared_weights_are_moved_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    direction = filter_normalized_direction(model, seed=0)
    expected = model[0].weight.detach() + 2 * direction["0.weight"]
    found = line(model, model, direction, lambda m: {"off": float((m[1].weight - expected).abs().max())}, [2.0])
    assert found.values["off"][0] < 1e-6


# Directions.


@given(seed=st.integers(0, 10_000), filters=st.integers(1, 6), dtype=st.sampled_from(DTYPES))
@settings(max_examples=30, deadline=None)
def test_each_filter_of_a_direction_has_the_norm_of_the_weights_filter(
    seed: int, filters: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    weights = {
        "conv": (torch.randn(filters, 2, 3, 3) * torch.logspace(-3, 3, filters)[:, None, None, None]).to(dtype),
        "linear": torch.randn(filters, 5).to(dtype),
        "bias": torch.randn(filters).to(dtype),
        "bn.running_var": torch.ones(filters).to(dtype),
    }
    weights["linear"][0] = 0
    direction = filter_normalized_direction(weights, seed)
    assert direction.keys() == {"conv", "linear", "bias"}
    assert not direction["bias"].any()
    for name in ("conv", "linear"):
        wanted, found = (t.double().flatten(1).norm(dim=1) for t in (weights[name], direction[name]))
        torch.testing.assert_close(found, wanted, rtol=1e-2 if dtype is torch.bfloat16 else 1e-6, atol=0)


def test_directions_depend_on_the_seed_and_not_on_the_order_of_tensors() -> None:
    weights = copied(linear(0))
    one = filter_normalized_direction(weights, 3)
    other = filter_normalized_direction(dict(reversed(weights.items())), 3)
    assert all(torch.equal(one[name], other[name]) for name in weights)
    assert not torch.equal(one["0.weight"], filter_normalized_direction(weights, 4)["0.weight"])
    cosine = torch.cosine_similarity(one["0.weight"].flatten(), weights["0.weight"].flatten(), dim=0)
    assert abs(cosine) < 0.9


# Surfaces.


@given(seed=st.integers(0, 1000), dtype=st.sampled_from(DTYPES))
@settings(max_examples=20, deadline=None)
def test_the_centre_of_a_surface_is_the_loss_at_the_weights(seed: int, dtype: torch.dtype) -> None:
    model, centre = linear(seed, dtype), linear(seed + 1, dtype)
    x, y = filter_normalized_direction(centre, 1), filter_normalized_direction(centre, 2)
    images = torch.randn(7, 3).to(dtype)
    loss = lambda m: {"loss": float(m(images).square().mean())}  # noqa: E731
    with torch.no_grad():
        expected = loss(centre)["loss"]
    found = surface(model, centre, x, y, loss, [-1.0, 0.0, 1.0], [0.0, 2.0])
    assert found.values["loss"][0][1] == expected
    assert [len(row) for row in found.values["loss"]] == [3, 3]
    assert found.values["loss"][1] != found.values["loss"][0]


def test_rows_are_ys_and_columns_are_xs() -> None:
    model = nn.Linear(1, 1)
    centre = {"weight": torch.tensor([[10.0]]), "bias": torch.tensor([100.0])}
    where = lambda m: {"weight": float(m.weight), "bias": float(m.bias)}  # noqa: E731
    found = surface(model, centre, {"weight": torch.ones(1, 1)}, {"bias": torch.ones(1)}, where, [0, 1, 2], [0, 5])
    assert found.values["weight"] == [[10, 11, 12], [10, 11, 12]]
    assert found.values["bias"] == [[100, 100, 100], [105, 105, 105]]


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_plane_passes_through_its_three_points(seed: int) -> None:
    points = [copied(linear(seed + i, torch.float64)) for i in range(3)]
    found = plane(*points)
    apart = math.sqrt(sum(float((points[1][n] - points[0][n]).square().sum()) for n in points[0]))
    assert found.coordinates(points[0]) == (0.0, 0.0)
    assert found.coordinates(points[1]) == pytest.approx((apart, 0.0), abs=1e-9)
    assert found.coordinates(points[2])[1] > 0
    assert max(found.height(point) for point in points) < 1e-7
    for point in points:
        x, y = found.coordinates(point)
        model = linear(9, torch.float64)
        rows = surface(model, found.origin, found.x_direction, found.y_direction, apart_from(point), [x], [y])
        assert rows.values["off"][0][0] < 1e-12


def test_the_middle_of_three_points_lies_in_their_plane_and_others_above_it() -> None:
    points = [copied(linear(i)) for i in range(4)]
    found = plane(*points[:3])
    middle = {name: (points[0][name] + points[1][name] + points[2][name]) / 3 for name in points[0]}
    corners = [found.coordinates(point) for point in points[:3]]
    expected = tuple(sum(corner[axis] for corner in corners) / 3 for axis in (0, 1))
    assert found.coordinates(middle) == pytest.approx(expected, rel=1e-5)
    assert found.height(middle) < 1e-5
    assert found.height(points[3]) > 0.1


# What is refused.


def test_the_model_is_restored_when_evaluation_fails() -> None:
    model = network()
    model[1].eval()
    before = snapshot(model)

    def fail(m: nn.Module) -> dict[str, float]:
        m.train()
        nn.init.zeros_(m[0].weight)
        raise RuntimeError("out of images")

    with pytest.raises(RuntimeError, match="out of images"):
        interpolate(model, network(1), network(2), fail, recompute=lambda m: None)
    assert snapshot(model) == before


def collinear() -> object:
    return plane(*({"w": torch.full((2,), float(i))} for i in range(3)))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: interpolate(linear(0), {"0.bias": torch.ones(2)}, {"0.bias": torch.ones(3)}, norm), r"\(2,\) in the first"),
        (lambda: interpolate(nn.Linear(1, 2), linear(0), linear(1), norm), "0.bias: missing in the model"),
        (lambda: line(linear(0), linear(1), {"0.bias": torch.ones(9)}, norm, [1]), r"\(9,\) in the x direction"),
        (lambda: line(linear(0), linear(1), {"typo": torch.ones(1)}, norm, [1]), "typo: missing in the centre's weights"),
        (lambda: line(linear(0), linear(1), {}, norm, []), "at least one x and one y, not 0 and 1"),
        (collinear, "the points lie on one line"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


def test_numbers_keep_their_names_from_point_to_point() -> None:
    names = iter(["loss", "los"])
    with pytest.raises(ValueError, match=r"named \['loss'\] at first and \['los'\] at point 1"):
        interpolate(linear(0), linear(0), linear(1), lambda m: {next(names): 1.0}, [0, 1])
