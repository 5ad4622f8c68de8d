"""Small real work for the training tests: a few of scikit-learn's digits, a ResNet-20 fresh from its initialization."""

from dataclasses import replace
from pathlib import Path

import torch

from wbar.jobs import MetricsPoint, Progress, Score
from wbar.method import CyclicSwa, HighPhase, Phase
from wbar.recipe import Normalization, Optimizer, Recipe
from wbar_averaging import write_safetensors
from wbar_training.data.packed import Packed
from wbar_training.networks.architectures import Network, initialized
from wbar_training.plan import Work
from wbar_training.uploads.dataset_archives import pack_builtin

METHOD = CyclicSwa(cycles=2, high=HighPhase(lr=0.05, epochs=1), low=Phase(lr=0.005, epochs=1), pull=0.01)


class Recorder:
    """A reporter that remembers what it was told, and stops the job where a test asks it to."""

    def __init__(self, stop_at: int | None = None, die_at: int | None = None, reason: str = "pause") -> None:
        self.stop_at, self.die_at, self.reason = stop_at, die_at, reason
        self.progress: list[Progress] = []
        self.points: list[MetricsPoint] = []
        self.snapshots: dict[int, Path] = {}
        self.logs: list[str] = []
        self.states: list[tuple[int, bool]] = []

    def heartbeat(self, progress: Progress) -> str | None:
        self.progress.append(progress)
        return self.reason if self.stop_at is not None and progress.step >= self.stop_at else None

    def metrics(self, points: list[MetricsPoint]) -> None:
        self.points += points

    def snapshot(self, n: int, step: int, path: str, score: Score) -> None:
        self.snapshots[n] = Path(path)

    def averaged(self, n: int, score: Score) -> None:
        pass

    def saved(self, path: str, step: int, durable: bool) -> None:
        self.states.append((step, durable))
        if self.die_at is not None and step >= self.die_at:
            raise KilledHere

    def log(self, level: str, message: str) -> None:
        self.logs.append(f"{level}: {message}")


class KilledHere(BaseException):
    """Stands for a process that is gone: nothing in the loop may catch it."""


def make_work(folder: Path, method: CyclicSwa = METHOD, images: int = 100, **changes: object) -> Work:
    """A Work in `folder`: `images` digits, batch 16 by default. `recipe_…` keywords change the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset, checkpoint = folder / "dataset.safetensors", folder / "start.safetensors"
    packed: Packed = pack_builtin("digits", dataset, images)
    torch.manual_seed(7)
    network = Network("resnet20", 10)
    write_safetensors(checkpoint, initialized(network).state_dict(), {})
    recipe = {
        "optimizer": Optimizer(name="sgd", weight_decay=5e-4),
        "batch_size": 16,
        "image_size": (8, 8),
        "normalize": Normalization(mean=packed.mean * 3, std=packed.std * 3),
        "augment": "pad_crop_flip",
        "precision": "float32",
        "batch_norm": "recompute",
    }
    for name in [name for name in changes if name.startswith("recipe_")]:
        recipe[name.removeprefix("recipe_")] = changes.pop(name)  # type: ignore[assignment]
    work = Work(
        method=method.model_dump(mode="json"),
        recipe=Recipe.model_validate(recipe).model_dump(mode="json"),
        seed=3,
        network=network,
        checkpoint=checkpoint,
        prefix="",
        dataset=dataset,
        classes=None,
        start_sha256="0" * 64,
        dataset_sha256="1" * 64,
        scratch=folder,
        threads=1,
        save_every_seconds=1e9,
    )
    return replace(work, **changes)  # type: ignore[arg-type]
