"""Jobs side by side: the options that differ, and what became of each, with the error that a share of n images has.

The standard error of an accuracy p on n images is √(p(1 − p)/n); of a mean of losses a result does not say it.
"""

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from wbar.datasets import Task
from wbar.job_request import OPTIONS
from wbar.jobs import Job
from wbar.measures import task_of
from wbar.results import Comparisons, JobResult, Verdict
from wbar.states import JobStatus

_OPTIONS = {"checkpoint", "dataset", *OPTIONS}
NOTE = (
    "± is one standard error of a share of the held-out images, each job for itself. Where two jobs were evaluated on the same "
    "images, their difference is known better than that."
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class ComparedJob(_Frozen):
    """One of the jobs. held_out: the images that its numbers are from; None before it has a result."""

    id: str
    name: str | None
    status: JobStatus
    verdict: Verdict | None
    held_out: int | None


class OptionValues(_Frozen):
    """An option that differs, by its path, with its value in each job; null where a job does not have it."""

    option: str
    values: list[JsonValue]


class ComparedScore(_Frozen):
    """A score of one job. accuracy_error: its standard error; null where it is not a share of images.

    task: what was asked for: it says what `accuracy` is.
    """

    task: Task
    accuracy: float
    accuracy_error: float | None
    loss: float
    ece: float | None
    mean_iou: float | None = None
    ap50: float | None = None
    mask_ap: float | None = None


class ComparedScores(_Frozen):
    """One of the comparisons (start, averaged …) with its score in each job; null where a job does not have it."""

    name: str
    label: str
    scores: list[ComparedScore | None]


class JobComparison(_Frozen):
    """Jobs side by side. Every list of values is in the order of `jobs`."""

    object: Literal["comparison"] = "comparison"
    jobs: list[ComparedJob]
    options: list[OptionValues]
    comparisons: list[ComparedScores]
    note: str = NOTE


def compared(jobs: Sequence[Job]) -> JobComparison:
    """Return jobs side by side."""
    return JobComparison(
        jobs=[
            ComparedJob(
                id=job.id or "",
                name=job.name,
                status=job.status,
                verdict=job.result.verdict if job.result else None,
                held_out=job.result.held_out.report if job.result else None,
            )
            for job in jobs
        ],
        options=[*_differing(jobs)],
        comparisons=[*_scores([job.result for job in jobs])],
    )


def _differing(jobs: Sequence[Job]) -> Iterator[OptionValues]:
    options = [dict(_flat(job.model_dump(mode="json", include=_OPTIONS))) for job in jobs]
    for path in dict.fromkeys(path for own in options for path in own):
        values = [own.get(path) for own in options]
        if any(value != values[0] for value in values):
            yield OptionValues(option=path, values=values)


def _flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Yield the leaves of an object by their paths; a list is a leaf."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _scores(results: Sequence[JobResult | None]) -> Iterator[ComparedScores]:
    for name in Comparisons.model_fields:
        scores = [None if result is None else _score(result, name) for result in results]
        if any(scores):
            yield ComparedScores(name=name, label=Comparisons.label(name), scores=scores)


def _score(result: JobResult, name: str) -> ComparedScore | None:
    score = result.metrics.named().get(name)
    if score is None:
        return None
    images, p = result.held_out.report, score.accuracy
    task = task_of(score)
    error = sqrt(max(p * (1 - p), 0.0) / images) if task == "classification" and images else None
    ap50 = None if score.boxes is None else score.boxes.ap50
    mask_ap = None if score.masks is None else score.masks.ap
    return ComparedScore(
        task=task,
        accuracy=p,
        accuracy_error=error,
        loss=score.loss,
        ece=score.ece,
        mean_iou=score.mean_iou,
        ap50=ap50,
        mask_ap=mask_ap,
    )
