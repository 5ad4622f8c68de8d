"""The catalog is what can be built, and a loaded network computes what the original does."""

import pytest
import torch

from wbar.catalog import ARCHITECTURES
from wbar.spec import Network
from wbar_training.networks.architectures import build, initialized, load, names
from wbar_training.optim import decayed


def test_the_catalog_names_what_can_be_built() -> None:
    assert sorted(ARCHITECTURES) == names()


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_smallest_image_passes_in_training_mode(name: str) -> None:
    architecture = ARCHITECTURES[name]
    image_size = architecture.size if name.startswith("vit_") else None
    model = build(Network(name, 7, image_size=image_size)).to_empty(device="meta").train()
    side = architecture.size if architecture.fixed_size else architecture.min_size
    if architecture.outputs == "boxes":  # which numbers decide the shapes of: see the test of every architecture
        return
    outputs = model(torch.empty(2, 3, side, side, device="meta"))
    if architecture.outputs == "pixels":
        assert {key: one.shape for key, one in outputs.items()} == {"out": (2, 7, side, side)}
    else:
        assert outputs.shape == (2, 7)


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
