"""`python -m benchmarks.throughput`: images/s of `training` over what people train with otherwise, and what it keeps in memory.

    bare        the loop one would write by hand (benchmarks.bare_loop), the batch augmented in one gather
    lightning   Lightning's Trainer with its StochasticWeightAveraging callback, the same augmentation in training_step
    per image   a DataLoader of two workers with torchvision's transforms image by image, then the bare loop

Each runs in a process of its own, in turn, several times; a run's speed is the median over its steps, and ratios are of
medians over runs.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bare_loop import augment, groups, train
from benchmarks.gain.arms import Silent
from benchmarks.start import NETWORK, write_start
from wbar.jobs import MetricsPoint
from wbar.method import METHODS
from wbar.recipe import Normalization, Optimizer, Recipe
from wbar.spec import JobSpec, Network, StoredDataset, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training.data.packed import Packed
from wbar_training.loop import TrainingJob
from wbar_training.networks.architectures import initialized, load
from wbar_training.networks.tensors import read_tensors
from wbar_training.uploads.dataset_archives import pack_builtin
from wbar_training.workspace import Workspace

IMAGES, BATCH, EPOCHS, LR = 2000, 64, 2, 0.01
ARMS = ("wbar", "bare", "lightning", "per image")


class Speeds(Silent):
    """Keeps the speed of every step that a job reports."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def metrics(self, points: list[MetricsPoint]) -> None:
        self.found += [point.images_per_second for point in points if point.images_per_second]


def job_of(task: dict[str, Any], network: Network = NETWORK) -> tuple[JobSpec, Workspace]:
    recipe = Recipe(
        optimizer=Optimizer(name="sgd", weight_decay=5e-4),
        batch_size=BATCH,
        image_size=task["size"],
        normalize=Normalization(mean=task["mean"], std=task["std"]),
        augment="pad_crop_flip",
        precision="float32",
        batch_norm="recompute",
    )
    method = {"cycles": 1, "high": {"lr": LR}, "low": {"lr": LR}, "pull": 5e-4, "control_lr": LR}
    workspace = Workspace(Path(task["folder"]), threads=task["threads"], save_every_seconds=1e9)
    shutil.copyfile(task["checkpoint"], workspace.input("start"))
    shutil.copyfile(task["dataset"], workspace.input("dataset"))
    spec = JobSpec(
        start=StoredWeights(id="start", sha256="", blob="start", prefix="", network=network),
        dataset=StoredDataset(id="dataset", sha256="", blob="dataset"),
        network=network,
        classes=None,
        method=METHODS.validate_python(method),
        recipe=recipe,
        seed=0,
    )
    return spec, workspace


def wbar(task: dict[str, Any]) -> list[float]:
    told = Speeds()
    with tempfile.TemporaryDirectory(dir=task["folder"]) as folder:
        TrainingJob(*job_of(task | {"folder": folder}), told).run()
    return told.found


def bare(task: dict[str, Any]) -> list[float]:
    return [images / seconds for images, seconds in train(task)]


def lightning(task: dict[str, Any]) -> list[float]:
    import lightning
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    torch.set_num_threads(task["threads"])
    images, labels, normalize = _loaded(task)
    found: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = _network(task)
            self.before: float | None = None

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.model(normalize(augment(batch[0], flip=True))), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _optimizer(self.model, task)

        def on_train_batch_start(self, *_: Any) -> None:
            now = time.perf_counter()
            if self.before is not None:
                found.append(BATCH / (now - self.before))
            self.before = now

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, labels), batch_size=BATCH, shuffle=True, drop_last=True
    )
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StochasticWeightAveraging(swa_lrs=LR, swa_epoch_start=1)],
    )
    trainer.fit(Module(), loader)
    return found


def per_image(task: dict[str, Any]) -> list[float]:
    from torchvision.transforms import v2

    torch.set_num_threads(task["threads"])
    images, labels, _ = _loaded(task)
    changes = v2.Compose(
        [
            v2.RandomCrop(images.shape[-1], padding=images.shape[-1] // 8),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(task["mean"], task["std"]),
        ]
    )

    class Changed(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return changes(images[index]), labels[index]

    loader = torch.utils.data.DataLoader(
        Changed(), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    model = _network(task)
    optimizer, found = _optimizer(model, task), list[float]()
    for _ in range(EPOCHS):
        before = time.perf_counter()
        for inputs, classes in loader:
            loss = F.cross_entropy(model(inputs.contiguous(memory_format=torch.channels_last)), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            now = time.perf_counter()
            found.append(BATCH / (now - before))
            before = now
    return found


def _loaded(task: dict[str, Any]) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    data = read_tensors(Path(task["dataset"]))
    mean = 255 * torch.tensor(task["mean"]).view(1, -1, 1, 1)
    scale = 1 / (255 * torch.tensor(task["std"]).view(1, -1, 1, 1))

    def normalize(images: Tensor) -> Tensor:
        return images.float().sub_(mean).mul_(scale).contiguous(memory_format=torch.channels_last)

    return data["train.images"], data["train.labels"], normalize


def _network(task: dict[str, Any]) -> torch.nn.Module:
    model, _ = load(NETWORK, read_tensors(Path(task["checkpoint"])))
    return model.to(memory_format=torch.channels_last).train()


def _optimizer(model: torch.nn.Module, task: dict[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups(model, task["weight_decay"]), lr=LR, momentum=0.9, nesterov=True, fused=True)


RUNS = {"wbar": wbar, "bare": bare, "lightning": lightning, "per image": per_image}


def memory(task: dict[str, Any], name: str) -> list[tuple[str, int]]:
    """Bytes of what a job with this network holds after a step, named."""
    network, folder = Network(name, 10, channels=NETWORK.channels), Path(task["folder"])
    checkpoint = folder / f"{name}.safetensors"
    write_safetensors(checkpoint, initialized(network).state_dict(), {})
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        job = TrainingJob(*job_of(task | {"checkpoint": str(checkpoint), "folder": scratch}, network), Silent())
        job.setup.train_mode()
        job.batches.start(job.course.ahead())
        job._train_step(job.course.at(0))
        job.course.average.visit(job.model, 1)
        state = job.course.average.state_dict()
        inputs = (BATCH, network.channels, *job.plan.image_size)
        return [
            ("weights and buffers", _bytes(job.model.state_dict())),
            ("gradients", sum(p.grad.nbytes for p in job.stepper.parameters if p.grad is not None)),
            ("optimizer", _bytes(job.stepper.optimizer.state_dict())),
            ("w̄ (float64 sum)", _bytes(state)),
            ("w̄ as the pull sees it", sum(anchor.nbytes for anchor in job.anchor)),
            ("the network that is evaluated", _bytes(job.evaluator.network.state_dict())),
            (f"one batch of {BATCH} inputs", 4 * int(torch.Size(inputs).numel())),
        ]


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        json.dump(RUNS[options.one](json.loads(options.task)), sys.stdout)
        return 0
    with tempfile.TemporaryDirectory(prefix="wbar-throughput-") as folder:
        task = _task(Path(folder), options.threads)
        found: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for _ in range(options.rounds):
            for arm in ARMS:
                speed = _run(arm, task)
                if speed is not None:
                    found[arm].append(speed)
        print(f"ResNet-20, {IMAGES} images, batch {BATCH}, {options.threads} threads, torch {torch.__version__}, "
              f"Python {platform.python_version()}; median of {options.rounds} (range)\n")  # fmt: skip
        print("| | images/s | `training` over it | goal |\n|---|---|---|---|")
        goals = {"wbar": "–", "bare": "≥ 0.98", "lightning": "> 1.2", "per image": "> 2"}
        for arm, speeds in found.items():
            if speeds:
                ratio = median(found["wbar"]) / median(speeds)
                spread = f"{median(speeds):.0f} ({min(speeds):.0f}–{max(speeds):.0f})"
                print(f"| {arm} | {spread} | {'–' if arm == 'wbar' else f'{ratio:.3f}'} | {goals[arm]} |")
        names = ("resnet20", "resnet50")
        columns = [memory(task, name) for name in names]
        print(f"\n| memory, MiB | {' | '.join(names)} |\n|---|---|---|")
        for rows in zip(*columns, strict=True):
            print(f"| {rows[0][0]} | {' | '.join(f'{size / 2**20:.2f}' for _, size in rows)} |")
        print(f"| together | {' | '.join(f'{sum(size for _, size in column) / 2**20:.2f}' for column in columns)} |")
    return 0


def _task(folder: Path, threads: int) -> dict[str, Any]:
    dataset = folder / "packed.safetensors"
    packed: Packed = pack_builtin("fashion-mnist", dataset, IMAGES)
    return {
        "checkpoint": str(write_start(folder / "start.safetensors")),
        "dataset": str(dataset),
        "folder": str(folder),
        "threads": threads,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "lr": LR,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "mean": packed.mean * NETWORK.channels,
        "std": packed.std * NETWORK.channels,
        "size": (packed.height, packed.width),
        "flip": True,
    }


def _run(arm: str, task: dict[str, Any]) -> float | None:
    command = [sys.executable, "-P", "-m", "benchmarks.throughput", "--one", arm, "--task", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        print(f"{arm}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    speeds: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return median(speeds[3:])  # the first steps warm up


if __name__ == "__main__":
    sys.exit(main())
