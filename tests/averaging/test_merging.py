"""Merges against their float64 twins: every formula written out over whole tensors, nothing streamed, nothing left out."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.averaging.test_soup import STORED, load, metadata_of, rounded, save, wide
from wbar_averaging import Dare, Merged, TaskArithmetic, Ties, WeightedMean, merge_checkpoints, streamed_mean
from wbar_averaging.decay_weights import decay_weights
from wbar_averaging.merging import MergeMethod
from wbar_averaging.pytorch_file import UnreadableCheckpoint
from wbar_averaging.safetensors_file import header_bytes
from wbar_averaging.streamed_mean import FactorsApart, Mismatch, NotFinite

Vector = NDArray[np.float64]
Tensors = dict[str, tuple[str, NDArray[Any]]]


# The twins.


def mean_twin(checkpoints: Sequence[Vector], weights: Sequence[float]) -> Vector:
    shares = [weight / math.fsum(weights) for weight in weights]
    return np.sum([share * one for share, one in zip(shares, checkpoints, strict=True)], axis=0)


def task_twin(base: Vector, checkpoints: Sequence[Vector], scales: Sequence[float]) -> Vector:
    return base + np.sum([scale * (one - base) for scale, one in zip(scales, checkpoints, strict=True)], axis=0)


def ties_twin(base: Vector, checkpoints: Sequence[Vector], density: float, scale: float) -> Vector:
    trimmed = []
    for one in checkpoints:
        tau = one - base
        border = np.sort(np.abs(tau))[::-1][math.ceil(density * len(tau)) - 1]
        trimmed.append(np.where(np.abs(tau) >= border, tau, 0))
    merged = np.zeros_like(base)
    for place in range(len(base)):
        column = [float(tau[place]) for tau in trimmed]
        up, down = (math.fsum(abs(x) for x in column if x * sign > 0) for sign in (1, -1))
        agreeing = [x for x in column if (x > 0 if up > down else x < 0)] if up != down else []
        merged[place] = sum(agreeing) / len(agreeing) if agreeing else 0
    return base + scale * merged


def stored(values: Vector, dtype: str) -> NDArray[Any]:
    """Rounded to the dtype, as its bits are stored."""
    if dtype != "BF16":
        return values.astype(STORED[dtype])
    return (np.array([rounded(float(x), "BF16") for x in values], np.float32).view(np.uint32) >> 16).astype(np.uint16)


@st.composite
def models(draw: st.DrawFn) -> tuple[list[Tensors], int]:
    """A base and one to four checkpoints of the same tensors, and a piece's length."""
    count, seed = draw(st.integers(2, 5)), draw(st.integers(0, 2**32 - 1))
    layout = draw(
        st.dictionaries(
            st.sampled_from("abcd"), st.tuples(st.sampled_from(["F16", "BF16", "F32", "F64"]), st.integers(0, 9)),
            min_size=1,
        )
    )  # fmt: skip
    rng, coarse = np.random.default_rng(seed), draw(st.booleans())
    files = []
    for _ in range(count):
        drawn = {
            name: -(rng.integers(-2, 3, n) / 2) if coarse else rng.standard_normal(n) for name, (_, n) in layout.items()
        }
        files.append({name: (dtype, stored(drawn[name], dtype)) for name, (dtype, _) in layout.items()})
    return files, draw(st.integers(1, 10))


def merged(files: list[Tensors], method: MergeMethod, piece: int = 65_536, **options: Any) -> Tensors:
    with TemporaryDirectory() as folder, patch.object(streamed_mean, "PIECE", piece):
        paths = [save(Path(folder) / f"{n}.safetensors", file) for n, file in enumerate(files)]
        base, others = (paths[0], paths[1:]) if method.needs_base else (None, paths)
        out = Path(folder) / "merged.safetensors"
        assert merge_checkpoints(others, out, method, base=base, **options) == Merged(out)
        return load(out)


def flat(file: Tensors) -> Vector:
    """All numbers of a checkpoint side by side, by name: TIES trims over all tensors together."""
    return np.array([x for name in sorted(file) for x in wide(*file[name])])


def check(files: list[Tensors], found: Tensors, expected: Vector, of_float64: float = 2**-50) -> None:
    """of_float64: the tolerance of tensors that are stored as wide as they are summed: terms may be larger than their sum."""
    at = 0
    for name in sorted(found):
        dtype, values = found[name]
        assert (dtype, values.shape) == (files[0][name][0], files[0][name][1].shape)
        part = expected[at : at + values.size]
        at += values.size
        step = {"F16": 2**-10, "BF16": 2**-7, "F32": 2**-23, "F64": of_float64}[dtype]
        np.testing.assert_allclose(wide(dtype, values), part, rtol=step, atol=step)
    assert at == len(expected)


@given(models(), st.lists(st.floats(-2, 2), min_size=5, max_size=5))
@settings(max_examples=60, deadline=None)
def test_task_arithmetic_is_its_twin(model: Any, scales: list[float]) -> None:
    files, piece = model
    scales = scales[: len(files) - 1]
    base, *others = map(flat, files)
    check(files, merged(files, TaskArithmetic(scales), piece), task_twin(base, others, scales))


@given(models(), st.floats(0.01, 1), st.floats(0, 2))
@settings(max_examples=100, deadline=None)
def test_ties_is_its_twin(model: Any, density: float, scale: float) -> None:
    files, piece = model
    base, *others = map(flat, files)
    expected = ties_twin(base, others, density, scale) if len(base) else base
    check(files, merged(files, Ties(density, scale), piece), expected)


@given(models(), st.sampled_from(["linear", "cosine", "1-sqrt", "ema:0.9", "ema:0"]))
@settings(max_examples=60, deadline=None)
def test_decay_shaped_means_are_their_twin(model: Any, shape: str) -> None:
    files, piece = model
    found = merged(files, WeightedMean(shape), piece)
    check(files, found, mean_twin(list(map(flat, files)), decay_weights(shape, len(files))))


@given(models(), st.floats(0, 0.95), st.integers(0, 2**31), st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_dare_keeps_or_drops_each_number_and_is_the_same_however_it_is_cut(
    model: Any, drop: float, seed: int, other_piece: int
) -> None:
    files, piece = model
    files = files[:2]
    base, other = map(flat, files)
    found = merged(files, Dare(drop, 0.5, seed), piece)
    again = merged(files, Dare(drop, 0.5, seed), other_piece, max_shard_bytes=None)
    assert {name: x.tobytes() for name, (_, x) in found.items()} == {
        name: x.tobytes() for name, (_, x) in again.items()
    }
    kept = base + 0.5 * (other - base) / (1 - drop)
    values, expected = flat(found), np.empty_like(base)
    for place, value in enumerate(values):
        expected[place] = min(base[place], kept[place], key=lambda one: abs(one - value))
    check(files, found, expected)


def test_dare_drops_its_share_and_another_seed_drops_others() -> None:
    zeros, ones = {"w": ("F32", np.zeros(100_000))}, {"w": ("F32", np.ones(100_000))}
    first, second = (merged([zeros, ones], Dare(0.9, seed=seed))["w"][1] for seed in (0, 1))
    for values in (first, second):
        assert set(np.unique(values)) == {0, np.float32(10)}
        assert abs((values > 0).mean() - 0.1) < 0.005  # five standard errors
    assert abs(((first > 0) & (second > 0)).mean() - 0.01) < 0.002
    twice = merged([zeros, ones, ones], Dare(0.5))["w"][1]
    assert set(np.unique(twice)) == {0, 2, 4}  # each checkpoint has draws of its own


@given(models(), st.lists(st.floats(-2, 2), min_size=5, max_size=5), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_dare_of_several_is_the_sum_of_what_each_keeps(model: Any, scales: list[float], seed: int) -> None:
    """The masks are read off a merge of zeros and ones: they depend on seed, place and name alone."""
    files, piece = model
    base, *others = map(flat, files)
    zeros, ones = ({n: ("F64", np.full(x.shape, one)) for n, (_, x) in files[0].items()} for one in (0.0, 1.0))
    masks = []
    for place in range(len(others)):
        kept = merged(
            [zeros, *(ones if n == place else zeros for n in range(len(others)))], Dare(0.5, 1.0, seed), piece
        )
        masks.append(flat(kept) / 2)  # what is kept is divided by 1 − 0.5
    assert all(set(np.unique(mask)) <= {0.0, 1.0} for mask in masks)
    tasks = zip(scales, masks, others, strict=False)
    expected = base + np.sum([scale * mask * (other - base) / 0.5 for scale, mask, other in tasks], axis=0)
    check(files, merged(files, Dare(0.5, scales[: len(others)], seed), piece), expected, of_float64=2**-44)


@given(models(), st.lists(st.floats(-1, 2), min_size=5, max_size=5))
@settings(max_examples=40, deadline=None)
def test_means_with_negative_weights_are_their_twin(model: Any, weights: list[float]) -> None:
    files, piece = model
    weights = weights[: len(files)]
    weights[0] = 4.0 - sum(weights[1:])  # the sum is 4
    check(
        files,
        merged(files, WeightedMean(weights), piece),
        mean_twin(list(map(flat, files)), weights),
        of_float64=2**-44,
    )


def test_dares_draws_are_pinned() -> None:
    """The same bits in every version: Philox counts, keyed by seed, place and name."""
    zeros, ones = {"w": ("F32", np.zeros(24))}, {"w": ("F32", np.ones(24))}
    found = merged([zeros, ones], Dare(0.5, seed=7))["w"][1]
    assert "".join("1" if x else "0" for x in found) == "100010001000110000000111"


@given(models())
@settings(max_examples=30, deadline=None)
def test_checkpoints_that_equal_the_base_change_no_bit_of_it(model: Any) -> None:
    files, piece = model
    same = [files[0]] * 3
    for method in (TaskArithmetic(0.7), Ties(0.3, 2.0), Dare(0.5, 3.0)):
        found = merged(same, method, piece)
        assert {name: x.tobytes() for name, (_, x) in found.items()} == {
            name: x.tobytes() for name, (_, x) in files[0].items()
        }


def test_a_line_between_two_is_wise_ft() -> None:
    start, tuned = {"w": ("F32", np.array([1.0, -2.0]))}, {"w": ("F32", np.array([3.0, 2.0]))}
    for alpha in (0.0, 0.25, 1.0, 1.5):
        found = merged([start, tuned], TaskArithmetic(alpha))["w"][1]
        assert found.tolist() == [1 + 2 * alpha, -2 + 4 * alpha]


def test_ties_trims_over_all_tensors_together_and_finds_any_border(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Magnitudes that share sixteen, thirty-two and more leading bits, beside some that do not.
    near = 1 + rng.integers(0, 2**20, 500) * 2.0**-50
    base = {"a": ("F64", np.zeros(500)), "b": ("F64", np.zeros(500))}
    other = {"a": ("F64", near), "b": ("F64", rng.standard_normal(500) * 1e-3)}
    for density in (0.001, 0.1, 0.25, 0.4999, 0.5, 0.7):
        found = merged([base, other], Ties(density), 64)
        check([base], found, ties_twin(flat(base), [flat(other)], density, 1.0))
        assert np.count_nonzero(flat(found)) == math.ceil(density * 1000)


def test_the_metadata_say_what_was_merged(tmp_path: Path) -> None:
    one = save(tmp_path / "a.safetensors", {"w": ("F32", np.zeros(2))}, {"format": "pt", "wbar.averaged": "4"})
    out = tmp_path / "m.safetensors"
    merge_checkpoints([one, one], out, Dare(0.5, 0.3, 9), base=one)
    said = {"type": "dare", "checkpoints": 2, "drop": 0.5, "scale": [0.3, 0.3], "seed": 9}
    assert metadata_of(out) == {"format": "pt", "wbar.merge": json.dumps(said, sort_keys=True)}
    merge_checkpoints([out, one], out)
    assert metadata_of(out) == {"format": "pt", "wbar.averaged": "2"}


@pytest.mark.parametrize("method", [TaskArithmetic(), Ties(), Ties(1.0), Dare(0.999)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_though_it_would_be_dropped(
    tmp_path: Path, method: MergeMethod, bad: float
) -> None:
    paths = [save(tmp_path / f"{n}.safetensors", {"w": ("F32", np.arange(9.0) * n)}) for n in range(2)]
    damaged = save(tmp_path / "bad.safetensors", {"w": ("F32", np.array([1.0] * 8 + [bad]))})
    for base, others in ((damaged, paths), (paths[0], [paths[1], damaged])):
        with pytest.raises(NotFinite, match=r"w: values are NaN or infinite in .*bad\.safetensors"):
            merge_checkpoints(others, tmp_path / "out.safetensors", method, base=base)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (WeightedMean([1.0]), "1 weights for 2 checkpoints"),
        (WeightedMean([1.0, -1.0]), "sum above 0"),
        (WeightedMean("quadratic"), "no shape of weights"),
        (TaskArithmetic([1.0]), "1 scales for 2 checkpoints"),
        (TaskArithmetic(math.nan), "must be finite"),
        (Ties(0.0), r"density is a share in \(0, 1\], not 0"),
        (Ties(1.5), "not 1.5"),
        (Dare(1.0), r"drop is a share in \[0, 1\), not 1"),
        (Dare(-0.1), "not -0.1"),
        (Dare(seed=-1), "0 or more, not -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, method: MergeMethod, message: str) -> None:
    one = save(tmp_path / "a.safetensors", {"w": ("F32", np.zeros(2))})
    with pytest.raises(ValueError, match=message):
        merge_checkpoints([one, one], tmp_path / "out", method, base=one if method.needs_base else None)
    assert list(tmp_path.iterdir()) == [one]


def test_a_base_is_given_where_it_is_needed(tmp_path: Path) -> None:
    one = save(tmp_path / "a.safetensors", {"w": ("F32", np.zeros(2))})
    for method, base, message in ((Ties(), None, "give one"), (WeightedMean(), one, "leave it out")):
        with pytest.raises(ValueError, match=message):
            merge_checkpoints([one], tmp_path / "out.safetensors", method, base=base)
    with pytest.raises(ValueError, match="name at least one"):
        merge_checkpoints([], tmp_path / "out.safetensors")


def test_a_base_of_another_shape_is_refused_with_both(tmp_path: Path) -> None:
    one = save(tmp_path / "a.safetensors", {"w": ("F32", np.zeros(2))})
    base = save(tmp_path / "b.safetensors", {"w": ("F32", np.zeros(3))})
    with pytest.raises(Mismatch, match=r"w: F32 \[3\] in .*b\.safetensors, F32 \[2\] in .*a\.safetensors"):
        merge_checkpoints([one], tmp_path / "out.safetensors", Ties(), base=base)


@pytest.mark.parametrize(
    "name",
    [
        "m.lora_A.weight",
        "m.lora_B.default.weight",
        "m.lora_embedding_A",
        "lora_unet_m.lora_down.weight",
        "unet.to_q_lora.down.weight",
        "unet.processor.to_k_lora.up.weight",
        "m.lora_linear_layer.up.weight",
        "m.hada_w1_a",
        "m.lokr_w1",
        "m.lokr_t2",
    ],
)
def test_factors_of_adapters_are_not_averaged_apart(tmp_path: Path, name: str) -> None:
    one = save(tmp_path / "a.safetensors", {"w": ("F32", np.zeros(2)), name: ("F32", np.zeros(2))})
    with pytest.raises(FactorsApart, match=f"{name} in .* ΔW = B·A"):
        merge_checkpoints([one, one], tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [one]


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    secret = save(tmp_path / "secret.safetensors", {"w": ("F32", np.zeros(2))})
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-00001-of-00001.safetensors").symlink_to(secret)
    index = {"metadata": {}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnreadableCheckpoint, match=r"is a link to .*secret\.safetensors, outside"):
        merge_checkpoints([folder], tmp_path / "out.safetensors")
    # Hugging Face's cache: the files of a snapshot are links to the blobs beside it.
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1f"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    secret.rename(blobs / "0a")
    (snapshot / "model-00001-of-00001.safetensors").symlink_to("../../blobs/0a")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert merge_checkpoints([snapshot], tmp_path / "out.safetensors").path.exists()


@pytest.mark.long
@pytest.mark.parametrize("method", ["TaskArithmetic()", "Ties(density=0.3)", "Dare()"])
def test_memory_does_not_grow_with_the_files(tmp_path: Path, method: str) -> None:
    for n in range(3):
        with open(tmp_path / f"{n}.safetensors", "wb") as file:
            start = header_bytes([("v", "F32", [2**20]), ("w", "BF16", [2**24])], {})
            file.write(start)
            file.write(np.random.default_rng(n).standard_normal(2**20, np.float32).data)
            file.truncate(len(start) + 2**22 + 2**25)  # zeros that lie on no disk
    code = f"""
import re, sys
import numpy
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
from wbar_averaging.merging import *
base, *others = [f"{{sys.argv[1]}}/{{n}}.safetensors" for n in range(3)]
merge_checkpoints(others, f"{{sys.argv[1]}}/m.safetensors", {method}, base=base)
assert "torch" not in sys.modules
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path)], check=True, capture_output=True, text=True, timeout=240
    )
    assert int(done.stdout) < 20 * 1024


@pytest.mark.parametrize("name", ["zp", "layer.zero_point", "layer.weight_zero_point"])
@pytest.mark.parametrize("dtype", ["I8", "I64"])
def test_zero_points_are_codes_and_never_counts(tmp_path: Path, name: str, dtype: str) -> None:
    files = [
        save(tmp_path / f"{n}.safetensors", {"scale": ("F32", np.array([n + 0.1])), name: (dtype, np.array([8 * n]))})
        for n in range(2)
    ]
    with pytest.raises(Mismatch, match=f"{name}: {dtype} .* holds codes"):
        merge_checkpoints(files, tmp_path / "out.safetensors")
    counts = [save(tmp_path / f"c{n}.safetensors", {"num_batches_tracked": ("I64", np.array(n))}) for n in range(2)]
    merge_checkpoints(counts, tmp_path / "out.safetensors")
    assert load(tmp_path / "out.safetensors")["num_batches_tracked"][1] == 1


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_the_ends_of_a_line_are_its_checkpoints_to_the_bit(dtype: str) -> None:
    start = {"w": (dtype, np.array([1.0, 0.5, 1e10, -0.0, 1e17]))}
    tuned = {"w": (dtype, np.array([1e-12, 1e-15, 1e-10, -0.0, 1.0]))}
    for end, alpha in ((start, 0.0), (tuned, 1.0)):
        expected = stored(end["w"][1], dtype).tobytes()
        assert merged([start, tuned], TaskArithmetic(alpha))["w"][1].tobytes() == expected
        assert merged([start, tuned], WeightedMean([1 - alpha, alpha]))["w"][1].tobytes() == expected


def test_the_share_that_ties_keeps_is_the_number_that_was_written() -> None:
    base, tuned = {"w": ("F32", np.zeros(100))}, {"w": ("F32", np.arange(1, 101.0))}
    found = merged([base, tuned], Ties(0.07))["w"][1]
    assert np.count_nonzero(found) == 7


@pytest.mark.parametrize("zipped", [True, False])
def test_tied_tensors_of_a_pytorch_file_stay_equal_where_dare_drops(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    for name, value in (("base", 0.0), ("tuned", 1.0)):
        shared = torch.full((40, 3), value)
        tensors = {"emb": shared, "head": shared, "other": torch.full((40, 3), value)}
        torch.save(tensors, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=zipped)
    out = tmp_path / "out.safetensors"
    merge_checkpoints([tmp_path / "tuned.pt"], out, Dare(0.5), base=tmp_path / "base.pt")
    found = load(out)
    assert found["emb"][1].tobytes() == found["head"][1].tobytes()
    assert found["emb"][1].tobytes() != found["other"][1].tobytes()


def test_weights_that_sum_to_what_floats_leave_of_nothing_are_refused(tmp_path: Path) -> None:
    one = save(tmp_path / "a.safetensors", {"w": ("F32", np.full(2, 7))})
    with pytest.raises(ValueError, match="sum above 0"):
        merge_checkpoints([one, one, one], tmp_path / "out.safetensors", WeightedMean([0.1, 0.2, -0.3]))
    merge_checkpoints([one, one, one], tmp_path / "out.safetensors", WeightedMean([1e307, -1e307, 1e307]))
    assert load(tmp_path / "out.safetensors")["w"][1].tolist() == [7, 7]


def test_names_that_a_terminal_would_obey_are_escaped(tmp_path: Path) -> None:
    name = "\x1b[31mred"
    one, other = (save(tmp_path / f"{n}.safetensors", {name: ("F32", np.full(2, n))}) for n in (1.0, np.nan))
    with pytest.raises(NotFinite, match=r"^'\\x1b\[31mred': values are NaN"):
        merge_checkpoints([one, other], tmp_path / "out.safetensors")
    shorter = save(tmp_path / "s.safetensors", {name: ("F32", np.zeros(1))})
    with pytest.raises(Mismatch, match=r"^'\\x1b"):
        merge_checkpoints([one, shorter], tmp_path / "out.safetensors")


def test_a_trainers_own_files_are_no_weights_and_a_forgotten_shard_is_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
    for name in ("training_args.bin", "optimizer.bin", "sampler_1.bin"):
        torch.save({"lr": torch.ones(1)}, folder / name)
    merge_checkpoints([folder], tmp_path / "out.safetensors")
    assert load(tmp_path / "out.safetensors").keys() == {"w"}
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for n, name in enumerate(names):
        save(sharded / name, {f"w{n}": ("F32", np.zeros(2))})
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w0": names[0]}}))
    with pytest.raises(UnreadableCheckpoint, match=f"does not name {names[1]}"):
        merge_checkpoints([sharded], tmp_path / "out.safetensors")
    index.write_text(json.dumps({"weight_map": {"w0": names[0], "w1": names[1], "w2": "gone.safetensors"}}))
    with pytest.raises(UnreadableCheckpoint, match=r"names gone\.safetensors, which is missing"):
        merge_checkpoints([sharded], tmp_path / "out.safetensors")


def test_8_bit_floats_of_a_pytorch_file_are_copied_where_they_agree(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(4).to(torch.float8_e4m3fn), "u": torch.ones(2).to(torch.uint16)}, tmp_path / "a.pt")
    merge_checkpoints([tmp_path / "a.pt"] * 2, tmp_path / "out.safetensors")
    assert {name: dtype for name, (dtype, _) in load(tmp_path / "out.safetensors").items()} == {
        "w": "F8_E4M3",
        "u": "U16",
    }


def test_a_merge_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    """It is told to end while it writes, as a scheduler does when a job's time is over."""
    for n in range(2):
        save(tmp_path / f"{n}.safetensors", {"w": ("F32", np.zeros(20_000_000))})
    out = tmp_path / "out"
    out.mkdir()
    words = ["merge", *(str(tmp_path / f"{n}.safetensors") for n in range(2)), "-o", str(out / "m.safetensors")]
    command = [sys.executable, "-P", "-m", "wbar_averaging.commands", *words, "--method", "mean"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not any(out.glob("*/*")):
        pass
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + 15
    assert list(out.iterdir()) == []
