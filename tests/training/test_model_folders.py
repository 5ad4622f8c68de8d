"""What lies beside the weights in an archive, and which files are the weights."""

import zipfile
from pathlib import Path

import pytest

from wbar.errors import ContentTooLarge, CorruptFile
from wbar_training.uploads import model_folders
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.model_folders import unpack, unpack_beside


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def test_only_what_lies_beside_the_weights_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folders, "BESIDE_BYTES", 10)
    files = {
        "other/tokenizer.json": b"x" * 11, "mine/model.safetensors": b"", "mine/tokenizer.json": b"{}",
        "mine/vocab.txt": b"x" * 11, "mine/code.py": b"raise",
    }  # fmt: skip
    path = archive(tmp_path / "a.zip", files)
    (tmp_path / "out").mkdir()
    unpack_beside(path, ("tokenizer.json", "config.json"), tmp_path / "out", UploadLimits())
    assert {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()} == {"tokenizer.json": b"{}"}
    with pytest.raises(ContentTooLarge, match=r"mine/vocab\.txt' has 11 bytes, more than the limit of 10"):
        unpack_beside(path, ("vocab.txt",), tmp_path / "out", UploadLimits())


def test_what_may_lie_beside_the_weights_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folders, "ALL_BESIDE", 25)
    path = archive(tmp_path / "a.zip", {f"{n}/tokenizer.json": b"x" * 10 for n in range(3)})
    with pytest.raises(
        ContentTooLarge, match=r"more than 25 bytes of .* up to '2/tokenizer\.json': pack one network's"
    ):
        unpack_beside(path, ("tokenizer.json",), tmp_path, UploadLimits())
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("backwards", [False, True])
def test_what_lies_beside_another_file_of_weights_is_not_taken(tmp_path: Path, backwards: bool) -> None:
    names = ("model.safetensors", "config.json", "lora/adapter_model.safetensors", "lora/config.json")
    path = archive(tmp_path / "a.zip", {name: name.encode() for name in sorted(names, reverse=backwards)})
    for adapter, found in ((False, b"config.json"), (True, b"lora/config.json")):
        (out := tmp_path / str(adapter)).mkdir()
        unpack_beside(path, ("config.json",), out, UploadLimits(), adapter)
        assert (out / "config.json").read_bytes() == found


@pytest.mark.parametrize("first", ["lora/adapter_model.safetensors", "model.safetensors"])
def test_an_adapter_beside_a_whole_network_is_not_read(tmp_path: Path, first: str) -> None:
    names = sorted(("lora/adapter_model.safetensors", "model.safetensors"), key=lambda name: name != first)
    files = {name: name.encode() for name in (*names, "config.json", "lora/adapter_config.json")}
    path = archive(tmp_path / "a.zip", files)
    found = unpack(path, path.read_bytes()[:512], tmp_path / "weights", UploadLimits())
    assert found is not None
    assert (found.adapter, found.config) == (None, b"config.json")
    assert {name: one.read_bytes() for name, one in found.weights.items()} == {
        "model.safetensors": b"model.safetensors"
    }
    found.remove()
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"], "nothing else is left"


def test_an_adapter_does_not_stand_for_parts_without_their_index(tmp_path: Path) -> None:
    names = ("model-00001-of-00002.safetensors", "lora/adapter_model.safetensors", "lora/adapter_config.json")
    path = archive(tmp_path / "a.zip", dict.fromkeys(names, b"{}"))
    with pytest.raises(CorruptFile, match=r"parts of weights, and no model\.safetensors\.index\.json"):
        unpack(path, path.read_bytes()[:512], tmp_path / "weights", UploadLimits())
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"]


def test_two_adapters_are_uploaded_one_by_one(tmp_path: Path) -> None:
    files = {f"{name}/adapter_{kind}": b"{}" for name in "ab" for kind in ("model.safetensors", "config.json")}
    path = archive(tmp_path / "a.zip", files)
    with pytest.raises(CorruptFile, match=r"a/adapter_model\.safetensors' and 'b/adapter_model"):
        unpack(path, path.read_bytes()[:512], tmp_path / "weights", UploadLimits())
