"""The routes of /v1/merges."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from wbar.jobs import Deleted
from wbar.lists import Page
from wbar.merges import EXTENSIONS, Merge, MergeRequest, MergeStatus
from wbar_service.answers import answer, polled
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.downloads import OPENAPI_RESPONSES, blob_response
from wbar_service.idempotency import IdempotencyKey, fingerprint, once
from wbar_service.merges.creating import insert_merge
from wbar_service.paging import ANY_OF, page_of, paged_by
from wbar_service.problems import responses
from wbar_store.merges import MergeRecord
from wbar_store.repository import PageRequest

router = APIRouter(
    prefix="/v1/merges", tags=["merges"], route_class=AuthenticatedRoute, responses=responses(401, 403, 429, 503)
)


@router.post("", status_code=201, response_model=Merge, responses=responses(400, 404, 409, 413, 422, 507))
def create_merge(
    request: Request, body: MergeRequest, store: StoreOf, tenant: TenantOf, idempotency_key: IdempotencyKey = None
) -> Response:
    """Merge checkpoints without training: means along a run, task arithmetic and WiSE-FT's line, TIES, DARE.

    LoRA adapters are merged by the mean of what they add. With `format` the result is a folder, with its configuration.

    A worker reads them piece by piece, of whatever architecture they are; poll until `status` is `succeeded`, `failed` or
    `cancelled`. BatchNorm statistics are averaged like other numbers: a job with the method `soup` recomputes them.
    """
    quota = request.app.state.settings.quotas
    print_ = fingerprint("merge", body.document())
    return once(store, tenant, idempotency_key, print_, lambda: insert_merge(store, tenant, body, quota))


@router.get("", response_model=Page[Merge], responses=responses(422))
def list_merges(
    store: StoreOf,
    tenant: TenantOf,
    page: Annotated[PageRequest, Depends(paged_by("merge"))],
    status: Annotated[list[MergeStatus] | None, Query(description=ANY_OF)] = None,
) -> Response:
    """List the merges, newest first."""
    return answer(page_of(store.merges.page(tenant, page, status or ()), MergeRecord.to_api))


@router.get("/{merge_id}", response_model=Merge, responses=responses(404))
async def get_merge(merge_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Return a merge. Poll until its `status` is `succeeded`, `failed` or `cancelled`."""
    return await polled(store.merges, tenant, merge_id)


@router.post("/{merge_id}/cancel", response_model=Merge, responses=responses(404, 409))
def cancel_merge(merge_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """End a merge now; nothing of it is kept. 409 once it has ended otherwise."""
    record, blobs = store.merges.cancel(tenant, merge_id)
    store.blobs.collect([*blobs])
    return answer(record.to_api())


@router.delete("/{merge_id}", response_model=Deleted, responses=responses(404, 409))
def delete_merge(merge_id: str, store: StoreOf, tenant: TenantOf) -> Deleted:
    """Delete a merge that has ended, and its weights; 409 before its end."""
    store.blobs.collect(store.merges.remove(tenant, merge_id))
    return Deleted(id=merge_id, object="merge")


@router.head("/{merge_id}/weights", response_class=Response, include_in_schema=False)
@router.get(
    "/{merge_id}/weights",
    response_class=Response,
    responses={**OPENAPI_RESPONSES, **responses(404, 409, 416)},
)
def get_merge_weights(merge_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Download the merged weights: a safetensors file under the first checkpoint's names, or a zip of a folder with one."""
    merge = store.merges.get(tenant, merge_id)
    return blob_response(request, store.blobs, merge.result(), f"{merge_id}{EXTENSIONS[merge.spec.format]}")
