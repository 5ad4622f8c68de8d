"""Checkpoints of exported networks, merged: the mean of one network is that network, and two networks have none."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.exporting import OwnNet, exported, uploaded
from wbar.errors import UnsupportedProgram
from wbar_averaging import Dare, TaskArithmetic, merge_checkpoints
from wbar_averaging.streamed_mean import Mismatch
from wbar_training.networks.architectures import load


class Otherwise(OwnNet):
    """OwnNet's tensors, and another way to compute with them."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = F.avg_pool2d(x * self.scale + self.grid, 2)
        logits: Tensor = self.head(self.drop(x.flatten(1)))
        return logits


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 192), nn.Linear(192, 192)
        self.second.weight = self.first.weight
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(1)).relu()))  # type: ignore[no-any-return]


def checkpoint(folder: Path, network: type[nn.Module], seed: int) -> Path:
    """Upload a network with random weights; return the checkpoint's file."""
    torch.manual_seed(seed)
    uploaded(folder, exported(network()))
    return folder / "out.safetensors"


def test_the_mean_is_a_start_again_and_computes_with_the_mean(tmp_path: Path) -> None:
    sources = [checkpoint(tmp_path / str(seed), OwnNet, seed) for seed in (1, 2)]
    out = merge_checkpoints(sources, tmp_path / "merged.safetensors").path
    found = uploaded(tmp_path / "again", out.read_bytes())
    assert (found.format, found.source) == ("safetensors", "detected")
    assert found.network is not None
    module = load(found.network, load_file(tmp_path / "again" / "out.safetensors"))[0].eval()
    mean = OwnNet()
    one, two = map(load_file, sources)
    mean.load_state_dict({n: (one[n] + two[n]) / 2 if one[n].is_floating_point() else two[n] for n in one})
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(module(images), mean.eval()(images), atol=1e-6)


def test_two_programs_with_the_same_tensors_are_refused(tmp_path: Path) -> None:
    own, other = checkpoint(tmp_path / "own", OwnNet, 1), checkpoint(tmp_path / "other", Otherwise, 2)
    assert load_file(own).keys() == load_file(other).keys()
    with pytest.raises(
        Mismatch, match=r"wbar\.program: the network's program has the sha256 \w{12}… in .*compute something"
    ):
        merge_checkpoints([own, other], tmp_path / "merged.safetensors")
    with pytest.raises(Mismatch, match=r"wbar\.program"):
        merge_checkpoints([other], tmp_path / "merged.safetensors", TaskArithmetic(0.5), base=own)


def test_a_weight_of_two_names_is_one_or_refused(tmp_path: Path) -> None:
    one, two = (checkpoint(tmp_path / str(seed), Tied, seed) for seed in (1, 2))
    out = merge_checkpoints([one, two], tmp_path / "mean.safetensors").path
    uploaded(tmp_path / "mean", out.read_bytes())
    dropped = merge_checkpoints([two], tmp_path / "dare.safetensors", Dare(0.5), base=one).path
    with pytest.raises(
        UnsupportedProgram, match=r"'first\.weight' and 'second\.weight' are one parameter .*such as DARE"
    ):
        uploaded(tmp_path / "dare", dropped.read_bytes())
