"""The means on device memory: exact against the float64 twin, in place, and the same wherever w̄ is kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.averaging import reference
from wbar_averaging import (
    SWAG,
    ExponentialMean,
    RunningMean,
    WindowMean,
    add_folded_pull_gradient,
    add_pull_gradient,
    distance,
    fold_pull,
)
from wbar_averaging.fused_passes import FOREACH, FUSED, Passes, move_corrections, passes_for

pytestmark = pytest.mark.gpu

POINTS = 40
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Of the accumulation dtype, relative to values near 1: one rounding with compensation, √n or so without.
TOLERANCE = {(torch.float32, True): 2e-7, (torch.float32, False): 2e-6, (torch.float64, True): 1e-13}


def points(dtype: torch.dtype, device: str, count: int = POINTS) -> list[dict[str, Tensor]]:
    """State dicts near one another: matrices, a channels_last kernel, a counter."""
    draws = torch.Generator().manual_seed(0)
    shapes = {"a": (300, 70), "conv": (8, 16, 3, 3), "bias": (5,), "scalar": ()}
    base = {name: 1 + torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    made = []
    for n in range(count):
        point = {name: (t + 0.01 * torch.randn(t.shape, generator=draws)).to(dtype) for name, t in base.items()}
        point["conv"] = point["conv"].contiguous(memory_format=torch.channels_last)
        made.append({name: t.to(device) for name, t in point.items()} | {"counter": torch.tensor(n, device=device)})
    return made


def on_cpu(states: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{name: tensor.cpu() for name, tensor in state.items()} for state in states]


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(
                found[name].cpu().double(), tensor.cpu().double(), rtol=tolerance, atol=tolerance
            )
        else:
            assert torch.equal(found[name].cpu(), tensor.cpu()), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kept", "compensated"), TOLERANCE)
@pytest.mark.parametrize("place", ["the model's", "cpu"])
def test_the_mean_is_the_twins(
    device: str, dtype: torch.dtype, kept: torch.dtype, compensated: bool, place: str
) -> None:
    states = points(dtype, device)
    mean = RunningMean(states[0], kept, compensated, device=None if place == "the model's" else place)
    for state in states:
        mean.update(state)
    found = mean.mean(torch.float64)
    assert found["a"].device.type == (torch.device(device).type if place == "the model's" else "cpu")
    close(found, reference.mean_of(on_cpu(states)), TOLERANCE[kept, compensated])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make",
    [lambda like: ExponentialMean(like, 0.9), lambda like: WindowMean(like, 7), RunningMean],
    ids=["exponential", "window", "uniform"],
)
def test_the_device_gives_what_the_cpu_gives(
    device: str, dtype: torch.dtype, make: Callable[[dict[str, Tensor]], RunningMean]
) -> None:
    states = points(dtype, device)
    there, here = make(states[0]), make(on_cpu(states)[0])
    for on_device, on_host in zip(states, on_cpu(states), strict=True):
        there.update(on_device)
        here.update(on_host)
    close(there.mean(torch.float64), here.mean(torch.float64), 1e-6)
    target = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}
    there.copy_to(target)
    close(target, there.mean(), 0)


def test_a_state_goes_on_on_another_device_with_the_same_points(device: str) -> None:
    states = points(torch.float32, device)
    whole, first, second = (RunningMean(states[0]), RunningMean(states[0]), RunningMean(on_cpu(states)[0]))
    for state in states:
        whole.update(state)
    for state in states[:25]:
        first.update(state)
    second.load_state_dict(first.state_dict())
    assert second.n == 25
    close(second.mean(torch.float64), first.mean(torch.float64), 0)
    for state in on_cpu(states)[25:]:
        second.update(state)
    close(second.mean(torch.float64), whole.mean(torch.float64), 2e-7)
    back = RunningMean(states[0])
    back.load_state_dict(second.state_dict())
    close(back.mean(torch.float64), second.mean(torch.float64), 0)


def test_a_value_that_is_not_finite_is_refused(device: str) -> None:
    states = points(torch.float32, device, 3)
    mean = RunningMean(states[0])
    mean.update(states[0])
    states[1]["conv"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="conv is not finite"):
        mean.update(states[1])
    close(mean.mean(), on_cpu(states)[0] | {"counter": torch.tensor(0)}, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways_of_a_pass_agree(device: str, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(1)

    def made() -> list[Tensor]:
        return [torch.randn(n, generator=draws, dtype=dtype).to(device) for n in (37, 4096, 1)]

    m, w, c = made(), made(), [tensor * 1e-3 for tensor in made()]
    expected = [(1 - 0.125) * small + 0.125 * (b - a) for a, b, small in zip(m, w, c, strict=True)]
    ways: list[Passes | None] = [None, FOREACH]
    for way in ways:
        moved = [tensor.clone() for tensor in c]
        (way.move_corrections if way else move_corrections)(m, w, moved, 0.125)
        torch.testing.assert_close(moved, expected)
    assert passes_for(torch.device(device).type, dtype) is FUSED, "torch's fused kernel is of use here"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kept", "compensated"), TOLERANCE)
def test_an_update_makes_no_temporaries_of_the_models_size(
    cuda: torch.device, dtype: torch.dtype, kept: torch.dtype, compensated: bool
) -> None:
    elements = 256 * 2**20  # 1 GiB in float32, in one tensor
    state = {"weight": torch.ones(elements, dtype=dtype, device=cuda)}
    mean = RunningMean(state, kept, compensated)
    for _ in range(4):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        mean.update(state)
        torch.cuda.synchronize()
        more = torch.cuda.max_memory_allocated() - before
        assert more <= 300 * 2**20, f"{more / 2**20:.0f} MiB more during an update"
    assert float(mean.mean(torch.float64)["weight"][:: 2**20].sub(1).abs().max()) == 0


def test_the_pull_is_autograds(device: str) -> None:
    draws = torch.Generator().manual_seed(2)
    weights = [torch.randn(shape, generator=draws).to(device).requires_grad_() for shape in ((50, 20), (7,))]
    mean = [(w.detach() + 0.1) for w in weights]
    reference.pull_value(weights, mean, 0.3).backward()
    expected = [w.grad for w in weights]
    for w in weights:
        w.grad = torch.zeros_like(w)
    add_pull_gradient(weights, mean, 0.3)
    torch.testing.assert_close([w.grad for w in weights], expected)
    found = distance(weights, mean)
    assert found.device == weights[0].device
    assert found.item() == pytest.approx((1007 * 0.01) ** 0.5, rel=1e-4)


def test_the_folded_pull_takes_the_same_step(device: str) -> None:
    torch.manual_seed(3)
    plain, folded = (nn.Linear(40, 30).to(device) for _ in range(2))
    folded.load_state_dict(plain.state_dict())
    anchor = [torch.zeros_like(p) + 0.05 for p in plain.parameters()]
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=1e-3) for m in (plain, folded)]
    fold_pull(optimizers[1], 0.2)
    inputs = torch.randn(8, 40).to(device)
    for _ in range(3):
        for module, optimizer in zip((plain, folded), optimizers, strict=True):
            optimizer.zero_grad()
            module(inputs).square().mean().backward()
        add_pull_gradient(list(plain.parameters()), anchor, 0.2)
        add_folded_pull_gradient(list(folded.parameters()), anchor, 0.2)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(list(folded.parameters()), list(plain.parameters()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kept", [torch.float32, torch.float64])
def test_the_moments_of_swag_and_its_draws_are_the_cpus(device: str, kept: torch.dtype) -> None:
    states = points(torch.float32, device, 8)
    there, here = SWAG(states[0], 4, kept), SWAG(on_cpu(states)[0], 4, kept)
    for on_device, on_host in zip(states, on_cpu(states), strict=True):
        there.update(on_device)
        here.update(on_host)
    stacked = {n: torch.stack([s[n].double() for s in on_cpu(states)]) for n in ("a", "bias")}
    for name, values in stacked.items():
        torch.testing.assert_close(
            there.variance()[name].cpu().double(), values.var(dim=0, correction=0), rtol=1e-3, atol=1e-9
        )
    assert there.deviations()["a"].device.type == torch.device(device).type
    close(there.mean(torch.float64), here.mean(torch.float64), 1e-6)
    close(there.sample(5), here.sample(5), 1e-5)  # the same seed gives the same draw on every device
