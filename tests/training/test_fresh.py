"""What a recipe changes of the start: fresh layers drawn as the papers say, frozen ones left alone, dropout overridden."""

import pytest
import torch

from wbar.errors import NothingMatches
from wbar.recipe import Normalization, Optimizer, Recipe
from wbar.spec import Network
from wbar_training.networks.architectures import initialized
from wbar_training.networks.fresh_layers import head_of, prepared
from wbar_training.optim import make_optimizer
from wbar_training.plan import Plan

RESNET = Network("resnet18", 10)


def start(network: Network = RESNET) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return initialized(network).state_dict()


def test_a_new_head_has_the_outputs_asked_for_and_the_rest_stays() -> None:
    tensors = start()
    model = prepared(Network("resnet18", 3), tensors, Recipe(head="reset"), seed=1)
    state = model.state_dict()
    assert state["fc.weight"].shape == (3, 512)
    assert torch.equal(state["fc.bias"], torch.zeros(3))
    assert all(torch.equal(state[name], tensors[name]) for name in state if not name.startswith("fc."))
    again = prepared(Network("resnet18", 3), tensors, Recipe(head="reset"), seed=1).state_dict()
    assert torch.equal(state["fc.weight"], again["fc.weight"])
    other = prepared(Network("resnet18", 3), tensors, Recipe(head="reset"), seed=2).state_dict()
    assert not torch.equal(state["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize(
    ("init", "deviation"),
    [("kaiming", (2 / 512) ** 0.5), ("xavier", (2 / (512 + 200)) ** 0.5), ("normal", 512**-0.5)],
)
def test_the_spread_of_fresh_weights(init: str, deviation: float) -> None:
    model = prepared(Network("resnet18", 200), start(), Recipe(head="reset", init=init), 0)
    assert model.state_dict()["fc.weight"].std().item() == pytest.approx(deviation, rel=0.02)


def test_a_fresh_residual_block_begins_as_its_shortcut() -> None:
    model = prepared(RESNET, start(), Recipe(reset=["layer4.1.*"]), 0)
    block = model.layer4[1]
    assert not block.bn2.weight.any()
    assert bool((block.bn1.weight == 1).all())
    assert torch.equal(block.bn1.running_var, torch.ones(512))
    x = torch.rand(1, 512, 2, 2)
    torch.testing.assert_close(block.eval()(x), x)
    assert model.layer4[0].bn2.weight.any()  # a block that was kept is left alone
    plain = prepared(RESNET, start(), Recipe(reset=["layer4.1.*"], zero_gamma=False), 0)
    assert bool((plain.layer4[1].bn2.weight == 1).all())


def test_frozen_parameters_are_in_no_optimizer() -> None:
    model = prepared(RESNET, start(), Recipe(freeze=["conv1.*", "layer1.*"]), 0)
    plan = Plan.of(resolved(), 0)
    held = {id(p) for group in make_optimizer(model, plan).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in held) == (not name.startswith(("conv1.", "layer1."))), name


def test_dropout_is_overridden_everywhere() -> None:
    network = Network("alexnet", 10)
    model = prepared(network, start(network), Recipe(dropout=0.1), 0)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            Recipe(freeze=["layer9.*"]),
            "recipe.freeze 'layer9.\\*' names no parameter; the network's begin with: conv1.weight",
        ),
        (Recipe(reset=["nope"]), "recipe.reset 'nope' names no parameter"),
        (Recipe(freeze=["*"]), "nothing is left to train"),
        (Recipe(dropout=0.5), "resnet18 has no dropout layer"),
    ],
)
def test_what_names_nothing_is_said(recipe: Recipe, said: str) -> None:
    with pytest.raises(NothingMatches, match=said):
        prepared(RESNET, start(), recipe, 0)


def test_the_head_is_what_follows_the_classes() -> None:
    assert head_of(RESNET) == {"fc.weight", "fc.bias"}
    assert head_of(Network("vgg11", 10)) == {"classifier.6.weight", "classifier.6.bias"}
    assert head_of(Network("squeezenet1_1", 10)) == {"classifier.1.weight", "classifier.1.bias"}


def resolved(**changes: object) -> Recipe:
    return Recipe(
        **{
            "optimizer": Optimizer(name="sgd", weight_decay=5e-4),
            "batch_size": 8,
            "image_size": (8, 8),
            "normalize": Normalization(mean=[0.5], std=[0.2]),
            "augment": "none",
            "precision": "float32",
            "batch_norm": "recompute",
            **changes,
        }
    )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_one_step_of_every_optimizer_is_torchs_plain_one(name: str) -> None:
    plain = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=False),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, foreach=False),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, foreach=False),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, foreach=False),
    }[name]
    torch.manual_seed(0)
    layer, reference_layer = torch.nn.Conv2d(2, 3, 3), torch.nn.Conv2d(2, 3, 3)
    reference_layer.load_state_dict(layer.state_dict())
    recipe = resolved(optimizer=Optimizer(name=name, weight_decay=0.01))
    ours = make_optimizer(layer, Plan.of(recipe, 0))
    reference = plain(
        [
            {"params": [reference_layer.weight], "weight_decay": 0.01},
            {"params": [reference_layer.bias], "weight_decay": 0.0},
        ]
    )
    for _ in range(3):
        for module, optimizer in ((layer, ours), (reference_layer, reference)):
            optimizer.zero_grad()
            module(torch.ones(1, 2, 5, 5)).square().mean().backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            optimizer.step()
    torch.testing.assert_close(layer.weight, reference_layer.weight)
    torch.testing.assert_close(layer.bias, reference_layer.bias)


def test_biases_decay_only_where_it_is_asked_for() -> None:
    model = torch.nn.Conv2d(2, 3, 3)
    optimizer = Optimizer(name="sgd", weight_decay=0.1, no_bias_decay=False)
    groups = make_optimizer(model, Plan.of(resolved(optimizer=optimizer), 0)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1]
    assert len(groups[0]["params"]) == 2
