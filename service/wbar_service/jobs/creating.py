"""From a request to a resolved job: everything that can be known is checked before the row exists."""

from typing import Any

from sqlalchemy import Connection, Row, select

from wbar.checkpoints import NetworkArchitecture
from wbar.datasets import Dataset
from wbar.errors import CheckpointNotReady, CheckpointsDiffer, DatasetNotReady, ValidationFailed
from wbar.jobs import JobRequest
from wbar.method import METHODS, Soup
from wbar.recipe import Normalization, Recipe
from wbar.resolve import check_image_size, check_snapshots, resolve_classes, resolve_method, resolve_recipe
from wbar_store import checkpoints, datasets
from wbar_store.database import Tenant
from wbar_store.jobs import Jobs, snapshot_rows
from wbar_store.store import Store
from wbar_store.tables import checkpoints as checkpoint_rows
from wbar_store.tables import datasets as dataset_rows
from wbar_store.tables import jobs

OF_TRAINING = {"accumulate", "class_weights", "compile", "cutmix", "devices", "distillation", "dropout", "early_stopping",
               "freeze", "gradient_penalty", "head", "init", "mixup", "reset", "sync_batch_norm", "zero_gamma"}  # fmt: skip


def resolve(connection: Connection, tenant: Tenant, request: JobRequest, gpu: bool) -> dict[str, Any]:
    """The values of the job's row, with every `auto` replaced. Raises NotFound, CheckpointNotReady, DatasetNotReady
    and the mismatches of `wbar.resolve`. Both rows stay locked, so that neither is deleted before the job exists.
    """
    teacher = request.recipe.distillation.teacher if request.recipe.distillation else ""
    others = request.method.checkpoints if isinstance(request.method, Soup) else []
    others = [*others, teacher] if teacher.startswith("ckpt_") else others
    # All of them in one order, before anything else is locked: two jobs with the same checkpoints must not cross.
    for each in sorted({request.checkpoint, *others}):
        checkpoints.get(connection, tenant, each, lock=True)
    start = checkpoints.get(connection, tenant, request.checkpoint)
    if start.status != "ready":
        raise CheckpointNotReady(_not_ready(start))
    data = datasets.get(connection, tenant, request.dataset, lock=True)
    if data.status != "ready":
        raise DatasetNotReady(_not_ready(data))
    network = NetworkArchitecture.model_validate(start.architecture)
    dataset = Dataset.model_validate(datasets.sent(data))
    statistics = Normalization(mean=data.summary["mean"], std=data.summary["std"])
    asked = request.classes
    if request.recipe.head == "reset":
        asked = asked or dataset.classes or []  # said in the job: what the new outputs are
        network = network.model_copy(update={"num_classes": len(asked)})
    classes = resolve_classes(asked, network, dataset)
    recipe = resolve_recipe(request.recipe, network, dataset, statistics, gpu, request.method)
    method = resolve_method(request.method, recipe, network)
    if isinstance(method, Soup):
        _check_ingredients(connection, tenant, method, start)
    if teacher:
        _check_teacher(connection, tenant, teacher, network, recipe, classes or dataset.classes or [])
    if isinstance(method, Soup):
        _check_soup_recipe(request.recipe)
    snapshots = 0 if isinstance(method, Soup) else check_snapshots(method, _steps_per_epoch(dataset, recipe))
    if request.swag and snapshots < 2:
        raise ValidationFailed(
            f"swag needs two snapshots or more (two cycles of cyclic_swa): method is {method.model_dump(mode='json')}"
        )
    return {
        "name": request.name,
        "checkpoint": request.checkpoint,
        "dataset": request.dataset,
        "method": method.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json"),
        "classes": classes,
        "seed": request.seed,
        "flatness": request.flatness,
        "swag": request.swag,
        "metadata": request.metadata,
    }


def _steps_per_epoch(dataset: Dataset, recipe: Recipe) -> int:
    assert dataset.splits is not None
    assert recipe.batch_size != "auto"
    return -(-dataset.splits["train"].images // recipe.batch_size)


def _check_ingredients(connection: Connection, tenant: Tenant, soup: Soup, start: Row[Any]) -> None:
    """Every checkpoint of a soup is ready and of the start's architecture."""
    for ingredient in soup.checkpoints:
        row = checkpoints.get(connection, tenant, ingredient)
        if row.status != "ready":
            raise CheckpointNotReady(_not_ready(row))
        ours, theirs = start.architecture, row.architecture
        same = all(ours[key] == theirs[key] for key in ("name", "num_classes", "channels", "image_size"))
        if not same or bool(start.projection) != bool(row.projection):
            raise CheckpointsDiffer(
                f"{ingredient} is a {theirs['name']} with {theirs['num_classes']} outputs and {theirs['channels']} input "
                f"channels, {start.id} a {ours['name']} with {ours['num_classes']} and {ours['channels']} "
                "(or their shortcuts or image sizes differ)"
            )


def _check_soup_recipe(recipe: Recipe) -> None:
    asked = sorted(recipe.model_fields_set & OF_TRAINING)
    if asked:
        raise ValidationFailed(
            f"a soup trains nothing, and recipe.{asked[0]} is about training: leave it out",
            [{"pointer": f"/recipe/{name}", "detail": "not with a soup"} for name in asked],
        )


def _check_teacher(
    connection: Connection, tenant: Tenant, teacher: str, student: NetworkArchitecture, recipe: Recipe, names: list[str]
) -> None:
    """The teacher is there, takes the student's inputs, and its outputs mean what the student's do.

    names: the student's classes in the order of its outputs, as far as they are known.
    """
    row, outputs = teacher_of(connection, tenant, teacher)
    if row.status != "ready" and teacher.startswith("ckpt_"):
        raise CheckpointNotReady(_not_ready(row))
    channels = row.architecture["channels"]
    if (outputs, channels) != (student.num_classes, student.channels):
        raise CheckpointsDiffer(
            f"the teacher {teacher} is a {row.architecture['name']} with {outputs} outputs and {channels} input channels, "
            f"the student has {student.num_classes} and {student.channels}"
        )
    check_image_size(recipe, NetworkArchitecture.model_validate(row.architecture))
    if teacher.startswith("job_"):
        job = Jobs.get(connection, tenant, teacher)
        data = connection.execute(select(dataset_rows.c.summary).where(dataset_rows.c.id == job.dataset)).scalar()
        theirs = job.classes or (data or {}).get("classes") or []
        if len(theirs) == len(names) == outputs and theirs != names:
            first = next(i for i, (a, b) in enumerate(zip(theirs, names, strict=True)) if a != b)
            raise CheckpointsDiffer(
                f"output {first} is {theirs[first]!r} in the teacher {teacher} and {names[first]!r} in the student: give "
                "`classes` in the same order"
            )


def teacher_of(connection: Connection, tenant: Tenant, teacher: str) -> tuple[Row[Any], int]:
    """The checkpoint that says what a teacher is built like, and its outputs. Raises NotFound, ValidationFailed."""
    if teacher.startswith("ckpt_"):
        row = checkpoints.get(connection, tenant, teacher)
        return row, row.architecture["num_classes"] if row.architecture else 0
    job = Jobs.get(connection, tenant, teacher, lock=True)
    if job.status != "succeeded" or not snapshot_rows(connection, teacher):
        raise ValidationFailed(
            f"the teacher {teacher} is {job.status}: a former job teaches by its snapshots, so it must have "
            "succeeded and kept some"
        )
    # The row, also where it was deleted since: it stays for the jobs that name it.
    row = connection.execute(select(checkpoint_rows).where(checkpoint_rows.c.id == job.checkpoint)).one()
    return row, _outputs(job, row)


def _outputs(job: Row[Any], start: Row[Any]) -> int:
    reset = job.recipe.get("head") == "reset"
    return len(job.classes) if reset else int(start.architecture["num_classes"])


def _not_ready(row: Row[Any]) -> str:
    if row.status == "rejected":
        return f"{row.id} was rejected ({row.error['code']}: {row.error['message']}): upload a good one"
    return f"{row.id} is still {row.status}: wait until it is ready"


def dry_run(connection: Connection, tenant: Tenant, values: dict[str, Any]) -> dict[str, Any]:
    """The job as it would be, with an estimate and no id."""
    start = checkpoints.get(connection, tenant, values["checkpoint"])
    data = datasets.get(connection, tenant, values["dataset"])
    method, recipe = METHODS.validate_python(values["method"]), Recipe.model_validate(values["recipe"])
    images = data.summary["splits"]["train"]["images"]
    assert recipe.batch_size != "auto"
    per_epoch = -(-images // recipe.batch_size)
    epochs = snapshots = 0
    if not isinstance(method, Soup):
        epochs = method.total_epochs * (2 if method.control else 1)
        snapshots = method.snapshots(per_epoch)
    speed = _images_per_second(connection, tenant, values["checkpoint"])
    return {
        "id": None,
        "object": "job",
        **values,
        "status": "queued",
        "progress": None,
        "result": None,
        "error": None,
        "attempts": 0,
        "created_at": None,
        "started_at": None,
        "finished_at": None,
        "estimate": {
            "steps": epochs * per_epoch,
            "seconds": round(epochs * images / speed * _cost(connection, recipe), 1) if speed and epochs else None,
            "bytes": (snapshots + 2) * start.bytes,
        },
    }


def _cost(connection: Connection, recipe: Recipe) -> float:
    """A training image beside a plain one's forward and backward pass (3): a teacher's forward passes, a second backward."""
    cost = 6.0 if recipe.gradient_penalty else 3.0
    if recipe.distillation:
        teacher = recipe.distillation.teacher
        cost += 1 if teacher.startswith("ckpt_") else len(snapshot_rows(connection, teacher))
    return cost / 3.0


def _images_per_second(connection: Connection, tenant: Tenant, checkpoint: str) -> float | None:
    """How fast the last job on this checkpoint trained."""
    last = tenant.select(jobs).where(jobs.c.checkpoint == checkpoint, jobs.c.status == "succeeded")
    rows = connection.execute(last.order_by(jobs.c.id.desc()).limit(10)).all()
    speeds = [row.progress["images_per_second"] for row in rows if row.progress and row.progress["images_per_second"]]
    return float(speeds[0]) if speeds else None  # a soup trains nothing, and has none


def gpu_at_hand(store: Store) -> bool:
    """Whether a live training worker has a GPU: what `precision: auto` depends on."""
    return any(queue == "train" and device == "cuda" for _, queue, device in store.live_workers())
