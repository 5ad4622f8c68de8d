"""A job as the API sends it: progress, result, failure, events, metrics, snapshots."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from wbar.checkpoints import Fault
from wbar.job_warnings import JobWarning
from wbar.loss_surface import SurfaceOptions
from wbar.method import AnyMethod
from wbar.recipe import Normalization, Recipe
from wbar.results import FurtherFormat, JobResult
from wbar.scores import Score
from wbar.spec import JobSpec
from wbar.states import JobStatus

StepPhase = Literal["loading", "high", "low", "batchnorm", "evaluate", "report"]
EventType = Literal["status", "progress", "metrics", "snapshot", "log"]


class Progress(BaseModel):
    """How far a job is. Written at least once a second while it runs."""

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
    normalize: Normalization | None = Field(
        None, description="Where the recipe left it to the service: what the start was found to be trained with."
    )


class Estimate(BaseModel):
    """The expected cost of a job, in the answer to a dry run. `seconds` is null where no speed of an earlier job is known."""

    steps: int
    seconds: float | None
    bytes: int


class Replica(BaseModel):
    """One of the jobs that a job with replicas trains."""

    n: int = Field(description="Its number, from 1.")
    job: str
    seed: int
    status: str = Field(description="A job's status, or `deleted`.")
    fraction: float
    error: str | None = Field(None, description="The code that it failed with.")
    accuracy: float | None = Field(
        None,
        description="Of its w̄, as its own job found it. In `result.replicas` all have BatchNorm statistics of one draw of "
        "images, and so other last digits.",
    )
    loss: float | None = Field(None, description="Likewise.")
    round: int | None = Field(
        None,
        description="Of replicas that meet on their way (`method.join_every`): which part of it they train, from 1.",
    )
    rounds: int | None = Field(
        None, description="Likewise: how many parts there are; they meet after each but the last."
    )
    waits: bool = Field(False, description="Whether it has ended its round, and waits for others to meet.")


class Job(BaseModel):
    """A job: the resolved request, its status and, once it has succeeded, its result."""

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
                "evaluate": {},
                "select_on": None,
                "probe": None,
                "seed": 0,
                "requested": {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "name": "digits",
                },
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
                "max_seconds": None,
                "priority": 0,
                "queue_position": None,
                "expires_after": None,
                "expires_at": None,
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
    surface: SurfaceOptions | None = None
    swag: int = 0
    evaluate: dict[str, str] = Field(default_factory=dict)
    select_on: str | None = None
    probe: str | None = None
    formats: list[FurtherFormat] = Field(default_factory=list)
    classes: list[str] | None = None
    seed: int
    requested: dict[str, JsonValue] | None = Field(
        None, description="The request as it was sent, before `auto` was resolved."
    )
    metadata: dict[str, str]
    progress: Progress | None
    result: JobResult | None
    error: Fault | None
    attempts: int
    max_seconds: float | None = None
    priority: int = 0
    queue_position: int | None = Field(
        None,
        description="While it is queued: its place among all that wait; 1 is taken next.",
    )
    expires_after: float | None = None
    expires_at: str | None = Field(
        None, description="Once it has ended: its files are deleted within ten minutes after."
    )
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    replicas: list[Replica] | None = Field(
        None, description="In the answer about one job with `method.replicas`: the jobs that it joins."
    )
    estimate: Estimate | None = Field(None, description="Only in the answer to a dry run.")
    warnings: list[JobWarning] | None = Field(
        None,
        description="Only in the answer to a dry run: what is worth knowing before the job is created. None of them stops it.",
    )

    def _repr_html_(self) -> str:
        """Return the job as a notebook shows it."""
        from wbar.notebook import job_html

        return job_html(self)

    @classmethod
    def of(
        cls,
        spec: JobSpec,
        *,
        name: str | None,
        metadata: dict[str, str],
        requested: dict[str, Any] | None = None,
        status: JobStatus = "queued",
        id: str | None = None,
        progress: Progress | None = None,
        result: JobResult | None = None,
        error: Fault | None = None,
        attempts: int = 0,
        max_seconds: float | None = None,
        priority: int = 0,
        expires_after: float | None = None,
        expires_at: str | None = None,
        created_at: str | None = None,
        started_at: str | None = None,
        finished_at: str | None = None,
        estimate: Estimate | None = None,
        warnings: list[JobWarning] | None = None,
    ) -> "Job":
        """Make a job as the API sends it: the resolved request from its spec, and the given status.

        `recipe.normalize: auto` is shown as the dataset's own statistics until the start has been looked at, and from then on
        as what it was found to be trained with.
        """
        recipe, found = spec.recipe, progress.normalize if progress else None
        if result is not None and result.normalization is not None:
            found = result.normalization.normalization
        if found is not None:
            recipe = recipe.model_copy(update={"normalize": found})
        return cls(
            id=id,
            name=name,
            status=status,
            checkpoint=spec.start.id,
            dataset=spec.dataset.id,
            method=spec.method,
            recipe=recipe,
            flatness=spec.flatness,
            surface=spec.surface,
            swag=spec.swag,
            evaluate={one.name: one.dataset.id for one in spec.evaluation},
            select_on=spec.select_on,
            probe=spec.probe and spec.probe.id,
            formats=list(spec.formats),
            classes=list(spec.classes) if spec.classes else None,
            seed=spec.seed,
            requested=requested,
            metadata=metadata,
            progress=progress,
            result=result,
            error=error,
            attempts=attempts,
            max_seconds=max_seconds,
            priority=priority,
            expires_after=expires_after,
            expires_at=expires_at,
            created_at=created_at,
            started_at=started_at,
            finished_at=finished_at,
            estimate=estimate,
            warnings=warnings,
        )


class Event(BaseModel):
    """One entry of a job's append-only log; `id` grows with the sequence within the job."""

    id: str
    object: Literal["event"] = "event"
    type: EventType
    created_at: str
    data: dict[str, Any]


class MetricsPoint(BaseModel):
    """One point of the training series. `loss` is the mean over the steps since the point before; `pull_loss` is λ‖w̄ −
    w‖².

    `grad_norm` is the norm of the training loss's gradient, before the pull and clipping; null where it overflowed in
    float16 (the step is then left out). `accuracy` is of the training images as they were augmented; mixed images count
    for both labels, by their shares. It is null in detection, where the network gives losses and no boxes in training.
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
    """The weights w_n at the end of cycle n's low phase, with the BatchNorm buffers that they had."""

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
    """The answer to a DELETE."""

    id: str
    object: str
    deleted: Literal[True] = True
