"""The catalog is what can be built; a checkpoint's tensors name its network; differences are listed with both shapes."""

import json
from importlib.resources import files

import pytest
import torch

from wbar.catalog import ARCHITECTURES
from wbar.errors import ArchitectureMismatch, UnknownArchitecture
from wbar_training.networks.architectures import (
    Network,
    build,
    detect,
    identify,
    initialized,
    load,
    names,
    shapes_of,
    signatures,
)
from wbar_training.optim import decayed


def test_the_catalog_names_what_can_be_built() -> None:
    assert sorted(ARCHITECTURES) == names()


def test_the_table_of_signatures_is_true() -> None:
    """Regenerate with `python -m wbar_training.networks.architectures` where a new torchvision changed a network."""
    assert json.loads(files("wbar_training.networks").joinpath("signatures.json").read_text()) == signatures()


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_smallest_image_passes_in_training_mode(name: str) -> None:
    known = ARCHITECTURES[name]
    image_size = known.size if name.startswith("vit_") else None
    model = build(Network(name, 7, image_size=image_size)).to_empty(device="meta").train()
    side = known.size if known.fixed_size else known.min_size
    assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, 7)


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


@pytest.mark.parametrize("name", ["resnet20", "swin_t", "vit_b_32", "regnet_y_400mf"])
def test_a_loaded_network_computes_what_the_original_does(name: str) -> None:
    torch.manual_seed(0)
    network = Network(name, 4, image_size=64 if name == "vit_b_32" else None)
    original = initialized(network).eval()
    tensors = dict(original.state_dict()) | {"aux1.conv": torch.zeros(1)}
    copy, passive = load(network, tensors)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(copy.eval()(images), original(images))
    assert set(passive) == {"aux1.conv"}
    assert all(parameter.requires_grad for parameter in copy.parameters())


def test_decay_acts_on_convolution_and_linear_weights_only() -> None:
    chosen = decayed(build(Network("vit_b_32", 3, image_size=64)))
    assert "conv_proj.weight" in chosen
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in chosen
    assert "encoder.layers.encoder_layer_0.mlp.0.weight" in chosen
    assert not {name for name in chosen if "pos_embedding" in name or "ln" in name or name.endswith("bias")}
    assert "class_token" not in chosen
