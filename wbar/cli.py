"""The command line: a thin layer over the client. Exit codes: 0 done, 1 the job failed, 2 usage, 3 refused, 4 unreachable.

The other rooms add their commands through the entry-point group `wbar.commands`; none of them is imported here, so that
`wbar --help` starts fast and a plain installation is enough for a user.
"""

import importlib.util
import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wbar import __version__
from wbar.errors import Rejected, UnknownArchitecture, Unreachable, WbarError

if TYPE_CHECKING:
    from wbar.client import Client
    from wbar.jobs import Job
    from wbar.transfers import Step

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
datasets_app = typer.Typer(no_args_is_help=True, help="Datasets: add, list.")
app.add_typer(datasets_app, name="datasets")
keys_app = typer.Typer(no_args_is_help=True, help="API keys of your tenant: create, list, revoke.")
app.add_typer(keys_app, name="keys")
# The names are written out: importing the models that define them would slow `wbar --help` down.
AUGMENTS = (
    "auto, none, pad_crop, pad_crop_flip, resized_crop, resized_crop_flip, imagenet, rand_augment, trivial_augment"
)
KEPT = "Seconds until it is deleted, or once no job needs it; default: it stays."
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

FAILED, USAGE, REFUSED, UNREACHABLE = 1, 2, 3, 4


def need(extra: str, *modules: str) -> None:
    """End with a sentence naming the extra if one of its modules is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        errors.print(
            f"this command needs {', '.join(missing)}: pip install 'wbar[{extra}]'", markup=False, soft_wrap=True
        )
        raise typer.Exit(USAGE)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    """wbar: fine-tune a trained image network with cyclic rates, download the mean of the weights it visited."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="safetensors or PyTorch file.")],
    name: Annotated[str | None, typer.Option(help="Default: the file's name.")] = None,
    expires_after: Annotated[int | None, typer.Option(help=KEPT)] = None,
    architecture: Annotated[str | None, typer.Option(help="Default: detected from the tensors.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Default: read off the tensors.")] = None,
) -> None:
    """Upload a checkpoint, wait until it was validated, print its id."""
    try:
        with _client() as client, _transfer() as bar:
            step = _step(bar, f"upload {file.name}")
            made = client.checkpoints.create(
                file,
                name=name,
                architecture=architecture,
                num_classes=num_classes,
                expires_after=expires_after,
                step=step,
            )
    except UnknownArchitecture as error:
        raise UnknownArchitecture(f"{error.detail}. Here `architecture` is --architecture NAME") from None
    assert made.architecture is not None
    errors.print(f"{made.architecture.name}, {made.architecture.num_classes} classes, {made.parameters:,} parameters")
    if made.architecture.warning:
        errors.print(made.architecture.warning, style="yellow", markup=False, soft_wrap=True)
    typer.echo(made.id)


@datasets_app.command("add")
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
    multilabel: Annotated[bool, typer.Option(help="Several labels per image, from labels.csv.")] = False,
) -> None:
    """Add a dataset, wait until it was read, print its id."""
    if ":" not in source and not Path(source).exists():
        raise typer.BadParameter(f"{source!r} is no file or folder and no builtin:, file:// or s3:// source")
    with _client() as client, _transfer() as bar:
        step = None if source.startswith(("builtin:", "file:", "s3:")) else _step(bar, f"upload {Path(source).name}")
        made = client.datasets.create(
            source,
            name=name,
            task="multilabel" if multilabel else "classification",
            max_train_images=max_train_images,
            expires_after=expires_after,
            step=step,
        )
    splits = made.splits or {}
    for warning in made.warnings:
        errors.print(warning, style="yellow", markup=False)
    errors.print(
        f"{len(made.classes or [])} classes, {splits['train'].images:,} training and {splits['val'].images:,} held-out images"
    )
    typer.echo(made.id)


@datasets_app.command("list")
def list_datasets(limit: int = 20, after: str | None = None) -> None:
    """List the datasets, newest first."""
    with _client() as client:
        page = client.datasets.list(limit=limit, after=after).data
    _table(("id", "name", "status", "classes", "images"), [
        (item.id, item.name, item.status, len(item.classes or []), sum(s.images for s in (item.splits or {}).values()))
        for item in page
    ])  # fmt: skip


@app.command()
def checkpoints(limit: int = 20, after: str | None = None) -> None:
    """List the checkpoints, newest first."""
    with _client() as client:
        page = client.checkpoints.list(limit=limit, after=after).data
    _table(("id", "name", "status", "architecture", "bytes"), [
        (item.id, item.name, item.status, item.architecture.name if item.architecture else "", f"{item.bytes:,}")
        for item in page
    ])  # fmt: skip


@app.command()
def submit(
    checkpoint: Annotated[str, typer.Option(help="ckpt_…")],
    dataset: Annotated[str, typer.Option(help="ds_…")],
    name: Annotated[str | None, typer.Option()] = None,
    method: Annotated[str | None, typer.Option(help="auto, cyclic_swa (the default), swa, ema, lawa, none")] = None,
    epochs: Annotated[int | None, typer.Option(help="Extra epochs, of methods without cycles.")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest rate, of methods without cycles.")] = None,
    average: Annotated[str | None, typer.Option(help="uniform, greedy, window")] = None,
    control: Annotated[
        bool, typer.Option(help="Also run a cosine fine-tune of equal length, to compare with.")
    ] = False,
    guard: Annotated[
        bool | None, typer.Option(help="Give the start back if the average is worse than it (on in `auto`).")
    ] = None,
    cycles: Annotated[int | None, typer.Option(help="Snapshots that enter the mean.")] = None,
    high_lr: Annotated[float | None, typer.Option()] = None,
    low_lr: Annotated[float | None, typer.Option()] = None,
    high_epochs: Annotated[int | None, typer.Option()] = None,
    low_epochs: Annotated[int | None, typer.Option()] = None,
    pull: Annotated[float | None, typer.Option(help="λ of λ‖w̄ − w‖².")] = None,
    include_start: Annotated[bool, typer.Option(help="Count the start as a point of the mean.")] = False,
    batch_size: Annotated[int | None, typer.Option()] = None,
    image_size: Annotated[int | None, typer.Option()] = None,
    augment: Annotated[str | None, typer.Option(help=AUGMENTS)] = None,
    optimizer: Annotated[str | None, typer.Option(help="auto, sgd, adam, adamw, rmsprop, adagrad")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help='The rest of the recipe as JSON, or @FILE: \'{"mixup": 0.2, "freeze": ["conv1.*"]}\'.'),
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    expires_after: Annotated[
        int | None, typer.Option(help="Seconds from its end after which its files are deleted; default: they stay.")
    ] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="key=value, repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Resolve and estimate, create nothing.")] = False,
    wait: Annotated[bool, typer.Option(help="Follow the job to its end; exit 1 if it fails.")] = False,
) -> None:
    """Create a job and print its id. What is not given is resolved by the service and shown in the job."""
    asked: dict[str, Any] = _given(type=method, epochs=epochs, lr=lr, average=average, cycles=cycles, pull=pull)
    asked |= _given(include_start=include_start or None, control=control or None, guard=guard)
    asked |= {
        phase: values
        for phase, values in (
            ("high", _given(lr=high_lr, epochs=high_epochs)),
            ("low", _given(lr=low_lr, epochs=low_epochs)),
        )
        if values
    }
    trained = _object(recipe) | _given(batch_size=batch_size, image_size=image_size, augment=augment)
    trained |= {"optimizer": {"name": optimizer}} if optimizer else {}
    fields = _given(name=name, method=asked or None, recipe=trained or None, metadata=_tags(metadata or []) or None)
    fields |= _given(expires_after=expires_after)
    with _client() as client:
        made = client.jobs.create(checkpoint=checkpoint, dataset=dataset, seed=seed, dry_run=dry_run, **fields)
        _show_created(client, made, wait)


@app.command()
def clone(
    job: str,
    changes: Annotated[
        str | None, typer.Option(help='What differs, as JSON or @FILE: \'{"method": {"cycles": 12}}\'; null removes.')
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Resolve and estimate, create nothing.")] = False,
    wait: Annotated[bool, typer.Option(help="Follow the job to its end; exit 1 if it fails.")] = False,
) -> None:
    """Create a job like another one, and print its id."""
    differing = _object(changes, "--changes")
    with _client() as client:
        _show_created(client, client.jobs.clone(job, **(differing | {"dry_run": dry_run})), wait)


def _show_created(client: "Client", job: "Job", wait: bool) -> None:
    """Print a new job's id, and follow it if that is wanted; of a dry run, print what it would be."""
    if job.id is None:
        typer.echo(job.model_dump_json(indent=2))
        return
    typer.echo(job.id)
    if wait:
        _follow(client, job.id)


def _object(text: str | None, option: str = "--recipe") -> dict[str, Any]:
    """Parse a JSON object, given as text or as @FILE. option: that it was given by."""
    if text is None:
        return {}
    try:
        value = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise typer.BadParameter(f"{text[1:]} cannot be read: {error.strerror}", param_hint=option) from None
    except ValueError as error:
        raise typer.BadParameter(f"no JSON: {error}", param_hint=option) from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"a JSON object, not {text[:40]}", param_hint=option)
    return value


@app.command()
def jobs(
    status: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    after: Annotated[str | None, typer.Option()] = None,
) -> None:
    """List the jobs, newest first."""
    with _client() as client:
        page = client.jobs.list(limit=limit, after=after, status=status).data
    _table(("id", "name", "status", "done", "verdict"), [
        (job.id, job.name or "", job.status, f"{job.progress.fraction:.0%}" if job.progress else "",
         job.result.verdict if job.result else (job.error.code if job.error else ""))
        for job in page
    ])  # fmt: skip


@app.command()
def show(job: str) -> None:
    """Print one job as JSON."""
    with _client() as client:
        typer.echo(client.jobs.get(job).model_dump_json(indent=2))


@app.command()
def watch(job: str) -> None:
    """Follow a job to its end, from its first event on."""
    with _client() as client:
        _follow(client, job)


@app.command()
def cancel(job: str) -> None:
    """End a job now; its snapshots stay."""
    with _client() as client:
        typer.echo(client.jobs.cancel(job).status)


@app.command()
def pause(job: str) -> None:
    """Stop a running job at its next step, exactly resumable."""
    with _client() as client:
        client.jobs.pause(job)
    typer.echo("pausing")


@app.command()
def finish(job: str) -> None:
    """End a running job's training now, and have the average of what it visited so far."""
    with _client() as client:
        client.jobs.finish(job)
    typer.echo("finishing")


@app.command()
def resume(job: str) -> None:
    """Queue a paused job again."""
    with _client() as client:
        typer.echo(client.jobs.resume(job).status)


@app.command()
def download(
    job: str,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the averaged weights.")] = Path(
        "averaged.safetensors"
    ),
    format: Annotated[str | None, typer.Option(help="safetensors or pytorch; default: by the output's suffix.")] = None,
    snapshot: Annotated[int | None, typer.Option(help="Download w_n instead.")] = None,
) -> None:
    """Download the averaged weights: an interrupted download goes on, and the digest is verified."""
    kind: Literal["safetensors", "pytorch"] = "safetensors"
    if format == "pytorch" or (format is None and output.suffix in (".pt", ".pth")):
        kind = "pytorch"
    elif format not in (None, "safetensors"):
        raise typer.BadParameter(f"{format!r} is not a format: safetensors or pytorch")
    with _client() as client, _transfer() as bar:
        step = _step(bar, f"download {output.name}")
        if snapshot is None:
            client.jobs.download(job, output, kind, step)
        else:
            client.jobs.download_snapshot(job, snapshot, output, step)
    errors.print("sha-256 verified")
    typer.echo(str(output))


@keys_app.command(name="create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write or admin; again for each. Default: read, write.")
    ] = None,
    expires_in_days: Annotated[float | None, typer.Option(help="Default: it does not expire.")] = None,
) -> None:
    """Create an API key and print it: it is shown only this once."""
    with _client() as client:
        made = client.keys.create(name, scopes=scope or ("read", "write"), expires_in_days=expires_in_days)  # type: ignore[arg-type]  # the service checks them
    errors.print(f"{made.id}: {', '.join(made.scopes)}; it is shown only this once", markup=False, soft_wrap=True)
    typer.echo(made.key)


@keys_app.command(name="list")
def keys_list(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    after: Annotated[str | None, typer.Option()] = None,
) -> None:
    """List the API keys, newest first: names, scopes and times, not the keys."""
    with _client() as client:
        page = client.keys.list(limit=limit, after=after).data
    columns = ("id", "name", "begins", "scopes", "last used", "expires")
    _table(columns, [
        (key.id, key.name, key.hint, " ".join(key.scopes), (key.last_used_at or "never")[:16], (key.expires_at or "never")[:16])
        for key in page
    ])  # fmt: skip


@keys_app.command(name="revoke")
def keys_revoke(key: Annotated[str, typer.Argument(help="Its id, as `wbar keys list` shows it.")]) -> None:
    """Revoke an API key: it opens nothing any more."""
    with _client() as client:
        client.keys.revoke(key)
    typer.echo(key)


def _client() -> "Client":
    # Loaded here: pydantic and httpx are most of the start-up of commands that work offline.
    from wbar.client import Client

    return Client()


def _transfer() -> Any:
    from wbar import display

    return display.transfer(errors)


def _follow(client: "Client", job_id: str) -> None:
    from wbar import display

    status = display.follow(client.jobs.events(job_id), errors)
    job = client.jobs.get(job_id)
    if job.result is not None:
        console.print(display.comparison(job))
        for line in display.summary(job.result):
            console.print(line, soft_wrap=True)
        return
    if job.error is not None:
        errors.print(f"{job.error.code}: {job.error.message}", style="red", markup=False, soft_wrap=True)
    else:
        errors.print(f"{job_id} was {status}")
    raise typer.Exit(FAILED)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _tags(pairs: list[str]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is not key=value")
        tags[key] = value
    return tags


def _step(bar: Any, description: str) -> "Step":
    task = bar.add_task(description, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = Table(box=None)
    for column in columns:
        table.add_column(column, no_wrap=column == "id", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row))
    console.print(table)


def main() -> None:
    """Run the `wbar` command."""
    app.add_typer(importlib.import_module("wbar.exports.commands").app, name="export")  # here: it imports this module
    for entry in entry_points(group="wbar.commands"):
        app.registered_commands += entry.load().registered_commands
    try:
        app()
    except Unreachable as error:
        _end(error, UNREACHABLE)
    except Rejected as error:
        _end(error, REFUSED)
    except WbarError as error:
        _end(error, REFUSED)
    except (ValueError, TimeoutError) as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(USAGE)


def _end(error: WbarError, code: int) -> None:
    errors.print(f"{error.code}: {error.detail}", style="red", markup=False, soft_wrap=True)
    for item in getattr(error, "errors", None) or []:
        errors.print(f"  {json.dumps(item)}", markup=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
