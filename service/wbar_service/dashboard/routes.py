"""All routes of the dashboard, in the order in which they are tried."""

from fastapi import APIRouter

from wbar_service.dashboard import (
    compare,
    files,
    job_list,
    jobs,
    merges,
    new_job,
    operations,
    sign_in,
    studies,
    uploads,
    webhooks,
)

router = APIRouter()
for part in (
    files.router,
    sign_in.router,
    sign_in.signed_in,
    new_job.previews,
    new_job.router,  # before the jobs, whose ids could be `new`
    compare.router,
    job_list.router,
    jobs.router,
    merges.router,
    studies.router,
    operations.router,
    operations.admin,
    webhooks.router,
    webhooks.admin,
    uploads.router,
):
    router.include_router(part)
