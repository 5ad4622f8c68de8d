"""What the report of a study holds: of each job, of those that differ by their seeds only, and of devices and batches.

How it is made of what the jobs recorded stands in `wbar.study_report`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wbar.flatness_results import Eigenvalue, Interpolation, Line
from wbar.loss_surface import Histogram, LossSurface
from wbar.results import Verdict
from wbar.studies import StudySettings, StudyStatus

# The tables of a report as CSV: a row for each job; for each epoch of each job; for each epoch and bin of the histograms of
# update norms, empty bins left out; for each point of the loss surfaces.
ReportRows = Literal["jobs", "epochs", "updates", "surface"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ValidationPoint(_Part):
    """A snapshot's score on the held-out images, with the BatchNorm statistics that training tracked until then.

    Where snapshots are an epoch apart, that is a point for each epoch.
    """

    epoch: float
    step: int
    seconds: float | None = Field(description="Of training until then, evaluations not counted.")
    loss: float
    accuracy: float
    averaged_loss: float | None = Field(
        None,
        description="Of w̄ as it stood then, BatchNorm recomputed; once the job has succeeded. With few steps an epoch and a "
        "high rate tracked statistics lag behind the weights, and only this one compares batches.",
    )
    averaged_accuracy: float | None = None


class StudyEpoch(_Part):
    """One epoch of a job's training. Distances and update norms: where the job measures flatness."""

    epoch: int
    train_loss: float
    train_accuracy: float | None
    val_loss: float | None = Field(description="Of the snapshot at its end, if there is one.")
    val_accuracy: float | None
    seconds: float | None = Field(description="Of its training steps.")
    distance: float | None = Field(None, description="‖w_end − w_begin‖ of the epoch.")
    distance_from_start: float | None = Field(None, description="‖w − w_0‖ at its end.")
    distance_ratio: float | None = Field(
        None,
        description="`distance` over that of the job with the smallest batch, other settings alike but for the rate.",
    )
    update_norms: list[float] | None = Field(
        None, description="Quantiles 0, 0.1, 0.25, 0.5, 0.75, 0.9 and 1 of the norms of its optimizer steps."
    )
    update_histogram: Histogram | None = Field(
        None, description="All of these norms, in bins that are the same for every epoch of every job."
    )


class StudyFlatness(_Part):
    """The measurements of a job with `flatness`: between and around its start and its w̄."""

    distance: float = Field(description="‖w̄ − w_0‖ over all weights.")
    distance_ratio: float | None = Field(description="Over that of the job with the smallest batch, as of an epoch.")
    distance_by_layer: dict[str, float]
    sharpness: float | None = Field(description="ε-sharpness of w̄ in percent, ε = 1e-3 (Keskar et al. 2017).")
    sharpness_half: float | None = Field(description="Likewise for ε = 5e-4.")
    sharpness_last: float | None = Field(description="Of the last snapshot, ε = 1e-3.")
    top_eigenvalue: Eigenvalue | None = Field(description="Of the Hessian at w̄.")
    interpolation: Interpolation = Field(description="The line from w_0 to w̄.")
    line: Line = Field(
        description="The loss along a filter-normalized direction through w_0 and through w̄: of every job at the same "
        "positions and in the same unit, so that they can be laid over each other (Li et al. 2018)."
    )
    surface: LossSurface | None = Field(
        None,
        description="The loss along two such directions, where the job asked for it: in every job the same draws, grid and "
        "images.",
    )
    update_histogram: Histogram | None = Field(None, description="The norms of all its optimizer steps.")


class StudyJobReport(_Part):
    """One job of the study: how it was set, and what it measured so far."""

    n: int
    job: str
    settings: StudySettings
    status: str
    error: str | None = Field(description="The code of its error: `diverged` and the like are results.")
    batch_size: int | None
    lr: float | None = Field(description="The highest rate that it trained at so far.")
    devices: int | None
    seed: int | None
    images_per_second: float | None = Field(description="Median over its training.")
    seconds_per_epoch: float | None
    minimum: ValidationPoint | None = Field(
        description="The lowest validation loss, as early stopping with the report's patience finds it."
    )
    minimum_averaged: ValidationPoint | None = Field(description="Likewise by `averaged_loss`.")
    stopped: bool = Field(description="Whether the patience ran out before the training ended.")
    accuracy: float | None = Field(description="Of w̄, as the result says.")
    loss: float | None
    last_accuracy: float | None = Field(description="Of the last snapshot.")
    last_loss: float | None
    verdict: Verdict | None
    validation: list[ValidationPoint]
    epochs: list[StudyEpoch]
    flatness: StudyFlatness | None


class Spread(_Part):
    """A quantity over the seeds of a group: mean and standard error (null for one)."""

    mean: float
    error: float | None


class StudyGroup(_Part):
    """The jobs that differ by their seeds only. A job that has no number for a quantity does not count in it."""

    settings: StudySettings
    jobs: int
    failed: int
    min_val_loss: Spread | None
    min_val_epoch: Spread | None
    min_val_seconds: Spread | None
    min_averaged_loss: Spread | None
    min_averaged_epoch: Spread | None
    min_averaged_seconds: Spread | None
    accuracy: Spread | None
    loss: Spread | None
    seconds_per_epoch: Spread | None
    distance: Spread | None
    sharpness: Spread | None
    sharpness_half: Spread | None
    top_eigenvalue: Spread | None
    update_histogram: Histogram | None = Field(None, description="The norms of all optimizer steps of all its jobs.")


class Throughput(_Part):
    """Training speed by devices and batch: the median over the jobs."""

    devices: int
    batch_size: int
    images_per_second: float
    seconds_per_epoch: float
    jobs: int


class StudyReport(_Part):
    """The report of a study: all that its jobs have measured so far."""

    study: str
    object: Literal["study_report"] = "study_report"
    status: StudyStatus
    patience: float = Field(description="Epochs without a lower validation loss after which the minimum is settled.")
    train_images: int | None = Field(description="Null where all of its jobs were deleted.")
    score: str = Field("accuracy", description="What `accuracy` is: accuracy, pixel accuracy, AP or R².")
    jobs: list[StudyJobReport]
    groups: list[StudyGroup]
    throughput: list[Throughput]
