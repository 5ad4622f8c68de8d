"""Means of checkpoint files: exact to one rounding, small in memory, and nothing left behind whatever the files hold."""

import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wbar_averaging import InvalidSafetensors, float_formats, streamed_mean, write_safetensors
from wbar_averaging.checkpoint_file import OPEN_FILES
from wbar_averaging.pytorch_file import UnreadableCheckpoint
from wbar_averaging.safetensors_file import SIZES, header_bytes, read_layout
from wbar_averaging.soup import average_checkpoints, greedy_soup
from wbar_averaging.streamed_mean import Mismatch, NotFinite

Tensors = dict[str, tuple[str, np.ndarray[Any, Any]]]
STORED = {
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
    "I64": "<i8",
    "BOOL": "?",
    "I8": "|i1",
    "U16": "<u2",
    "F8_E4M3": "|u1",
}
PRECISION = {
    "F16": (11, -14),
    "BF16": (8, -126),
    "F32": (24, -126),
    "F64": (53, -1022),
}  # bits, smallest normal's exponent


def save(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """In the order given, unlike write_safetensors. BF16 as uint16."""
    start = header_bytes([(name, dtype, list(x.shape)) for name, (dtype, x) in tensors.items()], metadata or {})
    path.write_bytes(start + b"".join(x.astype(STORED[dtype]).tobytes() for dtype, x in tensors.values()))
    return path


def load(path: Path) -> Tensors:
    header, start = read_layout(path)
    header.pop("__metadata__", None)
    raw, found = path.read_bytes()[start:], {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = (entry["dtype"], np.frombuffer(raw[begin:end], STORED[entry["dtype"]]).reshape(entry["shape"]))
    return found


def metadata_of(path: Path) -> dict[str, str]:
    return dict(read_layout(path)[0]["__metadata__"])


def floats(path: Path, **values: list[float]) -> Path:
    return save(path, {name: ("F32", np.array(value)) for name, value in values.items()})


def wide(dtype: str, x: np.ndarray[Any, Any]) -> list[float]:
    if dtype == "BF16":
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return [float(value) for value in x.ravel()]


def rounded(value: float, dtype: str) -> float:
    """To nearest, ties to even, in rational arithmetic."""
    bits, smallest = PRECISION[dtype]
    if value == 0:
        return value
    step = Fraction(2) ** (max(math.frexp(value)[1] - 1, smallest) - bits + 1)
    return math.copysign(float(round(Fraction(value) / step) * step), value)


def reference(columns: Sequence[Sequence[float]], weights: Sequence[float] | None) -> list[float]:
    """Of numbers narrower than float64: summed in the files' order."""
    if weights is None or len(set(weights)) == 1:
        return [sum(column[1:], column[0]) / len(column) for column in columns]
    whole = math.fsum(weights)
    found = []
    for column in columns:
        total = column[0] * (weights[0] / whole)
        for value, weight in zip(column[1:], weights[1:], strict=True):
            total += value * (weight / whole)
        found.append(total)
    return found


@cache  # Hypothesis reads the source of what it filters by, for every strategy anew
def finite_bits(dtype: str) -> st.SearchStrategy[Any]:
    """Any finite number of the format, by its bits: subnormal ones, both zeros and the largest are all likely."""
    size = float_formats.SIZES[dtype]
    kind = np.dtype(f"<u{size}")

    def finite(number: int) -> bool:
        return float_formats.finite(np.array([number], kind).view(np.uint8), dtype)

    def stored(number: int) -> Any:
        return np.array([number], kind).view(STORED[dtype])[0]

    return st.integers(0, 2 ** (8 * size) - 1).filter(finite).map(stored)


@st.composite
def soups(draw: st.DrawFn, dtypes: Sequence[str]) -> tuple[list[Tensors], list[float] | None, int]:
    """Files with the same tensors in different orders, weights, and the number of elements in a piece."""
    count = draw(st.integers(1, 4))
    layout = draw(
        st.dictionaries(st.sampled_from("abcd"), st.tuples(st.sampled_from(dtypes), st.integers(0, 9)), min_size=1)
    )
    files = []
    for _ in range(count):
        file: Tensors = {}
        for name in draw(st.permutations(sorted(layout))):
            dtype, length = layout[name]
            values = draw(st.lists(finite_bits(dtype), min_size=length, max_size=length))
            file[name] = (dtype, np.array(values, STORED[dtype]))
        files.append(file)
    weights = draw(st.none() | st.lists(st.floats(0.01, 100), min_size=count, max_size=count))
    return files, weights, draw(st.integers(1, 10))


def averaged(files: list[Tensors], weights: list[float] | None, piece: int = 65_536, **options: Any) -> Tensors:
    with TemporaryDirectory() as folder, patch.object(streamed_mean, "PIECE", piece):
        paths = [save(Path(folder) / f"{n}.safetensors", file) for n, file in enumerate(files)]
        return load(average_checkpoints(paths, weights, Path(folder) / "mean.safetensors", **options))


@given(soups(["F16", "BF16", "F32"]), st.sampled_from([None, "BF16", "F32", "F64"]))
@settings(max_examples=150, deadline=None)
def test_the_mean_is_the_float64_mean_rounded_once(soup: Any, dtype: str | None) -> None:
    files, weights, piece = soup
    # Of the largest float32 numbers, the mean may be too large for bfloat16: those are for another test.
    files = [{name: (kind, smaller(kind, x)) for name, (kind, x) in file.items()} for file in files]
    found = averaged(files, weights, piece, dtype=dtype)
    assert found.keys() == files[0].keys()
    for name, (kind, mean) in found.items():
        columns = list(zip(*(wide(*file[name]) for file in files), strict=True))
        assert kind == (dtype or files[0][name][0])
        expected = [rounded(value, kind) for value in reference(columns, weights)]
        assert list(map(repr, wide(kind, mean))) == list(map(repr, expected))  # repr tells zeros apart


def smaller(kind: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x & 0xBFFF if kind == "BF16" else np.where(np.abs(x) > 1e38, 1, x).astype(x.dtype) if kind == "F32" else x


@given(soups(["F64"]))
@settings(max_examples=60, deadline=None)
def test_float64_files_agree_with_rational_arithmetic(soup: Any) -> None:
    files, weights, piece = soup
    files = [{name: (kind, np.where(np.abs(x) > 1e300, 1.5, x)) for name, (kind, x) in file.items()} for file in files]
    found = averaged(files, weights, piece)
    shares = [Fraction(weight) for weight in weights or [1.0] * len(files)]
    for name, (_, mean) in found.items():
        for index, value in enumerate(mean):
            column = [Fraction(float(file[name][1][index])) for file in files]
            exact: Fraction = sum((x * share for x, share in zip(column, shares, strict=True)), Fraction(0)) / sum(
                shares
            )
            allowed = max(map(abs, column)) * Fraction(2) ** -48 + Fraction(2) ** -1070
            assert abs(Fraction(float(value)) - exact) <= allowed


@given(soups(["F16", "BF16", "F32", "F64"]), st.integers(1, 11), st.sampled_from([np.float64, np.float32]))
@settings(max_examples=80, deadline=None)
def test_the_mean_of_equal_files_is_each_of_them(soup: Any, count: int, accumulate: Any) -> None:
    files, weights, piece = soup
    own = None if weights is None else (weights * count)[:count]
    found = averaged(files[:1] * count, own, piece, accumulate=accumulate)
    for name, (kind, x) in files[0].items():
        assert found[name][0] == kind
        assert list(map(repr, wide(kind, found[name][1]))) == list(map(repr, wide(kind, x)))


def test_float32_sums_are_used_where_they_were_asked_for(tmp_path: Path) -> None:
    values = [1.0, 2.0**-30, 2.0**-30]
    halves = np.array(values, np.float32).view(np.uint32) >> 16
    paths = [save(tmp_path / f"{n}.safetensors", {"w": ("BF16", halves[n : n + 1])}) for n in range(3)]
    narrow = average_checkpoints(paths, out=tmp_path / "m.safetensors", accumulate="float32", dtype="float64")
    assert wide(*load(narrow)["w"]) == [sum(values) / 3]  # the mean is float64: so is the sum
    narrow = average_checkpoints(paths, out=tmp_path / "m.safetensors", accumulate="float32", dtype="float32")
    assert wide(*load(narrow)["w"]) == [float(np.float32(1) / np.float32(3))]


def test_bfloat16_is_rounded_in_one_step(tmp_path: Path) -> None:
    # 1 + 2⁻⁸ is halfway between two bfloat16 numbers, of which the lower is even; 2⁻⁴⁰ more is lost in a float32.
    paths = [
        save(tmp_path / f"{n}.safetensors", {"w": ("F64", np.array([x]))})
        for n, x in enumerate([2.0, 2.0**-7 + 2**-39])
    ]
    mean = average_checkpoints(paths, out=tmp_path / "m.safetensors", dtype="bf16")
    assert wide(*load(mean)["w"]) == [1 + 2.0**-7]


def test_counts_are_the_last_ones(tmp_path: Path) -> None:
    files = [
        save(tmp_path / f"{n}.safetensors", {"n": ("I64", np.array(n)), "w": ("F32", np.array([float(n)]))})
        for n in range(3)
    ]
    found = load(average_checkpoints(files, out=tmp_path / "mean.safetensors", dtype="F64"))
    assert found["n"] == ("I64", np.array(2))
    assert found["w"] == ("F64", np.array([1.0]))


@pytest.mark.parametrize("dtype", ["I64", "BOOL", "F8_E4M3", "F8_E5M2", "U8"])
def test_codes_are_copied_where_they_agree_and_refused_by_name_where_not(tmp_path: Path, dtype: str) -> None:
    paths = [tmp_path / f"{n}.safetensors" for n in range(3)]
    size = SIZES[dtype]
    for n, path in enumerate(paths):
        path.write_bytes(header_bytes([("q", dtype, [5])], {}) + bytes([0, 1] * (2 * size)) + bytes([n == 2]) * size)
    with patch.object(streamed_mean, "PIECE", 2):
        out = average_checkpoints(paths[:2], None, tmp_path / "m.safetensors")
        assert out.read_bytes()[-5 * size :] == paths[0].read_bytes()[-5 * size :]
        out.unlink()
        with pytest.raises(Mismatch, match=rf"q: {dtype} \[5\] holds codes.* differ between .*0.safe.* and .*2.safe"):
            average_checkpoints(paths, None, out)
    assert sorted(tmp_path.iterdir()) == paths


def test_equal_weights_of_any_size_are_the_uniform_mean(tmp_path: Path) -> None:
    a, b = floats(tmp_path / "a.safetensors", w=[1, 3]), floats(tmp_path / "b.safetensors", w=[2, 5])
    out = [average_checkpoints([a, b], weights, tmp_path / f"m{n}.safetensors").read_bytes()
           for n, weights in enumerate([None, [1, 1], [0.1, 0.1]])]  # fmt: skip
    assert len(set(out)) == 1
    assert load(average_checkpoints([a, b], [1, 3], tmp_path / "m.safetensors"))["w"][1].tolist() == [1.75, 4.5]
    assert load(average_checkpoints([a, b], [-1, 2], tmp_path / "m.safetensors"))["w"][1].tolist() == [3, 7]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "1 weights for 2"),
        ([1, math.nan], "finite"),
        ([1, math.inf], "finite"),
        ([1e308, 1e308], "finite"),
        ([1, -1], "above 0, not 0"),
        ([0, 0], "above 0"),
        ([1, -2], "above 0, not -1"),
    ],
)
def test_weights_that_make_no_mean_are_refused(tmp_path: Path, weights: list[float], message: str) -> None:
    a = floats(tmp_path / "a.safetensors", w=[1, 3])
    with pytest.raises(ValueError, match=message):
        average_checkpoints([a, a], weights, tmp_path / "m.safetensors")


def test_arguments_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    a, out = floats(tmp_path / "a.safetensors", w=[1, 3]), tmp_path / "m.safetensors"
    for arguments, options, message in [
        (([], None, out), {}, "at least one"),
        (([a], None, out), {"dtype": "I8"}, "'I8' is no dtype"),
        (([a], None, out), {"accumulate": "float16"}, "float32 or float64, not float16"),
        (([a], None, out), {"accumulate": "nonsense"}, "float32 or float64, not nonsense"),
        (([a], None, out), {"max_shard_bytes": 0}, "at least 1"),
        (([a], None, tmp_path / "m.pt"), {}, "end with .safetensors"),
    ]:
        with pytest.raises(ValueError, match=message):
            average_checkpoints(*arguments, **options)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        average_checkpoints([a], None, tmp_path / "none" / "m.safetensors")
    with pytest.raises(UnreadableCheckpoint, match="no such file"):
        average_checkpoints([a, tmp_path / "b.safetensors"], None, out)
    assert list(tmp_path.iterdir()) == [a]


def test_differences_are_listed(tmp_path: Path) -> None:
    a = save(
        tmp_path / "a.safetensors",
        {"w": ("F32", np.zeros((2, 3))), "n": ("I64", np.array(1)), "x": ("F32", np.zeros(1))},
    )
    b = save(
        tmp_path / "b.safetensors",
        {"w": ("F32", np.zeros((3, 2))), "n": ("F32", np.array(1)), "y": ("F32", np.zeros(1))},
    )
    with pytest.raises(Mismatch) as refusal:
        average_checkpoints([a, a, b], None, tmp_path / "m.safetensors")
    assert str(refusal.value).split("\n") == [
        f"n: I64 [] in {a}, F32 [] in {b}",
        f"w: F32 [2, 3] in {a}, F32 [3, 2] in {b}",
        f"x: F32 [1] in {a}, missing in {b}",
        f"y: missing in {a}, F32 [1] in {b}",
    ]
    many = floats(tmp_path / "c.safetensors", **{f"t{n}": [1.0] for n in range(30)})
    with pytest.raises(Mismatch, match=r"… and 11 more$"):
        average_checkpoints([floats(tmp_path / "d.safetensors", w=[1]), many], None, tmp_path / "m.safetensors")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: float, dtype: str) -> None:
    values = np.array([1, 2, bad])
    raw = values if dtype != "BF16" else (values.astype(np.float32).view(np.uint32) >> 16)
    a = save(tmp_path / "a.safetensors", {"v": ("F32", np.ones(3)), "w": (dtype, np.zeros(3))})
    b = save(tmp_path / "b.safetensors", {"v": ("F32", np.ones(3)), "w": (dtype, raw)})
    for paths in ([a, b], [b, a], [b]):
        with pytest.raises(NotFinite, match=r"^w: values are NaN or infinite in .*b\.safetensors$"):
            average_checkpoints(paths, None, tmp_path / "m.safetensors")
    assert sorted(tmp_path.iterdir()) == [a, b]


def test_a_mean_too_large_for_its_dtype_is_refused(tmp_path: Path) -> None:
    a = floats(tmp_path / "a.safetensors", w=[1e6])
    for dtype, path in (("F16", a), ("BF16", floats(tmp_path / "b.safetensors", w=[3.4e38]))):
        with pytest.raises(NotFinite, match=f"too large for {dtype}"):
            average_checkpoints([path], None, tmp_path / "m.safetensors", dtype=dtype)


def test_metadata_that_all_have_is_kept_the_first_ones(tmp_path: Path) -> None:
    w: Tensors = {"w": ("F32", np.ones(1))}
    a = save(tmp_path / "a.safetensors", w, {"format": "pt", "step": "1", "only": "a"})
    b = save(tmp_path / "b.safetensors", w, {"format": "pt", "step": "2"})
    mean = average_checkpoints([a, b], None, tmp_path / "m.safetensors")
    assert metadata_of(mean) == {"format": "pt", "step": "1", "wbar.averaged": "2"}
    with safe_open(mean, framework="pt") as stock:
        assert stock.metadata() == metadata_of(mean)


def test_the_output_may_be_an_input_and_bytes_depend_on_nothing_else(tmp_path: Path) -> None:
    a, b = floats(tmp_path / "a.safetensors", w=[1, 3]), floats(tmp_path / "b.safetensors", w=[2, 5])
    mean = average_checkpoints([a, b], None, tmp_path / "m.safetensors").read_bytes()
    assert average_checkpoints([a, b], None, b) == b
    assert b.read_bytes() == mean


def test_progress_counts_the_bytes_read(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    a = save(tmp_path / "a.safetensors", {"w": ("F32", np.ones(7)), "n": ("I64", np.ones(3))})
    with patch.object(streamed_mean, "PIECE", 2):
        average_checkpoints([a, a], None, tmp_path / "m.safetensors", progress=lambda *pair: seen.append(pair))
    assert seen[-1] == (104, 104)  # codes of all files are compared
    assert seen == sorted(seen)


# Shards and PyTorch files.


def test_shards_are_written_and_read(tmp_path: Path) -> None:
    a = floats(tmp_path / "a.safetensors", u=[1, 2, 3], v=[4], w=[5, 6], x=[7])
    index = average_checkpoints([a], None, tmp_path / "model.safetensors", max_shard_bytes=8)
    assert index == tmp_path / "model.safetensors.index.json"
    written = json.loads(index.read_text())
    assert written["metadata"] == {"total_size": 28}
    assert written["weight_map"] == {name: f"model-0000{n}-of-00004.safetensors" for n, name in enumerate("uvwx", 1)}
    for name, shard in written["weight_map"].items():
        assert load_file(tmp_path / shard).keys() == {name}
        assert metadata_of(tmp_path / shard) == {"wbar.averaged": "1"}
    whole = average_checkpoints([index, a], None, tmp_path / "whole.safetensors", max_shard_bytes=28)
    assert whole == tmp_path / "whole.safetensors"
    assert whole.read_bytes()[8:].startswith(b"{")
    assert all(np.array_equal(load(whole)[name][1], x) for name, (_, x) in load(a).items())


def test_a_folder_stands_for_the_index_or_file_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    out = tmp_path / "m.safetensors"
    with pytest.raises(UnreadableCheckpoint, match="holds no"):
        average_checkpoints([folder], None, out)
    a = floats(folder / "model.safetensors", u=[1], v=[4])
    expected = average_checkpoints([folder], None, out).read_bytes()
    average_checkpoints([a], None, a, max_shard_bytes=4)
    assert average_checkpoints([folder], None, out).read_bytes() == expected
    (folder / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(UnreadableCheckpoint, match="holds 2 checkpoints"):
        average_checkpoints([folder], None, out)


def test_a_folder_with_a_single_file_and_shards_is_not_chosen_from(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    a, out = floats(folder / "model.safetensors", u=[1], v=[4]), tmp_path / "m.safetensors"
    whole = a.read_bytes()
    index = average_checkpoints([a], None, a, max_shard_bytes=4)
    a.write_bytes(whole)
    with pytest.raises(
        UnreadableCheckpoint, match=r"holds 2 checkpoints.*model.safetensors.index.json, model.safetensors"
    ):
        average_checkpoints([folder], None, out)
    assert average_checkpoints([index, a], None, out) == out


def save_pytorch_shards(folder: Path, zipped: Sequence[bool], **homes: list[str]) -> Path:
    """PyTorch files `x-1.bin` …, each with the tensors named, and their index."""
    weight_map = {}
    for number, (names, zip_it) in enumerate(zip(homes.values(), zipped, strict=True), 1):
        tensors = {name: torch.full((3,), float(ord(name))) for name in names}
        torch.save(tensors, folder / f"x-{number}.bin", _use_new_zipfile_serialization=zip_it)
        weight_map |= dict.fromkeys(names, f"x-{number}.bin")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("zipped", [(True, True), (False, False), (True, False)])
def test_an_index_of_pytorch_files_is_read_as_one(tmp_path: Path, zipped: tuple[bool, bool]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    index = save_pytorch_shards(folder, zipped, first=["a", "c"], second=["b"])
    for path in (index, folder):
        mean = load(average_checkpoints([path], None, tmp_path / "m.safetensors"))
        assert {name: x.tolist() for name, (_, x) in mean.items()} == {name: [float(ord(name))] * 3 for name in "abc"}
    content = json.loads(index.read_text())
    content["weight_map"]["b"] = "x-1.bin"
    index.write_text(json.dumps(content))
    with pytest.raises(UnreadableCheckpoint, match=r"b: in x-1\.bin by the index, in none in fact"):
        average_checkpoints([index], None, tmp_path / "m.safetensors")


def test_pytorch_shards_with_a_tensor_twice_or_of_two_formats_are_refused(tmp_path: Path) -> None:
    index = save_pytorch_shards(tmp_path, (True, True), first=["a", "b"], second=["b"])
    with pytest.raises(UnreadableCheckpoint, match=r"b is in both .*x-1\.bin and .*x-2\.bin"):
        average_checkpoints([index], None, tmp_path / "m.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "x-2.bin")
    with pytest.raises(UnreadableCheckpoint, match=r"x-2\.bin is a safetensors file and x-1\.bin a PyTorch file"):
        average_checkpoints([index], None, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"w": "../a.safetensors"}, "own folder"),
        ({"w": "/etc/passwd"}, "own folder"),
        ({"w": ".."}, "own folder"),
        ({"w": ""}, "own folder"),
        ({"w": "x\0y"}, "own folder"),
        ({"w": "C:a.safetensors"}, "own folder"),
        ({"w": "b.safetensors"}, "b.safetensors, which is missing"),
        ({"w": "a.safetensors", "v": "a.safetensors"}, "v: in a.safetensors by the index, in none in fact"),
        ({}, None),
        ({"w": 1}, "no object of names"),
        ([], "no object of names"),
        (None, "no object of names"),
    ],
)
def test_an_index_is_believed_only_as_far_as_its_folder(tmp_path: Path, weight_map: Any, message: str | None) -> None:
    floats(tmp_path / "a.safetensors", w=[1])
    folder = tmp_path / "sub"
    folder.mkdir()
    floats(folder / "a.safetensors", w=[1])
    index = folder / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    if message is None:
        assert load(average_checkpoints([index], None, tmp_path / "m.safetensors")) == {}
        return
    with pytest.raises(UnreadableCheckpoint, match=message):
        average_checkpoints([index], None, tmp_path / "m.safetensors")


def test_a_tensor_in_two_shards_or_not_in_the_index_is_refused(tmp_path: Path) -> None:
    floats(tmp_path / "a.safetensors", w=[1], v=[1])
    floats(tmp_path / "b.safetensors", w=[1])
    index = tmp_path / "x.safetensors.index.json"
    for homes, message in (({"w": "a", "v": "b"}, "w is in both"), ({"w": "a"}, "v: in none by the index, in a.safe")):
        index.write_text(json.dumps({"weight_map": {name: f"{home}.safetensors" for name, home in homes.items()}}))
        with pytest.raises(UnreadableCheckpoint, match=message):
            average_checkpoints([index], None, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": {"net": s}}]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_mix_with_safetensors(tmp_path: Path, wrap: Callable[[Any], Any], zipped: bool) -> None:
    image = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    state = {"image": image, "half": torch.randn(5).bfloat16(), "n": torch.tensor(3), "flag": torch.tensor([True])}
    torch.save(wrap(state), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    twice = {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in twice.items()}, tmp_path / "b.safetensors", {"format": "pt"}
    )
    with patch.object(streamed_mean, "PIECE", 7):
        mean = average_checkpoints([tmp_path / "a.pt", tmp_path / "b.safetensors"], [2, 1], tmp_path / "m.safetensors")
    found = load_file(mean)
    assert metadata_of(mean) == {"format": "pt", "wbar.averaged": "2"}
    assert torch.equal(found["image"], (image.double() * (2 / 3) + 2 * image.double() * (1 / 3)).float())
    assert found["half"].dtype == torch.bfloat16
    assert found["n"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.safetensors", "m.safetensors"]


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "the file holds keys"),
        ([1, 2], "the file holds a list"),
        ({"state_dict": {"x": {}}}, "no state dict was found under state_dict"),
        ({"w": torch.zeros(1, dtype=torch.complex64)}, "w is a torch.complex64"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "not dense"),
        ({"w": torch.zeros(1), "x": Harmful()}, "more than tensors"),
    ],
)
def test_pytorch_files_that_hold_something_else_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UnreadableCheckpoint, match=message):
        average_checkpoints([tmp_path / "a.pth"], None, tmp_path / "m.safetensors")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"nonsense, more than nine bytes", b"PK\x03\x04 no zip at all", b"\x80\x02 no pickle"):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(UnreadableCheckpoint, match=r"a\.bin: "):
            average_checkpoints([tmp_path / "a.bin"], None, tmp_path / "m.safetensors")


# Greedy soups.


def closeness(target: float) -> Callable[[Path], float]:
    return lambda path: -abs(float(load(path)["w"][1][0]) - target)


def test_the_greedy_soup_takes_what_does_not_make_it_worse(tmp_path: Path) -> None:
    paths = [floats(tmp_path / f"{n}.safetensors", w=[value]) for n, value in enumerate([9.0, 4.0, 1.0, 6.0])]
    soup = greedy_soup(paths, closeness(5.0), tmp_path / "soup.safetensors")
    assert [trial.path.stem for trial in soup.trials] == ["1", "3", "0", "2"]
    assert [trial.score for trial in soup.trials] == [-1, -1, -4, -4]
    assert [trial.mean_score for trial in soup.trials] == [None, 0, pytest.approx(-4 / 3), pytest.approx(-4 / 3)]
    assert soup.members == (paths[1], paths[3])
    assert soup.score == 0
    assert load(soup.path)["w"][1].tolist() == [5.0]
    same = average_checkpoints([paths[1], paths[3]], None, tmp_path / "mean.safetensors")
    assert same.read_bytes() == soup.path.read_bytes()
    assert len(list(tmp_path.iterdir())) == 6


def test_a_greedy_soup_never_falls_below_its_best_member(tmp_path: Path) -> None:
    paths = [floats(tmp_path / f"{n}.safetensors", w=[value]) for n, value in enumerate([3.0, 5.0, 3.5])]
    soup = greedy_soup(paths, closeness(5.0), tmp_path / "soup.safetensors")
    assert (soup.members, soup.score) == ((paths[1],), 0)


def test_a_greedy_soup_that_fails_leaves_nothing(tmp_path: Path) -> None:
    a, b = floats(tmp_path / "a.safetensors", w=[1]), floats(tmp_path / "b.safetensors", v=[1])

    def never(_path: Path) -> float:
        raise AssertionError("scored before it was checked")

    with pytest.raises(Mismatch):
        greedy_soup([a, b], never, tmp_path / "soup.safetensors")
    with pytest.raises(ValueError, match="is NaN"):
        greedy_soup([a, a], lambda path: math.nan if path.stem == "candidate" else 1, tmp_path / "soup.safetensors")
    with pytest.raises(ValueError, match="at least one"):
        greedy_soup([], never, tmp_path / "soup.safetensors")
    assert sorted(tmp_path.iterdir()) == [a, b]


# Hostile files.


def tried(content: bytes, name: str = "x.safetensors", other: bytes | None = None) -> bool:
    """Whether the file could be averaged; nothing but the mean may be left, and only the documented errors raised."""
    with TemporaryDirectory() as folder:
        path, out = Path(folder) / name, Path(folder) / "out.safetensors"
        path.write_bytes(content)
        before = {path}
        if other is not None:
            (Path(folder) / "a.safetensors").write_bytes(other)
            before.add(Path(folder) / "a.safetensors")
        try:
            average_checkpoints([path, path], None, out)
        except (ValueError, OSError):
            assert set(Path(folder).iterdir()) == before
            return False
        assert set(Path(folder).iterdir()) == before | {out}
        return True


def valid() -> bytes:
    w, n = np.arange(6, dtype="<f4"), np.arange(2, dtype="<i8")
    return header_bytes([("n", "I64", [2]), ("w", "F32", [2, 3])], {"k": "v"}) + n.tobytes() + w.tobytes()


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.just("F32"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "w", "weight_map"]), inner)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=100), st.sampled_from(["x.safetensors", "x.safetensors.index.json", "x.bin"]))
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_refused(content: bytes, name: str) -> None:
    assert not tried(content, name)


@given(st.integers(0, 400), st.binary(max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_is_read_or_refused(at: int, noise: bytes) -> None:
    content = bytearray(valid())
    content[at : at + len(noise)] = noise
    tried(bytes(content))


def test_a_file_cut_anywhere_is_refused() -> None:
    content = valid()
    assert tried(content)
    assert not any(tried(content[:length]) for length in range(0, len(content), 3))


@given(JSON, st.integers(0, 2**64 - 1) | st.none(), st.binary(max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_json_is_read_or_refused(header: Any, length: int | None, data: bytes) -> None:
    text = json.dumps(header).encode()
    tried(struct.pack("<Q", len(text) if length is None else length) + text + data)


@given(
    JSON
    | st.fixed_dictionaries(
        {"weight_map": st.dictionaries(st.sampled_from("nwx"), st.text() | st.just("a.safetensors"))}
    )
)
@settings(max_examples=150, deadline=None)
def test_any_index_is_read_or_refused(content: Any) -> None:
    tried(json.dumps(content).encode(), "x.safetensors.index.json", valid())


@given(st.booleans(), st.integers(0, 2000), st.binary(min_size=1, max_size=8), st.integers(0, 2000))
@settings(max_examples=60, deadline=None)
def test_a_damaged_pytorch_file_is_read_or_refused(zipped: bool, at: int, noise: bytes, length: int) -> None:
    whole = BytesIO()
    torch.save({"w": torch.ones(5, 3), "n": torch.arange(4)}, whole, _use_new_zipfile_serialization=zipped)
    content = bytearray(whole.getvalue())
    content[at : at + len(noise)] = noise
    tried(bytes(content[: length or None]), "x.pt")


def test_claims_that_would_cost_time_or_memory_are_refused() -> None:
    deep = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    wide_list = b'{"w":[' + b"[]," * 3_000_000 + b"[]]}"
    long_product = b'{"w":{"dtype":"F32","shape":[' + b",".join([b"9" * 4000] * 1000) + b'],"data_offsets":[0,4]}}'
    for text in (deep, wide_list, long_product):
        assert not tried(struct.pack("<Q", len(text)) + text + b"1234")
        assert not tried(text, "x.safetensors.index.json")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    a = floats(tmp_path / "a.safetensors", w=[1.0] * 100)

    def cut(*_: int) -> None:
        a.write_bytes(a.read_bytes()[:-300])

    with patch.object(streamed_mean, "PIECE", 10), pytest.raises(UnreadableCheckpoint, match="ends early"):
        average_checkpoints([a], None, tmp_path / "m.safetensors", progress=cut)
    assert list(tmp_path.iterdir()) == [a]


def test_shards_that_cannot_get_their_names_leave_nothing(tmp_path: Path) -> None:
    a = floats(tmp_path / "a.safetensors", v=[1.0], w=[1.0])
    taken = tmp_path / "m-00002-of-00002.safetensors"
    taken.mkdir()
    with pytest.raises(IsADirectoryError):
        average_checkpoints([a], None, tmp_path / "m.safetensors", max_shard_bytes=4)
    assert sorted(tmp_path.iterdir()) == [a, taken]


def test_an_interrupt_leaves_nothing_and_the_old_output_whole(tmp_path: Path) -> None:
    a, out = floats(tmp_path / "a.safetensors", w=[1.0]), floats(tmp_path / "m.safetensors", w=[2.0])
    before = out.read_bytes()

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    for size in (None, 1):
        with pytest.raises(KeyboardInterrupt):
            average_checkpoints([a], None, out, max_shard_bytes=size, progress=interrupt)
    assert sorted(tmp_path.iterdir()) == [a, out]
    assert out.read_bytes() == before


# What it costs.


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    paths = [floats(tmp_path / f"{n}.safetensors", w=[float(n)], v=[1.0]) for n in range(OPEN_FILES + 51)]
    assert load(average_checkpoints(paths, None, tmp_path / "m.safetensors"))["w"][1].tolist() == [75.0]


# ru_maxrss would begin with what the process was forked from.
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_files_and_torch_is_not_loaded(tmp_path: Path) -> None:
    for n in range(4):
        with open(tmp_path / f"{n}.safetensors", "wb") as file:
            start = header_bytes([("v", "F32", [2**20]), ("w", "BF16", [2**25])], {})
            file.write(start)
            file.truncate(len(start) + 2**22 + 2**26)  # zeros that lie on no disk
    code = """
import re, sys
import numpy
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
from wbar_averaging.soup import average_checkpoints
average_checkpoints([f"{sys.argv[1]}/{n}.safetensors" for n in range(4)], [1, 2, 3, 4], f"{sys.argv[1]}/m.safetensors")
assert "torch" not in sys.modules
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path)], check=True, capture_output=True, text=True, timeout=120
    )
    assert int(done.stdout) < 20 * 1024


def test_errors_are_value_errors() -> None:
    assert all(issubclass(kind, ValueError) for kind in (UnreadableCheckpoint, InvalidSafetensors, Mismatch, NotFinite))


def test_the_writer_and_the_mean_lay_files_out_alike(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3), "a": torch.randn(2).half(), "n": torch.tensor(1)}
    write_safetensors(tmp_path / "a.safetensors", tensors, {"wbar.averaged": "1"})
    mean = average_checkpoints([tmp_path / "a.safetensors"], None, tmp_path / "m.safetensors")
    assert mean.read_bytes() == (tmp_path / "a.safetensors").read_bytes()
