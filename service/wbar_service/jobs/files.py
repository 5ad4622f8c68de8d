"""What stands beside the weights of a job: the model card and the signature; and why a file of a job cannot be had."""

from typing import NoReturn

from fastapi import APIRouter, Request, Response

from wbar.card import ModelCard
from wbar.errors import FilesExpired, JobNotFinished, NoWeights, ValidationFailed
from wbar.results import HUB_LIBRARIES, FurtherFormat, WeightsFormat
from wbar.states import TERMINAL
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.downloads import blob_response
from wbar_service.problems import responses
from wbar_store.database import rfc3339
from wbar_store.jobs import JobRecord
from wbar_store.store import Store

MARKDOWN = "text/markdown; charset=utf-8"

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
def get_job_card(job_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """The model card of the averaged weights: what they are, what was done, the comparisons, how to load them, limitations.

    It stays when the files of a job have expired.
    """
    job = store.jobs.get(tenant, job_id)
    if job.result is None:
        no_result(job, "a model card")
    stored = store.jobs.file(job, "card")  # as it was signed
    if stored is not None:
        return blob_response(request, store.blobs, stored, f"{job_id}-README.md", MARKDOWN, inline=True)
    return Response(ModelCard(job.id, job.name, job.spec, job.result).markdown(), media_type=MARKDOWN)


@router.head("/{job_id}/signature", response_class=Response, include_in_schema=False)
@router.get(
    "/{job_id}/signature",
    response_class=Response,
    responses={
        200: {
            "description": "A Sigstore bundle: an in-toto statement of names and digests, signed with the operator's key.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        **responses(404, 409, 410),
    },
)
def get_job_signature(job_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """The signature of the job's weights, in every format, and of its card, where the operator of the service signs."""
    job = store.jobs.get(tenant, job_id)
    signature = store.jobs.file(job, "signature")
    if signature is None:
        if job.weights is not None:
            raise NoWeights(
                f"{job_id} is not signed: its worker had no key (WBAR_SIGNING_KEY is the operator's to set)"
            )
        no_result(job, "a signature")
    return blob_response(
        request, store.blobs, signature, f"{job_id}.signature.json", "application/json", inline=True
    )  # fmt: skip


def further_format(store: Store, job: JobRecord, format: FurtherFormat) -> str:
    """Return the blob of the weights in a format beside the two that every job has. Raises NoWeights, saying why."""
    blob = store.jobs.file(job, format)
    if blob is not None:
        return blob
    asked = next((one for one in job.result.formats if one.format == format), None) if job.result else None
    why = f'it was not asked for ("formats": ["{format}"])' if asked is None else asked.reason
    if format == "huggingface" and (library := job.spec.network.architecture.library) not in HUB_LIBRARIES:
        why = f"only transformers and timm load such a folder, and {job.spec.network.name} is a network of {library}"
    raise NoWeights(f"{job.id} has no {format} file: {why}; there are: safetensors, pytorch")


def swag_file(store: Store, job: JobRecord, format: WeightsFormat) -> str:
    """Return the blob of the snapshots' Gaussian. Raises NoWeights, ValidationFailed (422) for another format."""
    if format != "safetensors":
        raise ValidationFailed(
            f"which=swag is a safetensors file, and format is {format}: leave format out",
            [{"pointer": "/format", "detail": "which=swag is safetensors alone"}],
        )
    blob = store.jobs.file(job, "swag")
    if blob is None:
        why = 'it was not asked for ("swag": 10)' if not job.spec.swag else "it could not be made, see the job's log"
        raise NoWeights(f"{job.id} has no Gaussian of its snapshots: {why}")
    return blob


def no_result(job: JobRecord, what: str) -> NoReturn:
    """Raise why a job does not have a file: it has not ended, its files expired, or it made none."""
    if job.status == "succeeded":
        refuse_expired(job, what)
    if job.status not in TERMINAL:
        raise JobNotFinished(f"{job.id} is {job.status}: {what} will be there once it has succeeded")
    kept = "; its snapshots are at /snapshots" if job.expired_at is None else ""
    ended = "was cancelled" if job.status == "cancelled" else f"has {job.status}"
    raise NoWeights(f"{job.id} {ended} and made no {what}{kept}")


def refuse_expired(job: JobRecord, what: str) -> None:
    """Raise FilesExpired (410) if the time of the job's files is over."""
    if job.expired_at is not None:
        raise FilesExpired(
            f"{what} of {job.id} cannot be had any more: its files were deleted at {rfc3339(job.expired_at)}, since they were "
            f"to stay for {job.expires_after:g} s after its end (expires_after); its record, events and series stay"
        )
