"""timm's folder of a result, which timm loads; and whose networks have none."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.training.jobs import make_job
from wbar.errors import ValidationFailed
from wbar.job_request import JobOptions
from wbar.resolve import resolve_job
from wbar.spec import Network, StoredDataset, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training.data.packed import Packed
from wbar_training.hub_config import hub_config
from wbar_training.local import facts_of
from wbar_training.networks import timm_models
from wbar_training.networks.architectures import initialized
from wbar_training.uploads.checkpoint_files import check
from wbar_worker.hub_folder import write_hub_folder

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'wbar[timm]'")
SAID = {
    "wbar.classes": json.dumps(["ant", "bee", "cat"]),
    "wbar.normalize": json.dumps({"mean": [0.5], "std": [0.25]}),
    "wbar.resize": "both",
}


def network(name: str, channels: int = 3, image_size: int | None = None) -> Network:
    return Network(name, 3, channels, image_size, entry=timm_models.entry(name))


@pytest.mark.parametrize(
    "made", [network("convnext_atto"), network("vit_tiny_patch16_224", image_size=32), network("resnet10t", channels=1)]
)
def test_timm_loads_its_folder(made: Network, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module: nn.Module = initialized(made).eval()
    weights = tmp_path / "weights.safetensors"
    side = made.image_size or 64
    said = SAID | {"wbar.image_size": json.dumps([made.channels, side, side])}
    write_safetensors(weights, {f"module.{name}": tensor for name, tensor in module.state_dict().items()}, said)
    config = hub_config(made, weights, "module.", "classification")
    assert config is not None
    assert config.preprocessor is None
    write_hub_folder(tmp_path / "averaged.zip", config, weights, "# a card\n")
    with zipfile.ZipFile(tmp_path / "averaged.zip") as file:
        assert file.namelist() == ["README.md", "config.json", "model.safetensors"]
        file.extractall(tmp_path / "averaged")
    assert load_file(tmp_path / "averaged" / "model.safetensors").keys() == module.state_dict().keys()
    loaded = timm.create_model(f"local-dir:{tmp_path / 'averaged'}", pretrained=True).eval()
    again = check(tmp_path / "averaged.zip", made.name, None, tmp_path / "unpacked").facts
    assert again.pretrained is not None
    assert again.pretrained.classes == ("ant", "bee", "cat")
    images = torch.rand(2, made.channels, side, side)
    with torch.no_grad():
        assert torch.equal(loaded(images), module(images))
    assert loaded.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]
    assert (list(loaded.pretrained_cfg["mean"]), loaded.pretrained_cfg["crop_mode"]) == ([0.5], "squash")
    if made.channels == 3:  # another number of classes: a fresh head on these weights
        other = timm.create_model(f"local-dir:{tmp_path / 'averaged'}", pretrained=True, num_classes=5)
        assert other.num_classes == 5


def test_other_libraries_have_no_folder(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", images=100)
    assert hub_config(job.spec.network, job.start, "", "classification") is None
    start = StoredWeights(id="ckpt_a", sha256="0" * 64, blob="a", prefix="", network=job.spec.network)
    facts = facts_of(Packed.read(job.dataset), "builtin:digits")
    with pytest.raises(
        ValidationFailed, match="resnet20 is a network of wbar: only transformers and timm load such a folder"
    ):
        resolve_job(
            JobOptions(formats=["huggingface"]),
            start,
            StoredDataset(id="ds_a", sha256="1" * 64, blob="b"),
            facts,
            gpu=False,
        )
