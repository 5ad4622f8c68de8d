"""A study: one job many times, over a grid of batch sizes, rates, seeds and other fields, as a request asks for it and as the
API sends it.

A study has jobs of its own, which are ordinary ones: they are listed, watched, compared and downloaded as all others. The
study says what differs between them, how many run at a time, and what all of them together show (`wbar.study_report`).
"""

import re
from collections.abc import Sequence
from heapq import heapreplace
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from wbar.job_request import INPUTS_AND_LABELS, MOST_TAGS, JobRequest
from wbar.job_warnings import JobWarning
from wbar.jobs import Job
from wbar.method import Rate
from wbar.request import RequestModel, Seed
from wbar.states import JobStatus
from wbar.text import Name

Scaling = Literal["none", "linear", "sqrt"]
ChildStatus = JobStatus | Literal["deleted"]
StudyStatus = Literal["queued", "running", "paused", "ended"]
TAG = "study"  # the tag of a study's jobs
MOST_VALUES = 64  # of one axis
MOST_FIELDS = 8
MOST_AT_ONCE = 64
OWN_FIELDS = {"recipe.batch_size": "batch_sizes"}
EXPONENTS: dict[Scaling, float] = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}

PATH = r"^(method|recipe)(\.[a-z][a-z0-9_]{0,63}){1,4}$"


def _field_path(path: str) -> str:
    if not re.fullmatch(PATH, path):
        raise ValueError(
            f"{path[:80]!r} is no field that varies: paths begin with method. or recipe., as method.pull; seeds are `seeds`, "
            "anything else is varied by `changes`"
        )
    return path


FieldPath = Annotated[
    str,
    AfterValidator(_field_path),
    Field(max_length=256),
    WithJsonSchema({"type": "string", "pattern": PATH, "maxLength": 256}),
]
Values = Annotated[list[JsonValue], Field(min_length=1, max_length=MOST_VALUES, fail_fast=True)]


def scaled_rate(rate: float, scaling: Scaling, batch: int, base_batch: int) -> float:
    """Return the rate for a batch: rate · (batch / base_batch)^e with e = 0, 1 (Goyal et al. 2017) or ½ (Krizhevsky 2014).

    rate: of a batch of `base_batch` images.
    """
    return float(rate * (batch / base_batch) ** EXPONENTS[scaling])


class StudyRequest(RequestModel):
    """A request to create a study. Only `job` is required; the jobs are the product of all that is given beside it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "does the rate have to grow with the batch?",
                    "job": {
                        "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                        "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                        "method": {"type": "lawa", "window": 1, "epochs": 12, "shape": "constant"},
                        "flatness": True,
                    },
                    "batch_sizes": [16, 64, 256, 1024],
                    "rates": [0.05],
                    "scaling": ["none", "linear", "sqrt"],
                    "base_batch": 64,
                    "seeds": [0, 1, 2],
                    "at_once": 2,
                },
                {
                    "job": {"checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t", "dataset": "ds_0mk3q8v2zr5d2a7x9c4t"},
                    "vary": {"method.pull": [0, 0.0005, 0.005], "recipe.optimizer.weight_decay": [0, 0.0005]},
                },
                {
                    "job": {"checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t", "dataset": "ds_0mk3q8v2zr5d2a7x9c4t"},
                    "changes": [{"method": {"type": "auto"}}, {"method": {"type": "swa", "epochs": 12}}],
                    "seeds": [0, 1],
                },
            ]
        }
    )

    job: JobRequest = Field(
        description="What all jobs have in common, as `POST /v1/jobs` takes it: the start, the dataset, and the options that "
        "are not varied. Its tags are those of every job, beside `study`, which holds the study's id."
    )
    name: Name | None = Field(None, description="What to find the study by; its jobs' names begin with it.")
    batch_sizes: list[Annotated[int, Field(ge=2, le=65536)]] | None = Field(
        None, min_length=1, max_length=MOST_VALUES, description="Values of `recipe.batch_size`."
    )
    rates: list[Rate] | None = Field(
        None,
        min_length=1,
        max_length=MOST_VALUES,
        description="Values of `method.lr` (`method.high.lr` of cyclic_swa), each of a batch of `base_batch` images.",
    )
    scaling: list[Scaling] = Field(
        default=["none"],
        min_length=1,
        max_length=3,
        description="How a rate follows from the batch: `none`: as given; `linear`: · batch / base_batch; `sqrt`: its square "
        "root. With several, each; jobs whose rates come out the same are made once.",
    )
    base_batch: int = Field(128, ge=1, le=65536, description="The batch that `rates` are for.")
    vary: dict[FieldPath, Values] = Field(
        default_factory=dict,
        max_length=MOST_FIELDS,
        description='Values of other fields of method and recipe, by their paths: `{"method.pull": [0, 0.001]}`.',
    )
    changes: list[dict[str, JsonValue]] | None = Field(
        None,
        min_length=1,
        max_length=MOST_VALUES,
        description="Variants of the job as JSON merge patches (RFC 7396), as `POST …/clone` takes them.",
    )
    seeds: list[Seed] | None = Field(
        None, min_length=1, max_length=MOST_VALUES, description="Values of `seed`. Default: that of the job."
    )
    at_once: int = Field(
        4,
        ge=1,
        le=MOST_AT_ONCE,
        description="How many of its jobs run at a time at most; the others wait in the queue.",
    )

    dry_run: bool = Field(False, description="Resolve all of its jobs, estimate and warn; create nothing.")

    @property
    def product(self) -> int:
        """How many jobs the request asks for, those that come out the same counted once for each time."""
        rates = len(self.rates) * len(self.scaling) if self.rates else 1
        axes = (self.batch_sizes, self.changes, self.seeds, *self.vary.values())
        return rates * prod(len(axis) for axis in axes if axis)

    @field_validator("batch_sizes", "rates", "scaling", "seeds")
    @classmethod
    def _each_once(cls, value: list[Any] | None) -> list[Any] | None:
        twice = next((one for at, one in enumerate(value or []) if one in (value or [])[:at]), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is given twice: name it once")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.job.dry_run:
            raise ValueError("job.dry_run: the dry run is the study's: set dry_run beside job")
        if len(self.job.metadata) >= MOST_TAGS or TAG in self.job.metadata:
            raise ValueError(
                f"job.metadata: the jobs of a study have the tag {TAG!r}, and room for {MOST_TAGS - 1} others"
            )
        if not (self.batch_sizes or self.rates or self.vary or self.changes or self.seeds):
            raise ValueError("nothing is varied: give batch_sizes, rates, vary, changes or seeds")
        for patch in self.changes or []:
            fixed = next((name for name in INPUTS_AND_LABELS if name in patch), None)
            if fixed is not None:
                raise ValueError(f"changes: {fixed} is that of all jobs of a study: give it in `job`")
        for path, axis in OWN_FIELDS.items():
            if path in self.vary:
                raise ValueError(f"vary: {path} is varied by {axis}")
        scales = [one for one in self.scaling if one != "none"]
        if scales and not self.rates:
            raise ValueError(f"scaling {scales[0]} scales `rates`, and none are given")
        if scales and not self.batch_sizes and self.job.recipe.batch_size == "auto":
            raise ValueError(
                f"scaling {scales[0]} needs the batch: give batch_sizes, or a number as job.recipe.batch_size"
            )
        return self


class StudySettings(BaseModel):
    """The settings that distinguish one job of a study from the others. Null, and empty: the study does not vary it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int | None = None
    lr: float | None = None
    scaling: tuple[Scaling, ...] = Field((), description="Of the rate; several where they come out the same.")
    fields: dict[str, JsonValue] = Field(default_factory=dict, description="Of `vary`, by path.")
    change: int | None = Field(None, description="Which of `changes`, counted from 1.")
    seed: int | None = None

    def in_words(self) -> str:
        """Return the settings as part of a name."""
        words = [f"batch {self.batch_size}"] if self.batch_size is not None else []
        if self.lr is not None:
            how = "" if self.scaling in ((), ("none",)) else f" ({', '.join(self.scaling)})"
            words.append(f"lr {self.lr:.6g}{how}")
        words += [f"{path.rpartition('.')[2]} {value}" for path, value in self.fields.items()]
        words += [f"change {self.change}"] if self.change is not None else []
        words += [f"seed {self.seed}"] if self.seed is not None else []
        return ", ".join(words)


class StudyChild(BaseModel):
    """One job of a study, as it is now."""

    n: int = Field(description="Its place in the study, from 1.")
    job: str
    settings: StudySettings
    status: ChildStatus = Field(description="Of the job; `deleted` where it is gone.")
    fraction: float = Field(description="How far it is, from 0 to 1.")
    error: str | None = Field(description="The code of its error, where it failed: a result like another one.")
    accuracy: float | None = Field(description="Of w̄, on the report split, once it has succeeded.")
    loss: float | None = Field(description="Likewise, in nats.")


class Study(BaseModel):
    """A study: what is varied, and how far its jobs are."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "study_0mk3q8v7zr5d2a7x9c4t",
                "object": "study",
                "name": "batch",
                "status": "running",
                "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                "at_once": 2,
                "jobs": 2,
                "counts": {"running": 1, "succeeded": 1},
                "requested": {
                    "job": {"checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t", "dataset": "ds_0mk3q8v2zr5d2a7x9c4t"},
                    "batch_sizes": [16, 64],
                },
                "children": [
                    {
                        "n": 1,
                        "job": "job_0mk3q8v3zr5d2a7x9c4t",
                        "settings": {
                            "batch_size": 16, "lr": None, "scaling": [], "fields": {}, "change": None, "seed": None,
                        },
                        "status": "succeeded",
                        "fraction": 1.0,
                        "error": None,
                        "accuracy": 0.97,
                        "loss": 0.11,
                    },
                    {
                        "n": 2,
                        "job": "job_0mk3q8v4zr5d2a7x9c4t",
                        "settings": {
                            "batch_size": 64, "lr": None, "scaling": [], "fields": {}, "change": None, "seed": None,
                        },
                        "status": "running",
                        "fraction": 0.4,
                        "error": None,
                        "accuracy": None,
                        "loss": None,
                    },
                ],
                "created_at": "2026-11-21T09:00:00.000000Z",
                "ended_at": None,
            }
        }
    )  # fmt: skip

    id: str
    object: Literal["study"] = "study"
    name: str | None
    status: StudyStatus = Field(
        description="`ended` once all of its jobs have, in whatever way: `counts` says how. `paused`: none begins."
    )
    checkpoint: str
    dataset: str
    at_once: int
    jobs: int = Field(description="How many jobs it has.")
    counts: dict[ChildStatus, int] = Field(description="How many of them are in each state that any is in.")
    requested: dict[str, JsonValue] = Field(description="The request as it was sent.")
    children: list[StudyChild] | None = Field(None, description="Its jobs, in order; null in lists.")
    created_at: str
    ended_at: str | None = Field(
        None, description="When the end of the last of its jobs was noticed, seconds after it."
    )


class PlannedChild(BaseModel):
    """One job of a study that was not made, as it would be."""

    n: int = Field(description="Its place in the study, from 1.")
    settings: StudySettings
    job: Job = Field(
        description="As a dry run of the job answers: resolved, with its estimate and warnings, without an id."
    )


class StudyEstimate(BaseModel):
    """The expected cost of a study. Seconds are null where no speed of an earlier job on the checkpoint is known."""

    steps: int = Field(description="Of all its jobs.")
    seconds: float | None = Field(description="Of all its jobs, one after the other.")
    seconds_at_once: float | None = Field(
        description="With `at_once` of them at a time, if so many slots of workers are free and none slows another."
    )
    bytes: int


class StudyPlan(BaseModel):
    """A study as it would be, in the answer to a dry run: its jobs resolved, its cost, and what is worth knowing before."""

    object: Literal["study_plan"] = "study_plan"
    name: str | None
    checkpoint: str
    dataset: str
    at_once: int
    jobs: int = Field(description="How many it would have; scalings that give the same rate are one job.")
    children: list[PlannedChild]
    estimate: StudyEstimate
    warnings: list[JobWarning] = Field(description="Of its jobs, each once; none of them stops the study.")


def at_a_time(seconds: Sequence[float], at_once: int) -> float:
    """Return how long jobs of so many seconds take, started in their order, `at_once` at a time."""
    slots = [0.0] * at_once
    for one in seconds:
        heapreplace(slots, slots[0] + one)
    return max(slots)


def status_of(counts: dict[ChildStatus, int], paused: bool) -> StudyStatus:
    """Return the status of a study whose jobs are in these states. paused: whether it was asked to pause."""
    if not any(counts.get(one) for one in ("queued", "running", "paused")):
        return "ended"
    if counts.get("running"):
        return "running"
    if paused or not counts.get("queued"):
        return "paused"
    return "queued" if set(counts) == {"queued"} else "running"
