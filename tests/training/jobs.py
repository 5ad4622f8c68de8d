"""Small real jobs for the training tests: a few of scikit-learn's digits, a ResNet-20 fresh from its initialization."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from wbar.jobs import MetricsPoint, Progress
from wbar.method import CyclicSwa, HighPhase, LowPhase, Soup, Training
from wbar.recipe import Normalization, Optimizer, Recipe
from wbar.scores import Score
from wbar.spec import JobSpec, Network, StoredDataset, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training import loop
from wbar_training.data.packed import Packed
from wbar_training.messages import LogLevel, StopReason
from wbar_training.networks.architectures import initialized
from wbar_training.outcome import Outcome
from wbar_training.plan import Plan
from wbar_training.reporter import Reporter
from wbar_training.uploads.dataset_archives import pack_builtin
from wbar_training.workspace import Workspace

METHOD = CyclicSwa(cycles=2, high=HighPhase(lr=0.05, epochs=1), low=LowPhase(lr=0.005, epochs=1), pull=0.01)


class Recorder:
    """A reporter that remembers what it was told, and stops the job where a test asks it to."""

    def __init__(self, stop_at: int | None = None, die_at: int | None = None, reason: StopReason = "pause") -> None:
        self.stop_at, self.die_at, self.reason = stop_at, die_at, reason
        self.progress: list[Progress] = []
        self.points: list[MetricsPoint] = []
        self.snapshots: dict[int, Path] = {}
        self.logs: list[str] = []
        self.states: list[tuple[int, bool]] = []
        self.curve: dict[int, Score] = {}

    def heartbeat(self, progress: Progress) -> StopReason | None:
        self.progress.append(progress)
        return self.reason if self.stop_at is not None and progress.step >= self.stop_at else None

    def metrics(self, points: list[MetricsPoint]) -> None:
        self.points += points

    def snapshot(self, n: int, step: int, path: str, score: Score) -> None:
        self.snapshots[n] = Path(path)

    def averaged(self, n: int, score: Score) -> None:
        self.curve[n] = score

    def saved(self, path: str, step: int, durable: bool) -> None:
        self.states.append((step, durable))
        if self.die_at is not None and step >= self.die_at:
            raise KilledHere

    def log(self, level: LogLevel, message: str) -> None:
        self.logs.append(f"{level}: {message}")


class KilledHere(BaseException):
    """Stands for a process that is gone: nothing in the loop may catch it."""


@dataclass(frozen=True)
class LocalJob:
    """A job spec and the folder it is done in."""

    spec: JobSpec
    workspace: Workspace

    @property
    def scratch(self) -> Path:
        return self.workspace.scratch

    @property
    def start(self) -> Path:
        """The start's file."""
        return self.workspace.input(self.spec.start.blob)

    @property
    def dataset(self) -> Path:
        """The packed dataset."""
        return self.workspace.input(self.spec.dataset.blob)

    @property
    def plan(self) -> Plan:
        return Plan.of(self.spec.recipe, self.spec.seed)

    def changed(self, **changes: object) -> "LocalJob":
        """The same with other fields of the spec or the workspace; `prefix` is the start's."""
        if "prefix" in changes:
            changes["start"] = self.spec.start.model_copy(update={"prefix": changes.pop("prefix")})
        own = {field.name for field in fields(Workspace)} & changes.keys()
        workspace = replace(self.workspace, **{name: changes.pop(name) for name in own})  # type: ignore[arg-type]
        return LocalJob(self.spec.model_copy(update=changes), workspace)


def run(job: LocalJob, reporter: Reporter) -> Outcome:
    """Do the job in this process."""
    return loop.run(job.spec, job.workspace, reporter)


def make_job(folder: Path, method: Training | Soup = METHOD, images: int = 100, **changes: object) -> LocalJob:
    """A job in `folder`: `images` digits, batch 16 by default. `recipe_…` keywords change the recipe, the others spec or
    workspace."""
    folder.mkdir(parents=True, exist_ok=True)
    workspace = Workspace(folder, threads=1, save_every_seconds=1e9)
    packed: Packed = pack_builtin("digits", workspace.input("digits"), images)
    torch.manual_seed(7)
    network = Network("resnet20", 10)
    write_safetensors(workspace.input("start"), initialized(network).state_dict(), {})
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
    spec = JobSpec(
        start=StoredWeights(id="ckpt_start", sha256="0" * 64, blob="start", prefix="", network=network),
        dataset=StoredDataset(id="ds_digits", sha256="1" * 64, blob="digits"),
        network=network,
        classes=None,
        method=method,
        recipe=Recipe.model_validate(recipe),
        seed=3,
    )
    return LocalJob(spec, workspace).changed(**changes)
