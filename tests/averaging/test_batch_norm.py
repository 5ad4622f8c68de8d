"""BatchNorm statistics equal those of a twin that keeps every activation; nothing of the model is left changed."""

import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.averaging import reference
from wbar_averaging import recompute_batch_norm


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
    assert recompute_batch_norm(model, batches).layers == 3
    for name, (mean, variance) in expected.items():
        layer = model.get_submodule(name)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-4, atol=1e-6)


def test_the_first_layer_does_not_depend_on_how_images_are_cut() -> None:
    torch.manual_seed(0)
    images = torch.randn(130, 3, 5, 5) + 100
    whole, cut = network(), network()
    recompute_batch_norm(whole, [images])
    recompute_batch_norm(cut, [images[:128], images[128:]])
    torch.testing.assert_close(whole[1].running_var, cut[1].running_var, rtol=1e-5, atol=0)
    exact = reference.batch_norm_statistics(whole, [images])["1"][1]
    torch.testing.assert_close(cut[1].running_var.double(), exact, rtol=1e-4, atol=0)


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

    assert recompute_batch_norm(nn.Linear(3, 2), never()).layers == 0


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


def test_large_batches_are_as_exact_as_small_ones() -> None:
    """torch's kernel for channels_last is 4e-4 off at this size."""
    torch.manual_seed(0)
    images = torch.randn(128, 2, 112, 112).contiguous(memory_format=torch.channels_last) + 3
    model = nn.Sequential(nn.BatchNorm2d(2))
    recompute_batch_norm(model, [images])
    torch.testing.assert_close(model[0].running_var.double(), pooled(images)[1], rtol=1e-6, atol=0)


# Other layers, other batches.


def pooled(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = images.double().transpose(0, 1).flatten(1)
    return flat.mean(dim=1), flat.var(dim=1)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (3,)),
        (nn.BatchNorm1d(3), (3, 5)),
        (nn.BatchNorm2d(3), (3, 4, 5)),
        (nn.BatchNorm3d(3), (3, 2, 4, 3)),
        (nn.SyncBatchNorm(3), (3, 4, 5)),
    ],
)
@given(cuts=st.lists(st.integers(2, 9), min_size=1, max_size=4), seed=st.integers(0, 100), consistent=st.booleans())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
def test_any_kind_of_layer_and_any_partition_gives_the_pooled_moments(
    layer: nn.Module, shape: tuple[int, ...], cuts: list[int], seed: int, consistent: bool
) -> None:
    torch.manual_seed(seed)
    images = torch.randn(sum(cuts), *shape) * torch.linspace(1, 5, sum(cuts)).view(-1, *[1] * len(shape)) + 50
    model = nn.Sequential(copy.deepcopy(layer))
    done = recompute_batch_norm(model, images.split(cuts), consistent=consistent)
    assert (done.layers, done.images) == (1, len(images))
    mean, variance = pooled(images)
    torch.testing.assert_close(model[0].running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[0].running_var.double(), variance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pack", "forward"),
    [
        (lambda x: x, None),
        (lambda x: (x, torch.zeros(len(x))), None),
        (lambda x: [x], None),
        (lambda x: {"input": x}, None),
        (lambda x: {"pixels": x, "id": 3}, lambda model, batch: model(batch["pixels"])),
    ],
)
def test_any_form_of_batch_and_a_budget_in_images(pack: Any, forward: Any) -> None:
    images = torch.randn(20, 3, 4, 4)
    read = []

    def loader() -> Iterator[Any]:
        for part in images.split(6):
            read.append(len(part))
            yield pack(part)

    model = nn.Sequential(nn.BatchNorm2d(3)) if not isinstance(pack(images), dict) else nn.BatchNorm2d(3)
    for consistent in (False, True):
        read.clear()
        done = recompute_batch_norm(model, loader(), forward, images=9, consistent=consistent)
        assert done.images == 9
        assert read == [6, 6]
        layer = model if isinstance(model, nn.BatchNorm2d) else model[0]
        torch.testing.assert_close(layer.running_mean.double(), pooled(images[:9])[0], rtol=1e-4, atol=1e-5)


def test_a_batch_that_says_nothing_about_itself_needs_a_forward_fn() -> None:
    with pytest.raises(TypeError, match="str needs a forward_fn"):
        recompute_batch_norm(network(), ["images.zip"])


@pytest.mark.parametrize("consistent", [False, True])
def test_a_batch_that_is_not_finite_is_named_with_its_layer(consistent: bool) -> None:
    model = network()
    before = state_of(model)
    good, bad = torch.randn(4, 3, 6, 6), torch.randn(4, 3, 6, 6)
    bad[0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="the inputs of 1 are not finite in batch 2"):
        recompute_batch_norm(model, [good, good, bad, good], consistent=consistent)
    assert state_of(model) == before


def test_an_exception_on_the_way_restores_everything() -> None:
    model = network()
    before = state_of(model)

    def broken() -> Iterator[torch.Tensor]:
        yield torch.randn(4, 3, 6, 6)
        raise OSError("the disk is gone")

    for consistent in (False, True):
        with pytest.raises(OSError, match="the disk is gone"):
            recompute_batch_norm(model, broken(), consistent=consistent)
        assert state_of(model) == before
        assert "forward" not in model[1].__dict__


def test_under_autocast_statistics_stay_float32() -> None:
    model = network()
    recompute_batch_norm(model, [torch.randn(32, 3, 6, 6)], dtype=torch.bfloat16)
    exact = network()
    torch.manual_seed(5)
    images = torch.randn(64, 3, 6, 6)
    recompute_batch_norm(model, [images], dtype=torch.bfloat16)
    recompute_batch_norm(exact, [images])
    assert model[5].running_var.dtype is torch.float32
    torch.testing.assert_close(model[5].running_var, exact[5].running_var, rtol=0.05, atol=1e-3)


def test_a_compiled_model_is_recomputed_in_place() -> None:
    model = network()
    images = torch.randn(16, 3, 6, 6)
    assert recompute_batch_norm(torch.compile(model), [images]).layers == 3
    torch.testing.assert_close(model[1].running_mean, pooled(model[0](images).detach())[0].float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("consistent", [False, True])
def test_models_of_other_dtypes(dtype: torch.dtype, consistent: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).to(dtype)
    images = (torch.randn(40, 3, 4, 4) + 2).to(dtype)
    recompute_batch_norm(model, images.split(10), consistent=consistent)
    torch.testing.assert_close(model[0].running_var.double(), pooled(images)[1], rtol=8e-3, atol=0)


@pytest.mark.parametrize("consistent", [False, True])
def test_a_last_batch_of_one_image_counts_as_one(consistent: bool) -> None:
    images = torch.randn(9, 3)
    model = nn.Sequential(nn.BatchNorm1d(3))
    recompute_batch_norm(model, images.split(4), consistent=consistent)
    torch.testing.assert_close(model[0].running_var.double(), pooled(images)[1], rtol=1e-5, atol=0)


class OwnStatistics(nn.BatchNorm2d):
    """Normalizes in its own way, and touches no buffers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input / 2


def test_subclasses_with_a_forward_of_their_own_and_patched_layers_are_measured_and_kept() -> None:
    model = nn.Sequential(OwnStatistics(3), nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    patched = model[1].forward
    model[1].forward = lambda x: patched(x) + 1  # type: ignore[method-assign]  # patched on purpose
    mine, instance = model[1].forward, model[2].running_mean.clone()
    images = torch.randn(12, 3, 4, 4) + 5
    recompute_batch_norm(model, [images])
    torch.testing.assert_close(model[0].running_mean.double(), pooled(images)[0], rtol=1e-5, atol=1e-5)
    assert model[1].forward is mine
    assert torch.equal(model[2].running_mean, instance)


def test_a_layer_that_no_batch_reaches_keeps_its_statistics() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
            nn.init.constant_(self.unused.running_var, 4.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    for consistent in (False, True):
        model = Branch()
        assert recompute_batch_norm(model, [torch.randn(8, 2)], consistent=consistent).layers == 1
        assert model.unused.running_var.tolist() == [4.0, 4.0]


# What the evaluating network sees.


def evaluated_variances(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    seen = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):

            def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                seen[name] = pooled(inputs[0])[1]

            handles.append(layer.register_forward_pre_hook(hook))
    model.eval()
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


@given(seed=st.integers(0, 200), size=st.sampled_from([2, 4, 8, 16]))
@settings(max_examples=15, deadline=None)
def test_consistent_statistics_are_those_that_the_evaluating_network_sees(seed: int, size: int) -> None:
    model = without_dropout(network(seed))
    images = torch.randn(48, 3, 6, 6) * torch.linspace(1, 2, 48).view(-1, 1, 1, 1)
    done = recompute_batch_norm(model, images.split(size), consistent=True, tolerance=1e-5)
    assert done.passes > 1
    for name, variance in evaluated_variances(model, images).items():
        torch.testing.assert_close(model.get_submodule(name).running_var.double(), variance, rtol=1e-3, atol=1e-5)


def test_a_layer_that_is_called_twice_is_consistent_too() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(torch.relu(self.conv(self.norm(x))))

    torch.manual_seed(0)
    model, images = Twice(), torch.randn(32, 3, 6, 6) * 2 + 1
    done = recompute_batch_norm(model, images.split(8), consistent=True, tolerance=1e-6)
    assert done.change <= 1e-6
    seen = []
    model.norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model.eval()
    with torch.no_grad():
        model(images)
    torch.testing.assert_close(model.norm.running_var.double(), pooled(torch.cat(seen))[1], rtol=1e-4, atol=0)


def test_consistent_statistics_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    images = torch.randn(40, 3, 6, 6)
    one, many = without_dropout(network()), without_dropout(network())
    recompute_batch_norm(one, [images])
    recompute_batch_norm(many, iter(images.split(5)), consistent=True, tolerance=1e-6)
    for index in (1, 5, 9):
        torch.testing.assert_close(many[index].running_var, one[index].running_var, rtol=2e-2, atol=1e-4)


# Several ranks.


def _rank(rank: int, size: int, address: str, results: str, case: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    try:
        torch.manual_seed(0)
        images = torch.randn(30, 3, 6, 6) + 1
        model = without_dropout(network())
        if case == "sync":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # DistributedDataParallel refuses SyncBatchNorm on a CPU.
        wrapped = model if case == "sync" else nn.parallel.DistributedDataParallel(model)
        mine = images[:20].split(10) if rank == 0 else images[20:].split(10)  # unequal numbers of batches
        if case == "broken" and rank == 1:
            mine = [torch.full((4, 3, 6, 6), float("nan"))]
        try:
            done = recompute_batch_norm(wrapped, mine, consistent=case == "consistent", tolerance=1e-6)
            outcome: object = (done.layers, {k: v for k, v in model.state_dict().items() if "running" in k})
        except ValueError as error:
            outcome = str(error)
        torch.save(outcome, f"{results}/{rank}")
        torch.distributed.barrier()
    finally:
        sys.stderr.flush()
        # gloo's threads and the interpreter's end race, and abort now and then: the results are written, so no end at all.
        os._exit(0 if Path(results, str(rank)).exists() else 1)


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "case", [pytest.param("plain", marks=LONG), "sync", pytest.param("consistent", marks=LONG), "broken"]
)
def test_all_ranks_end_with_the_statistics_of_all(case: str, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/meeting"
    torch.multiprocessing.spawn(_rank, (2, address, str(tmp_path), case), nprocs=2)
    found = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    if case == "broken":
        assert found[0] == "rank 1 could not compute its BatchNorm statistics: the old ones were kept"
        assert "not finite in batch 0" in found[1]
        return
    assert found[0][0] == found[1][0] == 3
    torch.manual_seed(0)
    images = torch.randn(30, 3, 6, 6) + 1
    whole = without_dropout(network())
    recompute_batch_norm(whole, images.split(10), consistent=case == "consistent", tolerance=1e-6)
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name])
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-4, atol=1e-5)
