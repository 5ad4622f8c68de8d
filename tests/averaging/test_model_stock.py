"""The stock of several runs beside its twin, and the bounds of its ratios."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.averaging import reference
from wbar_averaging import ModelStock, stock_ratio


def runs_of(seed: int, count: int, spread: float) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A start, and runs that went one common way and each its own, `spread` times as far."""
    draws = torch.Generator().manual_seed(seed)

    def drawn(scale: float) -> dict[str, Tensor]:
        shapes = {"conv.weight": (4, 3, 3, 3), "fc.weight": (5, 4), "fc.bias": (5,)}
        return {name: scale * torch.randn(shape, generator=draws) for name, shape in shapes.items()}

    start, common = drawn(1.0), drawn(0.1)
    runs = []
    for n in range(count):
        own = drawn(0.1 * spread)
        run = {name: start[name] + common[name] + own[name] for name in start}
        runs.append(run | {"seen": torch.tensor(n)})
    return start | {"seen": torch.tensor(-1)}, runs


def stock_of(start: dict[str, Tensor], runs: list[dict[str, Tensor]]) -> ModelStock:
    stock = ModelStock(start)
    for run in runs:
        stock.update(run)
    return stock


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 6), st.floats(0.01, 10))
def test_the_stock_equals_its_twin(seed: int, count: int, spread: float) -> None:
    start, runs = runs_of(seed, count, spread)
    stock, expected = stock_of(start, runs), reference.model_stock(start, runs)
    assert stock.n == count
    for name, tensor in stock.weights().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-12)
    assert stock.weights()["seen"] == count - 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 5), st.floats(0.01, 10))
def test_ratios_lie_between_start_and_mean_and_know_no_order(seed: int, count: int, spread: float) -> None:
    start, runs = runs_of(seed, count, spread)
    ratios = stock_of(start, runs).ratios()
    assert ratios.keys() == {"conv.weight", "fc.weight", "fc.bias"}
    assert all(0 <= t <= 1 for t in ratios.values())
    backwards = stock_of(start, runs[::-1]).ratios()
    assert all(backwards[name] == pytest.approx(t, rel=1e-9, abs=1e-12) for name, t in ratios.items())


@pytest.mark.parametrize("runs", [2, 3, 7])
def test_the_ratio_by_hand(runs: int) -> None:
    assert stock_ratio(1.0, runs) == 1.0
    assert stock_ratio(0.0, runs) == 0.0
    assert stock_ratio(-0.2, runs) == 0.0
    assert stock_ratio(0.5, runs) == pytest.approx(runs / (runs + 1))
    rising = [stock_ratio(cosine / 100, runs) for cosine in range(101)]
    assert rising == sorted(rising)


def test_two_runs_at_an_angle_give_the_foot_of_the_perpendicular() -> None:
    # Section 4.2: the point of the plane through w_0, w_1 and w_2 on the median from w_0, nearest to the centre of all runs.
    for degrees in (10, 60, 85):
        angle = math.radians(degrees)
        start = {"w": torch.zeros(2)}
        runs = [{"w": torch.tensor([math.cos(a), math.sin(a)])} for a in (-angle / 2, angle / 2)]
        made = stock_of(start, runs).weights()["w"]
        t = 2 * math.cos(angle) / (1 + math.cos(angle))
        assert made.tolist() == pytest.approx([t * math.cos(angle / 2), 0.0], abs=1e-7)


def test_runs_that_agree_give_their_mean_and_a_tensor_that_none_moved_stays() -> None:
    start = {"moved": torch.zeros(3), "frozen": torch.ones(2)}
    run = {"moved": torch.tensor([1.0, 2.0, 3.0]), "frozen": torch.ones(2)}
    stock = stock_of(start, [run, run, run])
    assert stock.ratios() == {"moved": pytest.approx(1.0), "frozen": 1.0}
    assert torch.equal(stock.weights()["frozen"], torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(stock.weights()["moved"], run["moved"].double())


def test_a_tensor_that_one_run_alone_moved_is_the_starts() -> None:
    start = {"w": torch.zeros(3)}
    for order in permutations([torch.ones(3), torch.zeros(3), torch.zeros(3)]):
        stock = stock_of(start, [{"w": tensor} for tensor in order])
        assert stock.weights()["w"].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


def test_one_run_has_no_angle() -> None:
    start, runs = runs_of(0, 1, 1.0)
    with pytest.raises(ValueError, match="1 run: give two or more"):
        stock_of(start, runs).ratios()


def test_another_network_is_refused_before_anything_is_changed() -> None:
    start, runs = runs_of(0, 2, 1.0)
    stock = stock_of(start, runs)
    before = stock.ratios()
    with pytest.raises(ValueError, match=r"fc\.bias"):
        stock.update({name: tensor for name, tensor in runs[0].items() if name != "fc.bias"})
    assert stock.ratios() == before
