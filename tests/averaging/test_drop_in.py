"""The drop-ins do what `torch.optim.swa_utils` does, and better where that is wrong."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import vector_to_parameters
from torch.optim import swa_utils

import wbar_averaging
from wbar_averaging import AveragedModel, update_bn


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def take_steps(model: nn.Module, steps: int) -> None:
    for step in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        model.train()
        model(torch.randn(4, 3, 6, 6) + step)


FUNCTIONS: list[Callable[[], dict[str, object]]] = [
    lambda: {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    lambda: {"avg_fn": swa_utils.get_ema_avg_fn(0.9)},
    lambda: {"avg_fn": wbar_averaging.get_swa_avg_fn()},
]


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("functions", [dict, *FUNCTIONS])
def test_averages_like_torch(use_buffers: bool, functions: Callable[[], dict[str, object]]) -> None:
    model = network()
    ours = AveragedModel(model, use_buffers=use_buffers, **functions())  # type: ignore[arg-type]  # one of several signatures
    torchs = swa_utils.AveragedModel(model, use_buffers=use_buffers, **functions())  # type: ignore[arg-type]  # the same
    for _ in range(5):
        take_steps(model, 1)
        ours.update_parameters(model)
        torchs.update_parameters(model)
    assert isinstance(ours, swa_utils.AveragedModel)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for name, tensor in torchs.state_dict().items():
        if functions is not dict:
            assert torch.equal(ours.state_dict()[name], tensor), name
        elif tensor.is_floating_point() or name == "n_averaged":
            torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    images = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(ours.eval()(images), torchs.eval()(images), rtol=1e-4, atol=1e-5)


def test_integer_buffers_are_the_latest_models_and_not_a_truncated_mean() -> None:
    model = nn.BatchNorm1d(2)
    averaged = AveragedModel(model, use_buffers=True)
    for count in (10, 21, 30):
        model.get_buffer("num_batches_tracked").fill_(count)
        averaged.update_parameters(model)
    assert averaged.module.num_batches_tracked.item() == 30


def test_an_exponential_mean_of_ten_models_is_its_closed_form() -> None:
    model, decay = nn.Linear(5, 4), 0.9
    averaged = AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    expected = torch.zeros(4, 5)
    for step in range(10):
        with torch.no_grad():
            model.weight.normal_()
        expected += model.weight.detach() * decay ** (9 - step) * (1 - decay if step else 1.0)
        averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.weight.detach(), expected)
    assert averaged.n_averaged.item() == 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128])
def test_float64_and_complex_models_are_averaged_in_their_own_precision_with_their_buffers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(30, 20, dtype=dtype)
    model.register_buffer("statistics", torch.randn(50, dtype=dtype))
    averaged = AveragedModel(model, use_buffers=True)
    weights, statistics = [], []
    for _ in range(10):
        with torch.no_grad():
            model.weight.copy_(torch.randn(20, 30, dtype=dtype))
            model.get_buffer("statistics").copy_(torch.randn(50, dtype=dtype))
        weights.append(model.weight.detach().clone())
        statistics.append(model.get_buffer("statistics").clone())
        averaged.update_parameters(model)
    precision = 3e-16 if dtype in (torch.float64, torch.complex128) else 2e-7
    for mean, points in ((averaged.module.weight, weights), (averaged.module.statistics, statistics)):
        exact = torch.stack(points).to(torch.complex128 if dtype.is_complex else torch.float64).mean(dim=0)
        assert mean.dtype is dtype
        assert (mean.detach() - exact).abs().max() <= precision


def test_what_would_lose_an_imaginary_part_is_refused() -> None:
    complex_model, real = nn.Linear(2, 2, dtype=torch.complex64), nn.Linear(2, 2)
    averaged = AveragedModel(real)
    with pytest.raises(ValueError, match=r"weight: torch\.complex64 in the source, torch\.float32 in the average"):
        averaged.update_parameters(complex_model)
    assert averaged.n_averaged.item() == 0
    with pytest.raises(ValueError, match=r"weight is torch\.complex64, which torch\.float32"):
        AveragedModel(complex_model, dtype=torch.float32)
    averaged = AveragedModel(complex_model)
    averaged.update_parameters(real)
    averaged.update_parameters(real)
    assert torch.equal(averaged.module.weight.detach(), real.weight.detach().to(torch.complex64))


def test_the_copy_takes_the_dtype_that_is_asked_for() -> None:
    torch.manual_seed(0)
    model = network().bfloat16()
    averaged = AveragedModel(model, dtype=torch.float32)
    points = []
    for _ in range(7):
        with torch.no_grad():
            model[0].weight.copy_(torch.randn(4, 3, 3, 3))  # type: ignore[operator]  # a Sequential's part is a Module
        points.append(model[0].weight.detach().double())  # type: ignore[operator, union-attr]  # as above
        averaged.update_parameters(model)
    assert {tensor.dtype for tensor in averaged.module.state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(
        averaged.module[0].weight.detach().double(), torch.stack(points).mean(0), rtol=1e-7, atol=3e-8
    )
    assert averaged(torch.randn(2, 3, 6, 6)).dtype is torch.float32
    with pytest.raises(ValueError, match=r"floating-point, as torch\.float32, not torch\.int64"):
        AveragedModel(model, dtype=torch.int64)


def test_a_state_goes_over_from_torch_and_on() -> None:
    model = network()
    ours, theirs, whole = AveragedModel(model), swa_utils.AveragedModel(model), AveragedModel(model)
    for step in range(6):
        take_steps(model, 1)
        whole.update_parameters(model)
        if step < 3:
            theirs.update_parameters(model)
        else:
            if step == 3:
                ours.load_state_dict(theirs.state_dict())
            ours.update_parameters(model)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def write_in_place(averaged: swa_utils.AveragedModel) -> None:
    with torch.no_grad():
        averaged.module.weight.fill_(10.0)


def write_data(averaged: swa_utils.AveragedModel) -> None:
    averaged.module.weight.data.fill_(-3.0)


def replace_data(averaged: swa_utils.AveragedModel) -> None:
    averaged.module.weight.data = torch.zeros_like(averaged.module.weight)


def write_vector(averaged: swa_utils.AveragedModel) -> None:
    vector_to_parameters(torch.linspace(-1e-3, 1e-3, 40).to(averaged.module.weight.dtype), averaged.parameters())


def set_count(averaged: swa_utils.AveragedModel) -> None:
    averaged.n_averaged.fill_(40)


def replace_count(averaged: swa_utils.AveragedModel) -> None:
    averaged.n_averaged = torch.tensor(0)


def load_state(averaged: swa_utils.AveragedModel) -> None:
    state = copy.deepcopy(averaged.state_dict())
    state["module.weight"].fill_(-7.0)
    averaged.load_state_dict(state)


@pytest.mark.parametrize(
    "write", [write_in_place, write_data, replace_data, write_vector, set_count, replace_count, load_state]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_somebody_writes_into_the_average_counts_as_it_does_in_torch(
    write: Callable[[swa_utils.AveragedModel], None], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 5, bias=False, dtype=dtype)
    ours, torchs = AveragedModel(model), swa_utils.AveragedModel(model)
    for step in range(8):
        with torch.no_grad():
            model.weight.normal_()
        for averaged in (ours, torchs):
            averaged.update_parameters(model)
            if step == 4:
                write(averaged)
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours.module.weight, torchs.module.weight, rtol=rounding, atol=rounding)
    assert torch.equal(ours.n_averaged, torchs.n_averaged)


@pytest.mark.parametrize("write", [write_data, replace_data, write_in_place])
def test_nothing_of_what_stood_there_before_is_left_in_a_bfloat16_average(
    write: Callable[[swa_utils.AveragedModel], None],
) -> None:
    model = nn.Linear(30, 30, bias=False).bfloat16()
    averaged = AveragedModel(model)
    for _ in range(5):
        with torch.no_grad():
            model.weight.normal_(1000.0)
        averaged.update_parameters(model)
    write(averaged)
    with torch.no_grad():
        model.weight.copy_(averaged.module.weight)
    averaged.update_parameters(model)
    assert torch.equal(averaged.module.weight, model.weight)


def test_weights_that_are_swapped_out_for_validation_and_back_leave_the_average_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 20).bfloat16()
    swapped, untouched = AveragedModel(model), AveragedModel(model)
    for _ in range(20):
        with torch.no_grad():
            model.weight.normal_()
        for averaged in (swapped, untouched):
            averaged.update_parameters(model)
        for _ in range(2):
            for own, other in zip(swapped.module.parameters(), model.parameters(), strict=True):
                kept = own.data.clone()
                own.data.copy_(other.data)
                other.data.copy_(kept)
    assert all(map(torch.equal, swapped.state_dict().values(), untouched.state_dict().values()))


@pytest.mark.parametrize("inside", [True, False])
def test_an_average_built_under_inference_mode_is_updated_inside_and_outside(inside: bool) -> None:
    with torch.inference_mode():
        model = network()
        averaged = AveragedModel(model, dtype=torch.float64)
        averaged.update_parameters(model)
    for _ in range(2):
        with torch.inference_mode(inside):
            averaged.update_parameters(model)
    other = network(1)
    averaged.update_parameters(other)
    expected = model[0].weight.detach().double() * 0.75 + other[0].weight.detach().double() * 0.25  # type: ignore[operator, union-attr]  # parts are Modules
    torch.testing.assert_close(averaged.module[0].weight.detach(), expected)
    averaged(torch.randn(2, 3, 6, 6, dtype=torch.float64)).sum().backward()  # trainable as any copy


def test_two_readers_of_one_state_go_on_with_the_same_bits() -> None:
    model = nn.Linear(20, 20).bfloat16()
    used, fresh, source = AveragedModel(model), AveragedModel(model), AveragedModel(model)
    for _ in range(5):
        with torch.no_grad():
            model.weight.normal_()
        source.update_parameters(model)
        used.update_parameters(model)
    for averaged in (used, fresh):
        averaged.load_state_dict(source.state_dict())
        averaged.update_parameters(nn.Linear(20, 20).bfloat16().requires_grad_(False))
    used.load_state_dict(source.state_dict())
    fresh.load_state_dict(source.state_dict())
    for averaged in (used, fresh):
        averaged.update_parameters(model)
    assert torch.equal(used.module.weight, fresh.module.weight)


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


class Wrapper(nn.Module):
    """Somebody's own: the model under a name of theirs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model


def with_a_checkpointed_part(model: nn.Module) -> nn.Module:
    parts = list(model.children())
    return nn.Sequential(checkpoint_wrapper(parts[0]), *parts[1:])


def with_a_compiled_part(model: nn.Module) -> nn.Module:
    parts = list(model.children())
    return nn.Sequential(torch.compile(parts[0]), *parts[1:])  # type: ignore[arg-type]  # a Module gives a Module


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, Wrapper, nn.Sequential, with_a_checkpointed_part, with_a_compiled_part]
)
@pytest.mark.parametrize("use_buffers", [False, True])
def test_a_wrapper_around_the_source_or_the_average_makes_no_difference(
    wrap: Callable[[nn.Module], nn.Module], use_buffers: bool
) -> None:
    model = network()
    of_bare, of_wrapped = (AveragedModel(each, use_buffers=use_buffers) for each in (model, wrap(model)))
    for source in (model, wrap(model), nn.DataParallel(wrap(model))):
        take_steps(model, 1)
        of_bare.update_parameters(source)
        of_wrapped.update_parameters(source)
    for bare, wrapped in zip(
        of_bare.module.state_dict().values(), of_wrapped.module.state_dict().values(), strict=True
    ):
        assert torch.equal(bare, wrapped)


def test_another_model_is_refused_before_anything_changes() -> None:
    averaged = AveragedModel(network())
    averaged.update_parameters(network())
    before = copy.deepcopy(averaged.state_dict())
    narrow = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(ValueError, match=r"0\.weight: \(2, 3, 3, 3\) in the source, \(4, 3, 3, 3\) in the average"):
        averaged.update_parameters(narrow)
    without_statistics = network()
    without_statistics[1] = nn.BatchNorm2d(4, track_running_stats=False)  # type: ignore[index, operator]  # a Sequential
    with pytest.raises(ValueError, match=r"missing \['1\.num_batches_tracked', '1\.running_mean', '1\.running_var'\]"):
        averaged.update_parameters(without_statistics)
    with pytest.raises(ValueError, match=r"missing .*unexpected \['head\.bias', 'head\.weight'\]"):
        averaged.update_parameters(nn.ModuleDict({"head": nn.Linear(2, 2)}))
    assert all(map(torch.equal, before.values(), averaged.state_dict().values()))


def test_two_functions_are_refused_as_torch_does() -> None:
    functions = {"avg_fn": swa_utils.get_swa_avg_fn(), "multi_avg_fn": swa_utils.get_swa_multi_avg_fn()}
    for kind in (AveragedModel, swa_utils.AveragedModel):
        with pytest.raises(AssertionError, match="Only one of avg_fn and multi_avg_fn"):
            kind(nn.Linear(1, 1), **functions)


def test_a_pickle_of_the_default_average_can_be_read_and_updated() -> None:
    model = network()
    averaged = AveragedModel(model, device="cpu")
    for _ in range(3):
        take_steps(model, 1)
        averaged.update_parameters(model)
    again = pickle.loads(pickle.dumps(averaged))
    assert all(map(torch.equal, again.state_dict().values(), averaged.state_dict().values()))
    take_steps(model, 1)
    for each in (again, averaged):
        each.update_parameters(model)
    for one, other in zip(again.state_dict().values(), averaged.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


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


def test_update_bn_keeps_the_counters_and_the_layers_that_are_never_called() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(3, momentum=0.3), nn.BatchNorm1d(3)
            for layer in (self.used, self.unused):
                layer.get_buffer("num_batches_tracked").fill_(7)
                layer.get_buffer("running_mean").fill_(5.0)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.used(images)  # type: ignore[no-any-return]  # a Module's call is untyped

    model = Model().eval()
    update_bn([torch.randn(40, 3), torch.randn(8, 3)], model)
    assert [layer.get_buffer("num_batches_tracked").item() for layer in (model.used, model.unused)] == [7, 7]
    assert model.unused.get_buffer("running_mean").tolist() == [5.0, 5.0, 5.0]
    assert model.used.get_buffer("running_mean").abs().max() < 1
    assert not any(module.training for module in model.modules())
    assert model.used.momentum == 0.3


@pytest.mark.parametrize("layer", [nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8)), nn.Conv2d(5, 8, 3, padding=1)])
def test_update_bn_reads_tensors_tuples_and_dicts_and_sends_them_where_it_is_told(layer: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer, nn.BatchNorm2d(8)) if isinstance(layer, nn.Conv2d) else layer
    images = torch.randn(100, 5, 4, 4) if isinstance(layer, nn.Conv2d) else torch.randn(100, 5)
    inputs = model[0](images).detach().transpose(0, 1).flatten(1).double()
    for batches in (
        list(images.split(5)),
        [(part,) for part in images.split(5)],
        [[part, torch.zeros(5)] for part in images.split(5)],
        [{"input": part} for part in images.split(5)],
    ):
        for device in (None, "cpu", torch.device("cpu")):
            model[1].reset_running_stats()
            update_bn(batches, model, device=device)
            torch.testing.assert_close(model[1].running_mean.double(), inputs.mean(dim=1), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(model[1].running_var.double(), inputs.var(dim=1), rtol=1e-5, atol=1e-6)
    assert all(module.training for module in model.modules())


def test_update_bn_changes_no_weights_of_an_average() -> None:
    averaged = AveragedModel(network())
    averaged.update_parameters(network(1))
    before = [parameter.detach().clone() for parameter in averaged.parameters()]
    update_bn([torch.randn(16, 3, 6, 6)], averaged)
    assert all(map(torch.equal, before, averaged.parameters()))
