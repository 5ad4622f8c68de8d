"""A merged model's folder: its configuration and tokenizer go along, programs never, and it is whole or not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wbar_averaging import Ties, merge_checkpoints
from wbar_averaging.model_folder import UnfitConfig
from wbar_averaging.pytorch_file import UnreadableCheckpoint
from wbar_averaging.streamed_mean import Mismatch

CONFIG: dict[str, Any] = {
    "model_type": "vit", "architectures": ["ViT"], "id2label": {"0": "a", "1": "b"}, "torch_dtype": "float32",
    "num_attention_heads": 12, "vision_config": {"hidden_act": "gelu"}, "rope_scaling": None, "transformers_version": "5.0",
    "warmup_steps": 100, "doc_stride": 2, "encoder_attention_heads": 12, "layer_norm_eps": 1e-12,
}  # fmt: skip


def model(folder: Path, value: float, shards: bool = False, **config: Any) -> Path:
    folder.mkdir()
    tensors = {"w": np.full(4, value, np.float32), "v": np.full(2, value, np.float32)}
    if shards:
        names = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
        for name, file in names.items():
            save_file({name: tensors[name]}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    else:
        save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "modeling_vit.py").write_text("raise SystemExit('run')")
    return folder


def test_a_folder_is_written_with_what_belongs_to_the_model(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", 1), model(tmp_path / "b", 3, shards=True)
    done = merge_checkpoints([b, a], tmp_path / "m")
    assert done.path == tmp_path / "m" / "model.safetensors"
    assert done.carried == ("config.json", "tokenizer.json")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert load_file(done.path)["w"].tolist() == [2] * 4
    assert (tmp_path / "m" / "config.json").read_bytes() == (b / "config.json").read_bytes()
    assert (tmp_path / "m").stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o777


def test_shards_come_out_and_the_configuration_tells_the_dtype(tmp_path: Path) -> None:
    base, a = model(tmp_path / "base", 1), model(tmp_path / "a", 3)
    done = merge_checkpoints([a], tmp_path / "m", Ties(1.0), base=base, dtype="BF16", max_shard_bytes=8)
    assert done.path == tmp_path / "m" / "model.safetensors.index.json"
    assert json.loads(done.path.read_text())["weight_map"] == {
        "v": "model-00001-of-00002.safetensors", "w": "model-00002-of-00002.safetensors",
    }  # fmt: skip
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == CONFIG | {"torch_dtype": "bfloat16"}
    again = merge_checkpoints([tmp_path / "m"], tmp_path / "one")  # what was written is read
    assert again.carried == ("config.json", "tokenizer.json")


def test_a_file_has_nothing_beside_it(tmp_path: Path) -> None:
    a = model(tmp_path / "a", 1, auto_map={"AutoModel": "modeling_vit.ViT"})
    assert merge_checkpoints([a], tmp_path / "m.safetensors").carried == ()
    assert merge_checkpoints([a / "model.safetensors"], tmp_path / "m").carried == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"auto_map": {"AutoModel": "modeling_vit.ViT"}},
            "auto_map names code to run .*modeling_vit.ViT.*none was run",
        ),
        ({"text_config": {"auto_map": {"AutoConfig": "x.Y"}}}, "auto_map names code"),
        ({"custom_pipelines": {"a": {"impl": "x.Y"}}}, "custom_pipelines names code"),
        ({"id2label": {"0": "a"}}, r"id2label: 2 classes in .*a/config\.json, 1 in .*b/config\.json"),
        ({"model_type": "swin"}, "model_type: vit in .*, swin in"),
        ({"id2label": {"0": "dog", "1": "cat"}}, r"id2label: class 0 is .* in .*a/config\.json, dog in .*b/config"),
        ({"num_attention_heads": 6}, "num_attention_heads: 12 in .*, 6 in .* different networks"),
        ({"vision_config": {"hidden_act": "relu"}}, r"vision_config\.hidden_act: gelu in .*, relu in"),
        ({"encoder_attention_heads": 6}, "encoder_attention_heads: 12 in .*, 6 in"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps: 1e-12 in .*, 1e-05 in"),
        ({"rope_scaling": {"factor": 8}}, r'rope_scaling: null in .*, \{"factor": 8\} in'),
        ({"architectures": ["Other"]}, r'architectures: \["ViT"\] in .*, \["Other"\] in'),
    ],
)
def test_configurations_that_name_code_or_another_model_are_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    a, b = model(tmp_path / "a", 1), model(tmp_path / "b", 2, **config)
    with pytest.raises(UnfitConfig, match=message):
        merge_checkpoints([a, b], tmp_path / "m")
    if "auto_map" in config:
        with pytest.raises(UnfitConfig, match=message):
            merge_checkpoints([b, a], tmp_path / "m")
    assert sorted(tmp_path.iterdir()) == [a, b]


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"a": NaN', ""])
def test_a_damaged_configuration_is_refused(tmp_path: Path, content: str) -> None:
    a = model(tmp_path / "a", 1)
    (a / "config.json").write_text(content)
    with pytest.raises(UnfitConfig, match=r"config\.json: is"):
        merge_checkpoints([a], tmp_path / "m")
    assert list(tmp_path.iterdir()) == [a]


def test_a_tokenizer_with_code_and_a_link_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    a = model(tmp_path / "a", 1)
    (a / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["t.T", null]}}')
    with pytest.raises(UnfitConfig, match=r"tokenizer_config\.json: auto_map"):
        merge_checkpoints([a], tmp_path / "m")
    (a / "tokenizer_config.json").unlink()
    (tmp_path / "secret").write_text("secret")
    (a / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UnreadableCheckpoint, match=r"vocab\.txt is a link"):
        merge_checkpoints([a], tmp_path / "m")


def test_a_failed_merge_leaves_no_folder_and_one_that_is_there_stays(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", 1), model(tmp_path / "b", 2)
    save_file({"w": np.zeros(4, np.float32)}, b / "model.safetensors")
    with pytest.raises(Mismatch, match="v: F32"):
        merge_checkpoints([a, b], tmp_path / "m")
    assert sorted(tmp_path.iterdir()) == [a, b]
    with pytest.raises(FileExistsError, match="choose another name"):
        merge_checkpoints([a], b)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        merge_checkpoints([a], tmp_path / "none" / "m")
    (tmp_path / "empty").mkdir()
    assert merge_checkpoints([a], tmp_path / "empty").path.exists()


def test_configurations_may_differ_in_what_is_not_computed(tmp_path: Path) -> None:
    a = model(tmp_path / "a", 1)
    harmless = {
        "transformers_version": "4.0", "dtype": "float16", "use_cache": False, "hidden_dropout_prob": 0.1, "max_length": 20,
        "pretrained_cfg": {"input_size": [3, 288, 288], "crop_pct": 1.0}, "warmup_steps": 500, "doc_stride": 3,
        "rope_scaling": {"rope_type": "default"},
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    }  # fmt: skip
    b = model(tmp_path / "b", 2, **harmless)
    assert "config.json" in merge_checkpoints([a, b], tmp_path / "m").carried
    assert json.loads((tmp_path / "m" / "config.json").read_text())["id2label"] == {"0": "a", "1": "b"}
