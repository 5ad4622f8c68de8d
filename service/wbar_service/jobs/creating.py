"""From a request to a JobSpec: everything that can be known is checked before the row exists."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from wbar.datasets import Dataset
from wbar.errors import CheckpointNotReady, CheckpointsDiffer, DatasetNotReady, ValidationFailed
from wbar.jobs import Estimate, Job, JobRequest
from wbar.method import Soup
from wbar.recipe import Normalization, Recipe
from wbar.resolve import check_image_size, check_snapshots, resolve_classes, resolve_method, resolve_recipe
from wbar.spec import JobSpec, Network, StoredWeights
from wbar_store.checkpoints import CheckpointRecord
from wbar_store.database import Tenant
from wbar_store.datasets import DatasetRecord, DatasetSummary
from wbar_store.ids import kind_of
from wbar_store.judging import JudgedRecord
from wbar_store.store import Store


def make_spec(store: Store, tenant: Tenant, request: JobRequest, gpu: bool) -> JobSpec:
    """What the job is asked to do, with every `auto` replaced; the only function that makes a JobSpec here.

    gpu: whether a live worker has one. Call it in the block that creates the job: checkpoints, dataset and a former job stay
    locked, so that none is deleted before the job exists. Raises NotFound, CheckpointNotReady, DatasetNotReady and the
    mismatches of `wbar.resolve`.
    """
    checkpoints = _locked_checkpoints(store, tenant, request)
    start = checkpoints[request.checkpoint]
    _check_ready(start)
    data = store.datasets.get(tenant, request.dataset, lock=True)
    summary = _check_dataset(data)
    dataset = data.to_api()
    weights = start.stored()
    network, classes = _trained(weights.network, request, dataset)
    statistics = Normalization(mean=summary.mean, std=summary.std)
    recipe = resolve_recipe(request.recipe, network, dataset, statistics, gpu, request.method)
    method = resolve_method(request.method, recipe, network)
    ingredients: tuple[StoredWeights, ...] = ()
    if isinstance(method, Soup):
        ingredients = tuple(_ingredient(checkpoints[one], weights) for one in method.checkpoints)
        _check_soup_recipe(request.recipe)
        snapshots = 0
    else:
        snapshots = check_snapshots(method, _steps_per_epoch(summary, recipe))
    if request.swag and snapshots < 2:
        raise ValidationFailed(
            f"swag needs two snapshots or more (two cycles of cyclic_swa): method is {method.model_dump(mode='json')}"
        )
    teachers: tuple[StoredWeights, ...] = ()
    if recipe.distillation is not None:
        teacher = _teacher(store, tenant, recipe.distillation.teacher, checkpoints)
        _check_teacher(teacher, network, recipe, classes or dataset.classes or [])
        teachers = teacher.members
    return JobSpec(
        start=weights,
        dataset=data.stored(),
        network=network,
        classes=tuple(classes) if classes else None,
        method=method,
        recipe=recipe,
        seed=request.seed,
        flatness=request.flatness,
        swag=request.swag,
        ingredients=ingredients,
        teachers=teachers,
    )


def dry_run(store: Store, tenant: Tenant, request: JobRequest, spec: JobSpec) -> Job:
    """The job as it would be, with an estimate and no id."""
    summary = _check_dataset(store.datasets.get(tenant, spec.dataset.id))
    images, per_epoch = summary.splits["train"].images, _steps_per_epoch(summary, spec.recipe)
    epochs = snapshots = 0
    if not isinstance(spec.method, Soup):
        epochs = spec.method.total_epochs * (2 if spec.method.control else 1)
        snapshots = spec.method.snapshots(per_epoch)
    speed = store.jobs.images_per_second(tenant, spec.start.id)
    estimate = Estimate(
        steps=epochs * per_epoch,
        seconds=round(epochs * images / speed * _cost(spec), 1) if speed and epochs else None,
        bytes=(snapshots + 2) * store.checkpoints.get(tenant, spec.start.id).bytes,
    )
    return Job.of(spec, name=request.name, metadata=request.metadata, estimate=estimate)


def gpu_at_hand(store: Store) -> bool:
    """Whether a live training worker has a GPU: what `precision: auto` depends on."""
    return any(worker.queue == "train" and worker.device == "cuda" for worker in store.workers.live())


def _locked_checkpoints(store: Store, tenant: Tenant, request: JobRequest) -> Mapping[str, CheckpointRecord]:
    """Every checkpoint that the request names, by id."""
    names = {request.checkpoint}
    if isinstance(request.method, Soup):
        names |= set(request.method.checkpoints)
    if request.recipe.distillation and kind_of(request.recipe.distillation.teacher) == "ckpt":
        names.add(request.recipe.distillation.teacher)
    # All of them in one order, before anything else is locked: two jobs with the same checkpoints must not cross.
    return {name: store.checkpoints.get(tenant, name, lock=True) for name in sorted(names)}


def _trained(start: Network, request: JobRequest, dataset: Dataset) -> tuple[Network, list[str] | None]:
    """The network that is trained and its classes: with a new head, one output for each class that was asked for."""
    classes = request.classes
    if request.recipe.head == "reset":
        classes = classes or dataset.classes or []  # said in the job: what the new outputs are
        start = replace(start, num_classes=len(classes))
    return start, resolve_classes(classes, start, dataset)


def _ingredient(record: CheckpointRecord, start: StoredWeights) -> StoredWeights:
    """One checkpoint of a soup. Raises CheckpointNotReady, CheckpointsDiffer for another architecture than the start's."""
    _check_ready(record)
    found = record.stored()
    ours, theirs = start.network, found.network
    if ours != theirs:
        raise CheckpointsDiffer(
            f"{record.id} is a {theirs.name} with {theirs.num_classes} outputs and {theirs.channels} input "
            f"channels, {start.id} a {ours.name} with {ours.num_classes} and {ours.channels} "
            "(or their shortcuts or image sizes differ)"
        )
    return found


def _check_soup_recipe(recipe: Recipe) -> None:
    asked = recipe.about_training()
    if asked:
        raise ValidationFailed(
            f"a soup trains nothing, and recipe.{asked[0]} is about training: leave it out",
            [{"pointer": f"/recipe/{name}", "detail": "not with a soup"} for name in asked],
        )


@dataclass(frozen=True)
class _Teacher:
    """members: one checkpoint, or a former job's snapshots in order. classes: of its outputs, where they are known."""

    id: str
    members: tuple[StoredWeights, ...]
    classes: list[str]


def _teacher(store: Store, tenant: Tenant, teacher: str, checkpoints: Mapping[str, CheckpointRecord]) -> _Teacher:
    """Raises NotFound, CheckpointNotReady, ValidationFailed for a former job that left no snapshots."""
    if kind_of(teacher) == "ckpt":
        _check_ready(checkpoints[teacher])
        return _Teacher(teacher, (checkpoints[teacher].stored(),), [])
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


def _check_teacher(teacher: _Teacher, student: Network, recipe: Recipe, names: list[str]) -> None:
    """It takes the student's inputs, and its outputs mean what the student's do.

    names: the student's classes in the order of its outputs, as far as they are known.
    """
    network = teacher.members[0].network
    if (network.num_classes, network.channels) != (student.num_classes, student.channels):
        raise CheckpointsDiffer(
            f"the teacher {teacher.id} is a {network.name} with {network.num_classes} outputs and {network.channels} input "
            f"channels, the student has {student.num_classes} and {student.channels}"
        )
    check_image_size(recipe, network)
    if len(teacher.classes) == len(names) == network.num_classes and teacher.classes != names:
        first = next(i for i, (a, b) in enumerate(zip(teacher.classes, names, strict=True)) if a != b)
        raise CheckpointsDiffer(
            f"output {first} is {teacher.classes[first]!r} in the teacher {teacher.id} and {names[first]!r} in the student: "
            "give `classes` in the same order"
        )


def _check_ready(record: CheckpointRecord) -> None:
    if record.status != "ready":
        raise CheckpointNotReady(_not_ready(record))


def _check_dataset(record: DatasetRecord) -> DatasetSummary:
    if record.status != "ready" or record.summary is None:
        raise DatasetNotReady(_not_ready(record))
    return record.summary


def _not_ready(record: JudgedRecord) -> str:
    if record.error is not None:
        return f"{record.id} was rejected ({record.error.code}: {record.error.message}): upload a good one"
    return f"{record.id} is still {record.status}: wait until it is ready"


def _steps_per_epoch(summary: DatasetSummary, recipe: Recipe) -> int:
    assert recipe.batch_size != "auto"
    return -(-summary.splits["train"].images // recipe.batch_size)


def _cost(spec: JobSpec) -> float:
    """A training image beside a plain one's forward and backward pass (3): a teacher's forward passes, a second backward."""
    return ((6.0 if spec.recipe.gradient_penalty else 3.0) + len(spec.teachers)) / 3.0
