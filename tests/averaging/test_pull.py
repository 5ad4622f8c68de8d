"""The pull without autograd equals autograd's own gradient of λ‖w̄ − w‖²."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.averaging import reference
from wbar_averaging import (
    add_folded_pull_gradient,
    add_pull_gradient,
    can_fold_pull,
    distance,
    fold_pull,
    pull_loss,
)


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


def losses(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images).square().mean()


OPTIMIZERS = [
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, weight_decay=1e-2, fused=True),
    lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=1e-2),
    lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, weight_decay=1e-2),
    lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
    lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=1e-2),
]


WAYS = [(make, "in place", clip) for make in OPTIMIZERS for clip in (None, 0.05)]
WAYS += [(make, "folded", None) for make in OPTIMIZERS[:-1]]  # not exact with clipping; refused with AdamW


@pytest.mark.parametrize(("make", "way", "clip"), WAYS)
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
def test_whole_steps_equal_autograd_whatever_stands_around_the_pull(
    make: Callable[..., torch.optim.Optimizer], way: str, clip: float | None, accumulate: int, scaled: bool
) -> None:
    strength = 0.3

    def train(kind: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        weights = list(model.parameters())
        mean = [w.detach() + 0.1 * torch.randn_like(w) for w in weights]
        optimizer = make([{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0}])
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        if kind == "folded":
            fold_pull(optimizer, strength)
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(accumulate):
                loss = losses(model, torch.randn(6, 4, dtype=torch.float64)) / accumulate
                if kind == "autograd":
                    loss = loss + reference.pull_value(weights, mean, strength) / accumulate
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            if kind == "in place":
                add_pull_gradient(weights, mean, strength)
            elif kind == "folded":
                add_folded_pull_gradient(weights, mean, strength)
            if clip is not None:
                nn.utils.clip_grad_norm_(weights, clip)
            scaler.step(optimizer)
            scaler.update()
        return [w.detach() for w in weights]

    for found, expected in zip(train(way), train("autograd"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_fold_is_replaced_taken_back_and_survives_a_resume() -> None:
    weights = parameters(0)
    optimizer = torch.optim.SGD(
        [{"params": weights[:1], "weight_decay": 0.01}, {"params": weights[1:]}], lr=0.1, weight_decay=0.0
    )
    for strength in (0.5, 0.25, 0.25):
        fold_pull(optimizer, strength)
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.51, 0.5])
    again = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:]}], lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    fold_pull(again, 0.25)
    assert [group["weight_decay"] for group in again.param_groups] == pytest.approx([0.51, 0.5])
    fold_pull(again, 0.0)
    assert [group["weight_decay"] for group in again.param_groups] == pytest.approx([0.01, 0.0])


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)]),
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, maximize=True),
    ],
)
def test_a_fold_that_would_not_be_exact_is_refused(optimizer: torch.optim.Optimizer) -> None:
    assert not can_fold_pull(optimizer)
    with pytest.raises(ValueError, match="use add_pull_gradient"):
        fold_pull(optimizer, 0.1)


def test_no_tensor_of_the_models_size_is_made() -> None:
    weights = [torch.randn(400, 400, requires_grad=True) for _ in range(8)]
    mean = [w.detach() + 1 for w in weights]
    for w in weights:
        w.grad = torch.zeros_like(w)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        add_pull_gradient(weights, mean, 0.1)
        add_folded_pull_gradient(weights, mean, 0.1)
    assert max((event.cpu_memory_usage for event in profile.events()), default=0) <= 1024


def test_the_distance_of_large_tensors_in_any_layout() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(5, 600, 30, 20), torch.randn(3, 4)]
    mean = [torch.zeros(5, 600, 30, 20).to(memory_format=torch.channels_last), torch.zeros(3, 4)]
    expected = torch.linalg.vector_norm(torch.cat([w.double().flatten() for w in weights]))
    for anchors in (mean, [m.contiguous() for m in mean]):
        torch.testing.assert_close(distance(weights, anchors).double(), expected, rtol=1e-4, atol=0)
