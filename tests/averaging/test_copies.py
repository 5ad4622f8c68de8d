"""Pickles, files and deep copies of means are as large as what they hold, and go on with the same bits."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from wbar_averaging import SWAG, AveragedModel, ExponentialMean, RunningMean, WindowMean

MOST = 1.05  # times the bytes of the tensors
MEANS: dict[str, Callable[[nn.Module], Any]] = {
    "float32, compensated": RunningMean,
    "float32": lambda model: RunningMean(model, compensated=False),
    "float64": lambda model: RunningMean(model, torch.float64),
    "exponential": ExponentialMean,
    "window": lambda model: WindowMean(model, 3),
    "swag": lambda model: SWAG(model, 2),
    "average": AveragedModel,
}


def layers(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(100, 100) for _ in range(20)))


def update(mean: Any, model: nn.Module) -> None:
    (mean.update_parameters if isinstance(mean, AveragedModel) else mean.update)(model)


def walked(mean: Any, model: nn.Module, steps: int) -> Any:
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        update(mean, model)
    return mean


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors_in(part)]
    return [tensor for part in value.values() for tensor in tensors_in(part)] if isinstance(value, dict) else []


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize("kind", MEANS)
def test_a_pickle_a_file_and_a_deep_copy_are_as_large_as_the_tensors(kind: str) -> None:
    model = layers()
    mean = walked(MEANS[kind](model), model, 4)
    state = mean.state_dict()
    held = sum(tensor.nbytes for tensor in tensors_in(state))
    for value in (mean, state, copy.deepcopy(mean), copy.deepcopy(state)):
        assert len(pickle.dumps(value)) <= MOST * held
        assert len(saved(value)) <= MOST * held
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors_in(copy.deepcopy(state))
    }
    assert sum(storage.nbytes() for storage in storages.values()) <= MOST * held


@pytest.mark.parametrize("kind", MEANS)
def test_one_tensor_of_a_state_takes_no_other_with_it(kind: str) -> None:
    model = layers()
    for tensor in tensors_in(walked(MEANS[kind](model), model, 4).state_dict()):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("kind", MEANS)
def test_a_deep_copy_equals_its_original_bit_for_bit_now_and_after_more_updates(kind: str) -> None:
    model = layers().bfloat16() if kind == "average" else layers()
    mean = walked(MEANS[kind](model), model, 5)
    twin = copy.deepcopy(mean)
    for _ in range(4):
        one, other = tensors_in(mean.state_dict()), tensors_in(twin.state_dict())
        assert all(map(torch.equal, one, other))
        assert not {t.data_ptr() for t in one} & {t.data_ptr() for t in other}
        walked(mean, model, 1)
        update(twin, model)


@pytest.mark.parametrize("kind", [kind for kind in MEANS if kind != "average"])
def test_a_pickle_goes_on_with_the_same_bits(kind: str) -> None:
    model = layers()
    mean = walked(MEANS[kind](model), model, 5)
    again, loaded = pickle.loads(pickle.dumps(mean)), MEANS[kind](model)
    loaded.load_state_dict(torch.load(io.BytesIO(saved(mean.state_dict()))))
    points = [layers(seed) for seed in (1, 2)]
    for each in (mean, again, loaded):
        for point in points:
            each.update(point)
    for each in (again, loaded):
        assert all(map(torch.equal, tensors_in(each.state_dict()), tensors_in(mean.state_dict())))


def test_a_mean_made_under_inference_mode_is_updated_outside() -> None:
    model = layers()
    with torch.inference_mode():
        means = [RunningMean(model), RunningMean(model, torch.float64), ExponentialMean(model)]
        for mean in means:
            mean.update(model)
    for mean in means:
        walked(mean, model, 2)
        assert mean.n == 3
        assert mean.mean()["0.weight"].isfinite().all()


def test_a_window_keeps_shared_tensors_shared_when_it_is_read_back() -> None:
    tied = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": tied, "b": tied})
    window, again = WindowMean(model, 2), WindowMean(model, 2)
    window.update(model)
    again.load_state_dict(window.state_dict())
    kept = again.state_dict()["kept"][0]
    assert kept["a.weight"] is kept["b.weight"]
