"""The files of a job: weights and what stands beside them; and why one cannot be had."""

from typing import Annotated, Literal, NoReturn

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from wbar.card import ModelCard
from wbar.errors import FilesExpired, JobNotFinished, NotFound, NoWeights, ValidationFailed
from wbar.results import HUB_LIBRARIES, FurtherFormat, WeightsFormat
from wbar.states import TERMINAL
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.downloads import OPENAPI_RESPONSES, blob_response
from wbar_service.problems import responses
from wbar_service.query_parameters import DIGITS
from wbar_store.database import rfc3339
from wbar_store.job_records import JobRecord
from wbar_store.store import Store

MARKDOWN = "text/markdown; charset=utf-8"

router = APIRouter(
    prefix="/v1/jobs", tags=["jobs"], route_class=AuthenticatedRoute, responses=responses(401, 403, 429, 503)
)


@router.head("/{job_id}/weights", response_class=Response, include_in_schema=False)
@router.get(
    "/{job_id}/weights",
    response_class=Response,
    responses={**OPENAPI_RESPONSES, **responses(404, 409, 410, 416)},
)
def get_job_weights(
    job_id: str,
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    format: Annotated[
        WeightsFormat,
        Query(
            description="`pytorch` is a flat state_dict. `onnx`, and `pt2` of torch.export, are there where the job was asked "
            "for them and they could be had: `result.formats`; of what is delivered. `huggingface` is a zip of the folder that "
            "transformers or timm loads, with the model card as README.md: of transformers' networks always, of timm's where "
            "the job was asked for it."
        ),
    ] = "safetensors",
    which: Annotated[
        Literal["delivered", "averaged", "swag", "control"],
        Query(
            description="`delivered`: what `result.selection.delivered` names, the start where `guard` chose it. "
            "`averaged`: w̄ whatever the guard chose. `swag`: the snapshots' Gaussian where the job has `swag`: `mean.*`, "
            "`variance.*` and `deviations.*`. `control`: the cosine fine-tune of equal length, where the method has "
            "`control`, with its own BatchNorm statistics. These two as safetensors alone.",
            examples=["averaged"],
        ),
    ] = "delivered",
) -> Response:
    """Download w̄ with recomputed BatchNorm statistics, under the uploaded names.

    Where the guard chose the start, these are the start's weights, and w̄ itself is at `?which=averaged`.
    """
    job = store.jobs.get(tenant, job_id)
    if job.weights is None or job.weights_pytorch is None:
        no_result(job, "averaged weights")
    if which == "swag":
        return blob_response(request, store.blobs, swag_file(store, job, format), f"{job_id}-swag.safetensors")
    if which == "control":
        control = control_file(store, job, format)
        return blob_response(request, store.blobs, control, f"{job_id}-control.safetensors")
    if format in ("onnx", "pt2"):
        return blob_response(request, store.blobs, further_format(store, job, format), f"{job_id}.{format}")
    if format == "huggingface":
        folder = further_format(store, job, format)
        return blob_response(request, store.blobs, folder, f"{job_id}-huggingface.zip", "application/zip")
    weights, pytorch, name = job.weights, job.weights_pytorch, job_id
    selection = job.result.selection if job.result else None
    if which == "averaged" and selection is not None and selection.delivered == "start":
        if job.averaged is None or job.averaged_pytorch is None:
            raise NoWeights(
                f"the average of {job_id} was not kept: its guard chose the start, and workers before 0.7 kept that alone"
            )
        weights, pytorch, name = job.averaged, job.averaged_pytorch, f"{job_id}-averaged"
    if format == "pytorch":
        return blob_response(request, store.blobs, pytorch, f"{name}.pth")
    return blob_response(request, store.blobs, weights, f"{name}.safetensors")


@router.head("/{job_id}/snapshots/{n}/weights", response_class=Response, include_in_schema=False)
@router.get(
    "/{job_id}/snapshots/{n}/weights",
    response_class=Response,
    responses={**OPENAPI_RESPONSES, **responses(404, 410, 416)},
)
def get_job_snapshot_weights(
    job_id: str, n: Annotated[int, Field(ge=0), DIGITS], request: Request, store: StoreOf, tenant: TenantOf
) -> Response:
    """Download one snapshot as a safetensors file, while the job runs and after it has ended in any way."""
    try:
        snapshot = store.snapshots.get(tenant, job_id, n)
    except NotFound:
        refuse_expired(store.jobs.get(tenant, job_id), f"snapshot {n}")
        raise
    return blob_response(request, store.blobs, snapshot.sha256, f"{job_id}-snapshot-{n}.safetensors")


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


@router.head("/{job_id}/probe", response_class=Response, include_in_schema=False)
@router.get(
    "/{job_id}/probe", response_class=Response, responses={**OPENAPI_RESPONSES, **responses(404, 409, 410, 416)}
)
def get_job_probe(job_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Download the outputs of every comparison on each of the job's probe images, as numpy's npz.

    Its arrays are named in `result.probe.networks`: (images, outputs) probabilities, float32; `curve_n` is w̄_n.
    `classes` are their columns, and `names` the images, where the dataset keeps their names.
    """
    job = store.jobs.get(tenant, job_id)
    outputs = store.jobs.file(job, "probe")
    if outputs is None:
        if job.weights is not None:
            raise NoWeights(f'{job_id} has no outputs on probe images: it was not asked for them ("probe": "ds_…")')
        no_result(job, "outputs on probe images")
    return blob_response(request, store.blobs, outputs, f"{job_id}-probe.npz")


@router.head("/{job_id}/report", response_class=Response, include_in_schema=False)
@router.get(
    "/{job_id}/report",
    response_class=Response,
    responses={
        200: {
            "description": "One HTML page, with its plots in it.",
            "content": {"text/html": {"schema": {"type": "string"}}},
        },
        **responses(404, 409, 410),
    },
)
def get_job_report(job_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """The job and its result as a page that needs nothing else: the comparisons, the curve, the schedule, the flatness."""
    job = store.jobs.get(tenant, job_id)
    if job.report is None:
        no_result(job, "a report")
    page = blob_response(request, store.blobs, job.report, f"{job_id}.html", "text/html; charset=utf-8", inline=True)
    # Names come from users: whatever the page holds, it runs in an origin of its own and reaches nothing.
    page.headers["Content-Security-Policy"] = "sandbox allow-scripts; default-src 'unsafe-inline' data:"
    return page


@router.get(
    "/{job_id}/losses",
    response_class=Response,
    responses={
        200: {
            "description": "The loss of each image, in the order of the dataset's `val`.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ImageLosses"}}},
        },
        **responses(404, 409, 410),
    },
)
def get_job_losses(job_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Return the loss of w̄ and of the start on each held-out image of the report split, for paired comparisons of jobs.

    Two jobs on one dataset have the same images in the same order where both report on all of them, or have the same seed.
    """
    job = store.jobs.get(tenant, job_id)
    if job.losses is None:
        no_result(job, "losses of images")
    return blob_response(request, store.blobs, job.losses, f"{job_id}-losses.json", "application/json", inline=True)


def further_format(store: Store, job: JobRecord, format: FurtherFormat) -> str:
    """Return the blob of the weights in a format beside the two that every job has. Raises NoWeights, saying why."""
    blob = store.jobs.file(job, format)
    if blob is not None:
        return blob
    asked = next((one for one in job.result.formats if one.format == format), None) if job.result else None
    why = f'it was not asked for ("formats": ["{format}"])' if asked is None else asked.reason
    if format == "huggingface" and (library := job.spec.network.architecture.library) not in HUB_LIBRARIES:
        why = f"only transformers and timm load such a folder, and {job.spec.network.name} is a network of {library}"
    made = [one.format for one in job.result.formats if one.reason is None] if job.result else []
    raise NoWeights(f"{job.id} has no {format} file: {why}; there are: {', '.join(['safetensors', 'pytorch', *made])}")


def swag_file(store: Store, job: JobRecord, format: WeightsFormat) -> str:
    """Return the blob of the snapshots' Gaussian. Raises NoWeights, ValidationFailed (422) for another format."""
    _safetensors_alone("swag", format)
    blob = store.jobs.file(job, "swag")
    if blob is None:
        why = 'it was not asked for ("swag": 10)' if not job.spec.swag else "it could not be made, see the job's log"
        raise NoWeights(f"{job.id} has no Gaussian of its snapshots: {why}")
    return blob


def control_file(store: Store, job: JobRecord, format: WeightsFormat) -> str:
    """Return the blob of the control's weights. Raises NoWeights, ValidationFailed (422) for another format."""
    _safetensors_alone("control", format)
    blob = store.jobs.file(job, "control")
    if blob is None:
        if not getattr(job.spec.method, "control", False):
            why = 'it was not asked for ("method": {"control": true})'
        elif job.result is None or job.result.metrics.control is None:
            trained_by = job.spec.replicas[0] if job.spec.replicas else job.id
            why = f"it was left out, see the log of {trained_by}"
        else:
            why = "its weights were not kept, as workers before 0.7 did not"
        raise NoWeights(f"{job.id} has no weights of a control: {why}")
    return blob


def _safetensors_alone(which: str, format: WeightsFormat) -> None:
    if format != "safetensors":
        raise ValidationFailed(
            f"which={which} is a safetensors file, and format is {format}: leave format out",
            [{"pointer": "/format", "detail": f"which={which} is safetensors alone"}],
        )


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
