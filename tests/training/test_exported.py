"""A network that came as a program of torch.export: the numbers of the network that was exported, to the bit."""

import copy
import gc
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests.exporting import exported, exported_job, middle_layout, old_layout, own_net, program_of, saved, uploaded
from tests.training.jobs import METHOD, KilledHere, Recorder, make_job, run
from wbar.errors import ArchitectureMismatch, NothingMatches
from wbar.method import CyclicSwa
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.mlflow_model import AveragedModel
from wbar_training.networks.architectures import initialized, load
from wbar_training.networks.layers import depths
from wbar_training.networks.tensors import read_tensors
from wbar_training.optim import decayed

ONE: CyclicSwa = METHOD.model_copy(update={"cycles": 1})


def rebuilt(folder: Path, data: bytes) -> nn.Module:
    found = uploaded(folder, data)
    assert found.network is not None
    return load(found.network, read_tensors(folder / "out.safetensors"))[0]


@pytest.mark.parametrize("network", [own_net(), initialized(Network("resnet20", 10))], ids=["own", "resnet20"])
def test_it_computes_what_the_network_computes_in_both_modes(tmp_path: Path, network: nn.Module) -> None:
    original = copy.deepcopy(network)
    module = rebuilt(tmp_path, exported(network))
    images = torch.randn(5, 3, 8, 8)
    for one in (module.train(), original.train()):
        torch.manual_seed(1)
        one(images).square().sum().backward()
    for (name, mine), (_, theirs) in zip(
        sorted(module.named_parameters()), sorted(original.named_parameters()), strict=True
    ):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad), name
    theirs_state = original.state_dict()
    assert module.state_dict().keys() == theirs_state.keys()
    assert all(torch.equal(tensor, theirs_state[name]) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        assert torch.equal(module.eval()(images), original.eval()(images))


def test_weight_decay_and_depth_go_by_its_layers(tmp_path: Path) -> None:
    network = own_net()
    module = rebuilt(tmp_path, exported(network))
    assert decayed(module) == decayed(network)
    assert depths(module) == depths(network)


def test_a_normalization_by_the_root_mean_square_is_one_like_others(tmp_path: Path) -> None:
    def network(norm: Callable[[int], nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        blocks = nn.Sequential(*(nn.Sequential(nn.Linear(192, 192), nn.GELU()) for _ in range(2)))
        return nn.Sequential(nn.Flatten(), blocks, norm(192), nn.Linear(192, 10))

    made = network(nn.RMSNorm)
    module = rebuilt(tmp_path, exported(made))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(module.eval()(images), made.eval()(images))
    assert [*depths(module).values()] == [*depths(made).values()]
    assert max(depths(made).values()) == max(depths(network(nn.LayerNorm)).values())
    assert decayed(module) == decayed(made)


def test_a_catalog_network_as_a_program_ends_in_the_same_bits(tmp_path: Path) -> None:
    plain = make_job(tmp_path / "plain", ONE)
    torch.manual_seed(7)
    job = exported_job(tmp_path / "program", exported(initialized(Network("resnet20", 10))), ONE)
    here, there = Recorder(), Recorder()
    mine, theirs = run(job, here), run(plain, there)
    assert [point.loss for point in here.points] == [point.loss for point in there.points]
    one, other = load_file(mine.weights), load_file(theirs.weights)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert mine.result.metrics == theirs.result.metrics


def test_nothing_of_a_step_is_left_behind(tmp_path: Path) -> None:
    """Without a garbage collection: what autograd keeps is memory, and no CUDA graph is captured beside it."""
    network = rebuilt(tmp_path, exported(own_net())).train()
    gc.collect()
    gc.disable()
    try:
        outputs = network(torch.randn(4, 3, 8, 8))
        outputs.sum().backward()
        left = weakref.ref(outputs)
        del outputs
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.long
def test_the_archive_gives_the_accuracy_that_the_job_reports(tmp_path: Path) -> None:
    job = exported_job(tmp_path, exported(own_net()), ONE).changed(formats=("pt2",))
    outcome = run(job, Recorder())
    (offered,) = outcome.result.formats
    assert offered.reason is None
    assert outcome.pt2 is not None
    assert offered.bytes == outcome.pt2.stat().st_size
    # In a process that knows nothing of wbar.
    (tmp_path / "evaluate.py").write_text(
        "import json, sys, torch, safetensors.torch\n"
        "said = {'wbar.json': ''}\n"
        "network = torch.export.load(sys.argv[1], extra_files=said).module()\n"
        "said = json.loads(said['wbar.json'])\n"
        "data = safetensors.torch.load_file(sys.argv[2])\n"
        "normalize = json.loads(said['wbar.normalize'])\n"
        "mean, std = (torch.tensor(normalize[name]).view(1, -1, 1, 1) for name in ('mean', 'std'))\n"
        "images = data['val.images'].float().div(255)\n"
        "images = (images.expand(-1, 3, -1, -1) - mean) / std\n"
        "right = (network(images).argmax(1) == data['val.labels']).double().mean().item()\n"
        "print(right, len(images))\n"
        "assert not any(name.startswith('wbar') for name in sys.modules)\n"
    )
    command = [sys.executable, "-P", str(tmp_path / "evaluate.py"), str(outcome.pt2), str(job.dataset)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={"OMP_NUM_THREADS": "1"}).stdout
    assert float(told.split()[0]) == pytest.approx(outcome.result.metrics.averaged.accuracy)
    assert int(told.split()[1]) == outcome.result.held_out.report
    weights = load_file(outcome.weights)
    assert weights.keys() == own_net().state_dict().keys()
    own_net().load_state_dict(weights)
    for name, tensor in torch.load(outcome.pytorch, weights_only=True).items():
        assert torch.equal(tensor, weights[name])
    assert str(Path.cwd()).encode() not in outcome.pt2.read_bytes()


def test_the_archive_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    data = exported(own_net())
    made = [run(exported_job(tmp_path / n, data, ONE).changed(formats=("pt2",)), Recorder()).pt2 for n in ("a", "b")]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].read_bytes() == made[1].read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.exporting import exported_job
from tests.training.jobs import Recorder, run
from wbar_training import state_files

class Killed(Recorder):
    def saved(self, path, step, durable):
        if step >= int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

job = exported_job(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()).changed(save_every_seconds=0.0, formats=("pt2",))
run(job.changed(resume=state_files.latest(job.scratch)), Killed())
"""


@pytest.mark.long
def test_killed_twice_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    data = exported(own_net())
    (tmp_path / "own.pt2").write_bytes(data)
    whole = run(exported_job(tmp_path / "whole", data).changed(formats=("pt2",)), Recorder())
    broken = tmp_path / "broken"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    for step in (5, 17):
        command = [sys.executable, "-P", "-c", KILLED, str(broken), str(tmp_path / "own.pt2"), str(step)]
        ended = subprocess.run(command, capture_output=True, check=False, env=environment)
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    job = exported_job(broken, data).changed(formats=("pt2",))
    state = state_files.latest(job.scratch)
    assert state is not None
    assert state_files.step_of(state) >= 16
    again = run(job.changed(resume=state), Recorder())
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    assert again.pt2 is not None
    assert whole.pt2 is not None
    assert again.pt2.read_bytes() == whole.pt2.read_bytes()
    assert again.result.metrics == whole.result.metrics


def test_statistics_are_recomputed_for_the_average(tmp_path: Path) -> None:
    job = exported_job(tmp_path, exported(own_net()))
    told = Recorder()
    averaged, last = load_file(run(job, told).weights), load_file(told.snapshots[2])
    names = [name for name in averaged if name.endswith("running_var")]
    assert len(names) == 3
    assert all(not torch.equal(averaged[name], last[name]) for name in names)


def test_a_job_s_weights_are_a_start_again(tmp_path: Path) -> None:
    outcome = run(exported_job(tmp_path, exported(own_net()), ONE), Recorder())
    found = uploaded(tmp_path / "again", outcome.weights.read_bytes())
    assert (found.format, found.tensors) == ("safetensors", len(own_net().state_dict()))
    assert found.network is not None
    assert found.network.name == "exported"
    images = torch.rand(2, 3, 8, 8).numpy()
    assert AveragedModel(outcome.weights).predict(images).shape == (2, 10)
    tensors = load_file(outcome.weights) | {"head.weight": torch.zeros(3, 128)}
    with safe_open(outcome.weights, framework="pt") as file:
        write_safetensors(tmp_path / "other.safetensors", tensors, file.metadata())
    with pytest.raises(
        ArchitectureMismatch, match=r"head.weight: \(3, 128\) in the checkpoint, \(10, 128\) in its program"
    ):
        uploaded(tmp_path / "other", (tmp_path / "other.safetensors").read_bytes())


def test_another_head_where_it_ends_with_a_linear_map(tmp_path: Path) -> None:
    data = exported(own_net(classes=7))
    named = tuple("0123456789")
    job = exported_job(
        tmp_path, data, ONE, classes=named, recipe_head="reset", recipe_head_epochs=1, recipe_head_lr=0.1
    )
    outcome = run(job.changed(formats=("pt2",)), Recorder())
    assert load_file(outcome.weights)["head.weight"].shape == (10, 128)
    assert outcome.result.formats[0].reason is None
    found = uploaded(tmp_path / "again", outcome.weights.read_bytes())
    assert found.network is not None
    assert found.network.num_classes == 10


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = own_net(classes=7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * 2  # type: ignore[no-any-return]


def test_another_head_is_refused_where_it_does_not(tmp_path: Path) -> None:
    job = exported_job(tmp_path, exported(Scaled()), ONE, classes=tuple("0123456789"), recipe_head="reset")
    with pytest.raises(NothingMatches, match="7 outputs and does not end with a linear map"):
        run(job, Recorder())


def test_it_teaches_another_network(tmp_path: Path) -> None:
    job = make_job(tmp_path, ONE, recipe_distillation={"teacher": "ckpt_teacher"})
    teacher = exported_job(tmp_path / "teacher", exported(own_net()))
    job.workspace.input("teacher").write_bytes(teacher.start.read_bytes())
    stored = teacher.spec.start.model_copy(update={"id": "ckpt_teacher", "blob": "teacher"})
    assert run(job.changed(teachers=(stored,)), Recorder()).result.metrics.averaged.accuracy > 0


def test_stochastic_depth_has_no_rate_to_set(tmp_path: Path) -> None:
    with pytest.raises(NothingMatches, match=r"drop_path is 0.1 and exported has no stochastic depth"):
        run(exported_job(tmp_path, exported(own_net()), ONE, recipe_drop_path=0.1), Recorder())


def test_rates_fall_with_its_depth_and_layers_are_frozen_by_their_names(tmp_path: Path) -> None:
    job = exported_job(tmp_path, exported(own_net()), ONE, recipe_layer_decay=0.7, recipe_freeze=["stem.*"])
    outcome = run(job.changed(recipe=job.spec.recipe.model_copy(update={"dropout": 0.5})), Recorder())
    assert torch.equal(load_file(outcome.weights)["stem.0.weight"], own_net().state_dict()["stem.0.weight"])


@pytest.mark.parametrize("layout", [old_layout, middle_layout])
def test_the_layouts_of_torch_before_2_9(tmp_path: Path, layout: Callable[[Any], bytes]) -> None:
    program = program_of(own_net().train())
    new, old = uploaded(tmp_path / "new", exported(own_net())), uploaded(tmp_path / "old", layout(program))
    assert (old.format, old.network, old.tensors) == ("pt2", new.network, new.tensors)
    one, other = (load_file(tmp_path / n / "out.safetensors") for n in ("new", "old"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class Tied(nn.Module):
    """It has no constants."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 192), nn.Linear(192, 192)
        self.second.weight = self.first.weight
        self.head = nn.Linear(192, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x.flatten(1)).relu()))  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", [saved, old_layout, middle_layout])
def test_a_weight_under_two_names_stays_one(tmp_path: Path, layout: Callable[[Any], bytes]) -> None:
    job = exported_job(tmp_path, layout(program_of(Tied().train())), ONE)
    weights = load_file(run(job, Recorder()).weights)
    assert torch.equal(weights["first.weight"], weights["second.weight"])
    assert weights.keys() == Tied().state_dict().keys()


def test_free_sides_take_images_of_other_sizes(tmp_path: Path) -> None:
    network = initialized(Network("resnet20", 10)).train()
    sides = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}
    data = saved(torch.export.export(network, (torch.randn(2, 3, 16, 16),), dynamic_shapes=(sides,)))
    found = uploaded(tmp_path, data)
    assert found.network is not None
    entry = found.network.architecture
    assert (found.network.image_size, entry.size, entry.min_size, entry.fixed_size) == (None, 16, 8, False)
    outcome = run(exported_job(tmp_path / "job", data, ONE), Recorder())  # of 8 × 8
    assert outcome.result.metrics.averaged.accuracy > 0


def test_death_in_this_process_too(tmp_path: Path) -> None:
    data = exported(own_net())
    job = exported_job(tmp_path, data, ONE).changed(save_every_seconds=0.0)
    with pytest.raises(KilledHere):
        run(job, Recorder(die_at=3))
    run(job.changed(resume=state_files.latest(job.scratch)), Recorder())
