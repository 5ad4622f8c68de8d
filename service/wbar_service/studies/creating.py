"""From a study's request to its row and those of its jobs, in one transaction: all of them or none."""

from dataclasses import dataclass

from wbar.errors import Refused, StudyTooLarge, ValidationFailed
from wbar.job_request import JobRequest
from wbar.replicas import replicas_of
from wbar.studies import TAG, PlannedChild, Study, StudyEstimate, StudyPlan, StudyRequest, StudySettings, at_a_time
from wbar_service.jobs.creating import Creation, dry_run, insert_job, make_spec
from wbar_service.studies.expanding import of_child, requests_of
from wbar_store.database import Tenant
from wbar_store.store import Store


@dataclass(frozen=True)
class NewStudy:
    """A study that was just made."""

    id: str
    study: Study

    def to_api(self) -> Study:
        """Return it as the API sends it."""
        return self.study


def check_size(body: StudyRequest, most: int) -> None:
    """Raise StudyTooLarge where the request asks for more jobs than one study may have."""
    if body.product > most:
        sizes = {
            "batch_sizes": len(body.batch_sizes or ()),
            "rates × scaling": len(body.rates or ()) * len(body.scaling),
            **{path: len(values) for path, values in body.vary.items()},
            "changes": len(body.changes or ()),
            "seeds": len(body.seeds or ()),
        }
        axes = " × ".join(f"{size} ({name})" for name, size in sizes.items() if size)
        raise StudyTooLarge(
            f"{axes} = {body.product} jobs, and a study may have {most}: vary less, or make several studies; nothing was made"
        )


def insert_study(store: Store, tenant: Tenant, body: StudyRequest, made: Creation) -> NewStudy:
    """Write the rows of a study and of all its jobs; workers are to be notified once the block has committed.

    Raises what `insert_job` raises, naming the job by its settings, and QuotaExceeded where one of them is too many.
    """
    children: list[tuple[str, StudySettings]] = []
    with store.database.write():
        study = store.studies.create(tenant, body)
        for settings, request in requests_of(body):
            try:
                _check_slots(request)
                job = insert_job(store, tenant, request, made, {TAG: study.id})
            except Refused as error:
                raise of_child(settings, error) from None
            children.append((job.id, settings))
        store.studies.add(study.id, children)
        return NewStudy(study.id, store.studies.shown(tenant, study.id))


def plan_study(store: Store, tenant: Tenant, body: StudyRequest, gpu: bool) -> StudyPlan:
    """Return the study as it would be: all of its jobs resolved, with estimates and warnings.

    gpu: whether a live worker has one.

    Raises what `make_spec` raises, naming the job by its settings.
    """
    children: list[PlannedChild] = []
    with store.database.write():
        for n, (settings, request) in enumerate(requests_of(body), start=1):
            try:
                _check_slots(request)
                job = dry_run(store, tenant, request, make_spec(store, tenant, request, gpu))
            except Refused as error:
                raise of_child(settings, error) from None
            children.append(PlannedChild(n=n, settings=settings, job=job))
    estimates = [child.job.estimate for child in children if child.job.estimate is not None]
    seconds = [one.seconds for one in estimates if one.seconds is not None]
    known = len(seconds) == len(children)
    warnings = dict.fromkeys(warning for child in children for warning in child.job.warnings or ())
    return StudyPlan(
        name=body.name,
        checkpoint=body.job.checkpoint,
        dataset=body.job.dataset,
        at_once=body.at_once,
        jobs=len(children),
        children=children,
        estimate=StudyEstimate(
            steps=sum(one.steps for one in estimates),
            seconds=round(sum(seconds), 1) if known else None,
            seconds_at_once=round(at_a_time(seconds, body.at_once), 1) if known else None,
            bytes=sum(one.bytes for one in estimates),
        ),
        warnings=[one.model_copy(update={"pointer": f"/job{one.pointer}"}) for one in warnings],
    )


def _check_slots(request: JobRequest) -> None:
    """Raise ValidationFailed for a job with replicas: each would take a slot of the study, and so would what waits for them."""
    if replicas_of(request) > 1:
        raise ValidationFailed(
            f"method.replicas is {replicas_of(request)}, and a study runs its jobs in slots, one by one: leave it out, and "
            "vary `seeds`; or make the job by itself",
            [{"pointer": "/method/replicas", "detail": "not in a study"}],
        )
