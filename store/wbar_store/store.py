"""The store as every process opens it: one database, one blob store, one notifier, and the repositories that stand on them."""

import logging
from contextlib import suppress
from functools import partial
from typing import Any

from obstore.exceptions import BaseError
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from wbar.errors import InUse, NotFound
from wbar_store.architectures import InstalledArchitectures
from wbar_store.attempts import Attempts
from wbar_store.blobs import Blobs
from wbar_store.checkpoints import Checkpoints
from wbar_store.counters import Counters
from wbar_store.database import UNAVAILABLE, Database, Tenant
from wbar_store.datasets import Datasets
from wbar_store.deliveries import Deliveries
from wbar_store.events import Events
from wbar_store.idempotency import Idempotency
from wbar_store.ids import Kind, kind_of
from wbar_store.job_queue import JobQueue
from wbar_store.jobs import Jobs
from wbar_store.keys import Keys
from wbar_store.merges import Merges
from wbar_store.metrics import Metrics
from wbar_store.notifier import INGEST, RUN_JOB, Notifier
from wbar_store.quotas import Quotas
from wbar_store.repository import Repository
from wbar_store.resumable import ResumableUploads
from wbar_store.sessions import Sessions
from wbar_store.settings import StoreSettings
from wbar_store.snapshots import Snapshots
from wbar_store.studies import Studies
from wbar_store.validated_uploads import UploadRepository
from wbar_store.webhooks import Webhooks
from wbar_store.workers import Workers

log = logging.getLogger("wbar.store")


class Store:
    """The database, the blob store, the notifier, and one repository for each resource."""

    def __init__(self, database: Database, blobs: Blobs, notifier: Notifier) -> None:
        self.database, self.blobs, self.notifier = database, blobs, notifier
        self.checkpoints = Checkpoints(database)
        self.datasets = Datasets(database)
        self.events = Events(database)
        self.jobs = Jobs(database, self.events)
        self.queue = JobQueue(database)
        self.attempts = Attempts(database, self.jobs, self.events)
        self.snapshots = Snapshots(database, self.events)
        self.metrics = Metrics(database)
        self.merges = Merges(database)
        self.studies = Studies(database, self.jobs)
        self.keys = Keys(database)
        self.sessions = Sessions(database)
        self.quotas = Quotas(database)
        self.idempotency = Idempotency(database)
        self.uploads = ResumableUploads(database)
        self.workers = Workers(database)
        self.webhooks = Webhooks(database)
        self.deliveries = Deliveries(database, self.webhooks)
        self.counters = Counters(database)
        self.architectures = InstalledArchitectures(database)

    @classmethod
    def open(cls, settings: StoreSettings) -> "Store":
        """Open the store that the settings name."""
        database = Database(settings.database_url)
        return cls(database, Blobs(settings.blobs_url, database), Notifier(settings.broker_url))

    def exists(self, tenant: Tenant, object_id: str) -> bool:
        """Return whether the tenant has the object. Raises ValueError for an id of an unknown kind."""
        repositories: dict[Kind, Repository[Any]] = {
            "ckpt": self.checkpoints,
            "ds": self.datasets,
            "job": self.jobs,
            "key": self.keys,
            "hook": self.webhooks,
            "msg": self.deliveries,
            "upload": self.uploads,
            "merge": self.merges,
            "study": self.studies,
        }
        kind = kind_of(object_id)
        if kind not in repositories:
            raise ValueError(
                f"{object_id!r} names no checkpoint, dataset, job, merge, study, key, webhook, delivery or upload"
            )
        return repositories[kind].exists(tenant, object_id)

    def notify(self, object_id: str) -> None:
        """Notify a worker of a job to run, an upload to validate, a merge to make or a study's first jobs, once committed.

        Keys, webhooks, deliveries and uploads in parts need no worker. After a failure here, the sweeper notifies again. Raises
        ValueError for
        an id of another kind.
        """
        with suppress(DBAPIError, *UNAVAILABLE):
            match kind_of(object_id):
                case "job":
                    for one in self.queue.to_begin(object_id):
                        if self.notifier.notify(RUN_JOB, one):
                            self.jobs.notified(one)
                case "ckpt":
                    if self.notifier.notify(INGEST, object_id):
                        self.checkpoints.notified(object_id)
                case "ds":
                    if self.notifier.notify(INGEST, object_id):
                        self.datasets.notified(object_id)
                case "merge":
                    if self.notifier.notify(INGEST, object_id):
                        self.merges.notified(object_id)
                case "study":
                    for job_id in self.studies.to_begin(object_id):
                        self.notify(job_id)
                case "key" | "hook" | "msg" | "upload":
                    pass
                case _:
                    raise ValueError(f"{object_id!r} names no job, study, merge, checkpoint or dataset")

    def expire(self) -> None:
        """Delete checkpoints, datasets, merges and files of jobs whose time is over; what a job still needs waits for its end.

        One that cannot be deleted is logged, and does not keep the others. Raises what a database that is away raises.
        """
        uploads: tuple[UploadRepository[Any], ...] = (self.checkpoints, self.datasets)
        due = [
            (one, partial(uploads_.remove, tenant, one)) for uploads_ in uploads for tenant, one in uploads_.expired()
        ]
        due += [(one, partial(self.jobs.drop_files, one)) for one in self.jobs.expired()]
        due += [(one, partial(self.merges.remove, tenant, one)) for tenant, one in self.merges.expired()]
        for object_id, remove in due:
            try:
                self.blobs.collect(remove())
            except (InUse, NotFound):
                continue
            except UNAVAILABLE:
                raise
            except Exception:
                log.exception("%s has expired and could not be deleted", object_id)

    def tidy_uploads(self) -> None:
        """Delete uploads whose time is over, and parts that no row names, such as those of writers that were killed."""
        for upload_id in self.uploads.expired():
            self.discard_parts(self.uploads.remove_expired(upload_id))
        self.blobs.sweep_parts(self.uploads.named)

    def discard_parts(self, names: list[str]) -> None:
        """Delete objects whose rows are deleted; the sweeper deletes later what cannot be deleted now."""
        for name in names:
            try:
                self.blobs.discard(name)
            except (OSError, BaseError) as error:
                log.error("%s could not be deleted (%s: %s)", name, type(error).__name__, error)

    def check(self) -> None:
        """Raise if the database does not answer."""
        with self.database.read() as connection:
            connection.execute(select(1))

    def close(self) -> None:
        self.notifier.close()
        self.database.dispose()
