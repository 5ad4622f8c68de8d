"""Datasets: an archive that was uploaded or a source that is named; packed by a worker."""

from pydantic import BaseModel, ConfigDict
from sqlalchemy import insert, select

from wbar.datasets import Dataset, DatasetFacts, ImageShape, Split, Task
from wbar.spec import StoredDataset
from wbar_store.blobs import Received
from wbar_store.claims import Claim
from wbar_store.database import Tenant, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.tables import datasets, jobs
from wbar_store.uploads import UploadRecord, UploadRepository


class DatasetOptions(BaseModel):
    """How a source is to be packed."""

    model_config = ConfigDict(frozen=True)

    max_train_images: int | None = None


class DatasetSummary(BaseModel):
    """What a worker found in it.

    image: in pixels, the median where there are many sizes. mean, std: per channel of the training split, for pixels in
    [0, 1]. held_out: the indices of the training images that were set aside, where there was no `val`.
    """

    model_config = ConfigDict(frozen=True)

    classes: list[str]
    splits: dict[str, Split]
    image: ImageShape
    many_sizes: bool
    mean: list[float]
    std: list[float]
    held_out: list[int] | None
    warnings: list[str]


class DatasetRecord(UploadRecord):
    """content: the uploaded archive until it is packed. packed, summary: once it is ready."""

    task: Task
    source: str | None
    options: DatasetOptions
    bytes: int | None
    sha256: str | None
    packed: str | None
    summary: DatasetSummary | None

    @property
    def blobs(self) -> list[str]:
        return [blob for blob in (self.content, self.packed) if blob]

    def stored(self) -> StoredDataset:
        """What a JobSpec says of it. Only of a ready one."""
        assert self.sha256 is not None
        assert self.packed is not None
        return StoredDataset(id=self.id, sha256=self.sha256, blob=self.packed)

    def facts(self) -> DatasetFacts:
        """What a job's options are resolved by. Only of a ready one."""
        assert self.summary is not None
        return DatasetFacts(
            task=self.task,
            classes=tuple(self.summary.classes),
            train_images=self.summary.splits["train"].images,
            shape=self.summary.image,
            many_sizes=self.summary.many_sizes,
            mean=tuple(self.summary.mean),
            std=tuple(self.summary.std),
            source=self.source,
        )

    def to_api(self) -> Dataset:
        found = self.summary
        return Dataset(
            id=self.id,
            name=self.name,
            status=self.status,
            task=self.task,
            source=self.source,
            classes=found.classes if found else None,
            splits=found.splits if found else None,
            image=found.image if found else None,
            bytes=self.bytes,
            sha256=self.sha256,
            warnings=found.warnings if found else [],
            error=self.error,
            created_at=rfc3339(self.created_at),
        )


class Datasets(UploadRepository[DatasetRecord]):
    table, noun, record = datasets, "dataset", DatasetRecord
    blob_columns = (datasets.c.content, datasets.c.packed)
    job_column = jobs.c.dataset

    def create(
        self, tenant: Tenant, name: str, task: Task, given: Received | str, options: DatasetOptions | None = None
    ) -> DatasetRecord:
        """given: an uploaded archive, whose blob the caller holds meanwhile, or a source by name."""
        received = given if isinstance(given, Received) else None
        values = {
            "id": new_id("ds"),
            "tenant": tenant.name,
            "name": name,
            "status": "processing",
            "task": task,
            "source": given if isinstance(given, str) else None,
            "options": (options or DatasetOptions()).model_dump(),
            "bytes": received.bytes if received else None,
            "sha256": received.sha256 if received else None,
            "content": received.sha256 if received else None,
            "attempts": 0,
            "created_at": now(),
        }
        with self.database.write() as connection:
            return self.record.of(connection.execute(insert(datasets).values(**values).returning(*datasets.c)).one())

    def summary_for(self, tenant: Tenant, job_id: str) -> DatasetSummary | None:
        """What a job's dataset held, also where it was deleted since: the row stays for the jobs that name it."""
        found = select(datasets.c.summary).join(jobs, jobs.c.dataset == datasets.c.id)
        with self.database.read() as connection:
            summary = connection.execute(found.where(jobs.c.id == job_id, jobs.c.tenant == tenant.name)).scalar()
        return None if summary is None else DatasetSummary.model_validate(summary)

    def accept(self, claim: Claim, packed: str, size: int, sha256: str, summary: DatasetSummary) -> bool:
        """It is ready; the archive need not be kept. packed: the blob; size, sha256: of what was given.

        False where this attempt is no longer the one that may validate.
        """
        found = summary.model_dump(mode="json")
        return self._write(claim, status="ready", packed=packed, content=None, bytes=size, sha256=sha256, summary=found)
