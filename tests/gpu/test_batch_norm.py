"""BatchNorm statistics on the device: pooled exactly, under autocast too, and as they were after an exception."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.averaging import reference
from wbar.spec import Network
from wbar_averaging import recompute_batch_norm
from wbar_training.networks.architectures import initialized

pytestmark = pytest.mark.gpu


def network(device: str) -> nn.Module:
    torch.manual_seed(4)
    return initialized(Network("resnet20", 10)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub


def batches(device: str) -> list[Tensor]:
    """Uneven ones, each with another brightness, so that a mean of means would be wrong."""
    draws = torch.Generator().manual_seed(5)
    made = [torch.randn(size, 3, 16, 16, generator=draws) * (1 + n) + n for n, size in enumerate((50, 3, 130, 17))]
    return [batch.to(device).contiguous(memory_format=torch.channels_last) for batch in made]


def found(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    return {n: (m.running_mean, m.running_var) for n, m in layers.items()}  # type: ignore[misc]  # they are tracked


def compare(model: nn.Module, expected: dict[str, tuple[Tensor, Tensor]], tolerance: float) -> None:
    for name, pair in found(model).items():
        for got, want in zip(pair, expected[name], strict=True):
            scale = want.abs().max().item()
            torch.testing.assert_close(
                got.cpu().double(), want.cpu().double(), rtol=tolerance, atol=tolerance * scale, msg=name
            )


@pytest.mark.usefixtures("exact")
def test_pooled_as_the_float64_twin_on_the_cpu(device: str) -> None:
    model = network(device)
    twin = copy.deepcopy(model).cpu().double()
    expected = reference.batch_norm_statistics(twin, [batch.cpu().double() for batch in batches(device)])
    done = recompute_batch_norm(model, batches(device))
    assert (done.layers, done.images) == (len(expected), 200)
    compare(model, expected, 5e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("exact")
def test_under_autocast_it_pools_what_the_layers_saw(device: str, dtype: torch.dtype) -> None:
    model = network(device)
    kind = torch.device(device).type

    def forward(module: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast(kind, dtype=dtype):
            out: Tensor = module(batch)
        return out

    expected = reference.batch_norm_statistics(copy.deepcopy(model), batches(device), forward)
    recompute_batch_norm(model, batches(device), dtype=dtype)
    for mean, variance in found(model).values():
        assert mean.dtype == variance.dtype == torch.float32
    compare(model, expected, 5e-3)


@pytest.mark.usefixtures("exact")
def test_consistent_statistics_are_the_networks_own(device: str) -> None:
    """In eval mode, with the statistics that were found, each layer's inputs have just these statistics."""
    model = network(device)
    done = recompute_batch_norm(model, batches(device), consistent=True, tolerance=1e-5)
    assert done.passes > 1
    seen: dict[str, list[Tensor]] = {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, layer in layers.items():

        def keep(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            seen.setdefault(name, []).append(inputs[0].detach().double().transpose(0, 1).flatten(1))

        layer.register_forward_pre_hook(keep)
    model.eval()
    with torch.no_grad():
        for batch in batches(device):
            model(batch)
    joined = {name: torch.cat(parts, dim=1) for name, parts in seen.items()}
    compare(model, {name: (values.mean(dim=1), values.var(dim=1)) for name, values in joined.items()}, 1e-3)


def test_after_an_exception_everything_is_as_it_was(device: str) -> None:
    model = network(device).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    broken = batches(device)
    broken[2][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite in batch 2"):
        recompute_batch_norm(model, broken)
    with pytest.raises(ValueError, match="no batches"):
        recompute_batch_norm(model, [])
    assert not model.training
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
