"""The running mean agrees with the twin that keeps every checkpoint, and refuses what would spoil it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from averaging import RunningMean
from tests.averaging import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def sources(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    return [
        {
            "w": (torch.randn(7, 5) * 3 + 10).to(dtype),
            "b": torch.randn(4).to(dtype),
            "scalar": torch.randn(()).to(dtype),
            "count": torch.tensor(step),
        }
        for step in range(count)
    ]


@given(count=st.integers(1, 40), seed=st.integers(0, 1000), dtype=st.sampled_from(DTYPES))
@settings(max_examples=40, deadline=None)
def test_equals_the_twin_in_float64(count: int, seed: int, dtype: torch.dtype) -> None:
    points = sources(count, dtype, seed)
    mean = RunningMean(points[0], dtype=torch.float64)
    for point in points:
        mean.update(point)
    expected = reference.mean_of(points)
    found = mean.mean(torch.float64)
    for name in ("w", "b", "scalar"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-14, atol=1e-14)
    assert found["count"].item() == count - 1


def test_float32_stays_near_the_twin_after_many_updates() -> None:
    points = sources(300)
    mean = RunningMean(points[0], dtype=torch.float32)
    for point in points:
        mean.update(point)
    expected = reference.mean_of(points)
    error = (mean.mean(torch.float64)["w"] - expected["w"]).norm() / expected["w"].norm()
    assert error < 1e-6


def test_a_bfloat16_model_is_averaged_in_the_chosen_dtype_and_returned_in_its_own() -> None:
    points = sources(50, torch.bfloat16)
    mean = RunningMean(points[0], dtype=torch.float32)
    for point in points:
        mean.update(point)
    expected = reference.mean_of(points)
    assert mean.mean()["w"].dtype is torch.bfloat16
    torch.testing.assert_close(mean.mean(torch.float64)["w"], expected["w"], rtol=1e-6, atol=1e-6)


def test_is_empty_at_first_and_says_so() -> None:
    mean = RunningMean(sources(1)[0])
    assert mean.n == 0
    with pytest.raises(ValueError, match="no points"):
        mean.mean()


def test_copies_into_a_model() -> None:
    first, second, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.constant_(first.weight, 1.0)
    nn.init.constant_(second.weight, 2.0)
    second.num_batches_tracked += 5
    mean = RunningMean(first)
    mean.update(first)
    mean.update(second)
    mean.copy_to(target)
    assert target.weight.tolist() == [1.5, 1.5, 1.5]
    assert int(target.num_batches_tracked) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": torch.zeros(7, 4)}, r"w: \(7, 4\) in the source, \(7, 5\) in the mean"),
        ({"extra": torch.zeros(1)}, "unexpected .*extra"),
        ({"w": torch.full((7, 5), float("nan"))}, "w is not finite"),
        ({"b": torch.tensor([0.0, float("inf"), 0.0, 0.0])}, "b is not finite"),
    ],
)
def test_a_bad_source_is_refused_before_it_touches_the_mean(change: dict[str, torch.Tensor], message: str) -> None:
    points = sources(2)
    mean = RunningMean(points[0])
    mean.update(points[0])
    before = mean.mean()
    with pytest.raises(ValueError, match=message):
        mean.update(points[1] | change)
    assert mean.n == 1
    assert all(torch.equal(before[name], value) for name, value in mean.mean().items())


def test_missing_tensors_are_named() -> None:
    points = sources(1)
    mean = RunningMean(points[0])
    with pytest.raises(ValueError, match=r"missing \['w'\]"):
        mean.update({name: value for name, value in points[0].items() if name != "w"})


def test_refuses_a_low_accumulation_dtype() -> None:
    with pytest.raises(ValueError, match=r"float32 or torch\.float64"):
        RunningMean(sources(1)[0], dtype=torch.bfloat16)


def test_resumes_to_the_same_bits() -> None:
    points = sources(9)
    whole, first = RunningMean(points[0]), RunningMean(points[0])
    for point in points:
        whole.update(point)
    for point in points[:4]:
        first.update(point)
    second = RunningMean(points[0])
    second.load_state_dict(first.state_dict())
    for point in points[4:]:
        second.update(point)
    assert second.n == whole.n == 9
    assert all(torch.equal(second.mean()[name], whole.mean()[name]) for name in points[0])
