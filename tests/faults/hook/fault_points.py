"""The named points of the product at which a fault can be done: functions, before or after their call.

Read by the harness, and by `sitecustomize` inside the processes of the service; so it needs the standard library only.
"""

from dataclasses import dataclass
from typing import Literal

Where = Literal["trainer", "worker", "api", "ingest", "sweeper"]
PARTS: dict[Where, tuple[str, ...]] = {
    "trainer": ("train", "train2"),
    "worker": ("train", "train2"),
    "api": ("api",),
    "ingest": ("ingest",),
    "sweeper": ("sweep",),
}


@dataclass(frozen=True)
class Point:
    """A function of the product.

    target: `module:qualified.name`; a name that the module imported is wrapped there only.
    where: the process that calls it.
    phase: take only calls whose first argument is a progress of this phase.
    """

    name: str
    target: str
    where: Where
    phase: str | None = None


_PHASES = ("loading", "high", "low", "batchnorm", "evaluate", "report")

POINTS: tuple[Point, ...] = (
    # The worker, in the order of a job.
    Point("claim", "wbar_store.attempts:Attempts.claim", "worker"),
    Point("fetch", "wbar_worker.run_job:fetch_inputs", "worker"),
    Point("start", "wbar_worker.processes:start", "worker"),
    *(Point(f"publish-{phase}", "wbar_worker.publish:Publisher.heartbeat", "worker", phase) for phase in _PHASES),
    Point("metrics-row", "wbar_store.metrics:Metrics.add", "worker"),
    Point("snapshot-blob", "wbar_worker.publish:Publisher.snapshot", "worker"),
    Point("snapshot-row", "wbar_store.snapshots:Snapshots.add", "worker"),
    Point("curve-row", "wbar_store.attempts:Attempts.averaged", "worker"),
    Point("state-blob", "wbar_worker.publish:Publisher.saved", "worker"),
    Point("state-row", "wbar_store.attempts:Attempts.save_state", "worker"),
    Point("blob-place", "wbar_store.blobs:Blobs._place", "worker"),
    Point("blob-hold", "wbar_store.blobs:Blobs._hold", "worker"),
    Point("blob-collect", "wbar_store.blobs:Blobs.finish_deletions", "worker"),
    Point("result-blobs", "wbar_worker.publish:Publisher.succeed", "worker"),
    Point("result-row", "wbar_store.attempts:Attempts.succeed", "worker"),
    Point("forget-state", "wbar_worker.publish:Publisher.forget_state", "worker"),
    Point("drop-state-row", "wbar_store.jobs:Jobs.drop_state", "worker"),
    Point("in-transaction", "wbar_store.events:Events.append", "worker"),
    # The training process.
    Point("attempt", "wbar_worker.attempt:run_attempt", "trainer"),
    *(
        Point(f"phase-{phase}", "wbar_training.reporter:MessageReporter.heartbeat", "trainer", phase)
        for phase in _PHASES
    ),
    Point("snapshot-file", "wbar_training.result_writer:write_safetensors", "trainer"),
    Point("snapshot-file-rename", "wbar_averaging.safetensors_file:os.replace", "trainer"),
    Point("state-file", "wbar_training.resume:save", "trainer"),
    Point("state-file-written", "wbar_training.resume:torch.save", "trainer"),
    Point("state-file-rename", "wbar_training.resume:os.replace", "trainer"),
    # The API.
    Point("api-create", "wbar_store.idempotency:Idempotency.once", "api"),
    Point("api-notify", "wbar_store.store:Store.notify", "api"),
    Point("api-message", "wbar_store.notifier:Notifier.notify", "api"),
    Point("api-blob-place", "wbar_store.blobs:Blobs._place", "api"),
    Point("api-checkpoint-row", "wbar_store.checkpoints:Checkpoints.create", "api"),
    Point("api-dataset-row", "wbar_store.datasets:Datasets.create", "api"),
    # Validation of uploads.
    Point("ingest-claim", "wbar_store.validated_uploads:UploadRepository.claim", "ingest"),
    Point("ingest-start", "wbar_worker.processes:start", "ingest"),
    Point("ingest-blob-place", "wbar_store.blobs:Blobs._place", "ingest"),
    Point("ingest-checkpoint-accept", "wbar_store.checkpoints:Checkpoints.accept", "ingest"),
    Point("ingest-dataset-accept", "wbar_store.datasets:Datasets.accept", "ingest"),
    # A lease that has run out.
    Point("sweep-lose", "wbar_store.attempts:Attempts.lose", "sweeper"),
    Point("sweep-notify", "wbar_store.store:Store.notify", "sweeper"),
    Point("sweep-message", "wbar_store.notifier:Notifier.notify", "sweeper"),
    # Webhooks: the outbox in the transaction of the change, and the sender in the sweeper's process.
    Point("api-outbox", "wbar_store.outbox:_write", "api"),
    Point("outbox", "wbar_store.outbox:_write", "worker"),
    Point("send-claim", "wbar_store.deliveries:Deliveries.claim", "sweeper"),
    Point("send-post", "wbar_worker.guarded_post:GuardedPost.send", "sweeper"),
    Point("send-record", "wbar_store.deliveries:Deliveries.delivered", "sweeper"),
    Point("send-missed", "wbar_store.deliveries:Deliveries.missed", "sweeper"),
    # Uploads in parts, until an object is made of one.
    Point("parts-write", "wbar_store.blobs:PartUpload.finish", "api"),
    Point("parts-offset", "wbar_store.resumable:ResumableUploads.append", "api"),
    Point("parts-concat", "wbar_store.resumable:ResumableUploads.concatenate", "api"),
    Point("parts-join", "wbar_store.blobs:Blobs.join", "api"),
    Point("parts-place", "wbar_store.blobs:Blobs._place", "api"),
    Point("parts-use", "wbar_store.resumable:ResumableUploads.use", "api"),
    Point("parts-discard", "wbar_store.store:Store.discard_parts", "api"),
)
