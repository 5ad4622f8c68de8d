"""The route of /v1/workers: who lives, and what each does for the tenant."""

from fastapi import APIRouter, Response

from wbar.lists import Page
from wbar.workers import GpuMemory, Worker
from wbar_service.answers import answer
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.problems import responses
from wbar_store.database import Tenant
from wbar_store.job_lists import Filters
from wbar_store.repository import PageRequest
from wbar_store.store import Store

router = APIRouter(
    prefix="/v1/workers", tags=["workers"], route_class=AuthenticatedRoute, responses=responses(401, 403, 429, 503)
)
MOST_RUNNING = 1000


@router.get("", response_model=Page[Worker])
def list_workers(store: StoreOf, tenant: TenantOf) -> Response:
    """List the workers that live, all of them on one page. What they do for other tenants is not told."""
    workers = of_tenant(store, tenant)
    ids = [worker.id for worker in workers]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return answer(Page[Worker](data=workers, has_more=False, first_id=first, last_id=last))


def of_tenant(store: Store, tenant: Tenant) -> list[Worker]:
    """Return the workers that live, with the tenant's jobs on each."""
    running = store.jobs.summaries(tenant, PageRequest(MOST_RUNNING), Filters(("running",))).records
    return [
        Worker(
            id=one.name, queue=one.queue, device=one.device, slots=one.slots,
            gpus=[GpuMemory(used=gpu.used, total=gpu.total) for gpu in one.gpus],
            jobs=[job.id for job in running if job.worker == one.name],
        )
        for one in store.workers.live()
    ]  # fmt: skip
