"""From a study's request to its row and those of its jobs, in one transaction: all of them or none."""

from dataclasses import dataclass

from wbar.errors import Refused, StudyTooLarge, ValidationFailed
from wbar.jobs import JobRequest
from wbar.replicas import replicas_of
from wbar.studies import TAG, Study, StudyRequest, StudySettings
from wbar_service.jobs.creating import Creation, insert_job
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


def _check_slots(request: JobRequest) -> None:
    """Raise ValidationFailed for a job with replicas: each would take a slot of the study, and so would what waits for them."""
    if replicas_of(request) > 1:
        raise ValidationFailed(
            f"method.replicas is {replicas_of(request)}, and a study runs its jobs in slots, one by one: leave it out, and "
            "vary `seeds`; or make the job by itself",
            [{"pointer": "/method/replicas", "detail": "not in a study"}],
        )
