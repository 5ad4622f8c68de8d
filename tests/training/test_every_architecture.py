"""Every architecture of the catalog goes the whole way: upload, one optimizer step, download into torchvision's own class.

Networks whose weights take up to 100 MB do so with real numbers; a slice of them in every run, all with `make models`. The
others (to regnet_y_128gf's 2.6 GB) would need more memory and minutes, and nothing on the way depends on the size: their
tensors have names and shapes only, on torch's meta device, and no step is taken.
"""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from tests.training.jobs import METHOD, Recorder, make_job, run
from wbar.catalog import ARCHITECTURES
from wbar.method import HighPhase, LowPhase
from wbar.recipe import Normalization, Optimizer, Recipe
from wbar.spec import JobSpec, Network, StoredDataset, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training.data.boxes import targets_of
from wbar_training.networks.architectures import CIFAR, build, initialized, load, shapes_of
from wbar_training.networks.detectors import loss_of
from wbar_training.networks.fresh_layers import prepared
from wbar_training.networks.recognition import detect
from wbar_training.optim import make_optimizer
from wbar_training.plan import Plan
from wbar_training.result_writer import ResultWriter
from wbar_training.uploads.checkpoint_files import ValidCheckpoint, validate
from wbar_training.workspace import Workspace

CLASSES = 3
MOST = 100 * 10**6  # bytes of weights that are made in memory
QUICK = {
    "resnet20", "preresnet110", "mnasnet0_5", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1",
    "efficientnet_b0", "regnet_y_400mf", "googlenet", "resnet18", "vgg11_bn", "vit_b_32", "ssdlite320_mobilenet_v3_large",
    "retinanet_resnet50_fpn", "maskrcnn_resnet18_96_fpn", "maskrcnn_resnet50_fpn",
}  # fmt: skip
PREFIXES = ("", "module.", "net.")
SAID = {"fasterrcnn_mobilenet_v3_large_fpn"}  # whose tensors are another's, too

# Written out, since building every network to count its numbers would make each collection of tests wait.
LARGE = [
    "alexnet", "convnext_base", "convnext_large", "convnext_small", "convnext_tiny", "deeplabv3_resnet101",
    "deeplabv3_resnet50", "densenet161", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_l",
    "efficientnet_v2_m", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fcn_resnet101", "fcn_resnet50",
    "fcos_resnet50_fpn", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "maxvit_t",
    "regnet_x_16gf", "regnet_x_32gf", "regnet_x_8gf", "regnet_y_128gf", "regnet_y_16gf",
    "regnet_y_32gf", "regnet_y_8gf", "resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d",
    "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t",
    "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "vit_b_16", "vit_b_32", "vit_h_14",
    "vit_l_16", "vit_l_32", "wide_resnet101_2", "wide_resnet28_10", "wide_resnet50_2",
]  # fmt: skip
SMALL = [name for name in ARCHITECTURES if name not in LARGE]


def sliced(architectures: list[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.models) for name in architectures]


def of_the_user(name: str) -> nn.Module:
    """What the user has: torchvision's own class as it comes, with auxiliary heads; ours for the CIFAR family."""
    if ARCHITECTURES[name].library == "wbar":
        return initialized(Network(name, CLASSES))
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if ARCHITECTURES[name].outputs == "boxes":
        options = {"weights_backbone": None}
    if ARCHITECTURES[name].outputs == "pixels":
        options = {"weights_backbone": None} | ({"aux_loss": True} if "lraspp" not in name else {})
    module: nn.Module = models.get_model(name, weights=None, num_classes=CLASSES, **options)
    return module


def prefix_of(name: str) -> str:
    """Every network has one of the usual prefixes or none."""
    return PREFIXES[SMALL.index(name) % len(PREFIXES)]


def upload(name: str, workspace: Workspace) -> tuple[ValidCheckpoint, set[str]]:
    """A checkpoint of the user's network, validated and laid where a job finds its start; the names that were uploaded."""
    state = {prefix_of(name) + key: tensor for key, tensor in of_the_user(name).state_dict().items()}
    path = workspace.scratch / "upload.safetensors"
    write_safetensors(path, state, {})
    said = name if name in SAID else None
    return validate(path, said, None, workspace.input("start")), set(state)


def behind(prefix: str, module: nn.Module) -> nn.Module:
    """The module under the name that `prefix` gives it; itself where that is empty."""
    if not prefix:
        return module
    outer = nn.Module()
    outer.add_module(prefix.removesuffix("."), module)
    return outer


def recipe_for(name: str) -> Recipe:
    side = max(ARCHITECTURES[name].min_size, 32)
    return Recipe(
        optimizer=Optimizer(name=ARCHITECTURES[name].optimizer, weight_decay=0.01),
        batch_size=2,
        image_size=(side, side),
        normalize=Normalization(mean=[0.5] * 3, std=[0.5] * 3),
        augment="none",
        precision="float32",
        batch_norm="recompute",
    )


def trained_one_step(network: Network, start: dict[str, Tensor], recipe: Recipe) -> nn.Module:
    model = prepared(network, start, recipe, seed=0).train()
    optimizer = make_optimizer(model, Plan.of(recipe, 0))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    assert isinstance(recipe.image_size, tuple)
    images, side = torch.randn(2, 3, *recipe.image_size), recipe.image_size[0]
    if network.architecture.outputs == "boxes":
        labels = torch.tensor([[[1.0, 2, 3, 20, 24, 378, 0]], [[-1.0] * 7]])  # the second image has none
        masks = torch.full((2, 1, side * side // 8), 255, dtype=torch.uint8)
        loss_of(
            model, images, targets_of(labels, masks if network.architecture.finds_masks else None, (side, side))
        ).backward()
        optimizer.step()
        return model
    outputs = model(images)
    if isinstance(outputs, dict):  # of segmentation
        outputs = sum(one.mean(dim=(2, 3)) for one in outputs.values())
    F.cross_entropy(outputs, torch.tensor([0, 1])).backward()
    optimizer.step()
    return model


def spec_for(validated: ValidCheckpoint, recipe: Recipe) -> JobSpec:
    network, prefix = validated.network, validated.prefix
    return JobSpec(
        start=StoredWeights(id="ckpt_start", sha256="0" * 64, blob="start", prefix=prefix, network=network),
        dataset=StoredDataset(id="ds_none", sha256="1" * 64, blob="none"),
        network=network,
        classes=None,
        method=METHOD,
        recipe=recipe,
        seed=0,
    )


@pytest.mark.parametrize("name", sliced(SMALL))
def test_upload_one_step_download(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    workspace = Workspace(tmp_path)
    validated, uploaded = upload(name, workspace)
    assert (validated.network.name, validated.prefix) == (name, prefix_of(name))
    recipe = recipe_for(name)
    writer = ResultWriter(spec_for(validated, recipe), workspace, Plan.of(recipe, 0), ["a", "b", "c"])
    start = writer.start()
    model = trained_one_step(validated.network, start, recipe)
    weights, pytorch = writer.write_result(model.state_dict(), snapshots=1, temperature=None)

    downloaded, user = load_file(weights), behind(validated.prefix, of_the_user(name))
    assert set(downloaded) == uploaded
    user.load_state_dict(torch.load(pytorch, weights_only=True), strict=True)
    if not name.startswith("mnasnet"):  # torchvision's takes no plain dict, whoever wrote it
        user.load_state_dict(downloaded, strict=True)
    loaded = user.state_dict()
    assert all(torch.equal(loaded[validated.prefix + key], tensor) for key, tensor in model.state_dict().items())
    assert any(not torch.equal(parameter, start[key]) for key, parameter in model.named_parameters())


@pytest.mark.models
def test_large_are_those_of_more_than_100_mb() -> None:
    def weights_bytes(name: str) -> int:
        return 4 * sum(math.prod(shape) for shape in shapes_of(Network(name, CLASSES)).values())

    assert [name for name in ARCHITECTURES if weights_bytes(name) > MOST] == LARGE


@pytest.mark.parametrize("name", sliced(LARGE))
def test_the_names_and_shapes_of_large_networks_go_the_whole_way(name: str) -> None:
    user, again = build(Network(name, CLASSES)), build(Network(name, CLASSES))  # torchvision's own classes
    assert type(user).__module__.startswith("torchvision.models") or name in CIFAR
    uploaded = user.state_dict()
    network = detect({key: tuple(tensor.shape) for key, tensor in uploaded.items()})
    assert (network.name, network.num_classes) == (name, CLASSES)
    model, auxiliary = load(network, uploaded)
    trained = model.state_dict()
    again.load_state_dict({key: trained.get(key, auxiliary.get(key)) for key in uploaded}, strict=True, assign=True)


@pytest.mark.parametrize("name", ["mnasnet0_5"])
def test_a_whole_job_of_a_network_that_asks_for_its_version(name: str, tmp_path: Path) -> None:
    """Loads happen in many places of a job: the start, the probe, the mean, what was saved."""
    network = Network(name, 10)
    torch.manual_seed(0)
    start = models.get_model(name, weights=None, num_classes=10).state_dict()
    gentle = METHOD.model_copy(update={"high": HighPhase(lr=1e-3, epochs=1), "low": LowPhase(lr=1e-4, epochs=1)})
    job = make_job(tmp_path / "job", gentle, images=60, network=network, prefix="module.", recipe_image_size=(32, 32))
    write_safetensors(job.start, {f"module.{key}": tensor for key, tensor in start.items()}, {})
    outcome = run(job, Recorder())
    saved = torch.load(outcome.pytorch, weights_only=True)
    assert isinstance(saved, OrderedDict)
    behind("module.", models.get_model(name, weights=None, num_classes=10)).load_state_dict(saved, strict=True)
    assert all(torch.equal(saved[key], tensor) for key, tensor in load_file(outcome.weights).items())
