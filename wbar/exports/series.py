"""A job's numbers as one series of samples (tag, step, value, time), complete at each look, live while the job runs.

train/…       the training series, by step
snapshot/…    the score of each snapshot w_n, at the step where it was taken
averaged/…    the score of the mean of n snapshots, at n
comparison/…  the comparisons of an ended job, at its last step
evaluation/…  the same on each of its evaluation sets
"""

import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from wbar.client import Client
from wbar.jobs import Event, Job, MetricsPoint
from wbar.measures import measure_of
from wbar.scores import Score
from wbar.states import TERMINAL

LOOK_SECONDS = 2.0  # between two looks at a job that runs
TRAINING = (
    "lr",
    "loss",
    "accuracy",
    "pull_loss",
    "grad_norm",
    "distance_to_mean",
    "images_per_second",
    "epoch",
    "cycle",
)
OF_BOXES = ("ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # of detection
# Beside the score itself, which has the name of what it is: accuracy, pixel_accuracy, ap, r2.
SCORES = ("loss", "ece", "map", "mean_iou", "nll_calibrated", "temperature")

Place = tuple[str, int]  # a tag and a step


@dataclass(frozen=True)
class Sample:
    """One number of a job. at: seconds since 1970, when it was reported, to about a second."""

    tag: str
    step: int
    value: float
    at: float

    @property
    def place(self) -> Place:
        """The tag and step, of which a job has one value."""
        return self.tag, self.step


@dataclass(frozen=True)
class Look:
    """A job and all its samples so far, ordered by step within each tag."""

    job: Job
    samples: list[Sample]


@dataclass
class _Log:
    """What a job's events said so far: scores by place, and the step that the job had come to at each time."""

    scores: dict[Place, Sample] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def take(self, event: Event) -> None:
        at, data = seconds_of(event.created_at), event.data
        match event.type:
            case "progress" if not self.steps or data["step"] > self.steps[-1]:
                self.steps.append(data["step"])
                self.times.append(at)
            case "snapshot":
                self._score("snapshot", data["step"], Score.model_validate(data["metrics"]), at)
            case "metrics":
                self._score("averaged", data["n"], Score.model_validate(data), at)

    def _score(self, group: str, step: int, score: Score, at: float) -> None:
        self.scores |= {one.place: one for one in _scored(group, step, score, at)}

    def time_of(self, step: int) -> float:
        """Return when the job had come to a step: at its first progress from there on, else now."""
        found = bisect_left(self.steps, step)
        return self.times[found] if found < len(self.times) else time.time()


def looks(client: Client, job_id: str, follow: bool, look_seconds: float = LOOK_SECONDS) -> Iterator[Look]:
    """Yield the job as it is now and, with `follow`, again while it runs and once after its end.

    Each look has everything from the job's first step on: who writes it elsewhere keeps what is there already. Raises
    NotFound, Unreachable.
    """
    log, caught_up, looked = _Log(), False, -look_seconds
    newest = client.jobs.event_list(job_id, limit=1, order="desc").data[0].id  # a job has a first event
    for event in client.jobs.events(job_id):
        log.take(event)
        caught_up = caught_up or event.id >= newest
        if not caught_up:
            continue
        is_over = event.type == "status" and event.data["status"] in TERMINAL
        if is_over or not follow or time.monotonic() - looked >= look_seconds:
            looked = time.monotonic()
            yield _look(client, job_id, log)
        if not follow:
            return


def _look(client: Client, job_id: str, log: _Log) -> Look:
    job = client.jobs.get(job_id)
    points = client.jobs.metrics(job_id)
    samples = [one for point in points for one in _trained(point, log.time_of(point.step))]
    samples += log.scores.values()
    if job.result is not None:
        ended = seconds_of(job.finished_at) if job.finished_at else time.time()
        last = max((point.step for point in points), default=0)
        for name, score in job.result.metrics.named().items():
            samples += _scored(f"comparison/{name}", last, score, ended)
        for of, one in job.result.evaluation.items():
            for name, score in one.metrics.named().items():
                samples += _scored(f"evaluation/{of}/{name}", last, score, ended)
    return Look(job, samples)


def _trained(point: MetricsPoint, at: float) -> list[Sample]:
    values = point.model_dump(include=set(TRAINING))
    return [
        Sample(f"train/{name}", point.step, float(values[name]), at) for name in TRAINING if values[name] is not None
    ]


def _scored(group: str, step: int, score: Score, at: float) -> list[Sample]:
    values: dict[str, float | None] = {measure_of(score).key: score.accuracy}
    values |= {name: getattr(score, name) for name in SCORES} | {
        name: getattr(score.boxes, name, None) for name in OF_BOXES
    }
    values |= {f"mask_{name}": getattr(score.masks, name, None) for name in ("ap", *OF_BOXES)}
    return [Sample(f"{group}/{name}", step, float(value), at) for name, value in values.items() if value is not None]


def seconds_of(written: str) -> float:
    """Return an RFC 3339 time as seconds since 1970."""
    return datetime.fromisoformat(written).timestamp()
