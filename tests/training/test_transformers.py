"""transformers' folders: read as data, refused by name where they are not what they say, given back for the library to load."""

import json
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.jobs import KilledHere, Recorder, run
from tests.training.test_transformers_families import CLASSES, SIDE, folder_of, job_of, of_the_user, unpacked, zipped
from tests.wbar.test_resolve import facts as facts_of
from wbar.errors import ArchitectureMismatch, CorruptFile, NothingMatches, Rejected, UnknownArchitecture, UnsafePath
from wbar.job_request import JobOptions
from wbar.job_warnings import warnings_about
from wbar.recipe import Recipe
from wbar.resolve import resolve_job
from wbar.spec import JobSpec, PretrainedConfig, StoredDataset, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.data.packed import load_split
from wbar_training.hub_config import hub_config
from wbar_training.mlflow_model import AveragedModel
from wbar_training.networks import transformers_models
from wbar_training.networks.architectures import build
from wbar_training.networks.fresh_layers import head_of, prepared
from wbar_training.networks.layers import depths, scales
from wbar_training.optim import decayed
from wbar_training.uploads.checkpoint_files import ValidCheckpoint, validate

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'wbar[transformers]'"
)


def checked(path: Path, any_network: bool = False) -> ValidCheckpoint:
    return validate(path, None, None, path.with_name("out"), any_network=any_network)


def edited(folder: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


def test_a_folder_says_what_its_network_and_its_images_were(tmp_path: Path) -> None:
    folder = folder_of("vit", tmp_path / "mine")
    with tarfile.open(tmp_path / "mine.tar.gz", "w:gz") as tar:
        tar.add(folder, "mine")
    for upload, kind in ((zipped(folder), "zip"), (tmp_path / "mine.tar.gz", "tar")):
        valid = checked(upload)
        assert (valid.format, valid.source, valid.ambiguous_with) == (kind, "detected", None)
        network = valid.network
        assert (network.name, network.num_classes, network.channels, network.image_size) == (
            "ViTForImageClassification", CLASSES, 3, SIDE,
        )  # fmt: skip
        assert network.architecture.library == "transformers"
        assert (network.architecture.family, network.architecture.fixed_size) == ("vit", True)
        names = tuple(f"class {n}" for n in range(CLASSES))
        assert valid.pretrained == PretrainedConfig(
            (0.5, 0.4, 0.3), (0.25, 0.25, 0.2), (SIDE, SIDE), 1.0, "bicubic", names
        )
        assert valid.parameters == sum(p.numel() for p in of_the_user("vit").parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.tar.gz", "mine.zip", "out"]


def test_what_changes_no_network_is_no_part_of_it(tmp_path: Path) -> None:
    folder = folder_of("vit", tmp_path / "mine")
    plain = checked(zipped(folder)).network
    edited(folder, "config.json", lambda config: config.update(
        torch_dtype="float16", _name_or_path="/somewhere", attn_implementation="hub/kernel", return_dict=False,
        output_hidden_states=True, transformers_version="4.0", label2id={}, id2label={"0": "a", "1": "b", "2": "c"},
    ))  # fmt: skip
    assert checked(zipped(folder)).network == plain
    assert plain.config is not None
    assert not {"id2label", "dtype", "_name_or_path"} & json.loads(plain.config).keys()


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"size": 32, "image_mean": [0.5], "image_std": [0.5]}, PretrainedConfig((0.5,), (0.5,), (32, 32), 1.0)),
        ({"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "resample": 2},
         PretrainedConfig(None, None, (32, 32), 0.5, "bilinear")),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.95},
         PretrainedConfig(None, None, (32, 32), 0.95)),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": None},
         PretrainedConfig(None, None, (32, 32), 0.875)),
        ({"image_mean": [127.5] * 3, "image_std": [51.0] * 3, "do_rescale": False},
         PretrainedConfig((0.5,) * 3, (0.2,) * 3)),
        ({"do_normalize": False, "resample": 0}, PretrainedConfig((0.0,), (1.0,))),
        ({"do_resize": False, "size": 20, "size_divisor": 32}, None),
        ({"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 28}, "do_center_crop": True,
          "crop_size": 28}, PretrainedConfig(None, None, (28, 28), 0.875)),
        ({"image_processor_type": "LevitImageProcessor", "size": {"height": 28, "width": 28}, "do_center_crop": True,
          "crop_size": 28}, PretrainedConfig(None, None, (28, 28), 1.0)),
        ({"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 28}, "do_center_crop": False},
         PretrainedConfig(None, None, (28, 28), 1.0)),
        ({"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 28}, "crop_pct": 0.7,
          "crop_size": 28}, PretrainedConfig(None, None, (28, 28), 0.7)),
        ({"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 28}, "crop_pct": None,
          "crop_size": 14}, PretrainedConfig(None, None, (14, 14), 0.5)),
        ({"image_processor_type": "PerceiverImageProcessor", "size": 28, "crop_size": 32, "do_center_crop": True},
         PretrainedConfig(None, None, (28, 28), 0.875)),
        ({"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": False, "crop_size": 32,
          "do_center_crop": True, "size": {"shortest_edge": 32}}, PretrainedConfig((0.0,), (1.0,), (32, 32), 1.0)),
    ],
)  # fmt: skip
def test_rules_of_processors(images: dict[str, Any], expected: PretrainedConfig | None, tmp_path: Path) -> None:
    folder = folder_of("vit", tmp_path / "mine")
    placeholders = {str(n): f"LABEL_{n}" for n in range(CLASSES)}
    edited(folder, "config.json", lambda config: config.update(id2label=placeholders))
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    assert checked(zipped(folder)).pretrained == expected


EFFICIENT = {
    "image_processor_type": "EfficientNetImageProcessor",
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.5, 0.4, 0.3],
}


@pytest.mark.parametrize(
    "images",
    [
        {"image_processor_type": "ViTImageProcessor", "image_mean": [0.4, 0.5, 0.6], "image_std": [0.5, 0.4, 0.3]},
        EFFICIENT,
        EFFICIENT | {"include_top": False},
        EFFICIENT | {"rescale_offset": True, "rescale_factor": 1 / 127.5},
        EFFICIENT | {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False, "include_top": False},
        EFFICIENT | {"do_normalize": False},
        EFFICIENT | {"rescale_offset": True, "do_rescale": False},
    ],
)
def test_images_are_normalized_as_the_library_does(images: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_of("vit", tmp_path / "mine")
    sizes = {"size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(images | sizes))
    said = checked(zipped(folder)).pretrained
    assert said is not None
    options = {name: value for name, value in (images | sizes).items() if name != "image_processor_type"}
    colour = np.array([200, 128, 32], np.uint8)
    theirs = getattr(transformers, images["image_processor_type"])(**options)(
        np.broadcast_to(colour, (SIDE, SIDE, 3)).copy(), return_tensors="np"
    )
    ours = (colour / 255 - np.array(said.mean)) / np.array(said.std)
    np.testing.assert_allclose(theirs["pixel_values"][0][:, 0, 0], ours, rtol=1e-5, atol=1e-5)


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


REFUSALS: dict[str, tuple[Callable[[Path], None], type[Rejected], str]] = {
    "no JSON": (not_json, CorruptFile, "config.json is not JSON"),
    "no weights": (without_weights, CorruptFile, r"config.json and no model.safetensors: save .* save_pretrained"),
    **{
        name: (lambda folder, edit=edit: edited(folder, "config.json", edit), error, words)
        for name, (edit, error, words) in {
            "unknown type": (
                lambda config: config.update(model_type="vitt"),
                UnknownArchitecture,
                r"model_type is 'vitt', which transformers .* does not know \(similar: vit",
            ),
            "no classifier": (
                lambda config: config.update(model_type="bert", architectures=["BertModel"]),
                UnknownArchitecture,
                r"'BertModel' \(model_type 'bert'\) is no image classifier: transformers .* has none",
            ),
            "another head": (
                lambda config: config.update(architectures=["ViTModel"]),
                UnknownArchitecture,
                "'ViTModel' .* is no image classifier: .* has ViTForImageClassification",
            ),
            "code": (
                lambda config: config.update(auto_map={"AutoModel": "evil--modeling.Net"}),
                UnknownArchitecture,
                "names code to run .auto_map: .*evil--modeling.Net.*, which is never done",
            ),
            "code below": (
                lambda config: config.update(backbone_config={"auto_map": {"AutoConfig": "x.y"}}),
                UnknownArchitecture,
                "names code to run",
            ),
            "pixels as words": (
                lambda config: config.update(model_type="imagegpt", architectures=["ImageGPTForImageClassification"]),
                UnknownArchitecture,
                "ImageGPTForImageClassification takes no images of pixels",
            ),
            "timm's, wrapped": (
                lambda config: config.update(model_type="timm_wrapper", architecture=None),
                UnknownArchitecture,
                "upload what timm's save_for_hf writes",
            ),
            "quantized": (
                lambda config: config.update(quantization_config={"bits": 8}),
                ArchitectureMismatch,
                "says that the weights are quantized",
            ),
            "another width": (
                lambda config: config.update(intermediate_size=64),
                ArchitectureMismatch,
                r"vit.layers.0.mlp.fc1.weight: \(48, 32\) in the checkpoint, \(64, 32\) in ViTForImageClassification",
            ),
            "another number of layers": (
                lambda config: config.update(num_hidden_layers=3),
                ArchitectureMismatch,
                "the tensors are not ViTForImageClassification's; 16 missing: vit.layers.2",
            ),
            "another number of classes": (
                lambda config: config.update(id2label={str(n): f"c{n}" for n in range(5)}),
                ArchitectureMismatch,
                r"5 classes \(id2label\), and the head in the file has 3 outputs \(classifier",
            ),
            "a class without a number": (
                lambda config: config.update(id2label={"0": "a", "1": "b", "x": "c"}),
                CorruptFile,
                "id2label has 3 classes and no name of output 2",
            ),
            "a class without a name": (
                lambda config: config.update(id2label={"0": "a", "1": 7, "2": "c"}),
                CorruptFile,
                "no name of output 1",
            ),
            "values that do not fit": (
                lambda config: config.update(num_attention_heads=7),
                ArchitectureMismatch,
                r"q_proj.weight: \(32, 32\) in the checkpoint, \(28, 32\) in ViTForImageClassification",
            ),
            "a value of another kind": (
                lambda config: config.update(hidden_size="x"),
                ArchitectureMismatch,
                "config.json is none of ViTForImageClassification: .*hidden_size",
            ),
            "a million layers": (
                lambda config: config.update(num_hidden_layers=10**6),
                ArchitectureMismatch,
                "more than 4000 parameters' tensors",
            ),
            "an unknown activation": (
                lambda config: config.update(hidden_act="sofa"),
                ArchitectureMismatch,
                "builds no ViTForImageClassification that runs",
            ),
            "no square": (
                lambda config: config.update(image_size=[32, 64]),
                ArchitectureMismatch,
                r"image_size is '?\[32, 64\]'?: square images",
            ),
        }.items()
    },
    "no deviation": (
        lambda folder: edited(folder, "preprocessor_config.json", lambda images: images.update(image_std=[0, 1, 1])),
        CorruptFile,
        r"image_std is '?\[0, 1, 1\]'?, which it cannot be",
    ),
    "blue first": (
        lambda folder: edited(
            folder, "preprocessor_config.json", lambda images: images.update(do_flip_channel_order=True)
        ),
        CorruptFile,
        "do_flip_channel_order: the network takes blue first",
    ),
    "no size": (
        lambda folder: edited(folder, "preprocessor_config.json", lambda images: images.update(size=10**9)),
        CorruptFile,
        "size is .*1000000000",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_is_not_a_network_of_the_library_is_refused_by_name(what: str, tmp_path: Path) -> None:
    spoil, error, words = REFUSALS[what]
    folder = folder_of("vit", tmp_path / "mine")
    spoil(folder)
    with pytest.raises(error, match=words):
        checked(zipped(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.zip"]


def test_a_folder_of_no_known_network_can_be_merged(tmp_path: Path) -> None:
    folder = folder_of("vit", tmp_path / "mine")
    edited(folder, "config.json", lambda config: config.update(model_type="bert", architectures=["BertModel"]))
    assert checked(zipped(folder), any_network=True).network is None


def in_parts(folder: Path) -> Path:
    folder_of("vit", folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_weights_in_parts_are_one_network(tmp_path: Path) -> None:
    valid = checked(zipped(in_parts(tmp_path / "parts")))
    whole = checked(zipped(folder_of("vit", tmp_path / "whole")))
    assert (valid.network, valid.tensors, valid.parameters) == (whole.network, whole.tensors, whole.parameters)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "parts", "parts.zip", "whole", "whole.zip"]


def move_first(to: str) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["weight_map"].update({next(iter(index["weight_map"])): to})


def leave_out_first(index: dict[str, Any]) -> None:
    del index["weight_map"][next(iter(index["weight_map"]))]


def invent_one(index: dict[str, Any]) -> None:
    index["weight_map"]["more"] = next(iter(index["weight_map"].values()))


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (move_first("../model-00001-of-00002.safetensors"), UnsafePath, r"in '\.\./model-.*parts lie beside it"),
        (move_first("/etc/passwd"), UnsafePath, "'/etc/passwd'"),
        (move_first("config.json"), CorruptFile, "parts are named model-00001-of-00002.safetensors"),
        (
            move_first("model-00009-of-00009.safetensors"),
            CorruptFile,
            "-00009.safetensors', which is not in the archive",
        ),
        (lambda index: index.pop("weight_map"), CorruptFile, "has no `weight_map`"),
        (leave_out_first, CorruptFile, "where the index of the parts does not place it"),
        (invent_one, CorruptFile, "more is not in model-.*, where the index places it"),
    ],
)
def test_a_wrong_index_is_refused(
    spoil: Callable[[dict[str, Any]], Any], error: type[Rejected], words: str, tmp_path: Path
) -> None:
    folder = in_parts(tmp_path / "parts")
    edited(folder, "model.safetensors.index.json", spoil)
    with pytest.raises(error, match=words):
        checked(zipped(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "parts.zip"]


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    folder = in_parts(tmp_path / "parts")
    first = min(folder.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(CorruptFile, match=f"names '{first.name}', which is not in the archive"):
        checked(zipped(folder))


def test_without_the_library_the_sentence_says_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = zipped(folder_of("vit", tmp_path / "mine"))
    monkeypatch.setattr(transformers_models, "installed", lambda: None)
    with pytest.raises(UnknownArchitecture, match=r"pip install 'wbar\[transformers\]'"):
        checked(upload)


# Classes.


def spec_of(upload: Path, names: tuple[str, ...], **options: Any) -> JobSpec:
    valid = checked(upload)
    start = StoredWeights(
        id="ckpt_start", sha256="0" * 64, blob="start", prefix="", network=valid.network, pretrained=valid.pretrained
    )
    dataset = StoredDataset(id="ds_one", sha256="1" * 64, blob="one")
    return resolve_job(JobOptions(**options), start, dataset, replace(facts_of(), classes=names), gpu=False)


def test_names_of_outputs_are_the_order_of_the_classes(tmp_path: Path) -> None:
    folder = folder_of("vit", tmp_path / "mine")
    edited(folder, "config.json", lambda config: config.update(id2label={"0": "dog", "1": "ant", "2": "cat"}))
    upload = zipped(folder)
    assert spec_of(upload, ("ant", "cat", "dog")).classes == ("dog", "ant", "cat")
    assert spec_of(upload, ("ant", "cat")).classes == ("dog", "ant", "cat")
    asked = spec_of(upload, ("ant", "cat", "dog"), classes=["cat", "ant", "dog"])
    assert asked.classes == ("cat", "ant", "dog")
    fresh = spec_of(upload, ("ant", "bee"), recipe=Recipe(head="reset"))
    assert (fresh.classes, fresh.network.num_classes) == (("ant", "bee"), 2)
    assert "pretrained" not in json.dumps(asked.document())
    for named in (asked, fresh):
        assert list(warnings_about(named, replace(facts_of(), classes=("ant", "cat", "dog")))) == []
    # Names that do not cover the dataset's are not guessed at: the dataset's order, and a warning.
    other = spec_of(upload, ("ant", "bee", "cat"))
    assert other.classes is None
    (warning,) = warnings_about(other, replace(facts_of(), classes=("ant", "bee", "cat")))
    assert "('dog', 'ant', 'cat'), and 1 of the dataset's are not among them ('bee')" in warning.detail
    # A single output is a sigmoid between two classes: one name says no order of them.
    edited(folder, "config.json", lambda config: config.update(id2label={"0": "cat"}))
    state = load_file(folder / "model.safetensors")
    whole = {name: tensor.clone() for name, tensor in state.items()}
    save_file(
        state | {name: state[name][:1].clone() for name in ("classifier.weight", "classifier.bias")},
        folder / "model.safetensors",
    )
    single = spec_of(zipped(folder), ("cat", "dog"))
    assert (single.classes, single.network.num_classes) == (None, 1)
    save_file(whole, folder / "model.safetensors")
    # In the same order nothing is to be said.
    edited(folder, "config.json", lambda config: config.update(id2label={"0": "a", "1": "b", "2": "c"}))
    same = spec_of(zipped(folder), ("a", "b", "c"))
    assert (same.classes, same.formats) == (None, ("huggingface",))
    assert list(warnings_about(same, replace(facts_of(), classes=("a", "b", "c")))) == []


# Training.


def test_layers_decay_and_depth(tmp_path: Path) -> None:
    network = checked(zipped(folder_of("resnet", tmp_path / "resnet"))).network
    depth = depths(build(network))
    assert depth["resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"] == 1
    assert depth["resnet.encoder.stages.0.layers.0.shortcut.convolution.weight"] == 1
    assert max(depth.values()) == depth["classifier.1.weight"] == 4  # three blocks
    assert head_of(network) == {"classifier.1.weight", "classifier.1.bias"}
    vit = checked(zipped(folder_of("vit", tmp_path / "vit"))).network
    rates = scales(build(vit), 0.5)
    assert [rates[f"vit.{name}"] for name in ("embeddings.cls_token", "layers.0.mlp.fc1.weight", "layernorm.bias")] == [
        0.125, 0.25, 0.5,
    ]  # fmt: skip
    names = decayed(build(vit))
    assert "vit.layers.0.attention.q_proj.weight" in names
    assert not {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings", "vit.layernorm.weight"} & names
    swin = build(checked(zipped(folder_of("swinv2", tmp_path / "swin"))).network)
    assert not any("continuous_position_bias_mlp" in name or "logit_scale" in name for name in decayed(swin))


def test_stochastic_depth_is_the_librarys_or_refused(tmp_path: Path) -> None:
    recipe = Recipe(drop_path=0.2)
    network = checked(zipped(folder_of("convnextv2", tmp_path / "mine"))).network
    module = prepared(network, of_the_user("convnextv2").state_dict(), recipe, 0)
    rates = [one.drop_prob for one in module.modules() if type(one).__name__ == "ConvNextV2DropPath"]
    assert rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates)
    with pytest.raises(
        NothingMatches, match=r"recipe.drop_path is 0.2 and ViTForImageClassification has no stochastic depth"
    ):
        prepared(
            checked(zipped(folder_of("vit", tmp_path / "vit"))).network, of_the_user("vit").state_dict(), recipe, 0
        )


def test_deaths_change_nothing(tmp_path: Path) -> None:
    folder = folder_of("swin", tmp_path / "mine")  # whose stochastic depth draws
    edited(folder, "config.json", lambda config: config.update(drop_path_rate=0.3, hidden_dropout_prob=0.1))
    upload, recipe = zipped(folder), {"head": "reset", "head_epochs": 1, "layer_decay": 0.7, "batch_size": 2}
    whole = Recorder()
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    undisturbed = run(job_of(upload, tmp_path / "whole", **recipe), whole)
    broken = job_of(upload, tmp_path / "broken", **recipe).changed(save_every_seconds=0.0)
    last = max(step for step, _ in whole.states)
    for step in sorted(random.Random(1).sample(range(1, last), 2)):
        with pytest.raises(KilledHere):
            run(broken.changed(resume=state_files.latest(broken.scratch)), Recorder(die_at=step))
    again = run(broken.changed(resume=state_files.latest(broken.scratch)), Recorder())
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert (again.result.metrics, again.hub) == (undisturbed.result.metrics, undisturbed.hub)


# The result.

LOADED = """
import json, sys, torch, transformers
from safetensors.torch import load_file
held_out = load_file(sys.argv[2])
model = transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
processor = transformers.AutoImageProcessor.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(**processor(images=list(held_out["images"]), return_tensors="pt")).logits
print(json.dumps({
    "accuracy": (logits.argmax(1) == held_out["labels"]).double().mean().item(),
    "loss": torch.nn.functional.cross_entropy(logits, held_out["labels"]).item(),
    "names": model.config.id2label,
}))
"""


@pytest.mark.long
def test_a_fresh_process_finds_what_was_reported(tmp_path: Path) -> None:
    folder = folder_of("vit", tmp_path / "mine")
    edited(folder, "config.json", lambda config: config.update(id2label={"0": "2", "1": "0", "2": "1"}))
    job = job_of(zipped(folder), tmp_path)
    assert job.spec.classes == ("2", "0", "1")
    outcome = run(job, Recorder())
    result = unpacked(outcome, tmp_path)
    held_out = load_split(job.dataset, "val", (SIDE, SIDE), [1, 2, 0])
    save_file({"images": held_out.images.contiguous(), "labels": held_out.labels}, tmp_path / "held-out")
    asked = subprocess.run(
        [sys.executable, "-P", "-c", LOADED, result, tmp_path / "held-out"],
        capture_output=True, text=True, check=True, timeout=200, env={"HF_HUB_OFFLINE": "1", "PATH": ""},
    )  # fmt: skip
    found = json.loads(asked.stdout.splitlines()[-1])
    reported = outcome.result.metrics.averaged
    assert found["accuracy"] == pytest.approx(reported.accuracy)
    assert found["loss"] == pytest.approx(reported.loss, rel=1e-3)
    assert found["names"] == {"0": "2", "1": "0", "2": "1"}
    # Either file can be uploaded again: its metadata, or the folder, says what it is.
    again = [checked(path) for path in (zipped(result), outcome.weights)]
    assert [one.network for one in again] == [job.spec.network] * 2
    assert again[0].pretrained is not None
    assert again[0].pretrained.classes == ("2", "0", "1")


def test_older_names_and_dtypes_stay_as_they_were_uploaded(tmp_path: Path) -> None:
    folder = folder_of("vit", tmp_path / "mine")
    uploaded = {f"module.{name}": tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    assert any("encoder.layer.0.attention.attention.query" in name for name in uploaded)
    save_file(uploaded, folder / "model.safetensors")
    outcome = run(job_of(zipped(folder), tmp_path), Recorder())
    made = load_file(outcome.weights)
    assert made.keys() == uploaded.keys()
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    assert AveragedModel(outcome.weights).predict(np.zeros((2, 3, SIDE, SIDE), np.float32)).shape == (2, CLASSES)
    result = unpacked(outcome, tmp_path)
    assert not any(name.startswith("module.") for name in load_file(result / "model.safetensors"))
    model = transformers.AutoModelForImageClassification.from_pretrained(result)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.classifier.weight, made["module.classifier.weight"])


def test_a_byte_order_mark_and_a_folder_called_models(tmp_path: Path) -> None:
    folder = folder_of("vit", tmp_path / "models")
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "models.zip", "w", compression) as file:
            for member in sorted(folder.iterdir()):
                file.write(member, f"models/{member.name}")
        found = checked(tmp_path / "models.zip").network
        assert found is not None
        assert found.name == "ViTForImageClassification"


def test_a_folder_of_timms_wrapper_says_what_to_upload(tmp_path: Path) -> None:
    folder = folder_of("vit", tmp_path / "mine")
    edited(folder, "config.json", lambda config: config.update(model_type="timm_wrapper", architecture="resnet18"))
    with pytest.raises(Rejected, match="save_for_hf"):
        checked(zipped(folder))


@pytest.mark.parametrize(
    ("task", "expected"),
    [("classification", None), ("multilabel", "multi_label_classification"), ("regression", "regression")],
)
def test_a_folder_says_what_kind_of_answer_its_outputs_are(task: str, expected: str | None, tmp_path: Path) -> None:
    network = checked(zipped(folder_of("vit", tmp_path / "mine"))).network
    assert network is not None
    said = {
        "wbar.classes": json.dumps([str(n) for n in range(CLASSES)]),
        "wbar.normalize": json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3}),
        "wbar.resize": "both",
        "wbar.image_size": json.dumps([3, SIDE, SIDE]),
    }
    weights = tmp_path / "weights.safetensors"
    write_safetensors(weights, {"classifier.bias": torch.zeros(CLASSES)}, said)
    made = hub_config(network, weights, "", task)
    assert made is not None
    assert json.loads(made.config).get("problem_type") == expected


@pytest.mark.parametrize("kind", ["vit", "beit", "swin", "dinov2"])
def test_tokens_tables_and_indices_average_as_they_should(kind: str, tmp_path: Path) -> None:
    """w̄ of every parameter is the float64 mean of the snapshots, whatever it is; what holds whole numbers stays."""
    job, told = job_of(zipped(folder_of(kind, tmp_path / "mine")), tmp_path), Recorder()
    outcome = run(job.changed(method=job.spec.method.model_copy(update={"cycles": 3})), told)
    snapshots = [load_file(told.snapshots[n]) for n in (1, 2, 3)]
    averaged, start = load_file(outcome.weights), load_file(tmp_path / "mine" / "model.safetensors")
    special = (
        "cls_token",
        "position_embeddings",
        "relative_position_bias_table",
        "mask_token",
        "lambda",
        "layer_scale",
    )
    assert averaged.keys() == start.keys()
    assert any(part in name for name in averaged for part in special)
    moved = set()
    for name, tensor in averaged.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, start[name])
            continue
        mean = torch.stack([one[name].double() for one in snapshots]).mean(0)
        torch.testing.assert_close(tensor, mean.to(tensor.dtype), rtol=0, atol=0)
        moved |= {name} if not torch.equal(tensor, start[name]) else set()
    assert any(part in name for name in moved for part in special)
