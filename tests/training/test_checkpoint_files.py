"""What users upload is read without running anything, and refused with the reason."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wbar.errors import CorruptFile, NonFiniteWeights, NotAStateDict, Rejected, UnsafePickle
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized
from wbar_training.uploads.checkpoint_files import check, common_prefix, validate


def resnet(**kwargs: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return initialized(Network("resnet20", 10, **kwargs))  # type: ignore[arg-type]


WRAPPINGS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "flat": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "args": "none"},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.3},
    "model_ema": lambda state: {"model_ema": state},
    "nested": lambda state: {"checkpoint": 1, "model": {"state_dict": state}},
    "data parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    "net": lambda state: {f"module.net.{name}": tensor for name, tensor in state.items()},
    "lightning": lambda state: {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
    "averaged": lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{name}": t for name, t in state.items()},
}


@pytest.mark.parametrize("wrapping", sorted(WRAPPINGS))
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_nested_and_prefixed_checkpoints_are_understood(tmp_path: Path, wrapping: str, zipped: bool) -> None:
    state = resnet().state_dict()
    path, out = tmp_path / "c.pth", tmp_path / "out.safetensors"
    torch.save(WRAPPINGS[wrapping](dict(state)), path, _use_new_zipfile_serialization=zipped)
    checkpoint = validate(path, None, None, out)
    assert (checkpoint.format, checkpoint.network.name, checkpoint.source) == ("pytorch", "resnet20", "detected")
    assert checkpoint.parameters == sum(p.numel() for p in resnet().parameters())
    written = load_file(out)
    assert {name.removeprefix(checkpoint.prefix) for name in written} == set(state)
    assert all(torch.equal(written[checkpoint.prefix + name], tensor) for name, tensor in state.items())


def test_safetensors_with_given_architecture_and_channels(tmp_path: Path) -> None:
    save_file(dict(resnet(channels=1).state_dict()), tmp_path / "c")
    checkpoint = validate(tmp_path / "c", "resnet20", None, tmp_path / "out")
    assert (checkpoint.format, checkpoint.source, checkpoint.network.channels) == ("safetensors", "given", 1)


@pytest.mark.parametrize(
    ("metadata", "counted", "as_stored"),
    [
        (None, False, True),
        ({"format": "pt"}, False, True),
        ({"format": "pt", "epoch": "90"}, False, False),
        (None, True, False),
    ],
    ids=["as it is stored", "of torch", "with a word of its own", "with AveragedModel's count"],
)
def test_only_a_file_of_nothing_but_the_networks_tensors_is_stored_as_it_is(
    tmp_path: Path, metadata: dict[str, str] | None, counted: bool, as_stored: bool
) -> None:
    state = dict(resnet().state_dict()) | ({"n_averaged": torch.tensor(3)} if counted else {})
    path, out = tmp_path / "c", tmp_path / "out"
    save_file(state, path, metadata)
    checked = check(path, None, None, tmp_path / "unpacked")
    assert checked.as_stored is as_stored
    assert checked.tensors.keys() == resnet().state_dict().keys()
    validate(path, None, None, out)
    assert load_file(out).keys() == resnet().state_dict().keys()
    assert not out.samefile(path), "others may write to their file again"


def test_a_file_of_numbers_at_odd_places_is_written_anew(tmp_path: Path) -> None:
    path, out = tmp_path / "c", tmp_path / "out"
    save_file(dict(resnet().state_dict()), path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    assert not check(path, None, None, tmp_path / "unpacked").as_stored
    validate(path, None, None, out)
    assert all(torch.equal(one, resnet_state) for one, resnet_state in _pairs(load_file(out), load_file(path)))


def _pairs(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    assert left.keys() == right.keys()
    return [(left[name], right[name]) for name in left]


def test_prefixes_are_stripped_only_where_every_name_has_them() -> None:
    t = torch.zeros(1)
    assert common_prefix({"module.a": t, "module.b": t}) == "module."
    assert common_prefix({"module.a": t, "b": t}) == ""
    assert common_prefix({"_orig_mod.model.a": t}) == "_orig_mod.model."
    assert common_prefix({"net.a": t, "net.b": t}) == "net."
    assert common_prefix({"network.a": t}) == ""


def test_what_was_recognized_and_could_be_another_network_says_so(tmp_path: Path) -> None:
    save_file(initialized(Network("resnet18", 10)).state_dict(), tmp_path / "c")
    detected = validate(tmp_path / "c", None, None, tmp_path / "out")
    assert (detected.source, detected.ambiguous_with) == ("detected", ["timm's resnetblur18"])
    given = validate(tmp_path / "c", "resnet18", None, tmp_path / "out")
    assert (given.source, given.ambiguous_with) == ("given", None)
    save_file(dict(resnet().state_dict()), tmp_path / "d")
    assert validate(tmp_path / "d", None, None, tmp_path / "out").ambiguous_with is None


class Payload:
    """Runs a command when it is unpickled the careless way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "c.pth"
    content = {"state_dict": {"w": torch.zeros(2)}, "evil": Payload(marker)}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UnsafePickle, match="never done"):
        validate(path, None, None, tmp_path / "out")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists(), "the payload works when it is let"


def test_a_whole_module_is_unsafe(tmp_path: Path) -> None:
    torch.save(resnet(), tmp_path / "c.pth")
    with pytest.raises(UnsafePickle, match="state_dict"):
        validate(tmp_path / "c.pth", None, None, tmp_path / "out")


@pytest.mark.parametrize("name", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_a_truncated_file_is_corrupt(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / "c"
    if name == "safetensors":
        save_file(dict(resnet().state_dict()), path)
    else:
        torch.save(resnet().state_dict(), path, _use_new_zipfile_serialization=name == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CorruptFile):
        validate(path, None, None, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"hello", b"GIF89a" + bytes(100), b"\x80\x02}q\x00.", bytes(64)])
def test_other_files_are_not_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises((CorruptFile, NotAStateDict)):
        validate(tmp_path / "c", None, None, tmp_path / "out")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"epoch": 1, "optimizer": {"lr": 0.1}}, torch.zeros(3)])
def test_files_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "c")
    with pytest.raises(NotAStateDict, match="holds"):
        validate(tmp_path / "c", None, None, tmp_path / "out")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "c")
    with zipfile.ZipFile(tmp_path / "c") as old, zipfile.ZipFile(tmp_path / "d", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(CorruptFile, match="compressed"):
        validate(tmp_path / "d", None, None, tmp_path / "out")


def test_nan_weights_are_named_and_counted(tmp_path: Path) -> None:
    state = dict(resnet().state_dict())
    state["fc.weight"] = state["fc.weight"].clone()
    state["fc.weight"][0, :3] = float("nan")
    save_file(state, tmp_path / "c")
    with pytest.raises(NonFiniteWeights, match=r"fc.weight: 3 of 640"):
        validate(tmp_path / "c", None, None, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = dict(resnet().state_dict())
    state["fc.weight"] = state["fc.weight"].to(dtype)
    torch.save(state, tmp_path / "c")
    with pytest.raises(NotAStateDict, match=r"fc\.weight is a"):
        validate(tmp_path / "c", None, None, tmp_path / "out")


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    state = dict(resnet().state_dict())
    state["fc.weight"] = state["fc.weight"].to(torch.int8)
    save_file(state, tmp_path / "c")
    with pytest.raises(Rejected, match=r"fc\.weight: torch\.int8 in the checkpoint"):
        validate(tmp_path / "c", None, None, tmp_path / "out")


def test_a_wrong_number_of_classes_is_a_mismatch(tmp_path: Path) -> None:
    save_file(dict(resnet().state_dict()), tmp_path / "c")
    with pytest.raises(Rejected, match=r"fc.weight: \(10, 64\) in the checkpoint, \(12, 64\) in resnet20"):
        validate(tmp_path / "c", None, 12, tmp_path / "out")


@pytest.mark.parametrize("names", ["not json", '["a"', json.dumps(["a", "b"]), json.dumps(["x" * 2000] * 10)])
def test_names_of_classes_that_cannot_be_read_are_left_out(names: str, tmp_path: Path) -> None:
    """A result of ours says them in its metadata; nothing needs them."""
    tensors = initialized(Network("resnet20", 10)).state_dict()
    write_safetensors(tmp_path / "a.safetensors", tensors, {"wbar.classes": names})
    found = validate(tmp_path / "a.safetensors", None, None, tmp_path / "out")
    assert found.pretrained is None
    said = {"wbar.classes": json.dumps([f"class {n}" for n in range(10)])}
    write_safetensors(tmp_path / "b.safetensors", tensors, said)
    named = validate(tmp_path / "b.safetensors", None, None, tmp_path / "out").pretrained
    assert named is not None
    assert named.classes == tuple(f"class {n}" for n in range(10))
