"""`client.studies`."""

from collections.abc import AsyncIterator, Mapping
from time import monotonic
from typing import Any

from anyio import sleep

from wbar.client._async.resource import AsyncResource, given
from wbar.client.addresses import segment
from wbar.lists import Page
from wbar.studies import Study, StudyPlan
from wbar.study_results import ReportRows, StudyReport


class AsyncStudies(AsyncResource):
    """Runs one job many times, over what differs between the runs, and reports what all of them measured."""

    async def create(self, job: Mapping[str, Any], *, idempotency_key: str | None = None, **fields: Any) -> Study:
        """Create a study. job: what its jobs have in common, as in `jobs.create`.

        fields: those of wbar.studies.StudyRequest (batch_sizes, rates, scaling, base_batch, vary, changes, seeds, at_once …).
        idempotency_key: default: one of its own for each call.
        """
        return await self._create("/v1/studies", Study, {"job": dict(job), **fields}, idempotency_key)

    async def plan(self, job: Mapping[str, Any], **fields: Any) -> StudyPlan:
        """Return the study as `create` would make it, with its cost and warnings: a dry run, which creates nothing."""
        return await self._create("/v1/studies", StudyPlan, {"job": dict(job), **fields, "dry_run": True}, None)

    async def get(self, study_id: str) -> Study:
        """Return one study with its jobs. Raises NotFound."""
        return await self._get(f"/v1/studies/{segment(study_id)}", Study)

    async def list(self, limit: int = 20, after: str | None = None, order: str | None = None) -> Page[Study]:
        """Return one page of studies without their jobs, newest first unless `order` is `asc`."""
        return await self._get("/v1/studies", Page[Study], limit=limit, after=after, order=order)

    def iterate(self, order: str | None = None) -> AsyncIterator[Study]:
        """Return an iterator over all studies, loaded page by page, newest first unless `order` is `asc`."""
        return self._pages("/v1/studies", Page[Study], order=order)

    async def wait(self, study_id: str, timeout: float | None = None, poll: float = 0.5) -> Study:
        """Poll until all jobs of the study have ended. Raises TimeoutError after `timeout` seconds, if given."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            study = await self.get(study_id)
            if study.status == "ended":
                return study
            if deadline is not None and monotonic() > deadline:
                raise TimeoutError(f"{study_id} is still {study.status} after {timeout:g} s")
            await sleep(poll)

    async def report(self, study_id: str, patience: float | None = None) -> StudyReport:
        """Return what the jobs measured so far. patience: epochs after which a minimum is settled; default: 5."""
        return await self._get(f"/v1/studies/{segment(study_id)}/report", StudyReport, patience=patience)

    async def report_csv(self, study_id: str, rows: ReportRows = "jobs", patience: float | None = None) -> str:
        """Return the report as CSV. rows: one for each job, for each epoch of each job, for each epoch and bin of the
        histograms of update norms (`updates`), or for each point of the loss surfaces (`surface`)."""
        params = given({"format": "csv", "rows": rows, "patience": patience})
        return (await self._client.request("GET", f"/v1/studies/{segment(study_id)}/report", params=params)).text

    async def cancel(self, study_id: str) -> Study:
        """End all of its jobs that have not ended. Raises InvalidTransition where all have ended otherwise."""
        return await self._act(study_id, "cancel")

    async def pause(self, study_id: str) -> Study:
        """Let no further job begin, and ask those that run to stop. Raises InvalidTransition once all have ended."""
        return await self._act(study_id, "pause")

    async def resume(self, study_id: str) -> Study:
        """Let its jobs go on. Raises InvalidTransition where nothing is paused."""
        return await self._act(study_id, "resume")

    async def _act(self, study_id: str, action: str) -> Study:
        answer = await self._client.request("POST", f"/v1/studies/{segment(study_id)}/{action}")
        return Study.model_validate(answer.json())

    async def delete(self, study_id: str) -> None:
        """Delete a study whose jobs have all ended, and the jobs. Raises InvalidTransition before, InUse for a teacher."""
        await self._client.request("DELETE", f"/v1/studies/{segment(study_id)}")
