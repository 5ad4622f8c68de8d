"""BatchNorm statistics equal those of a twin that keeps every activation; nothing of the model is left changed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from averaging import recompute_batch_norm
from tests.averaging import reference


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5), nn.BatchNorm1d(5),
    )  # fmt: skip


def without_dropout(model: nn.Module) -> nn.Module:
    return nn.Sequential(*(nn.Identity() if isinstance(m, nn.Dropout) else m for m in model))


@given(seed=st.integers(0, 500), cuts=st.lists(st.integers(2, 9), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_equals_the_twin_for_any_batches(seed: int, cuts: list[int]) -> None:
    model = network(seed)
    batches = [torch.randn(size, 3, 6, 6) * 2 + 3 for size in cuts]
    expected = reference.batch_norm_statistics(without_dropout(model), batches)
    assert recompute_batch_norm(model, batches) == 3
    for name, (mean, variance) in expected.items():
        layer = model.get_submodule(name)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-4, atol=1e-6)


def test_the_first_layer_does_not_depend_on_how_images_are_cut() -> None:
    images = torch.randn(130, 3, 5, 5) + 100
    whole, cut = network(), network()
    recompute_batch_norm(whole, [images])
    recompute_batch_norm(cut, [images[:128], images[128:]])
    torch.testing.assert_close(whole[1].running_var, cut[1].running_var, rtol=1e-6, atol=0)
    exact = reference.batch_norm_statistics(whole, [images])["1"][1]
    torch.testing.assert_close(cut[1].running_var.double(), exact, rtol=1e-5, atol=0)


def state_of(model: nn.Module) -> list[object]:
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [
        [m.training for m in model.modules()],
        [(m.momentum, m.num_batches_tracked.item(), m.running_mean.tolist()) for m in layers],
        [len(m._forward_pre_hooks) for m in model.modules()],
    ]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches"),
        ([torch.full((4, 3, 6, 6), float("nan"))], "not finite"),
        ([torch.zeros(4, 2, 6, 6)], "channels"),
    ],
)
def test_an_error_leaves_the_model_as_it_was(batches: list[torch.Tensor], message: str) -> None:
    model = network()
    model.eval()
    model[1].train()
    before = state_of(model)
    with pytest.raises((ValueError, RuntimeError), match=message):
        recompute_batch_norm(model, batches)
    assert state_of(model) == before


def test_modes_momentum_and_counters_are_restored() -> None:
    model = network()
    model.eval()
    model[1].momentum = 0.3
    before = state_of(model)
    recompute_batch_norm(model, [torch.randn(8, 3, 6, 6)])
    after = state_of(model)
    assert after[0] == before[0]
    assert after[2] == before[2]
    assert model[1].momentum == 0.3
    assert model[1].num_batches_tracked.item() == 0


def test_a_model_without_batch_norm_reads_nothing() -> None:
    def never():
        raise AssertionError("a batch was read")
        yield

    assert recompute_batch_norm(nn.Linear(3, 2), never()) == 0


class StochasticDepth(nn.Module):
    """Drops at random in train mode, as torchvision's does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand(()) < 0.5) if self.training else x


def test_nothing_is_dropped_while_statistics_are_computed() -> None:
    model = nn.Sequential(StochasticDepth(), nn.Dropout(0.5), nn.BatchNorm2d(3))
    images = torch.randn(16, 3, 4, 4)
    recompute_batch_norm(model, [images])
    torch.testing.assert_close(model[2].running_mean, images.mean(dim=(0, 2, 3)))
    assert model[0].training


def test_a_single_value_has_no_variance() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"single value|more than 1 value"):
        recompute_batch_norm(model, [torch.zeros(1, 3, 1, 1)])
