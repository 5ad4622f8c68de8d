"""The drop-ins do what `torch.optim.swa_utils` does, and better where that is wrong."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import wbar_averaging
from wbar_averaging import SWALR, AveragedModel, update_bn


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def walk(model: nn.Module, steps: int) -> None:
    for step in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        model.train()
        model(torch.randn(4, 3, 6, 6) + step)


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize(
    "functions",
    [
        dict,
        lambda: {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
        lambda: {"avg_fn": swa_utils.get_ema_avg_fn(0.9)},
        lambda: {"avg_fn": wbar_averaging.get_swa_avg_fn()},
    ],
)
def test_averages_like_torch(use_buffers: bool, functions: Callable[[], dict[str, object]]) -> None:
    model = network()
    ours = AveragedModel(model, use_buffers=use_buffers, **functions())  # type: ignore[arg-type]
    theirs = swa_utils.AveragedModel(model, use_buffers=use_buffers, **functions())
    for _ in range(5):
        walk(model, 1)
        ours.update_parameters(model)
        theirs.update_parameters(model)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point() or name == "n_averaged":
            torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    images = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


def test_a_state_goes_over_from_torch_and_on() -> None:
    model = network()
    ours, theirs, whole = AveragedModel(model), swa_utils.AveragedModel(model), AveragedModel(model)
    for step in range(6):
        walk(model, 1)
        whole.update_parameters(model)
        if step < 3:
            theirs.update_parameters(model)
        else:
            if step == 3:
                ours.load_state_dict(theirs.state_dict())
            ours.update_parameters(model)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def test_weights_that_somebody_writes_into_the_average_count() -> None:
    model = nn.Linear(2, 1, bias=False)
    ours, theirs = AveragedModel(model), swa_utils.AveragedModel(model)
    for averaged in (ours, theirs):
        averaged.update_parameters(model)
        averaged.update_parameters(model)
        with torch.no_grad():
            averaged.module.weight.fill_(10.0)
        averaged.update_parameters(model)
    torch.testing.assert_close(ours.module.weight, theirs.module.weight)
    state = copy.deepcopy(theirs.state_dict())
    state["module.weight"].fill_(-7.0)
    for averaged in (ours, theirs):
        averaged.load_state_dict(state)
        averaged.update_parameters(model)
    torch.testing.assert_close(ours.module.weight, theirs.module.weight)


def test_a_bfloat16_model_keeps_its_gain() -> None:
    model = nn.Linear(50, 50, bias=False).bfloat16()
    ours, total = AveragedModel(model), torch.zeros(50, 50, dtype=torch.float64)
    start = model.weight.detach().clone()
    for _ in range(200):
        with torch.no_grad():
            model.weight.copy_(start + 0.05 * torch.randn(50, 50))
        total += model.weight.detach().double()
        ours.update_parameters(model)
    exact = total / 200
    averaged = ours.module.get_parameter("weight").detach().double()
    assert (averaged - exact).norm() / exact.norm() < 3e-3  # a single rounding to bfloat16


def test_another_model_and_two_functions_are_refused() -> None:
    model = AveragedModel(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"weight: \(4, 3\) in the source, \(2, 3\)"):
        model.update_parameters(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="not both"):
        AveragedModel(nn.Linear(1, 1), avg_fn=swa_utils.get_swa_avg_fn(), multi_avg_fn=swa_utils.get_swa_multi_avg_fn())


def test_update_bn_pools_where_torch_averages() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    images = torch.randn(130, 3) * torch.linspace(1, 3, 130)[:, None]
    update_bn([(images[:128], torch.zeros(128)), (images[128:], torch.zeros(2))], model)
    layer = model[0]
    assert isinstance(layer, nn.BatchNorm1d)
    assert layer.running_var is not None
    torch.testing.assert_close(layer.running_var, images.var(dim=0))
    with pytest.raises(ValueError, match="no batches"):
        update_bn([], model)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("epochs", [0, 1, 5])
def test_swalr_gives_torchs_rates_and_resumes(strategy: str, epochs: int) -> None:
    def rates(kind: type, resume: bool) -> list[list[float]]:
        parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer = torch.optim.SGD([{"params": [parameters[0]], "lr": 0.3}, {"params": [parameters[1]], "lr": 0.1}])
        schedule = kind(optimizer, swa_lr=[0.05, 0.02], anneal_epochs=epochs, anneal_strategy=strategy)
        found = []
        for step in range(8):
            optimizer.step()
            schedule.step()
            found.append([group["lr"] for group in optimizer.param_groups])
            if resume and step == 2:
                state, rates_now = copy.deepcopy(schedule.state_dict()), copy.deepcopy(optimizer.state_dict())
                optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0)
                schedule = kind(optimizer, swa_lr=[0.05, 0.02], anneal_epochs=epochs, anneal_strategy=strategy)
                optimizer.load_state_dict(rates_now)
                schedule.load_state_dict(state)
        return found

    expected = rates(swa_utils.SWALR, resume=False)
    for found in (rates(SWALR, resume=False), rates(SWALR, resume=True)):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("wrong", [{"swa_lr": [0.1, 0.2]}, {"anneal_strategy": "exp"}, {"anneal_epochs": -1}])
def test_swalr_refuses_what_makes_no_schedule(wrong: dict[str, object]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SWALR(optimizer, **{"swa_lr": 0.1, **wrong})  # type: ignore[arg-type]
