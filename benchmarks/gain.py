"""`python -m benchmarks.gain`: what averaging gives, on images that no job has seen, beside what it competes with.

For every set and start (memorised: trained without augmentation to the end; augmented: with it) and every seed, a start is
trained, then every arm goes on from it with the same number of extra epochs, the same optimizer and the same images:

    control      cosine from the customary peak rate to 0, BatchNorm as it was tracked
    torch SWA    torch.optim.swa_utils as its documentation has it: constant rate, a snapshot per epoch, update_bn
    cyclic       `cyclic_swa`, 1 + 1 epochs, with λ = 0 and with the default λ; and the ensemble of its snapshots
    ema          `ema`
    auto         `auto`

Jobs are given training and held-out images; accuracy, NLL and ECE are from a third set that only this program reads. Every
finished arm is a line of the results file, and is not run again.
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from wbar.catalog import ARCHITECTURES, BATCH
from wbar.jobs import JobOptions, MetricsPoint, Progress
from wbar.resolve import resolve_job
from wbar.results import Score
from wbar.spec import JobSpec, Network, StoredDataset, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training.data.augment import Preparer
from wbar_training.data.packed import Packed, load_split
from wbar_training.draws import permutation
from wbar_training.evaluate import predict, score
from wbar_training.local import facts_of
from wbar_training.loop import run
from wbar_training.messages import LogLevel, StopReason
from wbar_training.networks.architectures import initialized, load
from wbar_training.networks.tensors import read_tensors
from wbar_training.optim import make_optimizer
from wbar_training.plan import Plan
from wbar_training.uploads.builtin_images import digits, fashion
from wbar_training.uploads.dataset_archives import HELD_OUT_SEED, stratified, write_packed
from wbar_training.workspace import Workspace

UNSEEN = 3000  # of the official test images
STARTS = {"memorised": "none", "augmented": "pad_crop_flip"}
ARMS: dict[str, dict[str, Any]] = {
    "control": {"type": "none"},
    "cyclic, λ = 0": {"pull": 0},
    "cyclic, λ default": {},
    "ema": {"type": "ema"},
    "auto": {"type": "auto"},
}
ALL_ARMS = [*ARMS, "torch SWA"]
ORDER = ("start", "control", "torch SWA", "cyclic, λ = 0", "cyclic, λ default", "ema", "auto", "ensemble")


@dataclass(frozen=True)
class Set:
    """Images and network of one part of the benchmark. train, held_out: how many images the jobs are given."""

    source: str
    network: Network
    train: int
    held_out: int
    image_size: int
    start_epochs: int


SETS = {
    "fashion-mnist": Set("fashion-mnist", Network("resnet20", 10, channels=1), 400, 500, 28, 30),
    "digits": Set("digits", Network("resnet32", 10, channels=1), 400, 400, 8, 40),
}


class Silent:
    """A reporter that keeps nothing."""

    def heartbeat(self, progress: Progress) -> StopReason | None:  # noqa: ARG002  # the protocol's argument
        return None

    def metrics(self, points: list[MetricsPoint]) -> None: ...
    def snapshot(self, n: int, step: int, path: str, score: Score) -> None: ...
    def averaged(self, n: int, score: Score) -> None: ...
    def saved(self, path: str, step: int, durable: bool) -> None: ...
    def log(self, level: LogLevel, message: str) -> None: ...


def pack(chosen: Set, folder: Path) -> tuple[Path, Path]:
    """The jobs' dataset (train, val) and the unseen images (as `val` of a second file)."""
    if chosen.source == "digits":
        images, labels = digits()
    else:
        images, labels = fashion("train")
    share = (chosen.train + chosen.held_out) / len(labels)
    kept = torch.tensor(stratified(labels.tolist(), share, HELD_OUT_SEED))
    held = torch.tensor(stratified(labels[kept].tolist(), chosen.held_out / len(kept), HELD_OUT_SEED))
    train = torch.tensor(sorted(set(range(len(kept))) - set(held.tolist())))
    if chosen.source == "digits":
        rest = torch.tensor(sorted(set(range(len(labels))) - set(kept.tolist())))
        unseen = (images[rest], labels[rest])
    else:
        pixels, marks = fashion("t10k")
        some = stratified(marks.tolist(), UNSEEN / len(marks), HELD_OUT_SEED)
        unseen = (pixels[some], marks[some])
    pixels, names = images[kept][train], [str(label) for label in range(10)]
    tensors = {
        "train.images": pixels,
        "train.labels": labels[kept][train],
        "val.images": images[kept][held],
        "val.labels": labels[kept][held],
    }
    jobs, test = folder / "jobs.safetensors", folder / "unseen.safetensors"
    write_packed(jobs, tensors, names, pixels, None, [])
    tensors |= {"val.images": unseen[0], "val.labels": unseen[1]}
    write_packed(test, tensors, names, pixels, None, [])
    return jobs, test


class Bench:
    """One set, one start, one seed: trains the start, then arm after arm."""

    def __init__(self, name: str, start: str, seed: int, folder: Path) -> None:
        self.name, self.set, self.start, self.seed, self.folder = name, SETS[name], start, seed, folder
        self.data, test = pack(self.set, folder)
        self.packed = Packed.read(self.data)
        size = (self.set.image_size, self.set.image_size)
        self.unseen = load_split(test, "val", size, None)
        self.augment = STARTS[start] if name != "digits" or start == "memorised" else "pad_crop"
        self.checkpoint = folder / "start.safetensors"

    def job(self, method: dict[str, Any], checkpoint: Path, scratch: str) -> tuple[JobSpec, Workspace]:
        options = JobOptions.model_validate(
            {
                "method": method,
                "recipe": {
                    "optimizer": {"name": "sgd"},
                    "image_size": self.set.image_size,
                    "normalize": {"mean": self.packed.mean, "std": self.packed.std},
                    "augment": self.augment,
                    "precision": "float32",
                },
                "seed": self.seed,
            }
        )
        folder = self.folder / scratch
        folder.mkdir(exist_ok=True)
        workspace = Workspace(folder, self.folder, threads=torch.get_num_threads(), save_every_seconds=1e9)
        start = StoredWeights(id="start", sha256="", blob=checkpoint.stem, prefix="", network=self.set.network)
        shutil.copyfile(checkpoint, workspace.input(start.blob))
        shutil.copyfile(self.data, workspace.input("jobs"))
        dataset = StoredDataset(id="jobs", sha256="", blob="jobs")
        return resolve_job(options, start, dataset, facts_of(self.packed, None), False), workspace

    def plan(self, method: dict[str, Any], checkpoint: Path, scratch: str) -> Plan:
        spec, _ = self.job(method, checkpoint, scratch)
        return Plan.of(spec.recipe, spec.seed)

    def make_start(self) -> None:
        """A network trained from its initialization, along a cosine, with or without augmentation."""
        torch.manual_seed(1000 + self.seed)
        fresh = self.folder / "fresh.safetensors"
        write_safetensors(fresh, initialized(self.set.network).state_dict(), {})
        method = {"type": "none", "epochs": self.set.start_epochs, "warmup_epochs": 1, "back_off": False}
        run(*self.job(method, fresh, "start"), Silent())
        (self.folder / "start" / "averaged.safetensors").rename(self.checkpoint)

    def arm(self, name: str, epochs: int) -> Iterator[tuple[str, dict[str, float]]]:
        if name == "torch SWA":
            yield name, self.torch_swa(epochs)
            return
        method = ARMS[name] | ({"epochs": epochs} if "type" in ARMS[name] else {"cycles": epochs // 2})
        scratch = f"arm-{epochs}-{name}"
        spec, workspace = self.job(method, self.checkpoint, scratch)
        outcome = run(spec, workspace, Silent())
        found = self.measured(outcome.weights)
        selection = outcome.result.selection
        if selection and selection.kept:
            found |= {"first": selection.kept[0], "last": selection.kept[-1]}
        yield name, found
        if name == "cyclic, λ default":
            snapshots = sorted(workspace.scratch.glob("snapshot-*.safetensors"))
            together = sum(self.probabilities(path).double() for path in snapshots) / len(snapshots)
            assert isinstance(together, Tensor)
            yield "ensemble", score(together, self.unseen.labels).model_dump()

    def torch_swa(self, epochs: int) -> dict[str, float]:
        """Nothing of ours but the order of the images and their augmentation, which are every arm's."""
        plan = self.plan({"type": "swa"}, self.checkpoint, "torch")
        train = load_split(self.data, "train", plan.image_size, None)
        prepare = self.preparer(plan)
        model, _ = load(self.set.network, read_tensors(self.checkpoint))
        model = model.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, plan)
        peak = ARCHITECTURES[self.set.network.name].peak_lr * plan.batch_size / BATCH
        for group in optimizer.param_groups:
            group["lr"] = peak / 2
        averaged, scheduler = AveragedModel(model), SWALR(optimizer, swa_lr=peak / 2, anneal_epochs=1)
        step = 0
        for epoch in range(1, epochs + 1):
            for chosen in permutation(len(train), plan.seed, "order", epoch).split(plan.batch_size):
                inputs = prepare.augmented(train.images[chosen], "augment", step)
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), train.labels[chosen]).backward()
                optimizer.step()
                step += 1
            scheduler.step()
            averaged.update_parameters(model)
        batches = permutation(len(train), plan.seed, "update_bn").split(plan.batch_size)
        update_bn(
            [prepare.augmented(train.images[chosen], "update_bn", i) for i, chosen in enumerate(batches)], averaged
        )
        return self.scored(averaged.module)

    def preparer(self, plan: Any) -> Preparer:
        return Preparer(plan.mean, plan.std, plan.augment, plan.seed, torch.device("cpu"))

    def probabilities(self, weights: Path) -> Tensor:
        model, _ = load(self.set.network, read_tensors(weights))
        return self.outputs(model)

    def outputs(self, model: nn.Module) -> Tensor:
        plan = self.plan({"type": "none"}, self.checkpoint, "torch")
        prepare, images = self.preparer(plan), self.unseen.images
        return predict(
            model,
            self.unseen.labels,
            lambda chunk, _: prepare.plain(images[chunk]),
            images.shape[-2:],
            None,
            lambda _: None,
        ).probabilities

    def measured(self, weights: Path) -> dict[str, float]:
        return score(self.probabilities(weights), self.unseen.labels).model_dump()

    def scored(self, model: nn.Module) -> dict[str, float]:
        return score(self.outputs(model), self.unseen.labels).model_dump()


def bench(task: tuple[str, str, int], epochs: list[int], arms: list[str], results: Path, starts: Path) -> None:
    """Every arm of one set, start and seed that the results file does not have yet."""
    name, start, seed = task
    torch.set_num_threads(1)  # several processes of one thread each get more done than one of several
    done = {(line["epochs"], line["arm"]) for line in read(results) if task == tuple(line[k] for k in KEYS)}
    with tempfile.TemporaryDirectory(prefix="wbar-gain-") as folder:
        here = Bench(name, start, seed, Path(folder))

        def note(arm: str, extra: int, found: dict[str, float]) -> None:
            line = dict(zip(KEYS, task, strict=True)) | {"epochs": extra, "arm": arm} | found
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name} {start} seed {seed} +{extra} {arm}: {found['accuracy']:.4f} {found['loss']:.4f}", flush=True)

        kept = starts / f"{name}-{start}-{seed}-{SETS[name].train}.safetensors"
        if kept.exists():
            shutil.copy(kept, here.checkpoint)
        else:
            here.make_start()
            shutil.copy(here.checkpoint, kept)
        if (0, "start") not in done:
            note("start", 0, here.measured(here.checkpoint))
        for extra in epochs:
            for arm in arms:
                if (extra, arm) not in done:
                    for label, values in here.arm(arm, extra):
                        note(label, extra, values)


KEYS = ("set", "start", "seed")


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def tables(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: per block the arms as mean ± sd over the seeds, and their paired difference to `auto` ± its error."""
    blocks = sorted({(line["set"], line["start"], line["epochs"]) for line in lines if line["epochs"]})
    for name, start, epochs in blocks:
        own = [x for x in lines if (x["set"], x["start"]) == (name, start) and x["epochs"] in (0, epochs)]
        seeds = sorted({x["seed"] for x in own if x["arm"] == "auto"})
        arms = {arm: {x["seed"]: x for x in own if x["arm"] == arm} for arm in ORDER}
        seeds = [seed for seed in seeds if all(seed in found for found in arms.values())]
        if not seeds:
            continue
        yield f"\n### {name}, {SETS[name].network.name}, {start} start, {epochs} extra epochs, {len(seeds)} seeds\n"
        yield "| arm | accuracy % | NLL | ECE | Δ accuracy to `auto` | Δ NLL to `auto` |"
        yield "|---|---|---|---|---|---|"
        for arm, found in arms.items():
            rows = [found[seed] for seed in seeds]
            best = [arms["auto"][seed] for seed in seeds]
            cells = [
                spread([100 * row["accuracy"] for row in rows], 2),
                spread([row["loss"] for row in rows], 4),
                spread([row["ece"] for row in rows], 4),
                "–" if arm == "auto" else paired(rows, best, "accuracy", 100, 2),
                "–" if arm == "auto" else paired(rows, best, "loss", 1, 4),
            ]
            label = f"**{arm}**" if arm == "auto" else arm
            yield f"| {label} | {' | '.join(cells)} |"


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def paired(rows: list[dict[str, Any]], best: list[dict[str, Any]], what: str, scale: float, digits: int) -> str:
    differences = [scale * (row[what] - other[what]) for row, other in zip(rows, best, strict=True)]
    error = f" ± {stdev(differences) / sqrt(len(differences)):.{digits}f}" if len(differences) > 1 else ""
    return f"{mean(differences):+.{digits}f}{error}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gain", description=__doc__)
    parser.add_argument("--set", choices=SETS, action="append", help="default: all")
    parser.add_argument("--start", choices=STARTS, action="append", help="default: both")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, action="append", help="extra epochs, even; default: 12 and 24")
    parser.add_argument("--arm", choices=ALL_ARMS, action="append", help="default: all")
    parser.add_argument("--train-images", type=int, help="instead of each set's own number")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--results", type=Path, default=Path("gain.jsonl"), help="one line per finished arm")
    parser.add_argument("--starts", type=Path, default=Path("gain-starts"), help="where the trained starts are kept")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    options = parser.parse_args()
    if options.train_images:
        for name, chosen in SETS.items():
            SETS[name] = replace(chosen, train=options.train_images)
    tasks = [
        (name, start, seed)
        for seed in range(options.seeds)
        for name in options.set or SETS
        for start in options.start or STARTS
    ]
    options.starts.mkdir(parents=True, exist_ok=True)
    work = partial(
        bench,
        epochs=options.epochs or [12, 24],
        arms=options.arm or ALL_ARMS,
        results=options.results,
        starts=options.starts,
    )
    with ProcessPoolExecutor(options.processes, max_tasks_per_child=1) as pool:
        list(pool.map(work, tasks))
    lines = list(tables(read(options.results)))
    print("\n".join(lines))
    if options.markdown:
        sets = "; ".join(f"{name}: {asdict(SETS[name])}" for name in options.set or SETS)
        head = f"Python {platform.python_version()}, torch {torch.__version__}. {sets}\n"
        options.markdown.write_text(head + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
