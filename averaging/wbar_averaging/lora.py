"""LoRA adapters of PEFT merged by what they add: ΔW = Σ wᵢ·sᵢBᵢAᵢ, with sᵢ = alpha/r, or alpha/√r with rsLoRA.

The mean of products is not the product of means, so that averaging A and B apart gives another network. ΔW has at most the
rank Σ rᵢ: it is [w₁s₁B₁ …]·[A₁; …], and the nearest matrix of rank k to it (Eckart & Young 1936) comes from the SVD of a small
square, without ΔW ever being made:

    QᵦRᵦ = [w₁s₁B₁ …],  QₐRₐ = [A₁; …]ᵀ,  UΣVᵀ = RᵦRₐᵀ;   B = QᵦU√Σ,  A = √ΣVᵀQₐᵀ,  each cut to k columns or rows

What is cut off is reported: √(Σ_{j>k} σⱼ²) / √(Σ σⱼ²) = ‖ΔW − BA‖ / ‖ΔW‖. With k = Σ rᵢ it is nothing. The result's scaling
is 1.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wbar_averaging import float_formats
from wbar_averaging.checkpoint_file import Checkpoint, Entry, OpenFiles, open_checkpoint
from wbar_averaging.checkpoint_writer import sync
from wbar_averaging.float_formats import Array
from wbar_averaging.model_folder import UnfitConfig, carried_files, copy_files, place_folder, read_config
from wbar_averaging.quoting import quoted, shown
from wbar_averaging.safetensors_file import SIZES, header_bytes
from wbar_averaging.streamed_mean import FactorsApart, Mean, Mismatch, NotFinite, Plan, Progress, likeness

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OTHER_STARTS = ("pissa", "olora", "corda", "loftq")  # initializations that change the weights that ΔW is added to
OTHER_KINDS = ("lora_bias", "arrow_config", "kasa_config", "monteclora_config", "target_parameters")
COMPARED = (
    "base_model_name_or_path",
    "task_type",
    "fan_in_fan_out",
    "bias",
    "layer_replication",
    "trainable_token_indices",
)
MOST_ALPHA = 1e30
_FACTOR = re.compile(r"(.*)\.lora_(embedding_)?([AB])((?:\.[^.]+)?(?:\.weight)?)")
_PLAIN = re.compile(r"[\w.]+")  # of a pattern: a module's name, or the end of one


def is_adapter(source: Path) -> bool:
    """Return whether the source is the folder of a PEFT adapter."""
    return source.is_dir() and (source / CONFIG).is_file()


@dataclass(frozen=True)
class _Adapter:
    """An adapter: its configuration and its opened file, the tensors numbered as in `names`."""

    folder: Path
    config: dict[str, Any]
    checkpoint: Checkpoint
    shapes: dict[str, tuple[int, ...]]
    numbers: dict[str, int]

    def entry(self, name: str) -> Entry:
        """Return what a tensor is."""
        return Entry(self.checkpoint.dtypes[self.numbers[name]], self.shapes[name])

    def bytes(self, name: str) -> int:
        """Return how many bytes a tensor has."""
        return math.prod(self.shapes[name]) * SIZES[self.checkpoint.dtypes[self.numbers[name]]]

    def read(self, name: str) -> Array:
        """Return a tensor in float64. Raises Mismatch for what is no floating-point tensor, NotFinite."""
        index = self.numbers[name]
        dtype, shape = self.checkpoint.dtypes[index], self.shapes[name]
        if dtype not in float_formats.SIZES:
            raise Mismatch(f"{shown(name)}: {dtype} in {self.folder} holds codes, which have no mean")
        raw = np.empty(math.prod(shape) * SIZES[dtype], np.uint8)
        self.checkpoint.read(index, 0, raw.data)
        values = float_formats.widen(raw, dtype, np.empty(math.prod(shape), np.float32)).astype(np.float64)
        if not float_formats.all_finite(values):
            raise NotFinite(f"{shown(name)}: values are NaN or infinite in {self.folder}")
        return values.reshape(shape)

    def scaling(self, module: str, rank: int) -> float:
        """Return s of a module whose factors have this rank."""
        alpha, found = self.config.get("lora_alpha"), self.config.get("alpha_pattern") or {}
        for pattern, value in found.items():
            if module == pattern or module.endswith(f".{pattern}"):
                alpha = value
                break
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= MOST_ALPHA:
            raise UnfitConfig(
                f"{self.folder / CONFIG}: lora_alpha is {quoted(alpha)}, no number from -{MOST_ALPHA:g} to {MOST_ALPHA:g}"
            )
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


@dataclass(frozen=True)
class _Module:
    """The names of a module's two factors."""

    name: str
    a: str
    b: str


def merge_adapters(
    sources: list[Path],
    shares: list[float] | None,
    out: Path,
    rank: int | None,
    chosen: str | None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Write the weighted mean of adapters, re-factored to `rank`, as a new adapter's folder; return what was left out.

    shares: of sum 1; None: equal.
    rank: more than the sum of the adapters' is filled with zeros.
    progress: called with the bytes read so far and in all, after each module, and after each piece of what is no factor.

    Raises FactorsApart without a rank, Mismatch, NotFinite, UnfitConfig, ValueError, OSError.
    """
    for source in sources:
        if not is_adapter(source):
            raise UnfitConfig(f"{source}: is no folder with an {CONFIG}: a rank goes with adapters only")
    if rank is not None and rank < 1:
        raise ValueError(f"the rank of the merged adapter must be at least 1, not {rank}")
    if out.suffix == ".safetensors":
        raise ValueError(f"{out}: a merged adapter is a folder, with its {CONFIG}: give a name without .safetensors")
    with OpenFiles() as files, place_folder(out) as (scratch, folder):
        adapters = [_opened(source, files, scratch) for source in sources]
        modules = _layout(adapters)
        if rank is None:
            ranks = [max((adapter.shapes[one.a][0] for one in modules), default=1) for adapter in adapters]
            raise FactorsApart(
                f"{sources[0]} and the others are LoRA adapters: the mean of ΔW = B·A is no product of the factors' means; "
                f"give the rank to write it with: {max(ranks)}, their own, keeps the nearest of that rank and reports what it "
                f"leaves out; {sum(ranks)} keeps all"
            )
        weights = shares or [1 / len(adapters)] * len(adapters)
        plan = _plan(adapters, chosen)
        done, total = 0, sum(adapter.bytes(name) for adapter in adapters for name in adapter.shapes)
        factors, residuals = dict[str, Array](), dict[str, float]()
        with np.errstate(all="ignore"):  # what is too large for float64 is found where it is written
            for module in modules:
                factors[module.a], factors[module.b], residuals[module.name] = _factors(adapters, weights, module, rank)
                done += sum(adapter.bytes(module.a) + adapter.bytes(module.b) for adapter in adapters)
                if progress:
                    progress(done, total)
        others = (lambda read, _: progress(done + read, total)) if progress else None
        _write(folder / WEIGHTS, factors, plan, Mean(plan, shares, np.dtype(np.float64), others))
        # auto_mapping names a module that a reader would import; without it the class is what the reader says.
        merged = adapters[0].config | {
            "r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {},
            "init_lora_weights": True, "inference_mode": True, "auto_mapping": None,
        }  # fmt: skip
        (folder / CONFIG).write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        copy_files([path for path in carried_files(sources) if path.name != "config.json"], folder, None)
    return residuals


def _opened(source: Path, files: OpenFiles, scratch: Path) -> _Adapter:
    config = read_config(source / CONFIG)
    refuse_other_kinds(config, str(source / CONFIG))
    checkpoint = open_checkpoint(source, files, scratch)
    names = sorted(checkpoint.entries)
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    checkpoint.keep(names)
    return _Adapter(source, config, checkpoint, shapes, {name: number for number, name in enumerate(names)})


def refuse_other_kinds(config: Mapping[str, Any], path: str) -> None:
    """Raise UnfitConfig for an adapter that adds something else than s·B·A to the weights of its base.

    path: of the configuration, for the message.
    """
    start = config.get("init_lora_weights")
    if config.get("peft_type") != "LORA":
        raise UnfitConfig(f"{path}: peft_type is {shown(config.get('peft_type'))}, and only LORA is merged")
    for key in sorted(config):
        if config[key] and (key in OTHER_KINDS or (key.startswith("use_") and key != "use_rslora")):
            raise UnfitConfig(f"{path}: {shown(key)} is set: what it adds is not ΔW = B·A, and is not merged")
    if isinstance(start, str) and start.lower().startswith(OTHER_STARTS):
        raise UnfitConfig(
            f"{path}: init_lora_weights is {shown(start)}, which changed the weights that its ΔW is added to"
        )
    patterns = config.get("alpha_pattern") or {}
    odd = [key for key in patterns if not _PLAIN.fullmatch(key)] if isinstance(patterns, dict) else ["no object"]
    if odd:
        raise UnfitConfig(f"{path}: alpha_pattern has {shown(odd[0])}, which is no name of a module or its end")


def _layout(adapters: list[_Adapter]) -> list[_Module]:
    """The modules that all adapters have. Raises Mismatch, where their other tensors differ, too; UnfitConfig."""
    first, *rest = adapters
    for adapter in rest:
        for key in COMPARED:
            if first.config.get(key) != adapter.config.get(key):
                here, there = first.config.get(key), adapter.config.get(key)
                raise UnfitConfig(f"{key}: {shown(here)} in {first.folder}, {shown(there)} in {adapter.folder}")
        if first.shapes.keys() != adapter.shapes.keys():
            name = min(first.shapes.keys() ^ adapter.shapes.keys())
            one, other = (first, adapter) if name in first.shapes else (adapter, first)
            raise Mismatch(f"{shown(name)}: {list(one.shapes[name])} in {one.folder}, missing in {other.folder}")
    modules, others = list[_Module](), list[str]()
    for name in sorted(first.shapes):
        factor = _FACTOR.fullmatch(name)
        if factor is None:
            others.append(name)
            if "lora_" in name:
                raise Mismatch(f"{shown(name)} in {first.folder}: neither a factor A nor a factor B of a known form")
            continue
        module, embedding, letter, rest_of_name = factor.groups()
        partner = f"{module}.lora_{embedding or ''}{'B' if letter == 'A' else 'A'}{rest_of_name}"
        if partner not in first.shapes:
            raise Mismatch(f"{shown(name)} in {first.folder}: {shown(partner)}, the other factor, is missing")
        if letter == "A":
            modules.append(_Module(module, name, partner))
    for adapter in adapters:
        _check_shapes(first, adapter, modules, others)
    return modules


def _check_shapes(first: _Adapter, adapter: _Adapter, modules: list[_Module], others: list[str]) -> None:
    for module in modules:
        a, b = adapter.shapes[module.a], adapter.shapes[module.b]
        if len(a) < 2 or len(b) < 2 or b[1] != a[0] or math.prod(b[2:]) != 1 or math.prod(a) * math.prod(b) == 0:
            raise Mismatch(f"{shown(module.name)}: A {list(a)} and B {list(b)} in {adapter.folder} are no two factors")
        ours, theirs = (first.shapes[module.a], first.shapes[module.b]), (a, b)
        if (ours[0][1:], ours[1][0]) != (a[1:], b[0]):
            shapes = [f"A {list(pair[0])}, B {list(pair[1])}" for pair in (ours, theirs)]
            raise Mismatch(f"{shown(module.name)}: {shapes[0]} in {first.folder}, {shapes[1]} in {adapter.folder}")
    for name in others:
        one, other = first.entry(name), adapter.entry(name)
        if likeness(name, one) != likeness(name, other):
            here, there = f"{one.dtype} {list(one.shape)}", f"{other.dtype} {list(other.shape)}"
            raise Mismatch(f"{shown(name)}: {here} in {first.folder}, {there} in {adapter.folder}")


def _factors(adapters: list[_Adapter], weights: list[float], module: _Module, rank: int) -> tuple[Array, Array, float]:
    """A and B of the nearest ΔW of the rank, in the first adapter's shapes, and the share that it leaves out."""
    downs, ups = [], []
    name = module.name.removeprefix("base_model.model.")
    for adapter, weight in zip(adapters, weights, strict=True):
        a, b = adapter.read(module.a), adapter.read(module.b)
        downs.append(a.reshape(len(a), -1))
        ups.append(weight * adapter.scaling(name, len(a)) * b.reshape(len(b), -1))
    q_up, r_up = np.linalg.qr(np.hstack(ups))
    q_down, r_down = np.linalg.qr(np.vstack(downs).T)
    core = r_up @ r_down.T
    if not np.isfinite(core).all():
        raise NotFinite(f"{shown(module.name)}: ΔW is too large for float64")
    u, sigma, v = np.linalg.svd(core, full_matrices=False)
    kept = min(rank, len(sigma))
    root = np.sqrt(sigma[:kept])
    b, a = q_up @ u[:, :kept] * root, root[:, None] * (v[:kept] @ q_down.T)
    signs = np.where(np.take_along_axis(b, np.abs(b).argmax(axis=0)[None], axis=0)[0] < 0, -1.0, 1.0)
    padded_a, padded_b = np.zeros((rank, a.shape[1])), np.zeros((len(b), rank))  # a small module has a smaller rank
    padded_a[:kept], padded_b[:, :kept] = a * signs[:, None], b * signs
    largest = sigma.max()
    parts = sigma / largest if largest else sigma  # whose squares are no infinity
    residual = float(np.linalg.norm(parts[kept:]) / np.linalg.norm(parts)) if largest else 0.0
    shape_a, shape_b = adapters[0].shapes[module.a], adapters[0].shapes[module.b]
    return padded_a.reshape(rank, *shape_a[1:]), padded_b.reshape(shape_b[0], rank, *shape_b[2:]), residual


def _plan(adapters: list[_Adapter], chosen: str | None) -> Plan:
    """Return the plan of all tensors: those that are no factors are averaged by it, and may be larger than the adapter."""
    first = adapters[0]
    own = first.checkpoint.dtypes
    return Plan(
        [adapter.checkpoint for adapter in adapters],
        list(first.numbers),
        [chosen if chosen and dtype in float_formats.SIZES else dtype for dtype in own],
        [first.shapes[name] for name in first.numbers],
        {"format": "pt", "wbar.averaged": str(len(adapters))},
    )


def _write(path: Path, factors: dict[str, Array], plan: Plan, means: Mean) -> None:
    """Write the factors, and the means of all other tensors piece by piece."""
    order = sorted(range(len(plan.names)), key=lambda index: (-SIZES[plan.dtypes[index]], plan.names[index]))
    shapes = [factors[name].shape if name in factors else plan.shapes[n] for n, name in enumerate(plan.names)]
    entries = [(plan.names[index], plan.dtypes[index], list(shapes[index])) for index in order]
    with open(path, "wb") as file, np.errstate(all="ignore"):
        file.write(header_bytes(entries, plan.metadata))
        for index in order:
            name = plan.names[index]
            if name in factors:
                file.write(_narrowed(name, factors[name], plan.dtypes[index]))
                continue
            for piece in means.pieces(index):
                file.write(piece)
        sync(file)


def _narrowed(name: str, values: Array, dtype: str) -> memoryview:
    flat, raw = np.ascontiguousarray(values).reshape(-1), np.empty(values.size * SIZES[dtype], np.uint8)
    float_formats.narrow(flat.copy(), dtype, raw, np.empty(values.size, np.float64))
    if not float_formats.finite(raw, dtype):
        raise NotFinite(f"{shown(name)}: the merged values are too large for {dtype}")
    return raw.data
