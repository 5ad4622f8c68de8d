"""Headers are believed only after they were checked; equal content gives equal bytes."""

import contextlib
import errno
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wbar_averaging import InvalidSafetensors, read_header, write_safetensors
from wbar_averaging.safetensors_file import HeaderTooLarge, read_layout

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a.half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "empty": torch.empty(0, 4),
}


def test_the_stock_reader_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {"wbar.b": "2", "wbar.a": "1"})
    found = load_file(path)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"wbar.a": "1", "wbar.b": "2"}


def test_equal_content_gives_equal_bytes_whatever_the_order_and_layout(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 4)
    write_safetensors(tmp_path / "1", {"a": image, "b": image + 1}, {"x": "1", "y": "2"})
    channels_last = image.contiguous(memory_format=torch.channels_last)
    write_safetensors(tmp_path / "2", {"b": image + 1, "a": channels_last}, {"y": "2", "x": "1"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_an_empty_tensor_may_have_strides_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.empty_strided((0,), (0,), dtype=torch.int32), "b": torch.ones(2)}, {})
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in load_file(path).items()} == {
        "a": (torch.int32, []),
        "b": (torch.float32, [1.0, 1.0]),
    }


def test_the_layout_says_where_the_tensors_begin(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", {"w": torch.tensor([1.5])}, {})
    header, start = read_layout(tmp_path / "x")
    assert header == {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    assert (tmp_path / "x").read_bytes()[start:] == struct.pack("<f", 1.5)


def test_a_dtype_outside_the_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"z: torch\.complex64"):
        write_safetensors(tmp_path / "x", {"z": torch.zeros(2, dtype=torch.complex64)}, {})


def test_reads_what_the_stock_writer_writes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x", {"k": "v"})
    header = read_header(tmp_path / "x")
    assert header["b.weight"]["shape"] == [2, 3]
    assert header["__metadata__"] == {"k": "v"}


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc", "3 bytes"),
        (raw({}, length=2**60), "more than the limit"),
        (raw({}, length=500), "truncated"),
        (raw(b"{nonsense"), "not JSON"),
        (raw(b"[" * 100_000), "not JSON"),
        (raw([1]), "not an object"),
        (raw(b'{"a":1,"a":2}'), "twice"),
        (raw({"a": 1}), "lacks dtype"),
        (raw({"a": ENTRY}, b"1234567"), "truncated"),
        (raw({"a": ENTRY}, b"123456789"), "need 8 bytes"),
        (raw({"a": ENTRY | {"shape": [3]}}, b"12345678"), "needs 12 bytes"),
        (raw({"a": ENTRY | {"shape": [-2]}}, b"12345678"), "non-negative"),
        (raw({"a": ENTRY | {"shape": [True, 2]}}, b"12345678"), "non-negative"),
        (raw({"a": ENTRY | {"shape": "", "data_offsets": [0, 4]}}, b"1234"), "non-negative"),
        (raw({"a": ENTRY | {"shape": [0, 2**63], "data_offsets": [0, 0]}}), "64 sides, or one over"),
        (raw({"a": ENTRY | {"shape": [1] * 65, "data_offsets": [0, 4]}}, b"1234"), "more than 64 sides"),
        (raw({"a": ENTRY | {"dtype": []}}, b"12345678"), "unknown dtype"),
        (raw(json.dumps({"a": ENTRY}).encode("utf-16"), b"12345678"), "not JSON"),
        (raw({"\ud800": ENTRY}, b"12345678"), "not JSON"),
        (raw({"__metadata__": {"a": "\udc00"}}), "not JSON"),
        (raw(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"), "parts"),
        (raw({"a": ENTRY | {"dtype": "F31"}}, b"12345678"), "unknown dtype"),
        (raw({"a": ENTRY, "b": ENTRY}, b"12345678"), "overlap"),
        (raw({"a": ENTRY | {"data_offsets": [4, 12]}}, b"123456789abc"), "hole"),
        (raw({"__metadata__": {"a": 1}}), "object of strings"),
    ],
)
def test_a_malformed_file_is_refused_with_the_reason(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(InvalidSafetensors, match=message):
        read_header(path)


@given(st.binary(max_size=200), st.integers(0, 200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_damage_is_read_or_refused_never_a_crash(tmp_path: Path, noise: bytes, at: int) -> None:
    path = tmp_path / "x"
    write_safetensors(path, {"w": torch.zeros(4)}, {"k": "v"})
    content = bytearray(path.read_bytes())
    content[at : at + len(noise)] = noise
    path.write_bytes(content)
    with contextlib.suppress(InvalidSafetensors):
        assert isinstance(read_header(path), dict)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"strides":[1]}}', "'strides', which the format does not know"),
        (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,0]}}', "NaN is no number of JSON"),
        (b'{"__metadata__":{"a":-Infinity}}', "-Infinity is no number of JSON"),
        (b' {"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "demands an opening brace"),
        (b'{"%s":{"dtype":"F31","shape":[0],"data_offsets":[0,0]}}' % (b"x" * 3_000_000), r"x\.{3}x.*\(3000000 characters\)"),
    ],
)  # fmt: skip
def test_what_json_allows_and_the_format_does_not(tmp_path: Path, header: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InvalidSafetensors, match=message) as caught:
        read_header(tmp_path / "x")
    assert len(str(caught.value)) < 1000


def test_the_limits_may_be_lower(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", TENSORS, {})
    assert len(read_layout(tmp_path / "x", max_tensors=len(TENSORS))[0]) == len(TENSORS)
    with pytest.raises(HeaderTooLarge, match="names 5 tensors, more than the limit of 4"):
        read_layout(tmp_path / "x", max_tensors=4)
    with pytest.raises(HeaderTooLarge, match="more than the limit of 100"):
        read_layout(tmp_path / "x", max_header=100)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_safetensors(tmp_path / "x", TENSORS, {})
    assert list(tmp_path.iterdir()) == []
