"""Merged adapters against their twin: ΔW made in full, in float64, and its nearest matrix of the rank by a full SVD."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from wbar_averaging import TaskArithmetic, WeightedMean, merge_checkpoints
from wbar_averaging.model_folder import UnfitConfig
from wbar_averaging.safetensors_file import header_bytes
from wbar_averaging.streamed_mean import FactorsApart, Mismatch, NotFinite

Matrix = NDArray[np.float64]
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 8, "base_model_name_or_path": "a/b", "target_modules": ["q"],
}  # fmt: skip
Q, EMBEDDING, CONV = "base_model.model.q", "base_model.model.embed", "base_model.model.conv"


def adapter(folder: Path, rng: np.random.Generator, rank: int = 2, dtype: Any = np.float32, **config: Any) -> Path:
    tensors = {
        f"{Q}.lora_A.weight": rng.standard_normal((rank, 5)),
        f"{Q}.lora_B.weight": rng.standard_normal((4, rank)),
        f"{EMBEDDING}.lora_embedding_A": rng.standard_normal((rank, 7)),
        f"{EMBEDDING}.lora_embedding_B": rng.standard_normal((3, rank)),
        f"{CONV}.lora_A.weight": rng.standard_normal((rank, 2, 3, 3)),
        f"{CONV}.lora_B.weight": rng.standard_normal((1, rank, 1, 1)),
        "base_model.model.classifier.weight": rng.standard_normal((2, 3)),
    }
    return written(folder, {name: x.astype(dtype) for name, x in tensors.items()}, CONFIG | {"r": rank} | config)


def written(folder: Path, tensors: dict[str, Any], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def factors(tensors: dict[str, Any], module: str) -> tuple[Matrix, Matrix]:
    kind, end = ("lora_embedding_", "") if module == EMBEDDING else ("lora_", ".weight")
    a, b = (tensors[f"{module}.{kind}{letter}{end}"].astype(np.float64) for letter in "AB")
    return a.reshape(len(a), -1), b.reshape(len(b), -1)


def delta(folder: Path, module: str, alpha: float | None = None) -> Matrix:
    """ΔW of one module in full."""
    config = json.loads((folder / "adapter_config.json").read_text())
    a, b = factors(load_file(folder / "adapter_model.safetensors"), module)
    alpha = config["lora_alpha"] if alpha is None else alpha
    scaling = alpha / np.sqrt(len(a)) if config.get("use_rslora") else alpha / len(a)
    return scaling * (b @ a)


def nearest(matrix: Matrix, rank: int) -> Matrix:
    u, sigma, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ v[:rank]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_merge_is_the_nearest_to_the_mean_of_what_adapters_add(
    tmp_path_factory: Any, one: int, two: int, rank: int, seed: int, rslora: bool
) -> None:
    folder, rng = tmp_path_factory.mktemp("lora"), np.random.default_rng(seed)
    a = adapter(folder / "a", rng, one, np.float64, use_rslora=rslora)
    b = adapter(folder / "b", rng, two, np.float64, lora_alpha=3, use_rslora=rslora)
    done = merge_checkpoints([a, b], folder / "m", WeightedMean([3, 1]), lora_rank=rank)
    assert done.path == folder / "m" / "adapter_model.safetensors"
    for module in (Q, EMBEDDING, CONV):
        mean = 0.75 * delta(a, module) + 0.25 * delta(b, module)
        found = delta(folder / "m", module)
        np.testing.assert_allclose(found, nearest(mean, rank), atol=1e-9)
        left_out = np.linalg.norm(mean - found) / np.linalg.norm(mean)
        assert done.residuals[module] == pytest.approx(left_out, abs=1e-7)
        if rank >= one + two:
            assert done.residuals[module] < 1e-12
    classifier = "base_model.model.classifier.weight"
    tensors = [load_file(path / "adapter_model.safetensors")[classifier] for path in (a, b, folder / "m")]
    np.testing.assert_allclose(tensors[2], 0.75 * tensors[0] + 0.25 * tensors[1], atol=1e-12)
    config = json.loads((folder / "m" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (rank, rank, False)
    assert config["target_modules"] == ["q"]


def test_a_module_with_an_alpha_of_its_own_is_scaled_by_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = adapter(tmp_path / "a", rng, alpha_pattern={"q": 32})
    merge_checkpoints([a], tmp_path / "m", lora_rank=2)
    np.testing.assert_allclose(delta(tmp_path / "m", Q), delta(a, Q, 32), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(delta(tmp_path / "m", CONV), delta(a, CONV), rtol=1e-5, atol=1e-5)


def test_the_dtype_is_kept_or_chosen_and_tokenizer_files_go_along(tmp_path: Path) -> None:
    code = {"parent_library": "evil.code", "base_model_class": "Net"}
    a = adapter(tmp_path / "a", np.random.default_rng(0), dtype=np.float16, auto_mapping=code)
    (a / "tokenizer.json").write_text("{}")
    merge_checkpoints([a, a], tmp_path / "m", lora_rank=2)
    assert {x.dtype for x in load_file(tmp_path / "m" / "adapter_model.safetensors").values()} == {np.dtype("float16")}
    assert (tmp_path / "m" / "tokenizer.json").exists()
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["auto_mapping"] is None
    merge_checkpoints([a, a], tmp_path / "wide", lora_rank=2, dtype="F64")
    assert {x.dtype for x in load_file(tmp_path / "wide" / "adapter_model.safetensors").values()} == {
        np.dtype("float64")
    }


def test_without_a_rank_the_refusal_says_which_to_give(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = adapter(tmp_path / "a", rng, 2), adapter(tmp_path / "b", rng, 3)
    with pytest.raises(FactorsApart, match=r"no product of the factors' means; give the rank.* 3, .*; 5 keeps all"):
        merge_checkpoints([a, b], tmp_path / "m")
    with pytest.raises(ValueError, match="weighted mean"):
        merge_checkpoints([a], tmp_path / "m", TaskArithmetic(), base=b, lora_rank=2)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        merge_checkpoints([a, b], tmp_path / "m", lora_rank=0)
    with pytest.raises(ValueError, match=r"without \.safetensors"):
        merge_checkpoints([a, b], tmp_path / "m.safetensors", lora_rank=2)
    with pytest.raises(UnfitConfig, match="goes with adapters only"):
        merge_checkpoints([a / "adapter_model.safetensors"], tmp_path / "m", lora_rank=2)
    assert sorted(tmp_path.iterdir()) == [a, b]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is IA3, and only LORA"),
        ({"use_dora": True}, "use_dora is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "no name of a module"),
        ({"use_new": True}, "use_new is set"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map names code"),
        ({"lora_alpha": "x"}, "lora_alpha is .x., no number"),
        ({"lora_alpha": 10**400}, "lora_alpha is .1000.*, no number from -1e.30 to 1e.30"),
        ({"trainable_token_indices": [7, 9]}, "trainable_token_indices: None in .*, .7, 9. in"),
        ({"base_model_name_or_path": "c/d"}, "base_model_name_or_path: a/b in .*, c/d in"),
    ],
)
def test_adapters_that_add_something_else_are_refused_by_name(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    rng = np.random.default_rng(0)
    a, b = adapter(tmp_path / "a", rng), adapter(tmp_path / "b", rng, **config)
    with pytest.raises(UnfitConfig, match=message):
        merge_checkpoints([a, b], tmp_path / "m", lora_rank=2)
    assert sorted(tmp_path.iterdir()) == [a, b]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({f"{Q}.lora_A.weight": None}, Mismatch, "lora_B.weight.* the other factor, is missing|missing in"),
        ({f"{Q}.lora_A.weight": np.zeros((3, 5))}, Mismatch, r"A \[3, 5\] and B \[4, 2\]"),
        ({f"{Q}.lora_A.weight": np.zeros((2, 6))}, Mismatch, r"A \[2, 5\], B \[4, 2\] in .*A \[2, 6\], B \[4, 2\]"),
        ({f"{Q}.lora_A.weight": np.full((2, 5), np.nan)}, NotFinite, "lora_A.weight: values are NaN"),
        ({f"{Q}.lora_magnitude_vector": np.zeros(4)}, Mismatch, "lora_magnitude_vector.* missing in"),
        ({"base_model.model.classifier.weight": np.zeros((9, 3))}, Mismatch, r"\[2, 3\] in .* \[9, 3\] in"),
        (
            {"base_model.model.classifier.weight": np.zeros((2, 3), int)},
            Mismatch,
            r"F32 \[2, 3\] in .* I64 \[2, 3\] in",
        ),
    ],
)
def test_adapters_that_do_not_fit_together_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], kind: type[ValueError], message: str
) -> None:
    rng = np.random.default_rng(0)
    a, whole = adapter(tmp_path / "a", rng), adapter(tmp_path / "whole", rng)
    tensors = load_file(whole / "adapter_model.safetensors") | change
    b = written(tmp_path / "b", {name: x for name, x in tensors.items() if x is not None}, CONFIG)
    with pytest.raises(kind, match=message):
        merge_checkpoints([a, b], tmp_path / "m", lora_rank=2)
    assert not (tmp_path / "m").exists()


def test_layers_beside_the_factors_are_averaged(tmp_path: Path) -> None:
    """Also what is no number: equal codes are copied."""
    rng = np.random.default_rng(0)
    folders = []
    for name in "abc":
        tensors = load_file(adapter(tmp_path / name, rng) / "adapter_model.safetensors")
        tensors |= {"base_model.model.ids": np.arange(3), "base_model.model.head": rng.standard_normal((70, 3000))}
        folders.append(written(tmp_path / f"whole-{name}", tensors, CONFIG))
    merge_checkpoints(folders, tmp_path / "m", WeightedMean([1, 2, 1]), lora_rank=2, dtype="F32")
    found = load_file(tmp_path / "m" / "adapter_model.safetensors")
    heads = [load_file(one / "adapter_model.safetensors")["base_model.model.head"] for one in folders]
    expected = (heads[0] + 2 * heads[1] + heads[2]) / 4
    assert found["base_model.model.head"].dtype == np.float32
    np.testing.assert_allclose(found["base_model.model.head"], expected, rtol=1e-6, atol=1e-7)
    assert found["base_model.model.ids"].tolist() == [0, 1, 2]
    assert found["base_model.model.ids"].dtype == np.int64


def test_progress_comes_by_module_and_by_piece_and_ends_with_all_bytes(tmp_path: Path) -> None:
    rng, told = np.random.default_rng(0), list[tuple[int, int]]()
    a, b = (adapter(tmp_path / name, rng) for name in "ab")
    merge_checkpoints([a, b], tmp_path / "m", lora_rank=2, progress=lambda done, total: told.append((done, total)))
    conv, embedding, q, classifier = 38, 20, 18, 6  # numbers, in the order of the modules' names
    sums = np.cumsum([conv, embedding, q, classifier]) * 2 * 4  # bytes of two adapters in float32
    assert told == [(done, sums[-1]) for done in sums]


def test_a_merged_adapter_is_one_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = adapter(tmp_path / "a", rng), adapter(tmp_path / "b", rng)
    with pytest.raises(ValueError, match="leave the size of shards out"):
        merge_checkpoints([a, b], tmp_path / "m", lora_rank=2, max_shard_bytes=100)


def test_memory_does_not_grow_with_layers_beside_the_factors(tmp_path: Path) -> None:
    """A head of 32 MiB as bfloat16 would be 128 MiB for each adapter that is held as float64."""
    for n in range(2):
        folder = adapter(tmp_path / str(n), np.random.default_rng(n))
        file = folder / "adapter_model.safetensors"
        entries = [(name, "F32", list(x.shape)) for name, x in load_file(file).items()]
        start = header_bytes([("base_model.model.head", "BF16", [2**12, 2**12]), *entries], {})
        with open(file, "wb") as out:
            out.write(start)
            out.truncate(len(start) + 2**25 + 4 * sum(int(np.prod(shape)) for _, _, shape in entries))  # zeros
    code = """
import re, sys
import numpy
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
from wbar_averaging.merging import *
numpy.linalg.svd(numpy.eye(4))
before = peak()
merge_checkpoints([f"{sys.argv[1]}/{n}" for n in range(2)], f"{sys.argv[1]}/m", lora_rank=2)
print(peak() - before)
"""
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 40 * 1024
    assert (tmp_path / "m" / "adapter_model.safetensors").stat().st_size > 2**25


def test_adapters_of_large_numbers_have_a_residual_or_are_refused_by_module(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = [adapter(tmp_path / name, rng, dtype=np.float64) for name in "abc"]
    for folder, factor in zip(folders, (1e100, 1e100, 1e170), strict=True):
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({name: factor * x for name, x in tensors.items()}, folder / "adapter_model.safetensors")
    done = merge_checkpoints(folders[:2], tmp_path / "m", lora_rank=1)
    assert 0 < max(done.residuals.values()) < 1
    assert not any(map(np.isnan, done.residuals.values()))
    with pytest.raises(NotFinite, match=r"base_model\.model\.\w+: ΔW is too large for float64"):
        merge_checkpoints(folders[2:], tmp_path / "n", lora_rank=1)


def test_a_message_repeats_no_long_value_of_a_configuration(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = [adapter(tmp_path / name, rng, base_model_name_or_path=name * 100_000) for name in "ab"]
    with pytest.raises(UnfitConfig, match=r"base_model_name_or_path: 'a+\.\.\.a+' \(100000 characters\)"):
        merge_checkpoints(folders, tmp_path / "m", lora_rank=1)
