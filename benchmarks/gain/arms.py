"""One block and seed: its start is trained, then every arm goes on from it, and all are scored on unseen images.

    control      cosine from the customary peak rate to 0, BatchNorm as it was tracked
    torch SWA    torch.optim.swa_utils as its documentation has it: constant rate, a snapshot per epoch, update_bn
    cyclic       `cyclic_swa`, 1 + 1 epochs; and the ensemble of its snapshots, which is no single network
    ema          `ema`
    auto         `auto`: the weights that it delivers

Every arm has the same extra epochs, optimizer, images and augmentation, and its own default rates. Its calibrated NLL is at
the temperature that the job's held-out images give it.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from benchmarks.gain.blocks import Block
from benchmarks.gain.images import splits
from wbar.catalog import ARCHITECTURES, BATCH
from wbar.job_request import JobOptions
from wbar.jobs import MetricsPoint, Progress
from wbar.resolve import resolve_job
from wbar.results import JobResult
from wbar.scores import Score
from wbar.spec import JobSpec, StoredDataset, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training.calibration import calibrated
from wbar_training.data.augment import Preparer
from wbar_training.data.examples import Batch
from wbar_training.data.packed import Packed, Split, load_split
from wbar_training.draws import permutation
from wbar_training.evaluate import predict
from wbar_training.local import facts_of
from wbar_training.loop import run
from wbar_training.messages import LogLevel, StopReason
from wbar_training.networks.architectures import initialized, load
from wbar_training.networks.tensors import read_tensors
from wbar_training.optim import make_optimizer
from wbar_training.plan import Plan
from wbar_training.tasks.classification import Classification, score
from wbar_training.uploads.dataset_archives import write_packed
from wbar_training.workspace import Workspace

TORCH_SWA = "torch SWA"
# The method of each arm, in the order of the tables; torch's is not a job.
ARMS: dict[str, dict[str, Any]] = {
    "control": {"type": "none"},
    TORCH_SWA: {},
    "cyclic": {},
    "ema": {"type": "ema"},
    "auto": {"type": "auto"},
}
ALL_ARMS = tuple(ARMS)
ORDER = ("start", *ALL_ARMS, "ensemble")
SINGLE = ORDER[:-1]  # networks of the start's size
UNDERFIT_SNAPSHOT = 2  # of the six of a start's training: a third of it
DIGITS = [str(label) for label in range(10)]


class Silent:
    """A reporter that keeps nothing."""

    def heartbeat(self, progress: Progress) -> StopReason | None:  # noqa: ARG002  # the protocol's argument
        return None

    def metrics(self, points: list[MetricsPoint]) -> None: ...
    def snapshot(self, n: int, step: int, path: str, score: Score) -> None: ...
    def averaged(self, n: int, score: Score) -> None: ...
    def saved(self, path: str, step: int, durable: bool) -> None: ...
    def log(self, level: LogLevel, message: str) -> None: ...


@dataclass(frozen=True)
class Execution:
    """How the arms are run. precision: a recipe's. batch_size: None leaves it to the recipe's default."""

    device: str = "cpu"
    precision: str = "float32"
    batch_size: int | None = None


@dataclass(frozen=True)
class Files:
    """The packed files of a block's images: what the jobs are given, and the unseen images as the other's `val`."""

    jobs: Path
    unseen: Path


class Bench:
    """A block and a seed. folder: for its files, which the caller removes. files: those of the block; None: made here."""

    def __init__(
        self, block: Block, seed: int, folder: Path, execution: Execution | None = None, files: Files | None = None
    ) -> None:
        self.block, self.seed, self.folder = block, seed, folder
        self.execution = execution or Execution()
        self.device = torch.device(self.execution.device)
        self.network, self.size = block.architecture, (block.side, block.side)
        files = files or packed(block, folder)
        self.data, test = files.jobs, files.unseen
        self.packed = Packed.read(self.data)
        self.held_out = load_split(self.data, "val", self.size, None)
        self.unseen = load_split(test, "val", self.size, None)
        self.checkpoint = folder / "start.safetensors"

    @property
    def augment(self) -> str:
        if self.block.start == "memorised":
            return "none"
        return "pad_crop_flip" if self.block.flips else "pad_crop"

    def job(self, method: dict[str, Any], checkpoint: Path, scratch: str) -> tuple[JobSpec, Workspace]:
        """A job from a checkpoint, in a folder of its own."""
        recipe = {
            "image_size": self.block.side,
            "normalize": {"mean": self.packed.mean, "std": self.packed.std},
            "augment": self.augment,
            "precision": self.execution.precision,
        }
        if self.execution.batch_size is not None:
            recipe["batch_size"] = self.execution.batch_size
        options = JobOptions.model_validate({"method": method, "recipe": recipe, "seed": self.seed})
        folder = self.folder / scratch
        folder.mkdir(exist_ok=True)
        threads = torch.get_num_threads()
        workspace = Workspace(folder, self.folder, self.execution.device, threads, save_every_seconds=1e9)
        start = StoredWeights(id="start", sha256="", blob=checkpoint.stem, prefix="", network=self.network)
        if checkpoint != workspace.input(start.blob):
            shutil.copyfile(checkpoint, workspace.input(start.blob))
        shutil.copyfile(self.data, workspace.input("jobs"))
        dataset = StoredDataset(id="jobs", sha256="", blob="jobs")
        gpu = self.device.type == "cuda"
        return resolve_job(options, start, dataset, facts_of(self.packed, None), gpu), workspace

    def make_start(self, epochs: int) -> None:
        """A network trained from its initialization along a cosine; of an underfit one, the weights after a third."""
        torch.manual_seed(1000 + self.seed)
        fresh = self.folder / "fresh.safetensors"
        write_safetensors(fresh, initialized(self.network).state_dict(), {})
        method = {"type": "none", "epochs": epochs, "warmup_epochs": 1, "back_off": False}
        spec, workspace = self.job(method, fresh, "start")
        outcome = run(spec, workspace, Silent())
        stopped = workspace.snapshot(UNDERFIT_SNAPSHOT)
        shutil.copyfile(stopped if self.block.start == "underfit" else outcome.weights, self.checkpoint)

    def start_score(self) -> dict[str, Any]:
        return self.score_of(self.checkpoint)

    def score_of(self, weights: Path) -> dict[str, Any]:
        """The scores on the unseen images."""
        return self._scored(self._network(weights))

    def arm(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Run an arm; yield its name and what was measured, and for the cyclic one the ensemble's."""
        if name == TORCH_SWA:
            yield name, self._torch_swa()
            return
        epochs = self.block.epochs
        method = ARMS[name] | ({"epochs": epochs} if "type" in ARMS[name] else {"cycles": epochs // 2})
        spec, workspace = self.job(method, self.checkpoint, f"arm-{name}")
        outcome = run(spec, workspace, Silent())
        yield name, self.score_of(outcome.weights) | _choice(outcome.result)
        if name == "cyclic":
            members = [self._network(path) for path in sorted(workspace.scratch.glob("snapshot-*.safetensors"))]
            both = [
                torch.stack([self._probabilities(member, split) for member in members]).double().mean(dim=0)
                for split in (self.unseen, self.held_out)
            ]
            yield "ensemble", self._score(*both)

    def _torch_swa(self) -> dict[str, Any]:
        """Nothing of ours but the order of the images and their augmentation, which are every arm's."""
        spec, _ = self.job({"type": "swa"}, self.checkpoint, "torch")
        plan = Plan.of(spec.recipe, spec.seed)
        split = load_split(self.data, "train", plan.image_size, None)
        train = Split(split.images.to(self.device), split.labels.to(self.device))
        prepare = self._preparer(plan)
        model = self._network(self.checkpoint).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, plan)
        peak = ARCHITECTURES[self.network.name].peak_lr * plan.batch_size / BATCH
        for group in optimizer.param_groups:
            group["lr"] = peak / 2
        averaged, scheduler = AveragedModel(model), SWALR(optimizer, swa_lr=peak / 2, anneal_epochs=1)
        mixed = partial(torch.autocast, self.device.type, dtype=plan.autocast, enabled=plan.autocast is not None)
        step = 0
        for epoch in range(1, self.block.epochs + 1):
            for chosen in self._batches(train, plan, "order", epoch):
                inputs = prepare.augmented(train.images[chosen], "augment", step)
                optimizer.zero_grad()
                with mixed():
                    outputs = model(inputs)
                F.cross_entropy(outputs.float(), train.labels[chosen]).backward()
                optimizer.step()
                step += 1
            scheduler.step()
            averaged.update_parameters(model)
        batches = enumerate(self._batches(train, plan, "update_bn"))
        with mixed():
            update_bn((prepare.augmented(train.images[chosen], "update_bn", i) for i, chosen in batches), averaged)
        return self._scored(averaged.module)

    def _batches(self, train: Split, plan: Plan, *purpose: Any) -> Iterator[Tensor]:
        """Yield the indices of every batch of an epoch, on the device."""
        order = permutation(len(train), plan.seed, *purpose).to(self.device)
        yield from order.split(plan.batch_size)

    # Measuring.

    def _network(self, weights: Path) -> nn.Module:
        return load(self.network, read_tensors(weights))[0].to(self.device).train()

    def _preparer(self, plan: Plan) -> Preparer:
        return Preparer(plan.mean, plan.std, plan.augment, plan.seed, self.device)

    @cached_property
    def _plan(self) -> Plan:
        spec, _ = self.job({"type": "none"}, self.checkpoint, "measure")
        return Plan.of(spec.recipe, spec.seed)

    def _probabilities(self, model: nn.Module, split: Split) -> Tensor:
        plan = self._plan
        prepare = self._preparer(plan)
        task = Classification(self.network, [str(index) for index in range(self.network.num_classes)])
        batch_of = partial(_batch, prepare, split)
        return predict(model, split.parts(), batch_of, task.answered, plan.autocast, lambda _: None).answers

    def _scored(self, model: nn.Module) -> dict[str, Any]:
        return self._score(self._probabilities(model, self.unseen), self._probabilities(model, self.held_out))

    def _score(self, unseen: Tensor, held_out: Tensor) -> dict[str, Any]:
        plain = score(unseen, self.unseen.labels)
        found = calibrated(plain, unseen, self.unseen.labels, (held_out, self.held_out.labels))
        return found.model_dump(include={"accuracy", "loss", "ece", "nll_calibrated", "temperature"})


def _batch(prepare: Preparer, split: Split, part: slice, _: int) -> Batch:
    return split.batch(part, prepare)


def packed(block: Block, folder: Path) -> Files:
    """Write the packed files of a block's images into a folder."""
    parts = splits(block.images, block.size, block.held_out)
    tensors = {"train.images": parts.train.pixels, "train.labels": parts.train.labels}
    files = Files(folder / "jobs.safetensors", folder / "unseen.safetensors")
    for path, held in ((files.jobs, parts.held_out), (files.unseen, parts.unseen)):
        both = tensors | {"val.images": held.pixels, "val.labels": held.labels}
        write_packed(path, both, DIGITS, parts.train.pixels, None, [])
    return files


def _choice(result: JobResult) -> dict[str, Any]:
    """What `auto` found and chose; nothing of other arms."""
    selection = result.selection
    if selection is None:
        return {}
    found: dict[str, Any] = {"start_kind": result.start_kind, "delivered": selection.delivered}
    found |= {"assumed": selection.assumed, "optimism": selection.optimism}
    if result.rate_probe is not None:
        found["rate_factor"] = result.rate_probe.factor
    if selection.chosen is not None:
        found["chosen"] = selection.chosen.model_dump(include={"kind", "first", "last", "alpha"})
    return found
