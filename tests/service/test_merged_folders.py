"""Merges of what was uploaded as folders: adapters by what they add, and networks with all that lies beside their weights."""

import json
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.averaging.test_lora import adapter
from tests.client.test_cli import wbar
from tests.conftest import Service
from tests.service.test_merges import foreign
from tests.training.test_transformers_families import folder_of, zipped
from wbar.client import Client
from wbar.errors import CorruptFile, UnknownArchitecture, ValidationFailed
from wbar.merges import MeanMerge, Merge, MergeSource, MergeSpec
from wbar_averaging import TaskArithmetic, WeightedMean, merge_checkpoints
from wbar_averaging.safetensors_file import read_layout

SIDE = 300  # of two tensors that have to lie in two files of a megabyte


def network(folder: Path, seed: int, **config: Any) -> Path:
    """The folder of a network of another kind, with a tokenizer and a program."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    tensors = {name: rng.standard_normal((3 * SIDE, SIDE), np.float32) for name in ("encoder.weight", "head.weight")}
    save_file(tensors, folder / "model.safetensors")
    classes = {"id2label": {"0": "cat", "1": "dog"}, "torch_dtype": "float32"}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "own", "architectures": ["Own"], **classes, **config})
    )
    (folder / "tokenizer.json").write_text(json.dumps({"words": ["a", "ä"], "made by": seed}))
    (folder / "modeling_own.py").write_text("raise SystemExit")
    return folder


def tarred(folder: Path) -> Path:
    """The folder in a folder of a tar."""
    path = folder.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, folder.name)
    return path


def merged(client: Client, paths: Sequence[Path], folder: Path, **fields: Any) -> tuple[Merge, Path]:
    """The merge of uploads, and where its result is unpacked."""
    ids = [client.checkpoints.create(path, purpose="merge").id for path in paths]
    merge = client.merges.wait(client.merges.create(ids, **fields).id, timeout=60)
    if merge.status == "succeeded":
        with zipfile.ZipFile(client.merges.download(merge.id, folder.with_suffix(".out.zip"))) as file:
            assert file.testzip() is None
            file.extractall(folder)
    return merge, folder


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same, of safetensors files the same tensors."""
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    for name in names:
        if name.endswith(".safetensors"):
            here, there = load_file(one / name), load_file(other / name)
            if {key: value.tobytes() for key, value in here.items()} != {key: x.tobytes() for key, x in there.items()}:
                return False
        elif (one / name).read_bytes() != (other / name).read_bytes():
            return False
    return True


def test_adapters_are_merged_by_what_they_add(service: Service, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = [adapter(tmp_path / name, rng, rank) for name, rank in (("a", 2), ("b", 3))]
    with service.client() as client, service.http() as http:
        method = {"type": "mean", "weights": [1, 3], "lora_rank": 2}
        merge, found = merged(client, [zipped(one) for one in folders], tmp_path / "found", method=method)
        assert merge.result is not None, merge.error
        expected = merge_checkpoints(folders, tmp_path / "expected", WeightedMean([1, 3]), lora_rank=2)
        assert same_files(found, expected.path.parent)
        assert merge.result.residuals == expected.residuals
        assert merge.result.left_out is not None
        assert (merge.format, merge.result.weights.format) == ("huggingface", "huggingface")
        head = http.head(f"/v1/merges/{merge.id}/weights")
        assert head.headers["content-disposition"] == f'attachment; filename="{merge.id}.zip"'
        # The result is a folder: it is merged further as a checkpoint.
        with pytest.raises(ValidationFailed, match="make a checkpoint of it"):
            client.merges.create([merge.id], method={"type": "mean", "lora_rank": 2})
        again = client.checkpoints.create_from(merge.id, purpose="merge")
        assert (again.adapter, again.architecture, again.format) == (True, None, "zip")
        whole = {"type": "mean", "lora_rank": 2}
        same = client.merges.wait(client.merges.create([again.id], method=whole).id, timeout=60)
        assert same.result is not None, same.error
        assert max((same.result.residuals or {}).values()) < 1e-6


@pytest.mark.parametrize(
    ("fields", "pointer", "message"),
    [
        ({}, "/method/lora_rank", "give `lora_rank`"),
        ({"method": {"type": "ties"}, "base": 0}, "/method", "weighted mean"),
        ({"method": {"type": "mean", "lora_rank": 2}, "format": "safetensors"}, "/format", "adapter_config.json"),
        (
            {"method": {"type": "mean", "lora_rank": 2}, "format": "huggingface", "max_shard_bytes": 10**6},
            "/max_shard_bytes",
            "one file",
        ),
        ({"method": {"type": "mean", "lora_rank": 2}, "checkpoints": [0, 1]}, "/checkpoints", "merged with adapters"),
        ({"method": {"type": "mean", "lora_rank": 2}, "checkpoints": [1]}, "/method/lora_rank", "is no LoRA adapter"),
        ({"format": "huggingface", "checkpoints": [1]}, "/format", "was not uploaded as a folder"),
        ({"max_shard_bytes": 10**6, "checkpoints": [1]}, "", "goes with the format huggingface"),
    ],
)
def test_merges_of_folders_that_make_no_sense_are_refused(
    service: Service, tmp_path: Path, fields: dict[str, Any], pointer: str, message: str
) -> None:
    paths = [zipped(adapter(tmp_path / "a", np.random.default_rng(0))), foreign(tmp_path / "b.safetensors", 0)]
    with service.client() as client, service.http() as http:
        ids = [client.checkpoints.create(path, purpose="merge").id for path in paths]
        body = fields | {"checkpoints": [ids[n] for n in fields.get("checkpoints", [0])]}
        if "base" in body:
            body["base"] = ids[body["base"]]
        answer = http.post("/v1/merges", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), answer.text
    assert message in answer.text


def test_an_adapter_that_cannot_be_used_is_refused_by_name(service: Service, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = adapter(tmp_path / "good", rng)
    other = adapter(tmp_path / "other", rng, peft_type="IA3")
    bare, empty = adapter(tmp_path / "bare", rng), adapter(tmp_path / "empty", rng)
    (bare / "adapter_config.json").unlink()
    (empty / "adapter_model.safetensors").unlink()
    with service.client() as client:
        with pytest.raises(UnknownArchitecture, match="purpose=merge"):
            client.checkpoints.create(zipped(good))
        for folder, message in (
            (other, "peft_type is IA3"),
            (bare, "no adapter_config.json beside it"),
            (empty, "adapter_config.json and no adapter_model.safetensors"),
        ):
            with pytest.raises(CorruptFile, match=message):
                client.checkpoints.create(zipped(folder), purpose="merge")


def test_a_merge_carries_the_files_beside_the_weights_in_shards(service: Service, tmp_path: Path) -> None:
    folders = [network(tmp_path / f"n{n}", n) for n in range(3)]
    # One of them comes in parts, which its index places.
    tensors = load_file(folders[1] / "model.safetensors")
    (folders[1] / "model.safetensors").unlink()
    places = {}
    for n, (name, tensor) in enumerate(tensors.items(), start=1):
        save_file({name: tensor}, folders[1] / (part := f"model-0000{n}-of-00002.safetensors"))
        places[name] = part
    (folders[1] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with service.client() as client:
        base = client.checkpoints.create(tarred(folders[0]), purpose="merge").id
        merge, found = merged(
            client, [zipped(one) for one in folders[1:]], tmp_path / "found", base=base, format="huggingface",
            method={"type": "task_arithmetic", "scale": 0.5}, dtype="bfloat16", max_shard_bytes=10**6,
        )  # fmt: skip
        assert merge.result is not None, merge.error
        assert (merge.max_shard_bytes, merge.result.residuals) == (10**6, None)
        for checkpoint in (merge.sources[0].id, base):
            client.checkpoints.delete(checkpoint)
    merge_checkpoints(
        folders[1:], tmp_path / "expected", TaskArithmetic(0.5), base=folders[0], dtype="BF16", max_shard_bytes=10**6
    )
    assert sorted(path.name for path in found.iterdir()) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        assert (found / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    for part in found.glob("*.safetensors"):
        (one, begin), (other, _) = read_layout(part), read_layout(tmp_path / "expected" / part.name)
        assert one["__metadata__"]["format"] == "pt"  # or transformers would not load it
        assert one == other
        assert part.read_bytes()[begin:] == (tmp_path / "expected" / part.name).read_bytes()[begin:]
    assert json.loads((found / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_folder_may_be_named_twice_and_have_an_adapters_configuration_beside_it(
    service: Service, tmp_path: Path
) -> None:
    folders = [network(tmp_path / name, n) for n, name in enumerate("ab")]
    for one in folders:
        (one / "adapter_config.json").write_text("{}")
    with service.client() as client:
        base, other = (client.checkpoints.create(zipped(one), purpose="merge") for one in folders)
        assert not base.adapter
        merge = client.merges.create(
            [base.id, other.id, other.id], base=base.id, format="huggingface", method={"type": "task_arithmetic"}
        )
        merge = client.merges.wait(merge.id, timeout=60)
        assert merge.error is None
        with zipfile.ZipFile(client.merges.download(merge.id, tmp_path / "out.zip")) as file:
            file.extractall(tmp_path / "found")
    a, b, found = (load_file(folder / "model.safetensors") for folder in (*folders, tmp_path / "found"))
    np.testing.assert_allclose(found["head.weight"], 2.0 * b["head.weight"] - a["head.weight"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"auto_map": {"AutoModel": "modeling_own.Own"}}, "ckpt_.*/config.json: auto_map names code to run"),
        ({"id2label": {"0": "dog", "1": "cat"}}, "id2label: class 0 is cat in ckpt_.*, dog in ckpt_"),
    ],
)
def test_folders_that_do_not_go_together_fail_by_name(
    service: Service, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folders = [network(tmp_path / "a", 0), network(tmp_path / "b", 1, **config)]
    with service.client() as client:
        merge, _ = merged(client, [zipped(one) for one in folders], tmp_path / "found", format="huggingface")
        assert merge.error is not None
        assert merge.error.code == "merge_failed"
        assert re.search(message, merge.error.message), merge.error.message
        alone = client.merges.wait(client.merges.create([one.id for one in merge.sources]).id, timeout=60)
        assert alone.status == "succeeded"  # of the weights alone nothing is known


@pytest.mark.long
def test_adapters_are_merged_from_the_command_line(service: Service, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = [adapter(tmp_path / name, rng) for name in "ab"]
    ids = [wbar(service, "upload", str(zipped(one)), "--purpose", "merge").stdout.strip() for one in folders]
    out = tmp_path / "out.zip"
    done = wbar(service, "merges", "create", *ids, "--lora-rank", "1", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "of ΔW (Frobenius norm) in " in done.stderr
    with zipfile.ZipFile(out) as file:
        file.extractall(tmp_path / "found")
    merge_checkpoints(folders, tmp_path / "expected", lora_rank=1)
    assert same_files(tmp_path / "found", tmp_path / "expected")


@pytest.mark.long
def test_a_merged_folder_is_loaded_by_transformers(service: Service, tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'wbar[transformers]'"
    )
    folders = [folder_of("vit", tmp_path / name) for name in "ab"]
    with service.client() as client:
        merge, found = merged(client, [zipped(one) for one in folders], tmp_path / "found", format="huggingface")
        assert merge.status == "succeeded", merge.error
        again = client.checkpoints.create_from(merge.id)
        assert again.architecture is not None
        assert (again.architecture.name, again.format) == ("ViTForImageClassification", "zip")
    model = transformers.AutoModelForImageClassification.from_pretrained(found)
    mean = np.mean([load_file(one / "model.safetensors")["classifier.weight"] for one in folders], axis=0)
    np.testing.assert_allclose(model.classifier.weight.detach().numpy(), mean, rtol=1e-6)
    assert (found / "preprocessor_config.json").is_file()


def test_what_is_stored_of_other_merges_is_as_before() -> None:
    """A worker of the version before takes such rows, and refuses keys that it does not know."""
    source = MergeSource(id="ckpt_a", sha256="a" * 64)
    plain = MergeSpec(sources=(source,), base=None, method=MeanMerge(), dtype=None).document()
    assert plain.keys() == {"sources", "base", "method", "dtype"}
    assert plain["method"].keys() == {"type", "weights", "shape", "ema"}
    folder = MergeSpec(sources=(source,), base=None, method=MeanMerge(lora_rank=2), dtype=None, format="huggingface")
    assert MergeSpec.model_validate(folder.document()) == folder
