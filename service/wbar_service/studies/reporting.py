"""The report of a study from the rows of its jobs, and its tables as CSV."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from wbar.errors import NotFound
from wbar.measures import measure_in
from wbar.studies import StudyChild
from wbar.study_report import Recorded, report_of
from wbar.study_results import ReportRows, StudyJobReport, StudyReport
from wbar_store.database import Tenant
from wbar_store.job_records import JobRecord
from wbar_store.store import Store

_JOB = ("n", "job", "status", "error", "batch_size", "lr", "devices", "seed", "images_per_second", "seconds_per_epoch")
_SCORES = ("accuracy", "loss", "last_accuracy", "last_loss", "verdict", "stopped")
_FLAT = ("distance", "distance_ratio", "sharpness", "sharpness_half", "sharpness_last")
_EPOCH = (
    "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "distance", "distance_from_start",
    "distance_ratio",
)  # fmt: skip
_UPDATES = ("epoch", "norm_from", "norm_below", "updates")
_SURFACE = ("around", "x", "y", "train_loss", "val_loss")


def study_report(store: Store, tenant: Tenant, study_id: str, patience: float) -> StudyReport:
    """Return the report of a study as its jobs are now. patience: in epochs. Raises NotFound."""
    study = store.studies.shown(tenant, study_id)
    children = store.studies.children(tenant, study_id)
    there = next((job for _, job in children if job is not None), None)
    summary = store.datasets.summary_for(tenant, there.id) if there is not None else None
    images = summary.splits["train"].images if summary is not None else None
    recorded = [_recorded(store, tenant, child, job) for child, job in children]
    task = store.datasets.tasks_for(tenant, [there.id]).get(there.id) if there is not None else None
    return report_of(study_id, study.status, images, recorded, patience, measure_in(task))


def _recorded(store: Store, tenant: Tenant, child: StudyChild, job: JobRecord | None) -> Recorded:
    nothing = Recorded(child, child.settings.batch_size, None, child.settings.seed, None, (), ())
    if job is None:
        return nothing
    recipe = job.spec.recipe
    try:
        points = store.metrics.all(tenant, job.id)
        snapshots = [(one.step, one.metrics) for one in store.snapshots.all(tenant, job.id)]
    except NotFound:  # deleted since
        return nothing
    batch = recipe.batch_size if isinstance(recipe.batch_size, int) else None
    return Recorded(child, batch, recipe.devices, job.spec.seed, job.result, points, snapshots)


def as_csv(report: StudyReport, rows: ReportRows) -> str:
    """Return one of the report's tables: see `ReportRows`."""
    paths = list(dict.fromkeys(path for job in report.jobs for path in job.settings.fields))
    settings = ("scaling", "change", *paths)
    if rows == "jobs":
        minimum = [
            f"min_{of}_{what}" for of in ("val", "averaged") for what in ("loss", "accuracy", "epoch", "seconds")
        ]
        layers = list(
            dict.fromkeys(layer for job in report.jobs if job.flatness for layer in job.flatness.distance_by_layer)
        )
        names = [*_JOB, *settings, *minimum, *_SCORES, *_FLAT, "top_eigenvalue", *(f"distance:{one}" for one in layers)]
        table = [_job_row(job, paths) | _outcome(job) for job in report.jobs]
    else:
        columns = {"epochs": _EPOCH, "updates": _UPDATES, "surface": _SURFACE}[rows]
        names = ["n", "job", "batch_size", "lr", "seed", *settings, *columns]
        table = [_job_row(job, paths) | row for job in report.jobs for row in _MANY[rows](job)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _epochs(job: StudyJobReport) -> Iterator[dict[str, Any]]:
    yield from ({name: getattr(epoch, name) for name in _EPOCH} for epoch in job.epochs)


def _updates(job: StudyJobReport) -> Iterator[dict[str, Any]]:
    for epoch in job.epochs:
        bins = epoch.update_histogram.bins() if epoch.update_histogram else []
        yield from (dict(zip(_UPDATES, (epoch.epoch, *one), strict=True)) for one in bins if one[2])


def _surface(job: StudyJobReport) -> Iterator[dict[str, Any]]:
    surface = job.flatness.surface if job.flatness else None
    for around, rows in surface.train_loss.items() if surface else ():
        assert surface is not None
        for y, train, held_out in zip(surface.positions, rows, surface.val_loss[around], strict=True):
            points = zip(surface.positions, train, held_out, strict=True)
            yield from (dict(zip(_SURFACE, (around, x, y, *losses), strict=True)) for x, *losses in points)


_MANY = {"epochs": _epochs, "updates": _updates, "surface": _surface}


def _job_row(job: StudyJobReport, paths: list[str]) -> dict[str, Any]:
    settings = job.settings
    row = {name: getattr(job, name) for name in _JOB}
    row |= {"scaling": "+".join(settings.scaling), "change": settings.change}
    return row | {path: settings.fields.get(path) for path in paths}


def _outcome(job: StudyJobReport) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(job, name) for name in _SCORES}
    if job.minimum is not None:
        row |= {"min_val_loss": job.minimum.loss, "min_val_accuracy": job.minimum.accuracy}
        row |= {"min_val_epoch": job.minimum.epoch, "min_val_seconds": job.minimum.seconds}
    if (best := job.minimum_averaged) is not None:
        row |= {"min_averaged_loss": best.averaged_loss, "min_averaged_accuracy": best.averaged_accuracy}
        row |= {"min_averaged_epoch": best.epoch, "min_averaged_seconds": best.seconds}
    if job.flatness is not None:
        row |= {name: getattr(job.flatness, name) for name in _FLAT}
        row["top_eigenvalue"] = job.flatness.top_eigenvalue.value if job.flatness.top_eigenvalue else None
        row |= {f"distance:{layer}": value for layer, value in job.flatness.distance_by_layer.items()}
    return row
