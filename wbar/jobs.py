"""A job as it is asked for and as it is sent: progress, result, failure, events, metrics, snapshots."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wbar.asked import Asked
from wbar.checkpoints import Fault
from wbar.method import AnyMethod, CyclicSwa
from wbar.recipe import MAX_CLASSES, Recipe
from wbar.states import JobStatus

StepPhase = Literal["loading", "high", "low", "batchnorm", "evaluate", "report"]
EventType = Literal["status", "progress", "metrics", "snapshot", "log"]
Verdict = Literal["better", "same", "worse"]
Selected = Literal["averaged", "start"]
Label = Annotated[str, Field(max_length=512)]


class JobRequest(Asked):
    """What a user asks for. Only `checkpoint` and `dataset` are required."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t", "dataset": "ds_0mk3q8v2zr5d2a7x9c4t"},
                {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "name": "digits, twelve cycles",
                    "metadata": {"team": "vision"},
                    "method": {
                        "type": "cyclic_swa",
                        "cycles": 12,
                        "high": {"lr": 0.05},
                        "low": {"lr": 0.005},
                        "pull": 0.001,
                    },
                    "recipe": {"batch_size": 64, "augment": "none"},
                    "seed": 1,
                    "flatness": True,
                    "swag": 10,
                },
                {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "name": "no numbers, compared with a plain fine-tune",
                    "method": {"type": "auto", "epochs": 12, "control": True, "guard": True},
                },
                {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "name": "other classes, from a larger teacher",
                    "method": {"type": "ema", "epochs": 20, "base_lr": 0.1, "warmup_epochs": 1},
                    "recipe": {
                        "head": "reset",
                        "freeze": ["conv1.*", "layer1.*"],
                        "augment": "rand_augment",
                        "mixup": 0.2,
                        "label_smoothing": 0.1,
                        "distillation": {"teacher": "ckpt_0mk3q8v4zr5d2a7x9c4t", "temperature": 4, "weight": 0.5},
                        "precision": "bfloat16",
                        "early_stopping": 3,
                    },
                },
                {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "method": {
                        "type": "soup",
                        "checkpoints": ["ckpt_0mk3q8v1zr5d2a7x9c4t", "ckpt_0mk3q8v4zr5d2a7x9c4t"],
                        "average": "greedy",
                    },
                },
            ]
        },
    )

    checkpoint: str
    dataset: str
    name: str | None = Field(None, max_length=256)
    metadata: dict[Annotated[str, Field(min_length=1, max_length=64)], Label] = Field(
        default_factory=dict, max_length=16
    )
    method: AnyMethod = Field(default_factory=CyclicSwa)
    recipe: Recipe = Field(default_factory=Recipe)
    seed: int = Field(0, ge=0, lt=2**31)
    classes: Annotated[list[Label], Field(min_length=2, max_length=MAX_CLASSES, fail_fast=True)] | None = Field(
        None, description="The checkpoint's class order, if it is not the sorted names."
    )
    flatness: bool = Field(
        False,
        description="Measure how flat the loss is around the start and w̄ when training is over (about a minute for a small "
        "network): `result.flatness`, drawn in the report.",
    )
    swag: int = Field(
        0,
        ge=0,
        le=100,
        description="Samples of a Bayesian average over the snapshots' Gaussian (SWAG, Maddox et al. 2019), as one more arm: "
        "`result.metrics.swag`. Each costs a BatchNorm recompute and an evaluation; 0: none.",
    )
    dry_run: bool = Field(False, description="Validate and resolve everything, create nothing.")


class Progress(BaseModel):
    """Where the job is. Written at least once a second while it runs."""

    phase: StepPhase
    cycle: int
    cycles: int
    epoch: int
    step: int
    total_steps: int
    fraction: float
    images_per_second: float | None = None
    eta_seconds: float | None = None
    learning_rate: float | None = None
    loss: float | None = None


class Score(BaseModel):
    """Accuracy in [0, 1], mean negative log-likelihood in nats, and expected calibration error (15 bins).

    Of several labels: accuracy is the share of right yes-or-no answers, loss their mean, and mean average precision is added.
    """

    accuracy: float
    loss: float
    ece: float
    map: float | None = Field(None, description="Mean of `average_precision`; null for one label per image.")
    average_precision: list[float | None] | None = Field(
        None, description="By class, in the order of the outputs; null for a class that no held-out image has."
    )


class CurvePoint(BaseModel):
    """The mean of the first n snapshots, with BatchNorm statistics recomputed for it."""

    n: int
    accuracy: float
    loss: float


class WeightsFile(BaseModel):
    bytes: int
    sha256: str
    format: Literal["safetensors"] = "safetensors"


class Arms(BaseModel):
    """Everything the averaged weights are compared with, on the held-out images."""

    start: Score
    start_recomputed: Score
    last: Score
    averaged: Score
    ensemble: Score
    swag: Score | None = Field(None, description="The Bayesian average, where the job asked for it.")
    control: Score | None = Field(None, description="The cosine fine-tune of equal length, where the job asked for it.")


class EpochPoint(BaseModel):
    """distance: ‖w − w_0‖ at the epoch's end. median_update: of the norms of its optimizer steps."""

    epoch: int
    distance: float
    median_update: float | None


class Eigenvalue(BaseModel):
    """The Hessian's largest eigenvalue by magnitude; residual: ‖Hv − λv‖/|λ|, small where `converged`."""

    value: float
    residual: float
    converged: bool


class Interpolation(BaseModel):
    """The loss on the line (1 − α)·w_0 + α·w̄, BatchNorm recomputed at every point."""

    alphas: list[float]
    train_loss: list[float | None] = Field(description="Null where it is not finite.")
    val_loss: list[float | None]
    val_accuracy: list[float | None]


class Line(BaseModel):
    """The training loss along one filter-normalized random direction (Li et al. 2018) from each arm."""

    positions: list[float]
    loss: dict[str, list[float | None]]


class PlanePoint(BaseModel):
    name: str
    x: float
    y: float


class Plane(BaseModel):
    """The training loss on the plane through the start, the last snapshot and w̄; loss[row][column] at (xs, ys)."""

    xs: list[float]
    ys: list[float]
    loss: list[list[float | None]]
    points: list[PlanePoint]


class Flatness(BaseModel):
    """Measured on `images` training images, without augmentation, when training is over."""

    images: int
    distance: float = Field(description="‖w̄ − w_0‖₂ over all weights.")
    distance_by_layer: dict[str, float]
    length_by_layer: dict[str, float] = Field(description="‖w_0‖₂ by layer, to compare the distances with.")
    epochs: list[EpochPoint]
    sharpness: dict[str, float] = Field(description="ε-sharpness in percent by arm, ε = 1e-3 (Keskar et al. 2017).")
    top_eigenvalue: dict[str, Eigenvalue]
    interpolation: Interpolation
    line: Line
    plane: Plane | None = Field(None, description="Null where the three points lie on a line.")


class HeldOut(BaseModel):
    """How the held-out images were used: the numbers of the report are never from those that something was chosen by."""

    choose: int = Field(description="Images set aside for choosing; 0 where nothing was chosen by them.")
    report: int = Field(description="Images that every number of the result is from.")


class Candidate(BaseModel):
    """The mean of the segments first to last (from 1), and its loss on the images set aside for choosing."""

    first: int
    last: int
    loss: float


class Choice(BaseModel):
    """What `greedy` or `window` kept: numbers of snapshots or segments, `of` so many."""

    kept: list[int]
    of: int
    loss: float = Field(description="Of the mean that was kept, on the images set aside for choosing.")
    candidates: list[Candidate] | None = None


class Result(BaseModel):
    weights: WeightsFile
    metrics: Arms
    curve: list[CurvePoint]
    verdict: Verdict
    flatness: Flatness | None = Field(None, description="Where the job asked for it.")
    chosen: list[str] | None = Field(None, description="The checkpoints that a soup took in, in the order they came.")
    choice: Choice | None = Field(None, description="What `greedy` or `window` kept.")
    selected: Selected = Field(
        "averaged", description="What `/weights` answers with: `start` only where `guard` chose it."
    )
    held_out: HeldOut | None = None


class Estimate(BaseModel):
    """What a dry run expects the job to cost. `seconds` is null where this service has not run the like before."""

    steps: int
    seconds: float | None
    bytes: int


class Job(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "job_0mk3q8v3zr5d2a7x9c4t",
                "object": "job",
                "name": "digits",
                "status": "running",
                "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                "method": {
                    "type": "cyclic_swa",
                    "cycles": 6,
                    "high": {"lr": 0.025, "epochs": 1},
                    "low": {"lr": 0.0025, "epochs": 1},
                    "pull": 0.0005,
                    "include_start": False,
                    "average": "uniform",
                },
                "recipe": {
                    "optimizer": {
                        "name": "sgd",
                        "momentum": 0.9,
                        "nesterov": True,
                        "betas": [0.9, 0.999],
                        "weight_decay": 0.0005,
                    },
                    "batch_size": 64,
                    "image_size": [8, 8],
                    "normalize": {"mean": [0.305], "std": [0.376]},
                    "augment": "pad_crop",
                    "precision": "float32",
                    "label_smoothing": 0.0,
                    "grad_clip_norm": None,
                },
                "classes": None,
                "flatness": False,
                "swag": 0,
                "seed": 0,
                "metadata": {"team": "vision"},
                "progress": {
                    "phase": "high",
                    "cycle": 2,
                    "cycles": 6,
                    "epoch": 1,
                    "step": 48,
                    "total_steps": 276,
                    "fraction": 0.18,
                    "images_per_second": 5100.0,
                    "eta_seconds": 4.1,
                    "learning_rate": 0.025,
                    "loss": 0.021,
                },
                "result": None,
                "error": None,
                "attempts": 1,
                "created_at": "2026-11-21T09:00:00.000000Z",
                "started_at": "2026-11-21T09:00:00.400000Z",
                "finished_at": None,
            }
        }
    )

    id: str | None
    object: Literal["job"] = "job"
    name: str | None
    status: JobStatus
    checkpoint: str
    dataset: str
    method: AnyMethod
    recipe: Recipe
    flatness: bool = False
    swag: int = 0
    classes: list[str] | None = None
    seed: int
    metadata: dict[str, str]
    progress: Progress | None
    result: Result | None
    error: Fault | None
    attempts: int
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    estimate: Estimate | None = Field(None, description="Only in the answer to a dry run.")


class Event(BaseModel):
    """One line of the append-only log; `id` grows with the job's own sequence."""

    id: str
    object: Literal["event"] = "event"
    type: EventType
    created_at: str
    data: dict[str, Any]


class MetricsPoint(BaseModel):
    """The training series. `loss` is the mean over the steps since the point before; `pull_loss` is λ‖w̄ − w‖².

    `grad_norm` is the norm of the training loss's gradient, before the pull and clipping; null where it overflowed in float16
    (the step is then left out). `accuracy` is of the training images as they were augmented; mixed images count for both
    labels as much as they are mixed.
    """

    step: int
    epoch: int
    cycle: int
    phase: str
    lr: float
    loss: float
    accuracy: float | None = None
    pull_loss: float
    grad_norm: float | None
    distance_to_mean: float
    images_per_second: float | None


class Snapshot(BaseModel):
    """w_n as it stood at the end of cycle n's low phase, with its own BatchNorm buffers."""

    id: str
    object: Literal["snapshot"] = "snapshot"
    job: str
    n: int
    step: int
    metrics: Score
    bytes: int
    sha256: str
    created_at: str


class Deleted(BaseModel):
    id: str
    object: str
    deleted: Literal[True] = True
