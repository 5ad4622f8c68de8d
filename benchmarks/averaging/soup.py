"""Means of checkpoint files beside a C loop over the mapped files, timm's and mergekit's ways, and a plain torch loop.

Every alternative is a process of its own, started by a small one that reports what it used: a process that was forked from
this one would count this one's memory as its own peak. Start and imports are part of it all; what the imports alone cost
stands in the notes. The peers' Python is WBAR_PEERS_PYTHON, by default this one. Files are warm: each was just written or
read. Ours alone waits until the mean is on the disk, as the C loop does.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torchvision import models

from benchmarks.table import Findings, Row, Sample
from wbar_averaging.safetensors_file import header_bytes

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
SECONDS = 600.0
MEMORY_GOAL = 20
PEERS = os.environ.get("WBAR_PEERS_PYTHON", sys.executable)

OURS, FLOAT32 = "average_checkpoints", "average_checkpoints, accumulate=float32"
COMMAND, MERGE, DIRECT = "wbar average", "wbar merge", "python -m wbar_averaging.commands average"
METHODS = {name: f"merge_checkpoints, {name}()" for name in ("TaskArithmetic", "Dare", "Ties")}
FLOOR, LOOP, TIMM, MERGEKIT, MERGEKIT_TIES = (
    "one-pass C loop",
    "plain torch loop",
    "timm (avg_checkpoints.py's way)",
    "mergekit linear",
    "mergekit ties (each tensor trimmed by itself)",
)
BASE = "import numpy"

LAUNCH = """
import json, os, sys, time
began = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
_, status, used = os.wait4(pid, 0)
seconds = time.perf_counter() - began
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, seconds, used.ru_maxrss / 1024]))
"""

AVERAGE = """
import sys
from wbar_averaging.soup import average_checkpoints
average_checkpoints(sys.argv[3:], out=sys.argv[2], accumulate=sys.argv[1])
"""

METHOD = """
import sys
import wbar_averaging
from wbar_averaging.merging import merge_checkpoints
merge_checkpoints(sys.argv[4:], sys.argv[2], getattr(wbar_averaging, sys.argv[1])(), base=sys.argv[3])
"""

CLI = "from wbar.cli import main; main()"  # the `wbar` command

TORCH_LOOP = """
import sys, torch
from safetensors.torch import load_file, save_file
total, last = {}, {}
for path in sys.argv[2:]:
    for name, tensor in load_file(path).items():
        last[name] = tensor
        if name in total: total[name] += tensor
        else: total[name] = tensor.double()
save_file({name: (t / len(sys.argv[2:])).to(last[name].dtype) for name, t in total.items()}, sys.argv[1])
"""

# timm's script is in no wheel: its float64 sums, counts and clamping, over files that timm reads. Its hash is left out.
TIMM_LOOP = """
import sys, torch
from safetensors.torch import save_file
from timm.models import load_state_dict
sums, counts = {}, {}
for path in sys.argv[2:]:
    for name, tensor in load_state_dict(path, True).items():
        if name in sums:
            sums[name] += tensor.to(torch.float64)
            counts[name] += 1
        else:
            sums[name], counts[name] = tensor.clone().to(torch.float64), 1
for name, tensor in sums.items():
    tensor.div_(counts[name])
limits = torch.finfo(torch.float32)
save_file({name: t.clamp(limits.min, limits.max).to(torch.float32) for name, t in sums.items()}, sys.argv[1])
"""

RAW_MERGE = "from mergekit.scripts.merge_raw_pytorch import main; main()"

C_LOOP = r"""
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define PIECE 16384
/* All files have the same header, and behind it only float32. */
int main(int argc, char **argv) {
    int count = argc - 2, out = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    const char *maps[64];
    static double sum[PIECE];
    static float mean[PIECE];
    struct stat found;
    uint64_t header;
    for (int k = 0; k < count; k++) {
        int file = open(argv[2 + k], O_RDONLY);
        if (file < 0 || fstat(file, &found)) return 1;
        maps[k] = mmap(0, found.st_size, PROT_READ, MAP_SHARED, file, 0);
        if (maps[k] == MAP_FAILED) return 1;
        close(file);
    }
    memcpy(&header, maps[0], 8);
    header += 8;
    if (write(out, maps[0], header) < 0) return 1;
    for (size_t left = (found.st_size - header) / 4, at = 0; left; ) {
        size_t n = left < PIECE ? left : PIECE;
        for (int k = 0; k < count; k++) {
            const float *values = (const float *)(maps[k] + header) + at;
            if (k == 0) for (size_t i = 0; i < n; i++) sum[i] = values[i];
            else for (size_t i = 0; i < n; i++) sum[i] += values[i];
        }
        for (size_t i = 0; i < n; i++) mean[i] = sum[i] / count;
        if (write(out, mean, n * 4) < 0) return 1;
        at += n, left -= n;
    }
    return fsync(out) || close(out);
}
"""


@dataclass(frozen=True)
class Use:
    """What a process used: processor seconds of all its threads, seconds, MiB at its peak."""

    cpu: float
    wall: float
    peak: float


Uses = dict[str, list[Use]]


def measure(quick: bool) -> Findings:
    with tempfile.TemporaryDirectory(prefix="wbar-bench-") as name:
        folder = Path(name)
        paths = _files(folder, quick)
        turns, absent = _turns(folder, paths)
        rounds = 2 if quick else 5
        uses: Uses = {name: [] for name in turns}
        order, same = list(turns), ""
        for number in range(rounds + 1):
            first = number % len(order)
            for name in order[first:] + order[:first]:
                found = turns[name]()
                if number:  # the first round warms up
                    uses[name].append(found)
            if not number:
                same = _agreement(folder)
        findings = _findings(uses, paths, quick)
        findings.rows += [Row(f"{OURS} beside {peer}", why, "–", "–") for peer, why in absent.items()]
        findings.rows += _memory_rows(folder, uses, quick)
    findings.notes += [same, *_imports(uses)]
    return findings


def _files(folder: Path, quick: bool) -> list[Path]:
    """Random float32 weights: of ViT-B/16, or of a few large tensors."""
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in models.vit_b_16().state_dict().items()}
    if quick:
        shapes = {f"layer{n}": [1024, 1024] for n in range(8)}
    count = 4 if quick else 8
    total = 4 * sum(map(math.prod, shapes.values()))
    if shutil.disk_usage(folder).free < 2 * max(count, 8) * total:
        raise RuntimeError(f"{folder} has no room for {2 * max(count, 8)} files of {total:,} bytes: set TMPDIR")
    rng, paths = np.random.default_rng(0), [folder / f"{n}.safetensors" for n in range(count)]
    for path in paths:
        with open(path, "wb") as file:
            file.write(header_bytes([(name, "F32", shape) for name, shape in shapes.items()], {"format": "pt"}))
            for shape in shapes.values():
                file.write(rng.standard_normal(math.prod(shape), np.float32).data)
            os.fsync(file.fileno())
    return paths


def _turns(folder: Path, paths: list[Path]) -> tuple[dict[str, Callable[[], Use]], dict[str, str]]:
    """What can be run here, and why the rest cannot."""
    words = list(map(str, paths))
    commands = {
        OURS: [sys.executable, "-P", "-c", AVERAGE, "float64", _out(folder, OURS), *words],
        FLOAT32: [sys.executable, "-P", "-c", AVERAGE, "float32", _out(folder, FLOAT32), *words],
        COMMAND: [sys.executable, "-P", "-c", CLI, "average", *words, "-o", _out(folder, COMMAND)],
        MERGE: [sys.executable, "-P", "-c", CLI, "merge", *words, "-o", _out(folder, MERGE)],
        DIRECT: [sys.executable, "-P", "-m", "wbar_averaging.commands", "average", *words, "-o", _out(folder, DIRECT)],
        LOOP: [sys.executable, "-P", "-c", TORCH_LOOP, _out(folder, LOOP), *words],
        BASE: [sys.executable, "-P", "-c", BASE],
    }
    for method, name in METHODS.items():  # the first file is the base
        commands[name] = [sys.executable, "-P", "-c", METHOD, method, _out(folder, name), *words]
    absent = dict[str, str]()
    program = _compiled(folder)
    if program:
        commands[FLOOR] = [program, _out(folder, FLOOR), *words]
    else:
        absent[FLOOR] = "no C compiler"
    if _imports_well("timm.models"):
        commands[TIMM] = [PEERS, "-P", "-c", TIMM_LOOP, _out(folder, TIMM), *words]
    else:
        absent[TIMM] = "not installed"
    if _imports_well("mergekit.scripts.merge_raw_pytorch"):
        merge = {"merge_method": "linear", "models": [{"model": word, "parameters": {"weight": 1.0}} for word in words]}
        tuned = [{"model": word, "parameters": {"weight": 1.0, "density": 0.2}} for word in words[1:]]
        ties = {"merge_method": "ties", "base_model": words[0], "models": [{"model": words[0]}, *tuned]}
        for name, config in ((MERGEKIT, merge), (MERGEKIT_TIES, ties)):
            file = folder / f"{config['merge_method']}.yml"
            file.write_text(json.dumps(config))  # JSON is YAML
            out = folder / ("merged" if name == MERGEKIT else "merged-ties")
            commands[name] = [PEERS, "-P", "-c", RAW_MERGE, str(file), str(out)]
    else:
        absent[MERGEKIT] = "not installed"

    def turn(name: str, command: list[str]) -> Callable[[], Use]:
        def work() -> Use:
            # Writing over a file costs less than a new one does.
            Path(_out(folder, name)).unlink(missing_ok=True)
            if name in (MERGEKIT, MERGEKIT_TIES):
                shutil.rmtree(commands[name][-1], ignore_errors=True)
            return _run(command)

        return work

    return {name: turn(name, command) for name, command in commands.items()}, absent


def _out(folder: Path, name: str) -> str:
    return str(folder / f"mean-{''.join(filter(str.isalnum, name))}.safetensors")


def _compiled(folder: Path) -> str | None:
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    (folder / "floor.c").write_text(C_LOOP)
    subprocess.run(
        [compiler, "-O3", "-march=native", "-o", str(folder / "floor"), str(folder / "floor.c")], check=True, timeout=60
    )
    return str(folder / "floor")


def _imports_well(module: str) -> bool:
    done = subprocess.run([PEERS, "-P", "-c", f"import {module}"], capture_output=True, timeout=SECONDS)
    return done.returncode == 0


def _run(command: list[str]) -> Use:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LAUNCH, *command],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    code, cpu, wall, peak = json.loads(done.stdout)
    if code:
        raise RuntimeError(f"{command[:2]} ended with exit code {code}: {done.stderr[-2000:]}")
    return Use(cpu, wall, peak)


def _agreement(folder: Path) -> str:
    """How far the means lie apart. Raises RuntimeError where ours differs from the float64 mean of a plain loop."""
    ours, texts = load_file(_out(folder, OURS)), list[str]()
    for name in (LOOP, FLOOR, COMMAND, MERGE, DIRECT, FLOAT32, TIMM):
        if Path(_out(folder, name)).exists():
            other = load_file(_out(folder, name))
            exact = ours.keys() == other.keys() and all(torch.equal(ours[key], other[key]) for key in ours)
            if not exact and name != FLOAT32:
                raise RuntimeError(f"the means of {OURS} and of {name} differ")
            texts += [name] if exact else []
    text = f"{OURS} gives the same bits as {', '.join(texts)}"
    merged = folder / "merged" / "model.safetensors"
    if merged.exists():
        other = load_file(merged)
        text += f"; mergekit's, which sums float32, differ by at most {max(_apart(ours[key], other[key]) for key in ours):.1e}"
    return text


def _apart(ours: torch.Tensor, other: torch.Tensor) -> float:
    return float((ours - other).abs().max())


def _findings(uses: Uses, paths: list[Path], quick: bool) -> Findings:
    files = f"{len(paths)} × {paths[0].stat().st_size / 1e6:.0f} MB float32"

    def row(field: str, ours: str, peer: str, goal: float | None) -> Row:
        what = f"{'merge' if ours in (MERGE, *METHODS.values()) else 'mean'} of {files}"
        mine, others = (Sample([getattr(use, field) for use in uses[name]]) for name in (ours, peer))
        ratio = mine.median / others.median
        kind = "processor time" if field == "cpu" else "wall time"
        # Of files this small the start is the most: goals are for the large ones.
        promised = None if quick else goal
        return Row(
            f"{what}, {kind}: {ours}",
            str(mine),
            f"{peer}: {others}",
            f"{ratio:.2f}",
            "–" if promised is None else f"≤ {promised}",
            None if promised is None else ratio <= promised,
        )

    wanted = [
        ("cpu", OURS, FLOOR, 2.0),
        ("cpu", FLOAT32, FLOOR, None),
        ("cpu", OURS, MERGEKIT, 0.5),
        ("cpu", OURS, TIMM, 0.3),
        ("cpu", OURS, LOOP, None),
        ("wall", COMMAND, TIMM, 0.15),
        ("wall", DIRECT, TIMM, None),
        ("wall", COMMAND, MERGEKIT, None),
        ("wall", COMMAND, LOOP, None),
        ("cpu", MERGE, FLOOR, None),
        ("wall", MERGE, MERGEKIT, None),
        ("wall", MERGE, LOOP, None),
        *(("cpu", name, FLOOR, None) for name in METHODS.values()),
        ("cpu", METHODS["Ties"], MERGEKIT_TIES, None),
    ]
    return Findings([row(*each) for each in wanted if each[2] in uses])


def _memory_rows(folder: Path, uses: Uses, quick: bool) -> list[Row]:
    base = Sample([use.peak for use in uses[BASE]], "MiB").median
    peers = [
        f"{name} {max(use.peak for use in uses[name]) - base:,.0f}" for name in (LOOP, TIMM, MERGEKIT) if name in uses
    ]
    command, merge, direct = (max(use.peak for use in uses[name]) - base for name in (COMMAND, MERGE, DIRECT))
    worst = max(use.peak for use in uses[OURS])
    rows = [
        _memory_row(f"peak memory above {BASE}: {OURS}", worst, base, f"MiB: {', '.join(peers)}"),
        Row(
            f"peak memory above {BASE}: {COMMAND} / {MERGE}",
            f"{command:.1f} / {merge:.1f} MiB",
            f"its imports are in it; {DIRECT}: {direct:.1f} MiB",
            "–",
        ),
    ]
    for name in METHODS.values():
        rows.append(_memory_row(f"the same: {name}", max(use.peak for use in uses[name]), base, "–"))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    for count, tensors, length in ((50, 100, 8), (2, 2, 16 * MIB)) if quick else ((1000, 100, 8), (2, 2, 256 * MIB)):
        paths = [folder / f"zeros{n}.safetensors" for n in range(count)]
        start = header_bytes([(f"block{n}.weight", "F32", [length]) for n in range(tensors)], {})
        for path in paths:
            path.write_bytes(start)
            os.truncate(path, len(start) + 4 * tensors * length)
        use = _run([sys.executable, "-P", "-c", AVERAGE, "float64", _out(folder, OURS), *map(str, paths)])
        what = f"the same, {count:,} files of {tensors} tensors of {4 * length:,} bytes"
        rows.append(_memory_row(what, use.peak, base, "–"))
        for path in paths:
            path.unlink()
    return rows


def _memory_row(what: str, peak: float, base: float, peers: str) -> Row:
    above = peak - base
    measured = f"{above:.1f} MiB"
    return Row(what, measured, peers, f"{peak / base:.2f}", f"≤ {MEMORY_GOAL} MiB", above <= MEMORY_GOAL)


def _imports(uses: Uses) -> list[str]:
    """What each spends before it begins: the ratios above are of whole processes."""
    code = {
        OURS: (sys.executable, "import wbar_averaging.soup"),
        COMMAND: (sys.executable, "import wbar.cli, wbar_averaging.commands, wbar_averaging.soup"),
        MERGE: (sys.executable, "import wbar.cli, wbar_averaging.commands, wbar_averaging.merging"),
        DIRECT: (sys.executable, "import wbar_averaging.commands, wbar_averaging.soup"),
        LOOP: (sys.executable, "import torch, safetensors.torch"),
        TIMM: (PEERS, "import timm.models, safetensors.torch"),
        MERGEKIT: (PEERS, "import mergekit.scripts.merge_raw_pytorch"),
    }
    found = []
    for name, (python, text) in code.items():
        if name in uses:
            use = _run([python, "-P", "-c", text])
            found.append(f"{name} {use.cpu:.2f} s ({use.wall:.2f} s of wall time)")
    return [f"start and imports alone, of processor time: {', '.join(found)}"]
