"""From a request to a JobSpec: what it names is looked up and locked here; `wbar.resolve` decides and checks the rest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from wbar.errors import CheckpointNotReady, CheckpointsDiffer, DatasetNotReady, ValidationFailed
from wbar.job_request import JobRequest
from wbar.job_warnings import JobWarning, warnings_about
from wbar.jobs import Estimate, Job
from wbar.method import Soup
from wbar.replicas import TAG, check_count, meetings_of, replicas_of, request_of
from wbar.resolve import planned_snapshots, planned_steps, planned_steps_per_epoch, resolve_job, snapshots_of_one
from wbar.spec import JobSpec, StoredWeights, without_new_defaults
from wbar_service.idempotency import fingerprint
from wbar_store.checkpoints import CheckpointRecord
from wbar_store.database import Tenant
from wbar_store.datasets import DatasetRecord
from wbar_store.ids import kind_of, new_id
from wbar_store.job_records import JobRecord
from wbar_store.quotas import Quota
from wbar_store.store import Store
from wbar_store.validated_uploads import UploadRecord


def make_spec(store: Store, tenant: Tenant, request: JobRequest, gpu: bool) -> JobSpec:
    """Return the spec of the job, with every `auto` replaced.

    gpu: whether a live worker has one. Call it in the block that creates the job: checkpoints, datasets and a former job stay
    locked, so that none is deleted before the job exists. Raises NotFound, CheckpointNotReady, DatasetNotReady and what
    `wbar.resolve.resolve_job` raises.
    """
    checkpoints = _locked_checkpoints(store, tenant, request)
    start = _weights(checkpoints[request.checkpoint])
    datasets = _locked_datasets(store, tenant, request)
    dataset = datasets[request.dataset]
    names = request.method.checkpoints if isinstance(request.method, Soup) else []
    ingredients = [_weights(checkpoints[name]) for name in names]
    distillation = request.recipe.distillation
    teacher = _teacher(store, tenant, distillation.teacher, checkpoints) if distillation else None
    members = teacher.members if teacher else ()
    sets = {name: (datasets[one].stored(), datasets[one].facts()) for name, one in request.evaluate.items()}
    images = None if request.probe is None else datasets[request.probe]
    probe = None if images is None else (images.stored(), images.facts())
    spec = resolve_job(request, start, dataset.stored(), dataset.facts(), gpu, ingredients, members, sets, probe)
    if teacher is not None:
        _check_order(teacher, list(spec.classes or dataset.facts().classes), spec.network.num_classes)
    return spec


@dataclass(frozen=True)
class Creation:
    """The circumstances that a job is created in, beside its request.

    gpu: see `make_spec`; looked up before the block, since it asks for other rows.
    quota: of a tenant.
    traceparent: of the request's trace.
    most_replicas: of one job.
    """

    gpu: bool
    quota: Quota
    traceparent: str | None
    most_replicas: int = 1


def insert_job(
    store: Store, tenant: Tenant, body: JobRequest, made: Creation, tags: Mapping[str, str] | None = None
) -> JobRecord:
    """Write the row of a job, and those of its replicas; a worker is to be notified of it once the block has committed.

    tags: beside those of the request, which a clone does not get.

    Raises QuotaExceeded, and what `make_spec` raises.
    """
    check_count(body, made.most_replicas)
    if replicas_of(body) == 1:
        return _insert_one(store, tenant, body, made, tags)
    spec = make_spec(store, tenant, body, made.gpu)  # what cannot be joined is refused as it was asked for
    # Named before they are there: each of those that meet names all of them.
    job_id, *replicas = (new_id("job") for _ in range(replicas_of(body) + 1))
    snapshots = snapshots_of_one(spec, store.datasets.get(tenant, spec.dataset.id).facts())
    for n, one in enumerate(replicas, start=1):
        of_spec = {"keeps_mean": True, "meetings": meetings_of(body, replicas, n, snapshots)}
        _insert_one(store, tenant, request_of(body, n), made, {TAG: job_id}, one, **of_spec)
    return _insert_one(store, tenant, body, made, tags, job_id, replicas=tuple(replicas))


def _insert_one(
    store: Store,
    tenant: Tenant,
    body: JobRequest,
    made: Creation,
    tags: Mapping[str, str] | None,
    job_id: str | None = None,
    **of_spec: object,
) -> JobRecord:
    store.quotas.check_jobs(tenant, made.quota)
    spec = make_spec(store, tenant, body, made.gpu).model_copy(update=of_spec)
    job = store.jobs.create(
        tenant,
        spec,
        body.name,
        {**body.metadata, **(tags or {})},
        body.max_seconds,
        body.expires_after,
        body.as_sent(),
        body.priority,
        made.traceparent,
        job_id,
    )
    # Whoever asked for no dry run reads it in the log, before the job has cost anything.
    for warning in warnings_about(spec, store.datasets.get(tenant, spec.dataset.id).facts()):
        store.events.append(job.id, "log", {"level": "warning", "message": warning.detail})
    return job


def digest_of(body: JobRequest) -> str:
    """Return the digest of a request: without the fields that came after 0.5, its own digest of it."""
    asked = without_new_defaults(body.model_dump(mode="json"))
    later = {name: asked.pop(name, None) or None for name in ("max_seconds", "expires_after", "priority")}
    return fingerprint("job", asked, **later)


def dry_run(store: Store, tenant: Tenant, request: JobRequest, spec: JobSpec) -> Job:
    """Return the job as it would be, with an estimate, warnings and no id."""
    checkpoint, dataset = store.checkpoints.get(tenant, spec.start.id), store.datasets.get(tenant, spec.dataset.id)
    facts = dataset.facts()
    steps = planned_steps(spec, facts)
    images = steps * facts.train_images / planned_steps_per_epoch(facts, spec.recipe)
    speed = store.jobs.images_per_second(tenant, spec.start.id)
    estimate = Estimate(
        steps=steps,
        seconds=round(images / speed * _cost(spec), 1) if speed and steps else None,
        bytes=(planned_snapshots(spec, facts) + 2 + _beside(spec)) * checkpoint.bytes,
    )
    return Job.of(
        spec,
        name=request.name,
        metadata=request.metadata,
        max_seconds=request.max_seconds,
        priority=request.priority,
        expires_after=request.expires_after,
        estimate=estimate,
        warnings=[*warnings_about(spec, facts), *_of_inputs(checkpoint, dataset)],
    )


def _beside(spec: JobSpec) -> int:
    """Return how many files of the checkpoint's size a job keeps beside its snapshots and its result."""
    if isinstance(spec.method, Soup):
        return 0
    # Of each replica its result in both formats, and the sums of its mean in float64.
    replicas = 4 * spec.method.replicas if spec.method.replicas > 1 else 0
    return replicas + int(spec.method.control)


def _of_inputs(checkpoint: CheckpointRecord, dataset: DatasetRecord) -> Iterator[JobWarning]:
    """Yield the warnings that the inputs carry themselves, since they were read."""
    architecture = checkpoint.to_api().architecture
    if architecture is not None and architecture.warning:
        yield JobWarning(pointer="/checkpoint", detail=architecture.warning)
    for text in dataset.to_api().warnings:
        yield JobWarning(pointer="/dataset", detail=text)


def gpu_at_hand(store: Store) -> bool:
    """Return whether a live training worker has a GPU: `precision: auto` depends on it."""
    return any(worker.queue == "train" and worker.device == "cuda" for worker in store.workers.live())


def _locked_checkpoints(store: Store, tenant: Tenant, request: JobRequest) -> Mapping[str, CheckpointRecord]:
    """Return every checkpoint that the request names, by id; they stay locked until the block ends."""
    names = {request.checkpoint}
    if isinstance(request.method, Soup):
        names |= set(request.method.checkpoints)
    if request.recipe.distillation and kind_of(request.recipe.distillation.teacher) == "ckpt":
        names.add(request.recipe.distillation.teacher)
    # All of them in one order, before anything else is locked: two jobs with the same checkpoints must not cross.
    return {name: store.checkpoints.get(tenant, name, lock=True) for name in sorted(names)}


def _locked_datasets(store: Store, tenant: Tenant, request: JobRequest) -> Mapping[str, DatasetRecord]:
    """Return every dataset that the request names, by id, locked in one order as the checkpoints are.

    Raises NotFound, and DatasetNotReady for one that is not ready.
    """
    probe = {request.probe} if request.probe else set()
    names = sorted({request.dataset, *request.evaluate.values(), *probe})
    records = {name: store.datasets.get(tenant, name, lock=True) for name in names}
    for record in records.values():
        if record.status != "ready":
            raise DatasetNotReady(_not_ready(record))
    return records


def _weights(record: CheckpointRecord) -> StoredWeights:
    """Return the weights of a checkpoint. Raises CheckpointNotReady."""
    if record.status != "ready":
        raise CheckpointNotReady(_not_ready(record))
    return record.stored()


def _not_ready(record: UploadRecord) -> str:
    if record.error is not None:
        return f"{record.id} was rejected ({record.error.code}: {record.error.message}): upload a good one"
    return f"{record.id} is still {record.status}: wait until it is ready"


@dataclass(frozen=True)
class _Teacher:
    """The networks whose outputs are learned from.

    members: one checkpoint, or a former job's snapshots in order.
    classes: of its outputs in their order; empty where they have no names.
    """

    id: str
    members: tuple[StoredWeights, ...]
    classes: list[str]


def _teacher(store: Store, tenant: Tenant, teacher: str, checkpoints: Mapping[str, CheckpointRecord]) -> _Teacher:
    """Return the teacher that a recipe names.

    Raises NotFound, CheckpointNotReady, and ValidationFailed for a former job that left no snapshots.
    """
    if kind_of(teacher) == "ckpt":
        return _Teacher(teacher, (_weights(checkpoints[teacher]),), [])
    job = store.jobs.get(tenant, teacher, lock=True)
    snapshots = store.snapshots.all(tenant, teacher)
    if job.status != "succeeded" or not snapshots:
        raise ValidationFailed(
            f"the teacher {teacher} is {job.status}: a former job teaches by its snapshots, so it must have "
            "succeeded and kept some"
        )
    former = job.spec
    members = tuple(
        StoredWeights(id=one.id, sha256=one.sha256, blob=one.sha256, prefix=former.start.prefix, network=former.network)
        for one in snapshots
    )
    summary = store.datasets.summary_for(tenant, teacher)
    return _Teacher(teacher, members, list(former.classes or (summary.classes if summary else [])))


def _check_order(teacher: _Teacher, names: list[str], outputs: int) -> None:
    """Raise CheckpointsDiffer (422) where an output of the teacher means another class than the student's.

    names: the student's classes in the order of its outputs, where they are given or in the dataset.
    """
    if len(teacher.classes) == len(names) == outputs and teacher.classes != names:
        first = next(i for i, (a, b) in enumerate(zip(teacher.classes, names, strict=True)) if a != b)
        raise CheckpointsDiffer(
            f"output {first} is {teacher.classes[first]!r} in the teacher {teacher.id} and {names[first]!r} in the student: "
            "give `classes` in the same order"
        )


def _cost(spec: JobSpec) -> float:
    """Return the cost of a training image over that of a plain forward and backward pass: a teacher adds its forward passes, a
    gradient penalty a second backward pass (a backward pass counts as two forward passes)."""
    return ((6.0 if spec.recipe.gradient_penalty else 3.0) + len(spec.teachers)) / 3.0
