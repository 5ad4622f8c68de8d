"""timm's families from upload to download: recognized by names and shapes, trained for a cycle, loaded by timm, strictly.

Random weights and small networks; three of them in every run, all with `make models`. What the job reports of w̄ is what timm's
own module gives with the downloaded file and its metadata alone.
"""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests.training.jobs import LocalJob, Recorder, run
from wbar.catalog import TIMM, catalog_name
from wbar.job_request import JobOptions
from wbar.method import CyclicSwa, HighPhase, LowPhase
from wbar.recipe import Recipe
from wbar.spec import JobSpec, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training.data.packed import load_split
from wbar_training.local import prepare_dataset, prepare_job
from wbar_training.networks import timm_table
from wbar_training.uploads import checkpoint_files
from wbar_training.workspace import Workspace

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'wbar[timm]'")

CLASSES = 3
QUICK = ("vit_tiny_patch16_224", "convnext_atto", "nf_regnet_b0")
# By timm's own names, with the side that the network is built for where that is not its usual one.
NETWORKS: dict[str, int | None] = {
    "vit_tiny_patch16_224": 32,
    "convnext_atto": None,
    "nf_regnet_b0": None,  # without normalization: scaled weight standardization
    "deit_tiny_distilled_patch16_224": 32,
    "vit_relpos_small_patch16_224": None,
    "beit_base_patch16_224": None,
    "eva02_tiny_patch14_224": None,
    "vit_small_patch16_dinov3": None,
    "cait_xxs24_224": None,
    "swin_tiny_patch4_window7_224": None,
    "swinv2_tiny_window8_256": None,
    "convnextv2_atto": None,
    "resnetv2_50x1_bit": None,  # GroupNorm and weight standardization
    "resnet10t": None,
    "resnet18": None,
    "resnest14d": None,
    "regnety_002": None,
    "efficientnet_lite0": None,
    "mobilenetv3_small_050": None,
    "ghostnet_050": None,
    "levit_128s": None,
    "pit_ti_224": None,
    "coat_lite_tiny": None,
    "xcit_nano_12_p16_224": None,
    "mixer_s32_224": None,
    "gmlp_ti16_224": None,
    "poolformer_s12": None,
    "edgenext_xx_small": None,
    "mobilevit_xxs": None,
    "fastvit_t8": None,
    "repvgg_a0": None,
    "tiny_vit_5m_224": None,
    "pvt_v2_b0": None,
    "mambaout_femto": None,
    "hiera_tiny_224": None,
    "maxvit_rmlp_pico_rw_256": None,
    "dla46_c": None,
    "hrnet_w18_small": None,
}
RELATIVES = ("vit_tiny_patch16_384", "tf_efficientnet_lite0", "resnetblur18")
METHOD = CyclicSwa(cycles=1, high=HighPhase(lr=1e-3, epochs=1), low=LowPhase(lr=1e-4, epochs=1), pull=1e-3)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with the table of the networks that are tested in this run, and their relatives."""
    folder = tmp_path_factory.mktemp("tables")
    asked = " ".join(item.name for item in request.session.items)
    names = [name for name in NETWORKS if f"[{name}]" in asked]
    timm_table.write(folder, [catalog_name(TIMM + name) for name in [*names, *RELATIVES]])
    return folder


def of_the_user(name: str) -> nn.Module:
    """timm's own network with random weights."""
    torch.manual_seed(0)
    size = NETWORKS[name]
    module: nn.Module = timm.create_model(name, num_classes=CLASSES, **({"img_size": size} if size else {}))
    return module


def archive(folder: Path) -> Path:
    """A dataset of a few small images: 6 to train on, 3 held out."""
    draws = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "images.zip", "w") as file:
        for split, count in (("train", 2), ("val", 1)):
            for label in range(CLASSES):
                for number in range(count):
                    pixels = draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                    content = io.BytesIO()
                    Image.fromarray(pixels).save(content, "PNG")
                    file.writestr(f"{split}/{label}/{number}.png", content.getvalue())
    return folder / "images.zip"


def job_of(name: str, tables: Path, folder: Path, **recipe: object) -> LocalJob:
    """A job on the user's network, recognized from its tensors."""
    workspace = Workspace(folder / "job", threads=1, save_every_seconds=1e9)
    workspace.scratch.mkdir()
    upload = folder / "upload.safetensors"
    write_safetensors(upload, {key: value.contiguous() for key, value in of_the_user(name).state_dict().items()}, {})
    valid = checkpoint_files.validate(upload, None, None, workspace.input("start"), tables=tables)
    assert (valid.network.num_classes, valid.network.image_size) == (CLASSES, NETWORKS[name])
    assert valid.network.name == name  # resnet18 is torchvision's, which is the same network
    start = StoredWeights(id="ckpt_start", sha256="0" * 64, blob="start", prefix=valid.prefix, network=valid.network)
    dataset, facts = prepare_dataset(str(archive(folder)), workspace)
    side = NETWORKS[name] or (valid.network.architecture.size if valid.network.architecture.fixed_size else 64)
    chosen = {"batch_size": 3, "image_size": side, "normalize": "imagenet", "augment": "none"} | recipe
    options = JobOptions(method=METHOD, recipe=Recipe.model_validate(chosen))
    spec: JobSpec = prepare_job(options, start, dataset, facts, workspace)
    return LocalJob(spec, workspace)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.models) for n in NETWORKS])
def test_a_family_goes_the_whole_way(name: str, tables: Path, tmp_path: Path) -> None:
    job = job_of(name, tables, tmp_path)
    outcome = run(job, Recorder())
    module = of_the_user(name)
    module.load_state_dict(load_file(outcome.weights), strict=True)
    start = of_the_user(name).state_dict()
    assert any(not torch.equal(tensor, start[key]) for key, tensor in module.state_dict().items())
    with safe_open(outcome.weights, framework="pt") as file:
        metadata = file.metadata()
    channels, height, width = json.loads(metadata["wbar.image_size"])
    normalize = json.loads(metadata["wbar.normalize"])
    held_out = load_split(job.dataset, "val", (height, width), None)
    mean, std = (torch.tensor(normalize[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits = module.eval()(((held_out.images.float() / 255).expand(-1, channels, -1, -1) - mean) / std)
    reported = outcome.result.metrics.averaged
    assert outcome.losses is not None
    each = json.loads(outcome.losses.read_bytes())["averaged"]
    assert F.cross_entropy(logits, held_out.labels, reduction="none").tolist() == pytest.approx(
        each, rel=1e-3, abs=1e-4
    )
    assert sum(each) / len(each) == pytest.approx(reported.loss)
    assert (logits.argmax(1) == held_out.labels).double().mean().item() == pytest.approx(reported.accuracy)
