"""Datasets: an archive that was uploaded or a source that is named; packed by a worker."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict
from sqlalchemy import insert, select

from wbar.attributes import categories_of
from wbar.datasets import VOID_LABEL, Dataset, DatasetFacts, ImageShape, Split, Task
from wbar.spec import StoredDataset
from wbar_store.blobs import Received
from wbar_store.claims import Claim
from wbar_store.database import Tenant, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.row_security import lifted
from wbar_store.tables import datasets, jobs
from wbar_store.validated_uploads import UploadRecord, UploadRepository, expiry


class DatasetOptions(BaseModel):
    """How a source is packed. void_label: of segmentation, the value of pixels that belong to no class."""

    model_config = ConfigDict(frozen=True)

    max_train_images: int | None = None
    void_label: int = VOID_LABEL


class DatasetSummary(BaseModel):
    """The facts that a worker read off the images of a dataset.

    image: in pixels, the median where there are many sizes.
    mean, std: per channel of the training split, for pixels in [0, 1].
    held_out: indices of the images of `train/` that were held out, where there was no `val/`.
    masks: of detection, whether every box has a mask.
    """

    model_config = ConfigDict(frozen=True)

    classes: list[str]
    splits: dict[str, Split]
    class_counts: dict[str, list[int]] | None = None
    image: ImageShape
    many_sizes: bool
    mean: list[float]
    std: list[float]
    held_out: list[int] | None
    warnings: list[str]
    masks: bool = False


class DatasetRecord(UploadRecord):
    """A row of `datasets`.

    content: the uploaded archive, until it is packed.
    packed, samples: the blobs of the packed file and of the sheet of samples, once it is ready.
    summary: of its images, once it is ready.
    """

    task: Task
    source: str | None
    options: DatasetOptions
    bytes: int | None
    sha256: str | None
    packed: str | None
    samples: str | None
    summary: DatasetSummary | None

    @property
    def blobs(self) -> list[str]:
        """The blobs that the row keeps alive."""
        return [blob for blob in (self.content, self.packed, self.samples) if blob]

    def stored(self) -> StoredDataset:
        """Return the dataset as a JobSpec names it. Only of a ready one."""
        assert self.sha256 is not None
        assert self.packed is not None
        return StoredDataset(id=self.id, sha256=self.sha256, blob=self.packed)

    def facts(self) -> DatasetFacts:
        """Return the facts that a job's options are resolved from. Only of a ready dataset."""
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
            held_out_images=self.summary.splits["val"].images,
            masks=self.summary.masks,
        )

    def to_api(self) -> Dataset:
        """Return the dataset as the API sends it."""
        summary = self.summary
        return Dataset(
            id=self.id,
            name=self.name,
            status=self.status,
            task=self.task,
            source=self.source,
            classes=summary.classes if summary else None,
            attributes=categories_of(summary.classes) if summary and self.task == "attributes" else None,
            splits=summary.splits if summary else None,
            class_counts=summary.class_counts if summary else None,
            masks=summary.masks if summary else False,
            image=summary.image if summary else None,
            bytes=self.bytes,
            sha256=self.sha256,
            warnings=summary.warnings if summary else [],
            error=self.error,
            expires_at=rfc3339(self.expires_at),
            created_at=rfc3339(self.created_at),
        )


class Datasets(UploadRepository[DatasetRecord]):
    """The datasets of all tenants."""

    table, kind, noun, record = datasets, "ds", "dataset", DatasetRecord
    blob_columns = (datasets.c.content, datasets.c.packed, datasets.c.samples)
    job_column = jobs.c.dataset

    def create(
        self,
        tenant: Tenant,
        name: str,
        task: Task,
        given: Received | str,
        options: DatasetOptions | None = None,
        expires_after: float | None = None,
    ) -> DatasetRecord:
        """Insert a dataset to be packed; the caller notifies once the row is committed.

        given: an uploaded archive, whose blob the caller holds meanwhile, or a source by name.
        expires_after: seconds until it is deleted.
        """
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
            "expires_at": expiry(expires_after),
            "created_at": now(),
        }
        with self.database.write() as connection:
            return self.record.of(connection.execute(insert(datasets).values(**values).returning(*datasets.c)).one())

    def summary_for(self, tenant: Tenant, job_id: str) -> DatasetSummary | None:
        """Return the summary of a job's dataset, also of one deleted since: its row stays for the jobs that name it."""
        query = select(datasets.c.summary).join(jobs, jobs.c.dataset == datasets.c.id)
        with self.database.read() as connection, lifted(connection):  # a hidden row is no tenant's
            summary = connection.execute(query.where(jobs.c.id == job_id, jobs.c.tenant == tenant.name)).scalar()
        return None if summary is None else DatasetSummary.model_validate(summary)

    def tasks_for(self, tenant: Tenant, job_ids: Iterable[str]) -> dict[str, Task]:
        """Return the tasks of jobs by their ids, also of those whose dataset was deleted since; without those not there."""
        query = select(jobs.c.id, datasets.c.task).join(datasets, jobs.c.dataset == datasets.c.id)
        query = query.where(jobs.c.id.in_(list(job_ids)), jobs.c.tenant == tenant.name)
        with self.database.read() as connection, lifted(connection):  # a hidden row is no tenant's
            return {row.id: row.task for row in connection.execute(query)}

    def accept(
        self, claim: Claim, packed: str, size: int, sha256: str, summary: DatasetSummary, samples: str | None = None
    ) -> bool:
        """Make the dataset `ready`; the archive need not be kept. False if the claim is stale.

        packed, samples: the blobs of the packed file and of the sheet of samples.
        size, sha256: of the archive or source, in bytes.
        """
        document = summary.model_dump(mode="json")
        values = {"packed": packed, "samples": samples, "content": None, "bytes": size, "sha256": sha256}
        return self._settle(claim.id, self._of_claim(claim), "ready", summary=document, **values)
