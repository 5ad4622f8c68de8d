"""The tables. Every one that a user's object lives in has a `tenant`; `wbar_store.database.Tenant` is the only filter."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

_ID = String(40)
_SHA = String(64)
_JSON = JSON(none_as_null=True)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(256), nullable=False),
    # The defaults are for version 0.5, which may still be at work while an upgrade rolls through.
    Column("scopes", _JSON, nullable=False, server_default='["read", "write", "admin"]'),
    Column("hint", String(16), nullable=False, server_default="wbar_…"),  # how the key begins
    Column("sha256", _SHA, nullable=False, unique=True),  # the key itself is kept nowhere
    Column("expires_at", Double),
    Column("last_used_at", Double),  # to about a minute
    Column("created_at", Double, nullable=False),
    Index(None, "tenant", "id"),
)

# Of the dashboard: each stands for an API key. A link is followed once, and becomes a session.
sessions = Table(
    "sessions",
    metadata,
    Column("sha256", _SHA, primary_key=True),  # the token itself is kept nowhere
    Column("tenant", String(64), nullable=False),
    Column("key", _ID, ForeignKey("api_keys.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("created_at", Double, nullable=False),
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", _SHA, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("holds", Integer, nullable=False),  # writers between putting the content and referring to it
    Column("touched_at", Double, nullable=False),
    Column("deleting", Boolean, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(256), nullable=False),
    Column("status", String(16), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", _SHA, nullable=False),
    Column("content", _SHA, index=True),  # the uploaded bytes; null once rejected
    Column("weights", _SHA, index=True),  # the same tensors as safetensors, which is what jobs read
    Column("given", _JSON, nullable=False),  # architecture and num_classes as the upload named them
    Column("facts", _JSON),  # what the tensors turned out to be, a wbar.checkpoints.CheckpointFacts
    Column("error", _JSON),
    Column("attempts", Integer, nullable=False),
    Column("notified_at", Double),
    Column("lease_until", Double),  # while a worker validates it
    Column("expires_at", Double),  # deleted after it, once no job needs it
    Column("created_at", Double, nullable=False),
    Index(None, "tenant", "id"),
    Index(None, "status"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(256), nullable=False),
    Column("status", String(16), nullable=False),
    Column("task", String(32), nullable=False),
    Column("source", String(1024)),
    Column("options", _JSON, nullable=False),
    Column("bytes", BigInteger),
    Column("sha256", _SHA),
    Column("content", _SHA, index=True),  # the uploaded archive until it is packed; null afterwards
    Column("packed", _SHA, index=True),
    Column("samples", _SHA, index=True),  # a sheet with a few images of each class
    Column("summary", _JSON),  # classes, image, splits, mean, std, held_out, warnings
    Column("error", _JSON),
    Column("attempts", Integer, nullable=False),
    Column("notified_at", Double),
    Column("lease_until", Double),  # while a worker validates it
    Column("expires_at", Double),  # deleted after it, once no job needs it
    Column("created_at", Double, nullable=False),
    Index(None, "tenant", "id"),
    Index(None, "status"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(256)),
    Column("status", String(16), nullable=False),
    Column("checkpoint", _ID, ForeignKey("checkpoints.id"), nullable=False),
    Column("dataset", _ID, ForeignKey("datasets.id"), nullable=False),
    Column("request", _JSON),  # a wbar.jobs.JobRequest as it was sent, without what it left out
    Column("spec", _JSON, nullable=False),  # a wbar.spec.JobSpec: everything that decides the result
    Column("metadata", _JSON, nullable=False),
    Column("progress", _JSON),
    Column("priority", Integer, nullable=False, server_default="0"),  # among the tenant's own; higher runs first
    Column("worker", String(256)),  # that runs it, or ran it last
    Column("result", _JSON),
    # What lists filter and sort by, from the result.
    Column("verdict", String(16)),
    Column("result_accuracy", Double),
    Column("result_loss", Double),
    Column("result_accuracy_gain", Double),
    Column("result_loss_gain", Double),
    Column("result_accuracy_gain_over_control", Double),
    Column("result_loss_gain_over_control", Double),
    Column("weights", _SHA, index=True),
    Column("weights_pytorch", _SHA, index=True),
    Column("averaged", _SHA, index=True),  # w̄, where the guard chose the start, whose files are the two above
    Column("averaged_pytorch", _SHA, index=True),
    Column("report", _SHA, index=True),
    Column("losses", _SHA, index=True),  # of each held-out image
    Column("error", _JSON),
    Column("attempts", Integer, nullable=False),  # the fence: raised by every claim, carried by every later write
    # Attempts without progress since: lost to something else than their own process, and "crashes", which are its own.
    Column("lost_attempts", Integer, nullable=False),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("furthest_step", Integer, nullable=False, server_default="0"),  # that a lost attempt came to
    Column(
        "memory_retries", Integer, nullable=False, server_default="0"
    ),  # with smaller parts, after one ran out of memory
    Column("ran_seconds", Double, nullable=False, server_default="0"),  # all attempts together
    Column("max_seconds", Double),
    Column("expires_after", Double),  # seconds from its end, after which its files are deleted
    Column("expired_at", Double),  # when they were
    Column("lease_until", Double),
    Column("notified_at", Double),
    Column("stop", String(16)),  # pause or finish, asked for and not yet answered
    Column("state", _SHA, index=True),  # the last phase end's resumable state
    Column("state_step", Integer),
    Column("last_event", Integer, nullable=False),
    Column("traceparent", String(64)),  # of the request that created it, where requests are traced
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Index(None, "tenant", "id"),
    Index(None, "tenant", "status"),
    Index(None, "status", "lease_until"),
    Index(None, "checkpoint"),
    Index(None, "dataset"),
    Index(None, "tenant", "result_accuracy", "id"),
    Index(None, "tenant", "result_loss", "id"),
    Index(None, "tenant", "result_accuracy_gain", "id"),
    Index(None, "tenant", "result_loss_gain", "id"),
    Index(None, "tenant", "result_accuracy_gain_over_control", "id"),
    Index(None, "tenant", "result_loss_gain_over_control", "id"),
    Index(None, "tenant", "finished_at", "id"),
)

# The order in which queued jobs are taken: the first that may begin is found without sorting those behind it.
Index("ix_jobs_order_of_the_queue", jobs.c.tenant, jobs.c.status, jobs.c.priority.desc(), jobs.c.id)

job_metadata = Table(
    "job_metadata",
    metadata,
    Column("job", _ID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", String(512), nullable=False),
    Index(None, "key", "value"),
)

# Every checkpoint, dataset and job that a job needs until it has ended: none of them is deleted before.
job_inputs = Table(
    "job_inputs",
    metadata,
    Column("job", _ID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("input", _ID, primary_key=True),
    Index(None, "input"),
)

events = Table(
    "events",
    metadata,
    Column("job", _ID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("type", String(16), nullable=False),
    Column("data", _JSON, nullable=False),
    Column("created_at", Double, nullable=False),
)

metrics = Table(
    "metrics",
    metadata,
    Column("job", _ID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("point", _JSON, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("job", _ID, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("n", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("metrics", _JSON, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", _SHA, nullable=False, index=True),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("job", "n"),
)

# Files of an ended job beside those that its row names: by what they are, so that another kind needs no column.
job_files = Table(
    "job_files",
    metadata,
    Column("job", _ID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(32), primary_key=True),
    Column("sha256", _SHA, nullable=False, index=True),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("fingerprint", _SHA, nullable=False),
    Column("status", Integer),  # version 0.5 asks for it; the next migration drops it
    Column("object", _ID, nullable=False, server_default=""),  # the one that was created, in the same transaction
    Column("body", Text),  # the first answer; null for a request at work in version 0.5
    Column("created_at", Double, nullable=False),
)

merges = Table(
    "merges",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(256)),
    Column("status", String(16), nullable=False),
    Column("spec", _JSON, nullable=False),  # a wbar.merges.MergeSpec: everything that decides the result
    Column("fraction", Double, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # of the result; until there is one, of the first input
    Column("weights", _SHA, index=True),
    Column("residuals", _JSON),  # of LoRA adapters: what the rank left out, by module
    Column("error", _JSON),
    Column("attempts", Integer, nullable=False),  # the fence
    Column("notified_at", Double),
    Column("lease_until", Double),  # while a worker merges
    Column("expires_after", Double),  # seconds from its end, after which it is deleted
    Column("expires_at", Double),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Index(None, "tenant", "id"),
    Index(None, "status"),
)

# The blobs that a merge reads, until it has ended: whoever's they were may go meanwhile.
merge_inputs = Table(
    "merge_inputs",
    metadata,
    Column("merge", _ID, ForeignKey("merges.id", ondelete="CASCADE"), primary_key=True),
    Column("sha256", _SHA, primary_key=True, index=True),
)

studies = Table(
    "studies",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(256)),
    Column("request", _JSON, nullable=False),  # a wbar.studies.StudyRequest as it was sent, without what it left out
    Column("checkpoint", _ID, nullable=False),
    Column("dataset", _ID, nullable=False),
    Column("at_once", Integer, nullable=False),  # jobs that may run at a time
    Column("paused", Boolean, nullable=False),  # none of its jobs begins
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),  # set once, when the last of its jobs had ended, and told of to webhooks
    Index(None, "tenant", "id"),
    Index(None, "paused"),
    Index(None, "ended_at"),
)

# The jobs of a study. Its row outlives the job's, so that a study whose jobs were deleted one by one still says so.
study_children = Table(
    "study_children",
    metadata,
    Column("study", _ID, ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("job", _ID, nullable=False, index=True),
    Column("settings", _JSON, nullable=False),  # a wbar.studies.StudySettings
)

# Uploads by tus: bytes that arrive in parts, each an object of the blob store, until a checkpoint or dataset is made of them.
resumable_uploads = Table(
    "resumable_uploads",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("kind", String(8), nullable=False),  # whole, partial or final
    Column("length", BigInteger),  # null until it is known
    Column("received", BigInteger, nullable=False),  # tus's offset: bytes whose parts are durable
    Column("parts", Integer, nullable=False),
    Column("given", Text, nullable=False),  # Upload-Metadata as it was sent
    Column("partials", Text),  # of a final upload: the ids of those that it was made of
    Column("sha256", _SHA),  # as it was announced, or found when the upload was used
    Column("used_at", Double),  # when a checkpoint or dataset was made of it; its parts are gone then
    Column("expires_at", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Index(None, "tenant", "id"),
    Index(None, "expires_at"),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("upload", _ID, ForeignKey("resumable_uploads.id", ondelete="CASCADE"), primary_key=True),
    Column("begin", BigInteger, primary_key=True),  # where in the upload the part begins
    Column("bytes", BigInteger, nullable=False),
    Column("name", String(64), nullable=False, unique=True),  # of the object
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(256), primary_key=True),
    Column("queue", String(16), nullable=False),
    Column("device", String(16), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("gpus", _JSON),  # the memory of each that the host has, a list of wbar_store.workers.GpuMemory
    Column("seen_at", Double, nullable=False),
)

# The networks of libraries that an ingest worker has installed, which are known by their names to the API.
architectures = Table(
    "architectures",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("library", String(16), nullable=False),
    Column("version", String(64), nullable=False),  # of the library
    Column("entry", _JSON, nullable=False),  # a wbar.catalog.Architecture
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(256)),
    Column("url", String(4096), nullable=False),
    Column("events", _JSON, nullable=False),  # patterns
    Column("status", String(16), nullable=False),
    Column("disabled_reason", Text),
    Column("secret", String(128), nullable=False),  # as it is: a signature cannot be made from a digest
    Column("former_secrets", _JSON, nullable=False),  # [{"secret", "until"}], which sign too until their time is over
    Column("created_at", Double, nullable=False),
    Index(None, "tenant", "id"),
)

# Written in the transaction of the change that they tell of.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("webhook", _ID, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("type", String(64), nullable=False),
    Column("payload", Text, nullable=False),  # the body to the byte: each attempt signs the same
    Column("status", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),  # the fence of whoever sends it
    Column("next_attempt_at", Double),  # null once it has ended; while it is sent, the end of the sender's lease
    Column("retry_until", Double, nullable=False),
    Column("response_status", Integer),
    Column("error", Text),
    Column("attempted_at", Double),
    Column("delivered_at", Double),
    Column("created_at", Double, nullable=False),
    Index(None, "tenant", "id"),
    Index(None, "webhook", "id"),
    Index(None, "next_attempt_at"),
)

# What happened so often since the tables were made, whatever was deleted since; for monitors.
counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("label", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
    Column("raised_at", Double, nullable=False),
)

# Every column that keeps a blob alive, each with an index. A blob that none of them names is deleted.
REFERENCES = (
    checkpoints.c.content,
    checkpoints.c.weights,
    datasets.c.content,
    datasets.c.packed,
    datasets.c.samples,
    jobs.c.weights,
    jobs.c.weights_pytorch,
    jobs.c.averaged,
    jobs.c.averaged_pytorch,
    jobs.c.report,
    jobs.c.losses,
    jobs.c.state,
    snapshots.c.sha256,
    merges.c.weights,
    merge_inputs.c.sha256,
    job_files.c.sha256,
)
