"""The pull without autograd equals autograd's own gradient of λ‖w̄ − w‖²."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging import add_pull_gradient, distance, pull_loss
from tests.averaging import reference


def parameters(seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((4, 3), (5,), ())]


@given(seed=st.integers(0, 10_000), strength=st.floats(0, 10))
@settings(max_examples=40, deadline=None)
def test_gradient_equals_autograd(seed: int, strength: float) -> None:
    weights, mean = parameters(seed), [p.detach() for p in parameters(seed + 1)]
    loss = sum((w.square().sum() for w in weights), torch.zeros((), dtype=torch.float64))
    (loss + reference.pull_value(weights, mean, strength)).backward()
    expected = [w.grad.clone() for w in weights if w.grad is not None]
    for w in weights:
        w.grad = None
    sum((w.square().sum() for w in weights), torch.zeros((), dtype=torch.float64)).backward()
    add_pull_gradient(weights, mean, strength)
    for w, want in zip(weights, expected, strict=True):
        torch.testing.assert_close(w.grad, want, rtol=1e-12, atol=1e-12)


def test_float32_gradient_is_near_the_float64_twin() -> None:
    weights = parameters(0, torch.float32)
    mean = [p.detach() + 1e-3 for p in weights]
    for w in weights:
        w.grad = torch.zeros_like(w)
    add_pull_gradient(weights, mean, 5e-4)
    for w, m in zip(weights, mean, strict=True):
        want = 2 * 5e-4 * (w.detach().double() - m.double())
        torch.testing.assert_close(w.grad.double(), want, rtol=1e-3, atol=1e-9)  # type: ignore[union-attr]


def test_parameters_without_a_gradient_are_left_alone() -> None:
    weights = parameters(0)
    weights[0].grad = torch.zeros_like(weights[0])
    add_pull_gradient(weights, [torch.zeros_like(w) for w in weights], 1.0)
    assert weights[1].grad is None
    torch.testing.assert_close(weights[0].grad, 2 * weights[0].detach())


def test_value_follows_from_the_distance() -> None:
    weights, mean = parameters(3), [p.detach() for p in parameters(4)]
    away = distance(weights, mean).item()
    expected = reference.pull_value(weights, mean, 0.25).item()
    assert pull_loss(away, 0.25) == pytest.approx(expected, rel=1e-6)
