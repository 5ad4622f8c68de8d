"""A checkpoint's tensors name its network, or the nearest ones with what differs; what they cannot tell is said."""

import json
from collections import Counter
from importlib.resources import files

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wbar.errors import ArchitectureMismatch, UnknownArchitecture
from wbar.spec import Network
from wbar_training.networks.architectures import initialized, names, shapes_of
from wbar_training.networks.recognition import NEAR_RELATIVES, detect, identify, nearest, signatures


def test_the_table_of_signatures_is_true() -> None:
    """Regenerate with `python -m wbar_training.networks.recognition` where a new torchvision changed a network."""
    assert json.loads(files("wbar_training.networks").joinpath("signatures.json").read_text()) == signatures()


def test_no_two_networks_of_the_catalog_have_the_same_tensors() -> None:
    """Else `detect` would take the first of them, which must say so."""
    said = {relative.removeprefix("torchvision's ") for others in NEAR_RELATIVES.values() for relative in others}
    seen = Counter(tuple(sorted(shapes_of(Network(name, 10)).items())) for name in names() if name not in said)
    assert max(seen.values()) == 1


@pytest.mark.parametrize(
    "network",
    [
        Network("resnet20", 7, channels=1),
        Network("resnet20", 10, projection=True),
        Network("resnet56", 100),
        Network("preresnet164", 10),
        Network("wide_resnet28_10", 10),
        Network("cifar_vgg16_bn", 10),
        Network("resnet50", 37),
        Network("wide_resnet50_2", 37),
        Network("resnext50_32x4d", 37),
        Network("mobilenet_v3_small", 5, channels=4),
        Network("vit_b_16", 5, image_size=64),
        Network("swin_v2_t", 5),
        Network("inception_v3", 5),
    ],
    ids=lambda network: network.name,
)
def test_a_network_is_read_off_its_tensors(network: Network) -> None:
    assert detect(shapes_of(network)) == network


def test_old_checkpoints_without_batch_counters_and_with_auxiliary_heads_are_recognized() -> None:
    shapes = {name: shape for name, shape in shapes_of(Network("inception_v3", 5)).items() if "tracked" not in name}
    shapes["AuxLogits.fc.weight"] = (5, 768)
    assert detect(shapes).name == "inception_v3"


def test_a_mismatch_lists_names_and_both_shapes() -> None:
    shapes = dict(shapes_of(Network("resnet18", 10)))
    shapes["layer1.0.conv1.weight"] = (64, 1, 3, 3)
    shapes["strange"] = (1,)
    del shapes["bn1.weight"]
    with pytest.raises(ArchitectureMismatch) as caught:
        identify("resnet18", shapes)
    message = caught.value.detail
    assert "layer1.0.conv1.weight: (64, 1, 3, 3) in the checkpoint, (64, 64, 3, 3) in resnet18" in message
    assert "1 missing: bn1.weight" in message
    assert "1 unexpected: strange" in message
    assert caught.value.details is not None
    assert caught.value.details["missing"] == ["bn1.weight"]


def test_a_long_list_is_cut_at_twenty() -> None:
    with pytest.raises(ArchitectureMismatch, match="and 99 more") as caught:
        identify("resnet20", {f"w{n}": (1,) for n in range(119)} | shapes_of(Network("resnet20", 10)))
    assert caught.value.details is not None
    assert len(caught.value.details["unexpected"]) == 20


def test_unknown_tensors_and_names() -> None:
    with pytest.raises(UnknownArchitecture, match="first: "):
        detect({"some.weight": (3, 3)})
    with pytest.raises(UnknownArchitecture, match="resnet19"):
        identify("resnet19", {})
    with pytest.raises(UnknownArchitecture, match=r"similar names: .*resnet18"):
        identify("resnet19", {})


def test_an_unknown_network_is_told_the_nearest_and_what_differs() -> None:
    shapes = dict(shapes_of(Network("resnet18", 10)))
    del shapes["fc.weight"], shapes["fc.bias"]
    shapes["head.weight"] = (10, 512)
    with pytest.raises(UnknownArchitecture) as caught:
        detect(shapes)
    message = caught.value.detail
    assert "resnet18 (120 tensors alike, 2 missing: fc.bias, fc.weight; 1 unexpected: head.weight)" in message
    assert "Give `architecture`" in message
    assert caught.value.details is not None
    told = caught.value.details["nearest"]
    assert [one["name"] for one in told][:2] == ["resnet18", "resnet34"]
    assert len(told) == 3
    assert told[0]["missing"] == ["fc.bias", "fc.weight"]


@pytest.mark.parametrize("more", [{}, {"criterion.weight": (7,), "steps": ()}])
def test_a_prefix_that_is_not_stripped_does_not_hide_the_nearest(more: dict[str, tuple[int, ...]]) -> None:
    """Nor do a few tensors of a training class beside it."""
    shapes = {f"backbone.{name}": shape for name, shape in shapes_of(Network("resnet20", 7)).items()} | more
    with pytest.raises(UnknownArchitecture) as caught:
        detect(shapes)
    message = caught.value.detail
    assert "once 'backbone.' is taken off the names: resnet20 (116 tensors alike, " in message
    assert ("2 unexpected: criterion.weight, steps" if more else "nothing differs: rename them") in message


def test_a_prefix_of_the_networks_own_is_left_on() -> None:
    shapes = dict(shapes_of(Network("convnext_tiny", 7))) | {"loss.weight": (7,)}
    with pytest.raises(
        UnknownArchitecture, match=r"nearest: convnext_tiny \(182 tensors alike, 1 unexpected: loss\.weight"
    ):
        detect(shapes)


def test_other_shapes_are_named_with_both() -> None:
    shapes = dict(shapes_of(Network("resnet20", 10)))
    shapes["layer1.0.conv1.weight"] = (20, 16, 3, 3)
    network, difference = nearest(shapes, most=1)[0]
    assert network.name == "resnet20"
    assert difference.mis_shaped == [("layer1.0.conv1.weight", (20, 16, 3, 3), (16, 16, 3, 3))]


def test_a_network_with_poolings_without_parameters_has_the_same_tensors_and_other_outputs() -> None:
    torch.manual_seed(0)
    plain, relative = initialized(Network("resnet18", 10)).eval(), initialized(Network("resnet18", 10)).eval()
    relative.load_state_dict(plain.state_dict())
    for stage in (relative.layer2, relative.layer3, relative.layer4):
        stage[0].conv1.stride = (1, 1)
        stage[0].bn1.register_forward_hook(lambda _module, _inputs, output: F.avg_pool2d(output, 2))
    assert {name: tuple(t.shape) for name, t in relative.state_dict().items()} == shapes_of(Network("resnet18", 10))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(plain(images), relative(images), rtol=0.01)
    assert detect({name: tuple(t.shape) for name, t in relative.state_dict().items()}).name in NEAR_RELATIVES


@pytest.mark.parametrize("name", sorted(NEAR_RELATIVES))
def test_relatives_are_of_networks_that_can_be_built(name: str) -> None:
    assert detect(shapes_of(Network(name, 10))).name == name


@pytest.mark.parametrize(
    ("relative", "name"), [("resnetblur18", "resnet18"), ("resnetaa50", "resnet50"), ("resnetblur50", "resnet50")]
)
def test_timms_relatives_are_in_the_table(relative: str, name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm's own networks are compared where it is installed")
    relatives_network, ours = timm.create_model(relative, num_classes=10).eval(), initialized(Network(name, 10)).eval()
    relatives_network.load_state_dict(ours.state_dict())
    assert f"timm's {relative}" in NEAR_RELATIVES[name]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(relatives_network(images), ours(images), rtol=0.01)


def test_torchvisions_own_relatives_are_in_the_table() -> None:
    """The input is normalized otherwise inside the network, or ReLU6 is ReLU: nothing of that is a tensor."""
    from torchvision import models

    torch.manual_seed(0)
    options = {"weights": None, "num_classes": 10}
    early = {**options, "aux_logits": False, "init_weights": True, "transform_input": True}
    relatives = {
        "googlenet": models.googlenet(**early),
        "inception_v3": models.inception_v3(**early),
        "mobilenet_v2": models.quantization.mobilenet_v2(**options, quantize=False),
    }
    for name, relative in relatives.items():
        ours = initialized(Network(name, 10))
        ours.load_state_dict(relative.state_dict())
        images = 4 * torch.randn(4, 3, 96, 96)
        outputs = []
        for model in (relative, ours):
            model.train()
            for part in model.modules():
                if isinstance(part, nn.Dropout):
                    part.eval()
            with torch.no_grad():
                outputs.append(model(images))
        assert not torch.allclose(*outputs, rtol=0.01), name
        assert name in NEAR_RELATIVES
