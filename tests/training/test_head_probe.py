"""The classifier alone is trained first, and what that leads to is the start; rates fall with the layers below it."""

from pathlib import Path

import pytest
import torch
from torchvision.ops import StochasticDepth

from tests.material import start_state
from tests.training.jobs import METHOD, Recorder, make_job, run
from wbar.errors import NothingMatches
from wbar.recipe import Recipe
from wbar.schedule import build_schedule
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.head_probe import probe_head
from wbar_training.networks.architectures import initialized
from wbar_training.networks.layers import depths, scales
from wbar_training.networks.stochastic_depth import set_drop_path
from wbar_training.optim import SCALE, make_optimizer
from wbar_training.plan import Plan
from wbar_training.setup import set_up

HEAD = {"fc.weight", "fc.bias"}


def nothing(*_: object) -> None:
    """A reporter that keeps nothing."""


def test_only_the_classifier_moves_and_the_network_is_as_before(tmp_path: Path) -> None:
    job = make_job(tmp_path, recipe_head="reset", recipe_head_epochs=1, recipe_head_lr=0.1, recipe_freeze=["conv1.*"])
    setup = set_up(job.spec, job.workspace, nothing)
    before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    trainable = {name for name, p in setup.model.named_parameters() if p.requires_grad}
    found = probe_head(setup, build_schedule(METHOD, 7))
    after = setup.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == HEAD == set(found)
    assert {name for name, p in setup.model.named_parameters() if p.requires_grad} == trainable
    setup.head.update(found)
    assert torch.equal(setup.start()["fc.weight"], after["fc.weight"])


def test_it_is_the_start_that_is_compared(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path / str(epochs), recipe_head="reset", recipe_head_epochs=epochs) for epochs in (0, 3)]
    for job in jobs:
        write_safetensors(job.start, start_state(), {})
    recipe = jobs[1].spec.recipe.model_copy(update={"head_lr": 0.05})
    told = Recorder()
    fresh, probed = run(jobs[0], Recorder()), run(jobs[1].changed(recipe=recipe), told)
    assert probed.result.metrics.start.loss < fresh.result.metrics.start.loss
    assert any("trained by itself for 3 epochs" in line for line in told.logs)


def test_a_frozen_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        NothingMatches, match=r"recipe.head_epochs trains fc.bias, fc.weight, which recipe.freeze freezes"
    ):
        run(make_job(tmp_path, METHOD, recipe_head_epochs=1, recipe_head_lr=0.1, recipe_freeze=["fc.*"]), Recorder())


@pytest.mark.parametrize(
    ("name", "layers", "last"),
    [
        ("resnet20", 11, "fc"),
        ("resnet18", 10, "fc"),
        ("vit_b_32", 14, "heads.head"),
        ("convnext_tiny", 23, "classifier.2"),
    ],
)
def test_layers_are_blocks_from_the_input_to_the_classifier(name: str, layers: int, last: str) -> None:
    with torch.device("meta"):
        model = initialized(Network(name, 10))
    depth = depths(model)
    assert list(depth.values()) == sorted(depth.values())
    assert sorted(set(depth.values())) == list(range(layers))
    assert {key.rpartition(".")[0] for key, at in depth.items() if at == layers - 1} == {last}
    assert scales(model, 0.5)[f"{last}.weight"] == 1


def test_all_that_makes_a_vits_first_tokens_is_one_layer() -> None:
    """BEiT's appendix has the embedding, the blocks and the head."""
    with torch.device("meta"):
        depth = depths(initialized(Network("vit_b_32", 10)))
    first = {key for key, at in depth.items() if at == 0}
    assert first == {"class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"}
    assert depth["encoder.layers.encoder_layer_0.ln_1.weight"] == 1
    assert depth["encoder.ln.weight"] == 12


def test_the_layers_of_a_block_are_left_out_at_one_rate() -> None:
    with torch.device("meta"):
        model = initialized(Network("maxvit_t", 10))
    set_drop_path(model, 0.3, "maxvit_t")
    rates = {path: one.p for path, one in model.named_modules() if isinstance(one, StochasticDepth)}
    by_block = {path.rpartition(".layers.")[0]: rate for path, rate in rates.items()}
    assert all(by_block[path.rpartition(".layers.")[0]] == rate for path, rate in rates.items())
    assert [*by_block.values()] == pytest.approx([0.3 * n / 10 for n in range(11)])


def test_rates_of_groups_are_those_of_their_layers(tmp_path: Path) -> None:
    job = make_job(tmp_path, recipe_layer_decay=0.5)
    model = initialized(Network("resnet20", 10))
    groups = make_optimizer(model, Plan.of(job.spec.recipe, 0)).param_groups
    found = {id(p): group.get(SCALE, 1.0) for group in groups for p in group["params"]}
    assert {name: found[id(p)] for name, p in model.named_parameters()} == scales(model, 0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    plain = make_optimizer(
        model, Plan.of(Recipe.model_validate(job.spec.recipe.model_dump() | {"layer_decay": 1.0}), 0)
    )
    assert len(plain.param_groups) == 2
