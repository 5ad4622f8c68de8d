"""The running mean agrees with the twin that keeps every checkpoint, and refuses what would spoil it."""

import copy
import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.averaging import reference
from wbar_averaging import ExponentialMean, RunningMean, WindowMean

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1e-3, 1.0])
def test_compensated_float32_has_the_error_of_one_rounding_after_any_number_of_updates(
    dtype: torch.dtype, spread: float
) -> None:
    torch.manual_seed(0)
    start, total = torch.randn(4000), torch.zeros(4000, dtype=torch.float64)
    mean = RunningMean({"w": start})
    for n in range(1, 1001):
        point = (start + spread * torch.randn(4000)).to(dtype)
        total += point.double()
        mean.update({"w": point})
        if n in (10, 100, 1000):
            expected = total / n
            error = (mean.mean(torch.float32)["w"].double() - expected).norm() / expected.norm()
            assert error <= 5e-8, n


def test_without_compensation_float32_stays_near() -> None:
    points = sources(300)
    mean = RunningMean(points[0], compensated=False)
    for point in points:
        mean.update(point)
    expected = reference.mean_of(points)
    error = (mean.mean(torch.float64)["w"] - expected["w"]).norm() / expected["w"].norm()
    assert error < 1e-6


@given(seed=st.integers(0, 10_000), count=st.integers(1, 30), dtype=st.sampled_from(DTYPES[::2] + DTYPES[3:]))
@settings(max_examples=40, deadline=None)
def test_in_float64_the_mean_is_the_true_one_rounded_once(seed: int, count: int, dtype: torch.dtype) -> None:
    points = sources(count, dtype, seed)
    mean, halves = RunningMean(points[0], torch.float64), [RunningMean(points[0], torch.float64) for _ in range(2)]
    for index, point in enumerate(points):
        mean.update(point)
        halves[index % 2].update(point)
    halves[0].merge(halves[1])
    for name in ("w", "b", "scalar"):
        exact = [
            sum(map(Fraction, values)) / count
            for values in zip(*(p[name].flatten().tolist() for p in points), strict=True)
        ]
        for found in (mean, halves[0]):
            got = found.mean(torch.float64)[name].flatten().tolist()
            assert got == [float(value) for value in exact]


@pytest.mark.parametrize("compensated", [True, False])
def test_the_mean_of_equal_points_is_that_point(compensated: bool) -> None:
    point = sources(1)[0]
    mean = RunningMean(point, compensated=compensated)
    for _ in range(17):
        mean.update(point)
    assert all(torch.equal(value, point[name]) for name, value in mean.mean().items())


@given(
    seed=st.integers(0, 1000),
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=12),
    dtype=st.sampled_from(DTYPES),
    accumulate=st.sampled_from([torch.float32, torch.float64]),
    compensated=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_order_any_weights_any_split_into_merges_gives_the_same_mean(
    seed: int,
    weights: list[float],
    dtype: torch.dtype,
    accumulate: torch.dtype,
    compensated: bool,
    data: st.DataObject,
) -> None:
    points = sources(len(weights), dtype, seed)
    order = data.draw(st.permutations(range(len(weights))))
    homes = data.draw(st.lists(st.integers(0, 3), min_size=len(weights), max_size=len(weights)))
    parts = [RunningMean(points[0], accumulate, compensated) for _ in range(4)]
    for index in order:
        parts[homes[index]].update(points[index], weights[index])
    whole = RunningMean(points[0], accumulate, compensated)
    for part in parts:
        whole.merge(part)
    assert whole.n == len(points)
    assert whole.total_weight == pytest.approx(sum(weights))
    tolerance = 1e-13 if accumulate is torch.float64 else 2e-6
    for name in ("w", "b", "scalar"):
        values = torch.stack([weight * point[name].double() for weight, point in zip(weights, points, strict=True)])
        expected = values.sum(dim=0) / sum(weights)
        torch.testing.assert_close(whole.mean(torch.float64)[name], expected, rtol=tolerance, atol=tolerance)


def test_a_merge_leaves_the_other_mean_as_it_was() -> None:
    points = sources(4)
    one, other = RunningMean(points[0]), RunningMean(points[0])
    one.update(points[0])
    for point in points[1:]:
        other.update(point)
    before = other.mean(torch.float64)
    one.merge(other)
    one.update(points[0])
    assert all(torch.equal(before[name], value) for name, value in other.mean(torch.float64).items())


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_positive_number_is_refused(weight: float) -> None:
    mean = RunningMean(sources(1)[0])
    with pytest.raises(ValueError, match="positive number"):
        mean.update(sources(1)[0], weight)
    assert mean.n == 0


def test_shared_tensors_count_once_and_come_back_shared() -> None:
    tied = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": tied, "b": tied})
    mean = RunningMean(model)
    mean.update(model)
    found = mean.mean()
    assert found["a.weight"] is found["b.weight"]
    assert sorted(found) == sorted(model.state_dict())
    apart = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mean.update(apart)
    apart["b.bias"] += 1
    with pytest.raises(ValueError, match=r"a\.bias and b\.bias are one tensor in the mean"):
        mean.update(apart)


def test_wrapped_and_compiled_modules_are_read_under_their_own_names() -> None:
    model = nn.Linear(3, 2)
    mean = RunningMean(nn.DataParallel(model))
    mean.update(torch.compile(model))
    assert sorted(mean.mean()) == ["bias", "weight"]
    assert torch.equal(mean.mean()["weight"], model.weight)


def test_a_module_is_followed_through_replaced_parameters_moved_memory_and_new_layouts() -> None:
    model = nn.Conv2d(3, 4, 3)
    mean = RunningMean(model)
    mean.update(model)
    model.weight = nn.Parameter(model.weight.detach() + 2)
    mean.update(model)
    model.to(memory_format=torch.channels_last)
    model.weight.data = model.weight.data + 2
    mean.update(model)
    torch.testing.assert_close(mean.mean()["weight"], (model.weight.detach() - 2).contiguous())
    model.register_buffer("late", torch.zeros(1))
    with pytest.raises(ValueError, match=r"unexpected \['late'\]"):
        mean.update(model)


def test_a_sum_that_overflows_is_no_reason_to_refuse_finite_weights() -> None:
    huge = {"w": torch.full((10,), 3e38)}
    mean = RunningMean(huge)
    mean.update(huge)
    assert torch.equal(mean.mean()["w"], huge["w"])


def test_unchecked_updates_take_what_they_are_given() -> None:
    mean = RunningMean({"w": torch.zeros(2)}, check_finite=False)
    mean.update({"w": torch.tensor([1.0, float("nan")])})
    assert mean.mean()["w"].isnan().tolist() == [False, True]


def test_large_tensors_of_other_dtypes_and_layouts_are_taken_in_blocks() -> None:
    torch.manual_seed(0)
    like = torch.zeros(3, 600, 700)
    points = [torch.randn(3, 600, 700, dtype=torch.float64), torch.randn(700, 600, 3).permute(2, 1, 0).bfloat16()]
    for compensated in (True, False):
        mean = RunningMean({"w": like}, compensated=compensated)
        for point in points:
            mean.update({"w": point})
        expected = (points[0] + points[1].double()) / 2
        torch.testing.assert_close(mean.mean(torch.float64)["w"], expected, rtol=1e-6, atol=1e-6)


def test_no_temporary_is_as_large_as_the_model() -> None:
    model = nn.Sequential(*(nn.Linear(300, 300) for _ in range(6)))
    for options in ({}, {"dtype": torch.float64, "compensated": False}, {"compensated": False}):
        mean = RunningMean(model, **options)  # type: ignore[arg-type]
        for _ in range(2):
            mean.update(model)
        with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
            for _ in range(3):
                mean.update(model)
        largest = max((event.cpu_memory_usage for event in profile.events()), default=0)
        assert largest <= 2 * 4 * 300 * 300  # one layer in float64, of six


def test_a_replaced_part_and_a_copied_mean_are_followed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    mean = RunningMean(model)
    mean.update(model)
    twin = copy.deepcopy(mean)
    again = pickle.loads(pickle.dumps(mean))
    model[1] = nn.Linear(2, 2)
    nn.init.constant_(model[1].weight, 5.0)
    for each in (mean, twin, again):
        each.update(model)
        each.update(model)
        expected = (model[1].weight * 2 + twin.mean()["1.weight"] * 0).mean() / 3
        assert each.n == 3
        assert each.mean()["1.weight"].mean() > expected.detach() - 0.5
    assert torch.equal(mean.mean()["1.weight"], twin.mean()["1.weight"])
    assert torch.equal(mean.mean()["1.weight"], again.mean()["1.weight"])


def test_a_model_whose_parts_are_no_longer_shared_is_noticed() -> None:
    tied = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": tied, "b": tied})
    mean = RunningMean(model)
    mean.update(model)
    model["b"] = copy.deepcopy(tied)
    mean.update(model)
    with torch.no_grad():
        model["b"].weight.add_(1)
    with pytest.raises(ValueError, match=r"a\.weight and b\.weight are one tensor"):
        mean.update(model)


def test_every_name_of_a_shared_tensor_is_written() -> None:
    tied = nn.Linear(2, 2)
    mean = RunningMean(nn.ModuleDict({"a": tied, "b": tied}))
    mean.update(nn.ModuleDict({"a": tied, "b": tied}))
    target = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    mean.copy_to(target)
    assert torch.equal(target["a"].weight, tied.weight)
    assert torch.equal(target["b"].weight, tied.weight)


def test_a_part_called_module_is_no_wrapper() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    mean = RunningMean(torch.compile(Net()))
    mean.update(torch.compile(Net()))
    assert "head.weight" in mean.mean()


def test_other_kinds_of_state_and_complex_tensors_are_refused_before_anything_changes() -> None:
    point = sources(1)[0]
    single, double = RunningMean(point), RunningMean(point, torch.float64)
    single.update(point)
    double.update(point)
    with pytest.raises(ValueError, match="another kind of mean"):
        double.load_state_dict(single.state_dict())
    broken = single.state_dict()
    broken["correction"] = {}
    fresh = RunningMean(point)
    with pytest.raises(ValueError, match="no correction"):
        fresh.load_state_dict(broken)
    assert fresh.n == 0
    with pytest.raises(ValueError, match="complex"):
        RunningMean({"z": torch.zeros(2, dtype=torch.complex64)})
    counts = RunningMean({"n": torch.tensor(1)})
    counts.update({"n": torch.tensor(3)})
    counts.update({"n": torch.tensor(4)})
    assert counts.mean()["n"].item() == 4


# The other means.


@given(seed=st.integers(0, 100), count=st.integers(1, 20), decay=st.floats(0, 0.999), warmup=st.booleans())
@settings(max_examples=30, deadline=None)
def test_exponential_mean_equals_its_recurrence(seed: int, count: int, decay: float, warmup: bool) -> None:
    points = sources(count, seed=seed)
    mean = ExponentialMean(points[0], decay=decay, warmup=warmup)
    expected = points[0]["w"].double()
    mean.update(points[0])
    for t, point in enumerate(points[1:], start=1):
        d = min(decay, (1 + t) / (10 + t)) if warmup else decay
        expected = d * expected + (1 - d) * point["w"].double()
        mean.update(point)
    torch.testing.assert_close(mean.mean(torch.float64)["w"], expected, rtol=1e-6, atol=1e-6)


def test_exponential_mean_resumes_to_the_same_bits_and_refuses_a_decay_outside() -> None:
    points = sources(8)
    whole, half = ExponentialMean(points[0], 0.9), ExponentialMean(points[0], 0.9)
    for point in points:
        whole.update(point)
    for point in points[:5]:
        half.update(point)
    again = ExponentialMean(points[0], 0.9)
    again.load_state_dict(half.state_dict())
    for point in points[5:]:
        again.update(point)
    assert all(torch.equal(again.mean()[name], value) for name, value in whole.mean().items())
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        ExponentialMean(points[0], decay=1.0)


@given(count=st.integers(1, 12), window=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_window_mean_is_the_mean_of_the_last_sources(count: int, window: int) -> None:
    points = sources(count)
    mean = WindowMean(points[0], window)
    for point in points:
        mean.update(point)
        point["w"].add_(0)  # its own memory: what was given may change
    expected = reference.mean_of(points[-window:])
    torch.testing.assert_close(mean.mean(torch.float64)["w"], expected["w"], rtol=1e-6, atol=1e-6)
    again = WindowMean(points[0], window)
    again.load_state_dict(mean.state_dict())
    assert all(torch.equal(again.mean()[name], value) for name, value in mean.mean().items())
    assert again.n == count


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
