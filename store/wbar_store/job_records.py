"""A job's row, as the rest of the service reads it."""

from typing import Any, Literal

from wbar.checkpoints import Fault
from wbar.jobs import Job, Progress
from wbar.results import JobResult
from wbar.spec import JobSpec
from wbar.states import JobStatus
from wbar_store.claims import Claim
from wbar_store.database import Tenant, rfc3339
from wbar_store.repository import Record

FileName = Literal["onnx", "pt2", "huggingface", "card", "signature", "mean", "probe", "swag", "control"]
# The columns of an ended job's files, which go when their time is over.
FILES = ("weights", "weights_pytorch", "averaged", "averaged_pytorch", "report", "losses")


class JobRecord(Record):
    """A row of `jobs`.

    weights, weights_pytorch, report, losses: blobs, once it has succeeded.
    averaged, averaged_pytorch: w̄ likewise, where the weights are the start's.
    state: the blob of the latest resumable state.
    """

    tenant: str
    name: str | None
    status: JobStatus
    spec: JobSpec
    request: dict[str, Any] | None
    metadata: dict[str, str]
    progress: Progress | None
    result: JobResult | None
    weights: str | None
    weights_pytorch: str | None
    averaged: str | None
    averaged_pytorch: str | None
    report: str | None
    losses: str | None
    error: Fault | None
    attempts: int
    max_seconds: float | None
    priority: int
    worker: str | None
    expires_after: float | None
    expired_at: float | None
    memory_retries: int
    stop: Literal["pause", "finish"] | None
    traceparent: str | None
    state: str | None
    state_step: int | None
    created_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def claim(self) -> Claim:
        """The claim of the job's latest attempt."""
        return Claim(self.id, self.attempts)

    @property
    def owner(self) -> Tenant:
        """The tenant that the job belongs to."""
        return Tenant(self.tenant)

    @property
    def blobs(self) -> list[str]:
        """The blobs that the row keeps alive."""
        return [blob for name in (*FILES, "state") if (blob := getattr(self, name))]

    def to_api(self) -> Job:
        """Return the job as the API sends it."""
        return Job.of(
            self.spec,
            id=self.id,
            name=self.name,
            status=self.status,
            requested=self.request,
            metadata=self.metadata,
            progress=self.progress,
            result=self.result,
            error=self.error,
            attempts=self.attempts,
            max_seconds=self.max_seconds,
            priority=self.priority,
            expires_after=self.expires_after,
            expires_at=rfc3339(self.finished_at + self.expires_after)
            if self.finished_at and self.expires_after
            else None,
            created_at=rfc3339(self.created_at),
            started_at=rfc3339(self.started_at),
            finished_at=rfc3339(self.finished_at),
        )
