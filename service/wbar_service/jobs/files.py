"""The model card of a job, and why a file of a job cannot be had."""

from typing import NoReturn

from fastapi import APIRouter, Response

from wbar.card import ModelCard
from wbar.errors import FilesExpired, JobNotFinished, NoWeights
from wbar.states import TERMINAL
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.problems import responses
from wbar_store.database import rfc3339
from wbar_store.jobs import JobRecord

router = APIRouter(
    prefix="/v1/jobs", tags=["jobs"], route_class=AuthenticatedRoute, responses=responses(401, 403, 429, 503)
)


@router.head("/{job_id}/card", response_class=Response, include_in_schema=False)
@router.get(
    "/{job_id}/card",
    response_class=Response,
    responses={
        200: {
            "description": "Markdown, headed by the YAML that model hubs read.",
            "content": {"text/markdown": {"schema": {"type": "string"}}},
        },
        **responses(404, 409),
    },
)
def get_job_card(job_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """The model card of the averaged weights: what they are, what was done, the comparisons, how to load them, limitations.

    It stays when the files of a job have expired.
    """
    job = store.jobs.get(tenant, job_id)
    if job.result is None:
        no_result(job, "a model card")
    card = ModelCard(job.id, job.name, job.spec, job.result)
    return Response(card.markdown(), media_type="text/markdown; charset=utf-8")


def no_result(job: JobRecord, what: str) -> NoReturn:
    """Raise why a job does not have a file: it has not ended, its files expired, or it made none."""
    if job.status == "succeeded":
        refuse_expired(job, what)
    if job.status not in TERMINAL:
        raise JobNotFinished(f"{job.id} is {job.status}: {what} will be there once it has succeeded")
    kept = "; its snapshots are at /snapshots" if job.expired_at is None else ""
    raise NoWeights(f"{job.id} has {job.status} and made no {what}{kept}")


def refuse_expired(job: JobRecord, what: str) -> None:
    """Raise FilesExpired (410) if the time of the job's files is over."""
    if job.expired_at is not None:
        raise FilesExpired(
            f"{what} of {job.id} cannot be had any more: its files were deleted at {rfc3339(job.expired_at)}, since they were "
            f"to stay for {job.expires_after:g} s after its end (expires_after); its record, events and series stay"
        )
