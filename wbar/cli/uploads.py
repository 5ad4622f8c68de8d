"""Commands for what jobs begin with: `wbar upload`, `wbar checkpoints [list|delete]`, `wbar datasets [add|list|delete]`."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wbar.cli.completion import After, Limit, Order, checkpoint_ids, dataset_ids
from wbar.cli.names import checkpoint_of, dataset_of
from wbar.cli.output import answer, answer_page, connected, note, step, transfer, with_json
from wbar.errors import UnknownArchitecture

app = typer.Typer()
checkpoints_app = typer.Typer(invoke_without_command=True)
datasets_app = typer.Typer(invoke_without_command=True)
MADE = re.compile("(job|merge)_[0-9a-z]+")
KEPT = "Seconds until it is deleted, or once no job needs it; default: it stays."


@app.command()
@with_json
def upload(
    file: Annotated[
        str, typer.Argument(help="safetensors, PyTorch or .pt2 file; or job_… or merge_…, whose weights are taken.")
    ],
    name: Annotated[str | None, typer.Option(help="Default: the file's or the job's name.")] = None,
    expires_after: Annotated[int | None, typer.Option(help=KEPT)] = None,
    architecture: Annotated[str | None, typer.Option(help="Default: detected from the tensors.")] = None,
    purpose: Annotated[
        str | None,
        typer.Option(
            help="merge: take a network that the service does not know, or a LoRA adapter; to be merged, not trained."
        ),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="Default: read off the tensors.")] = None,
) -> None:
    """Upload a checkpoint, wait until it was validated, print its id."""
    try:
        with connected() as client, transfer() as bar:
            if MADE.fullmatch(file) and not Path(file).exists():
                if architecture is not None or num_classes is not None:
                    raise typer.BadParameter("these weights have a network already", param_hint="--architecture")
                made = client.checkpoints.create_from(
                    file,
                    name=name,
                    purpose=purpose,  # type: ignore[arg-type]  # the service checks it
                    expires_after=expires_after,
                )
            else:
                made = client.checkpoints.create(
                    _existing(file),
                    name=name,
                    architecture=architecture,
                    num_classes=num_classes,
                    purpose=purpose,  # type: ignore[arg-type]  # the service checks it
                    expires_after=expires_after,
                    step=step(bar, f"upload {Path(file).name}"),
                )
    except UnknownArchitecture as error:
        raise UnknownArchitecture(f"{error.detail}. Here `architecture` is --architecture NAME") from None
    network = made.architecture
    if made.adapter:
        note(f"a LoRA adapter, {made.parameters:,} numbers: to be merged with others, not trained")
    elif network is None:
        note(f"of no known network, {made.parameters:,} numbers: to be merged, not trained")
    else:
        note(f"{network.name}, {network.num_classes} classes, {made.parameters:,} parameters")
        if network.warning:
            note(network.warning, "yellow")
        elif network.note:
            note(network.note, "dim")
    answer(made, made.id)


def _existing(file: str) -> Path:
    if not Path(file).is_file():
        raise typer.BadParameter(f"{file!r} is no file", param_hint="FILE")
    return Path(file)


@checkpoints_app.callback()
@with_json
def checkpoints(ctx: typer.Context, limit: Limit = 20, after: After = None, order: Order = None) -> None:
    """Checkpoints: list (also without a word more), delete."""
    if ctx.invoked_subcommand is None:
        _list_checkpoints(limit, after, order)


@checkpoints_app.command("list")
@with_json
def list_checkpoints(limit: Limit = 20, after: After = None, order: Order = None) -> None:
    """List the checkpoints, newest first."""
    _list_checkpoints(limit, after, order)


def _list_checkpoints(limit: int, after: str | None, order: str | None) -> None:
    with connected() as client:
        page = client.checkpoints.list(limit=limit, after=after, order=order)
    answer_page(page, ("id", "name", "status", "architecture", "bytes"), lambda item: (
        item.id, item.name, item.status, item.architecture.name if item.architecture else "", f"{item.bytes:,}"
    ))  # fmt: skip


@checkpoints_app.command("delete")
@with_json
def delete_checkpoint(
    checkpoint: Annotated[str, typer.Argument(help="ckpt_…, or its name.", autocompletion=checkpoint_ids)],
) -> None:
    """Delete a checkpoint; refused while a job that has not ended needs it."""
    with connected() as client:
        found = checkpoint_of(client, checkpoint)
        client.checkpoints.delete(found)
    answer({"id": found, "object": "checkpoint", "deleted": True}, found)


@datasets_app.callback()
@with_json
def datasets(ctx: typer.Context, limit: Limit = 20, after: After = None, order: Order = None) -> None:
    """Datasets: add, list (also without a word more), delete."""
    if ctx.invoked_subcommand is None:
        _list_datasets(limit, after, order)


class DatasetTask(StrEnum):
    """The tasks whose datasets can be added."""

    classification = "classification"
    multilabel = "multilabel"
    attributes = "attributes"
    segmentation = "segmentation"
    detection = "detection"
    regression = "regression"
    unlabelled = "unlabelled"


@datasets_app.command("add")
@with_json
def add_dataset(
    source: Annotated[
        str,
        typer.Argument(help="An archive's or folder's path, builtin:digits, builtin:fashion-mnist, file://…, s3://…"),
    ],
    name: Annotated[str | None, typer.Option()] = None,
    expires_after: Annotated[int | None, typer.Option(help=KEPT)] = None,
    max_train_images: Annotated[
        int | None, typer.Option(help="Keep this many training images (built-in sets).")
    ] = None,
    task: Annotated[
        DatasetTask,
        typer.Option(
            help="What the labels are: folders' names, those of labels.csv, categories of attributes.csv, masks, COCO's boxes, "
            "numbers of targets.csv; none (unlabelled) for probe images."
        ),
    ] = DatasetTask.classification,
    multilabel: Annotated[bool, typer.Option(help="The same as --task multilabel.")] = False,
    void_label: Annotated[
        int | None, typer.Option(min=0, max=255, help="Of masks: the label of pixels that belong to no class [255].")
    ] = None,
) -> None:
    """Add a dataset, wait until it was read, print its id."""
    if ":" not in source and not Path(source).exists():
        raise typer.BadParameter(f"{source!r} is no file or folder and no builtin:, file:// or s3:// source")
    if multilabel and task not in (DatasetTask.classification, DatasetTask.multilabel):
        raise typer.BadParameter(f"--multilabel and --task {task.value} are two tasks: give one of them")
    with connected() as client, transfer() as bar:
        named = source.startswith(("builtin:", "file:", "s3:"))
        made = client.datasets.create(
            source,
            name=name,
            task="multilabel" if multilabel else task.value,
            void_label=void_label,
            max_train_images=max_train_images,
            expires_after=expires_after,
            step=None if named else step(bar, f"upload {Path(source).name}"),
        )
    splits = made.splits or {}
    for warning in made.warnings:
        note(warning, "yellow")
    if made.task == "unlabelled":
        note(f"{splits['train'].images:,} images without labels")
    else:
        kinds = f"{len(made.classes or [])} classes"
        note(f"{kinds}, {splits['train'].images:,} training and {splits['val'].images:,} held-out images")
    answer(made, made.id)


@datasets_app.command("list")
@with_json
def list_datasets(limit: Limit = 20, after: After = None, order: Order = None) -> None:
    """List the datasets, newest first."""
    _list_datasets(limit, after, order)


@datasets_app.command("delete")
@with_json
def delete_dataset(
    dataset: Annotated[str, typer.Argument(help="ds_…, or its name.", autocompletion=dataset_ids)],
) -> None:
    """Delete a dataset; refused while a job that has not ended needs it."""
    with connected() as client:
        found = dataset_of(client, dataset)
        client.datasets.delete(found)
    answer({"id": found, "object": "dataset", "deleted": True}, found)


def _list_datasets(limit: int, after: str | None, order: str | None) -> None:
    with connected() as client:
        page = client.datasets.list(limit=limit, after=after, order=order)
    answer_page(page, ("id", "name", "status", "classes", "images"), lambda item: (
        item.id, item.name, item.status, len(item.classes or []), sum(s.images for s in (item.splits or {}).values())
    ))  # fmt: skip
