"""transformers' families from upload to download: known by their configuration, trained for a cycle, given back as a folder.

Random weights and tiny configurations; two of them in every run, all with `make models-transformers`. What the job reports of w̄
is what the library itself gives with the downloaded folder alone.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from tests.training.jobs import LocalJob, Recorder, run
from tests.training.test_timm_families import METHOD, archive
from wbar.job_request import JobOptions
from wbar.recipe import Normalization, Recipe
from wbar.spec import StoredWeights
from wbar_training.data.packed import load_split
from wbar_training.local import prepare_dataset, prepare_job
from wbar_training.outcome import Outcome
from wbar_training.uploads import checkpoint_files
from wbar_training.workspace import Workspace
from wbar_worker.hub_folder import write_hub_folder

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'wbar[transformers]'"
)
CLASSES = 3
SIDE = 32
QUICK = ("vit", "convnextv2")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
PATCHES = SMALL | {"image_size": SIDE, "patch_size": 8}
SHIFTED = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "image_size": SIDE}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "vit": PATCHES,
    "deit": PATCHES,
    "beit": PATCHES | {"use_relative_position_bias": True, "use_mean_pooling": True},
    "swin": SHIFTED,
    "swinv2": SHIFTED,
    "dinov2": PATCHES | {"mlp_ratio": 2},
    "dinov2_with_registers": PATCHES | {"mlp_ratio": 2},
    "convnextv2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": SIDE},
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2]},
    "siglip": {"vision_config": PATCHES},
    "clip": {"vision_config": PATCHES, "projection_dim": 16},
}


def of_the_user(kind: str) -> nn.Module:
    """The library's own network with random weights."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, num_labels=CLASSES, **CONFIGURATIONS[kind])
    config.id2label = {n: f"class {n}" for n in range(CLASSES)}
    config.label2id = {f"class {n}": n for n in range(CLASSES)}
    if kind == "deit":  # which has two classifiers
        config.architectures = ["DeiTForImageClassification"]
    made: nn.Module = transformers.AutoModelForImageClassification.from_config(config)
    return made


def folder_of(kind: str, folder: Path, **options: Any) -> Path:
    """The folder that `save_pretrained` writes, with what a processor says about images."""
    of_the_user(kind).save_pretrained(folder, **options)
    images = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 3,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.25, 0.25, 0.2],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return folder


def zipped(folder: Path) -> Path:
    """The folder as one file."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(folder.iterdir()):
            file.write(member, member.name)
    return path


def job_of(upload: Path, folder: Path, **recipe: object) -> LocalJob:
    """A job on an upload."""
    workspace = Workspace(folder / "job", threads=1, save_every_seconds=1e9)
    workspace.scratch.mkdir()
    valid = checkpoint_files.validate(upload, None, None, workspace.input("start"))
    start = StoredWeights(
        id="ckpt_start",
        sha256="0" * 64,
        blob="start",
        prefix=valid.prefix,
        network=valid.network,
        pretrained=valid.pretrained,
    )
    dataset, facts = prepare_dataset(str(archive(folder)), workspace)
    options = JobOptions(method=METHOD, recipe=Recipe.model_validate({"batch_size": 3, "augment": "none"} | recipe))
    return LocalJob(prepare_job(options, start, dataset, facts, workspace), workspace)


def unpacked(outcome: Outcome, folder: Path) -> Path:
    """The folder that is downloaded: what a worker zips, unpacked."""
    assert outcome.hub is not None
    out = folder / "averaged.zip"
    write_hub_folder(out, outcome.hub, outcome.weights, "# a card\n")
    first = out.read_bytes()
    write_hub_folder(out, outcome.hub, outcome.weights, "# a card\n")
    assert out.read_bytes() == first
    with zipfile.ZipFile(out) as file:
        assert {entry.compress_type for entry in file.infolist()} == {zipfile.ZIP_STORED}
        file.extractall(folder / "averaged")
    return folder / "averaged"


@pytest.mark.parametrize(
    "kind", [pytest.param(n, marks=() if n in QUICK else pytest.mark.models) for n in CONFIGURATIONS]
)
def test_a_family_goes_the_whole_way(kind: str, tmp_path: Path) -> None:
    upload = zipped(folder_of(kind, tmp_path / "mine"))
    job = job_of(upload, tmp_path)
    recipe = job.spec.recipe
    assert isinstance(recipe.normalize, Normalization)
    assert (recipe.normalize.mean, recipe.normalize.std) == ([0.5, 0.4, 0.3], [0.25, 0.25, 0.2])
    assert (recipe.image_size, recipe.crop_ratio, recipe.interpolation) == ((SIDE, SIDE), 1.0, "bicubic")
    outcome = run(job, Recorder())
    folder = unpacked(outcome, tmp_path)
    module, report = transformers.AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert module.config.id2label == dict(enumerate("012"))
    assert load_file(folder / "model.safetensors").keys() == load_file(tmp_path / "mine" / "model.safetensors").keys()
    start = of_the_user(kind).state_dict()
    assert any(not torch.equal(tensor, start[key]) for key, tensor in module.state_dict().items())
    # The images as the folder's own processor prepares them, and nothing else.
    held_out = load_split(job.dataset, "val", (SIDE, SIDE), None)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    inputs = processor(images=list(held_out.images), return_tensors="pt")
    with torch.no_grad():
        logits = module.eval()(**inputs).logits
    reported = outcome.result.metrics.averaged
    assert outcome.losses is not None
    each = json.loads(outcome.losses.read_bytes())["averaged"]
    assert F.cross_entropy(logits, held_out.labels, reduction="none").tolist() == pytest.approx(
        each, rel=1e-3, abs=1e-4
    )
    assert sum(each) / len(each) == pytest.approx(reported.loss)
    assert (logits.argmax(1) == held_out.labels).double().mean().item() == pytest.approx(reported.accuracy)
