"""Steps by a CUDA graph end in the bits of ordinary steps: whatever draws the network, whatever the target is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.jobs import make_job
from wbar.recipe import Recipe
from wbar.spec import Network
from wbar_training import graphed
from wbar_training.data.mixing import mix
from wbar_training.draws import generator
from wbar_training.networks.architectures import initialized
from wbar_training.plan import Plan
from wbar_training.setup import make_deterministic
from wbar_training.step import Stepper
from wbar_training.tasks.classification import ClassLoss

pytestmark = pytest.mark.gpu

STEPS, SHORT, BATCH, CLASSES = 9, 6, 16, 10  # at step SHORT comes a batch that is shorter
RECIPES = {
    "bfloat16": {"precision": "bfloat16"},
    "float32": {"precision": "float32"},
    "float16": {"precision": "float16"},
    "mixed": {"precision": "bfloat16", "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1},
    "weighted": {"precision": "bfloat16", "class_weights": [1.0 + k for k in range(CLASSES)]},
    "clipped adamw": {"grad_clip_norm": 1.0, "optimizer": {"name": "adamw", "weight_decay": 0.05}},
    "distilled": {
        "precision": "bfloat16",
        "distillation": {"teacher": "ckpt_0mk3q8v4zr5d2a7x9c4t", "temperature": 4.0},
    },
    "penalized": {"precision": "float32", "gradient_penalty": 0.01},
}
NETWORKS = {  # with and without draws of their own: dropout, stochastic depth
    "resnet20": 32,
    "cifar_vgg16_bn": 32,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "swin_t": 64,
    "mobilenet_v3_small": 64,
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_ends_in_the_bits_of_ordinary_steps(recipe: str, tmp_path: Path, monkeypatch) -> None:
    captured, ordinary = _both("resnet20", 32, RECIPES[recipe], tmp_path, monkeypatch)
    assert torch.equal(captured, ordinary)


@pytest.mark.parametrize("network", NETWORKS)
def test_each_network_ends_in_the_bits_of_ordinary_steps(network: str, tmp_path: Path, monkeypatch) -> None:
    captured, ordinary = _both(network, NETWORKS[network], {"precision": "bfloat16"}, tmp_path, monkeypatch)
    assert torch.equal(captured, ordinary)


def test_a_network_that_asks_the_device_for_a_value_runs_step_by_step(tmp_path: Path, monkeypatch, caplog) -> None:
    class Asking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = torch.nn.Conv2d(3, CLASSES, 32), torch.nn.Dropout(0.2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out = self.drop(self.layer(images).flatten(1))
            return out * 1.5 if out.sum().item() > 0 else out

    caplog.set_level("INFO", logger="wbar.training")
    torch.manual_seed(0)
    asking = Asking()
    state = {name: value.clone() for name, value in asking.state_dict().items()}
    found = _stepped(asking.cuda(), _plan({"precision": "float32"}, tmp_path), 32)
    assert "without a CUDA graph" in caplog.text
    monkeypatch.setattr(graphed, "WARM_UP", 10**9)
    asking.load_state_dict(state)
    assert torch.equal(found, _stepped(asking, _plan({"precision": "float32"}, tmp_path), 32))


def _both(network: str, side: int, recipe: dict, folder: Path, monkeypatch) -> tuple[torch.Tensor, torch.Tensor]:
    plan = _plan(recipe, folder)
    captured = _stepped(_network(network), plan, side, captured=True)
    with monkeypatch.context() as patch:
        patch.setattr(graphed, "WARM_UP", 10**9)
        return captured, _stepped(_network(network), plan, side, captured=False)


def _plan(recipe: dict, folder: Path) -> Plan:
    job = make_job(folder)
    make_deterministic(job.spec, "cuda", None)
    base = job.spec.recipe.model_dump(exclude={"augment"}) | {"augment": "none"}
    return Plan.of(Recipe.model_validate(base | recipe), seed=5)


def _network(name: str) -> torch.nn.Module:
    torch.manual_seed(11)
    return initialized(Network(name, CLASSES)).cuda().to(memory_format=torch.channels_last).train()


def _stepped(model: torch.nn.Module, plan: Plan, side: int, captured: bool | None = None) -> torch.Tensor:
    """Return every parameter and buffer after some steps on random images, and the losses, as one vector."""
    device = torch.device("cuda")
    stepper = Stepper(model, plan, ClassLoss(plan.recipe, CLASSES, None, device), device, None)
    anchor = [parameter.detach().clone() for parameter in stepper.parameters]
    losses = []
    for step in range(STEPS):
        draws, size = generator(0, "images", step), BATCH - 5 if step == SHORT else BATCH
        images = torch.randn(size, 3, side, side, generator=draws).cuda().to(memory_format=torch.channels_last)
        labels = torch.randint(CLASSES, (size,), generator=draws).cuda()
        inputs, target = mix(plan.recipe, images, labels, plan.seed, step)
        if plan.recipe.distillation is not None:
            soft = torch.randn(size, CLASSES, generator=draws).softmax(dim=1)
            target = replace(target, soft=soft.cuda())
        result = stepper.take(inputs, target, step, 0.01, 1e-3, anchor, logged=step % 2 == 0)
        losses.append(result.loss)
    if captured is not None:
        assert (stepper._graphed is not None and stepper._graphed._graph is not None) is captured
    state = [value.flatten().double() for value in model.state_dict().values()]
    return torch.cat([*state, torch.stack(losses).double()])
