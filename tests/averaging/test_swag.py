"""SWAG agrees with a twin that keeps every point in float64, its draws have the covariance of the paper's equation 1, and
averaging over draws leaves the model as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wbar_averaging import recompute_batch_norm
from wbar_averaging.swag import SWAG, bayesian_average


def points(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    torch.manual_seed(seed)
    return [
        {
            "w": (torch.randn(3, 2) + 5).to(dtype),
            "b": torch.randn(4).to(dtype),
            "bn.running_var": torch.rand(2).to(dtype),
            "bn.num_batches_tracked": torch.tensor(step),
        }
        for step in range(count)
    ]


def fed(sources: list[dict[str, Tensor]], **options: Any) -> SWAG:
    swag = SWAG(sources[0], **options)
    for source in sources:
        swag.update(source)
    return swag


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors["w"].double().flatten(), tensors["b"].double().flatten()])


def twin(sources: list[dict[str, Tensor]], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, E[w²] − mean², and the last deviations from the mean at that time, as in algorithm 1, in float64."""
    kept = torch.stack([flat(source) for source in sources])
    deviations = [kept[i] - kept[: i + 1].mean(dim=0) for i in range(len(kept))]
    return kept.mean(dim=0), kept.square().mean(dim=0) - kept.mean(dim=0).square(), torch.stack(deviations[-rank:])


@given(count=st.integers(2, 25), rank=st.integers(2, 8), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_moments_and_deviations_equal_the_twin(count: int, rank: int, seed: int) -> None:
    sources = points(count, seed)
    swag = fed(sources, rank=rank, dtype=torch.float64)
    mean, variance, deviations = twin(sources, rank)
    assert swag.n == count
    assert swag.columns == min(count, rank)
    torch.testing.assert_close(flat(swag.mean(torch.float64)), mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flat(swag.variance()), variance, rtol=1e-9, atol=1e-9)
    held = swag.deviations()
    found = torch.cat([held["w"].flatten(1), held["b"].flatten(1)], dim=1)
    torch.testing.assert_close(found, deviations, rtol=1e-10, atol=1e-10)


def test_large_tensors_in_any_layout_are_updated_like_small_ones() -> None:
    torch.manual_seed(0)
    sources = [{"w": torch.randn(70, 60, 7, 7).to(memory_format=torch.channels_last)} for _ in range(4)]
    mixed = [sources[0], {"w": sources[1]["w"].contiguous()}, {"w": sources[2]["w"].half().float()}, sources[3]]
    swag = fed(mixed)
    kept = torch.stack([source["w"].double() for source in mixed])
    torch.testing.assert_close(swag.mean(torch.float64)["w"], kept.mean(dim=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(swag.variance()["w"].double(), kept.var(dim=0, unbiased=False), rtol=1e-5, atol=1e-6)


def test_the_variance_of_large_weights_that_hardly_vary_survives_float32() -> None:
    torch.manual_seed(1)
    sources = [{"w": 1 + 1e-4 * torch.randn(1000)} for _ in range(50)]
    kept = torch.stack([source["w"].double() for source in sources])
    true = kept.var(dim=0, unbiased=False)
    textbook = torch.stack([source["w"].square() for source in sources]).mean(dim=0) - kept.float().mean(dim=0).square()
    found = fed(sources, rank=0).variance()["w"].double()
    assert (found / true - 1).abs().max() < 0.02
    assert (textbook.double() / true - 1).abs().max() > 1


def test_statistics_are_averaged_and_integers_are_the_latest_and_neither_is_drawn() -> None:
    sources = points(6)
    swag = fed(sources)
    draws = [swag.sample(seed) for seed in range(3)]
    expected = torch.stack([source["bn.running_var"] for source in sources]).mean(dim=0)
    for draw in draws:
        torch.testing.assert_close(draw["bn.running_var"], expected)
        assert draw["bn.num_batches_tracked"].item() == 5
    assert not torch.equal(draws[0]["w"], draws[1]["w"])
    assert swag.variance().keys() == {"w", "b"}


@pytest.mark.parametrize(
    ("scale", "diagonal_only", "rank"), [(1.0, False, 4), (2.5, False, 20), (1.0, True, 4), (0.5, False, 0)]
)
def test_draws_have_the_covariance_of_equation_1(scale: float, diagonal_only: bool, rank: int) -> None:
    sources = points(9, seed=3)
    swag = fed(sources, rank=rank, dtype=torch.float64)
    mean, variance, deviations = twin(sources, rank or 1)
    expected = variance.diag() * scale
    if rank and not diagonal_only:
        expected = scale / 2 * (variance.diag() + deviations.T @ deviations / (len(deviations) - 1))
    generator = torch.Generator().manual_seed(11)
    draws = torch.stack([flat(swag.sample(generator, scale, diagonal_only)) for _ in range(6000)])
    size = float(expected.diag().max())
    off = float(mean.abs().max()) * 1.2e-7  # float32 points are returned in float32
    assert (draws.mean(dim=0) - mean).abs().max() < 5 * (size / 6000) ** 0.5 + off
    assert (torch.cov(draws.T) - expected).abs().max() < 0.1 * size


def test_a_long_gaussian_trajectory_gives_its_own_covariance() -> None:
    torch.manual_seed(2)
    factor = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [-0.5, 0.2, 0.3]], dtype=torch.float64)
    swag = fed(
        [{"w": factor @ torch.randn(3, dtype=torch.float64)} for _ in range(4000)], rank=4000, dtype=torch.float64
    )
    columns = swag.deviations()["w"]
    torch.testing.assert_close(columns.T @ columns / 3999, factor @ factor.T, rtol=0, atol=0.08)
    torch.testing.assert_close(swag.variance()["w"], (factor @ factor.T).diag(), rtol=0.1, atol=0)


def test_a_trajectory_of_rank_r_gives_deviations_of_exactly_that_rank() -> None:
    torch.manual_seed(4)
    basis, _ = torch.linalg.qr(torch.randn(12, 3, dtype=torch.float64))
    swag = fed([{"w": basis @ torch.randn(3, dtype=torch.float64) + 7} for _ in range(10)], dtype=torch.float64)
    columns = swag.deviations()["w"]
    assert columns.shape == (10, 12)
    assert torch.linalg.matrix_rank(columns) == 3
    torch.testing.assert_close(columns @ basis @ basis.T, columns)
    assert columns[0].abs().max() == 0


def test_draws_are_reproducible_whatever_the_order_of_the_tensors() -> None:
    sources = points(5)
    turned = [dict(reversed(source.items())) for source in sources]
    one, other = fed(sources).sample(7), fed(turned).sample(7)
    again = fed(sources).sample(torch.Generator().manual_seed(7))
    assert list(one) == list(reversed(other))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name])
        assert torch.equal(tensor, again[name])


def test_no_scale_is_the_mean_and_dtypes_are_the_sources() -> None:
    swag = fed(points(4, dtype=torch.bfloat16))
    draw, mean = swag.sample(0, scale=0.0), swag.mean()
    assert all(draw[name].dtype is mean[name].dtype and torch.equal(draw[name], mean[name]) for name in mean)
    assert draw["w"].dtype is torch.bfloat16
    assert swag.variance()["w"].dtype is torch.float32


def test_shared_weights_are_drawn_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    swag = SWAG(model)
    for _ in range(3):
        nn.init.normal_(model[0].weight)
        swag.update(model)
    draw = swag.sample(0)
    assert torch.equal(draw["0.weight"], draw["1.weight"])
    model.load_state_dict(draw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": torch.zeros(2, 2)}, r"w: \(3, 2\) in SWAG, \(2, 2\) in the source"),
        ({"extra": torch.zeros(1)}, r"extra: missing in SWAG, \(1,\) in the source"),
        ({"b": torch.tensor([0.0, float("nan"), 0, 0])}, "b is not finite"),
    ],
)
def test_a_bad_source_is_refused_before_anything_changes(change: dict[str, Tensor], message: str) -> None:
    sources = points(3)
    swag = fed(sources)
    before = swag.sample(0)
    with pytest.raises(ValueError, match=message):
        swag.update(sources[0] | change)
    assert swag.n == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in swag.sample(0).items())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: SWAG(points(1)[0]).mean(), "mean of no points"),
        (lambda: fed(points(1)).variance(), "fewer than two points"),
        (lambda: fed(points(1)).sample(0), "fewer than two points is undefined: n = 1"),
        (lambda: fed(points(3)).sample(0, scale=-1), "scale must be"),
        (lambda: SWAG(points(1)[0], rank=1), "rank must be 0"),
        (lambda: SWAG(points(1)[0], dtype=torch.float16), "dtype must be"),
    ],
)
def test_what_is_undefined_is_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


def test_resumes_to_the_same_bits() -> None:
    sources = points(9)
    whole, first, second = fed(sources, rank=3), fed(sources[:4], rank=3), SWAG(sources[0], rank=3)
    second.load_state_dict(first.state_dict())
    for source in sources[4:]:
        second.update(source)
    assert all(torch.equal(tensor, second.sample(5)[name]) for name, tensor in whole.sample(5).items())
    with pytest.raises(ValueError, match="rank 3 with 3 deviations of 4 points in the state, rank 2 here"):
        SWAG(sources[0], rank=2).load_state_dict(first.state_dict())


# Averaging over draws.


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))


def swag_around(model: nn.Module) -> SWAG:
    swag = SWAG(model, rank=3)
    for step in range(5):
        torch.manual_seed(step)
        swag.update({n: t + 0.1 * torch.randn_like(t).abs() if t.dim() else t for n, t in model.state_dict().items()})
    return swag


def snapshot(model: nn.Module) -> list[object]:
    return [[t.tolist() for t in model.state_dict().values()], [m.training for m in model.modules()]]


def test_the_average_is_that_of_the_predictions_with_statistics_of_each_draw() -> None:
    model, images = network(), torch.randn(40, 4)
    swag = swag_around(model)
    model[3].eval()
    before = snapshot(model)
    seen: list[Tensor] = []

    def predict(m: nn.Module) -> Tensor:
        assert not m.training
        assert not torch.is_grad_enabled()
        seen.append(m(images).softmax(dim=1))
        inputs = m[0](images)
        torch.testing.assert_close(m[1].running_mean, inputs.mean(dim=0), rtol=1e-4, atol=1e-5)
        return seen[-1]

    recompute = lambda m: recompute_batch_norm(m, [images])  # noqa: E731
    found = bayesian_average(model, swag, predict, samples=4, seed=1, recompute=recompute)
    assert found.dtype is torch.float64
    assert not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(found, torch.stack(seen).double().mean(dim=0))
    assert snapshot(model) == before
    again = bayesian_average(model, swag, predict, samples=4, seed=1, recompute=recompute)
    assert torch.equal(found, again)


def test_the_model_is_restored_after_an_exception() -> None:
    model = network()
    swag, before = swag_around(model), snapshot(model)
    buffer = model[1].running_mean

    def recompute(m: nn.Module) -> None:
        m[1].running_mean = torch.full((5,), 9.0)
        m.train()

    def fail(m: nn.Module) -> Tensor:
        raise RuntimeError("predicting failed")

    with pytest.raises(RuntimeError, match="predicting failed"):
        bayesian_average(model, swag, fail, samples=2, seed=0, recompute=recompute)
    assert snapshot(model) == before
    assert model[1].running_mean is buffer


def test_batch_norm_without_recomputation_and_bad_predictions_are_refused() -> None:
    model = network()
    swag = swag_around(model)
    with pytest.raises(ValueError, match="1 has BatchNorm statistics"):
        bayesian_average(model, swag, lambda m: torch.ones(2), samples=1, seed=0)
    with pytest.raises(ValueError, match="sample 0 are not finite"):
        bayesian_average(
            model, swag, lambda m: torch.full((2,), torch.nan), samples=1, seed=0, recompute=lambda m: None
        )
    with pytest.raises(ValueError, match=r"1\.running_mean: missing in the model"):
        bayesian_average(nn.Linear(4, 5), swag, lambda m: torch.ones(2), samples=1, seed=0)
