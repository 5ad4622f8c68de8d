"""`wbar submit` and `wbar clone`: a request from options, from a file, or from both."""

from typing import TYPE_CHECKING, Annotated

import typer

from wbar.cli.completion import JobId, checkpoint_ids, dataset_ids
from wbar.cli.following import follow
from wbar.cli.job_file import read_object, read_request
from wbar.cli.names import in_request, job_of
from wbar.cli.options import given, tags
from wbar.cli.output import answer, connected, note, wants_json, with_json
from wbar.merge_patch import merged, method_type, patched

if TYPE_CHECKING:
    from wbar.client import Client
    from wbar.jobs import Job
    from wbar.method import CyclicSwa

app = typer.Typer()
# The names are written out: importing the models that define them would slow `wbar --help` down.
AUGMENTS = (
    "auto, none, pad_crop, pad_crop_flip, resized_crop, resized_crop_flip, imagenet, rand_augment, trivial_augment, "
    "scale_crop_flip, scale_crop_flip_colour, flip"
)
DryRun = Annotated[bool, typer.Option("--dry-run", help="Resolve and estimate, create nothing.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Follow the job to its end; exit 1 if it fails. Ctrl-C leaves it running.")
]


@app.command()
@with_json
def submit(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="[@FILE]",
            help="A whole job in YAML or JSON, as POST /v1/jobs takes it; @- reads stdin. Options go before it.",
        ),
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="ckpt_…, or its name.", autocompletion=checkpoint_ids)] = None,
    dataset: Annotated[str | None, typer.Option(help="ds_…, or its name.", autocompletion=dataset_ids)] = None,
    name: Annotated[str | None, typer.Option()] = None,
    method: Annotated[
        str | None, typer.Option(help="auto, cyclic_swa (the default), swa, ema, lawa, none; soup: see --soup")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Extra epochs, of methods without cycles.")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest rate, of methods without cycles.")] = None,
    average: Annotated[
        str | None, typer.Option(help="uniform, greedy, window; of swa also swad, of a soup stock")
    ] = None,
    interpolate: Annotated[
        bool,
        typer.Option(
            "--interpolate",
            help="Deliver the point of the line from the start to the average that held-out images choose.",
        ),
    ] = False,
    alpha: Annotated[
        float | None, typer.Option(help="Deliver this point of that line: 0 is the start, 1 the average.")
    ] = None,
    control: Annotated[
        bool | None, typer.Option(help="Also run a cosine fine-tune of equal length, to compare with.")
    ] = None,
    guard: Annotated[
        bool | None, typer.Option(help="Give the start back if the average is worse than it (on in `auto`).")
    ] = None,
    cycles: Annotated[int | None, typer.Option(help="Snapshots that enter the mean.")] = None,
    high_lr: Annotated[float | None, typer.Option()] = None,
    low_lr: Annotated[float | None, typer.Option()] = None,
    high_epochs: Annotated[float | None, typer.Option()] = None,
    low_epochs: Annotated[float | None, typer.Option()] = None,
    pull: Annotated[float | None, typer.Option(help="λ of λ‖w̄ − w‖².")] = None,
    include_start: Annotated[bool | None, typer.Option(help="Count the start as a point of the mean.")] = None,
    replicas: Annotated[
        int | None,
        typer.Option(help="Train so many times, as jobs with other seeds on any workers, and join their averages."),
    ] = None,
    join_every: Annotated[
        int | None,
        typer.Option(help="Of replicas: they meet after every so many snapshots, and go on from their mean."),
    ] = None,
    join_keep: Annotated[
        float | None, typer.Option(help="α, the share of its own weights that a replica keeps where they meet.")
    ] = None,
    soup: Annotated[
        list[str] | None,
        typer.Option(
            help="Average this checkpoint with the others given like this (method soup); again for each. The first is the "
            "start, unless --checkpoint says otherwise.",
            autocompletion=checkpoint_ids,
        ),
    ] = None,
    weight: Annotated[list[float] | None, typer.Option(help="Of a soup: one for each --soup, in order.")] = None,
    evaluate: Annotated[
        list[str] | None,
        typer.Option(
            help="name=ds_…: a further dataset that every comparison is scored on, under this name; again for each."
        ),
    ] = None,
    select_on: Annotated[
        str | None, typer.Option(help="The name of one of them that chooses, instead of half of the held-out images.")
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(help="ds_…: images, without labels too, whose outputs are kept and compared at the end."),
    ] = None,
    swag: Annotated[int | None, typer.Option(help="Samples of a Bayesian average (SWAG) to compare with.")] = None,
    format: Annotated[
        list[str] | None,
        typer.Option(
            help="Also make the weights in this format: onnx, pt2 (torch.export), or huggingface (timm's folder)."
        ),
    ] = None,
    flatness: Annotated[bool | None, typer.Option(help="Measure how flat the loss is, and draw it.")] = None,
    surface: Annotated[
        int | None, typer.Option(help="With --flatness, the loss on a grid with so many points along a side: 11.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    image_size: Annotated[int | None, typer.Option()] = None,
    augment: Annotated[str | None, typer.Option(help=AUGMENTS)] = None,
    optimizer: Annotated[str | None, typer.Option(help="auto, sgd, adam, adamw, rmsprop, adagrad")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help='The rest of the recipe as JSON, or @FILE: \'{"mixup": 0.2, "freeze": ["conv1.*"]}\'.'),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="How long it may run; then it fails.")] = None,
    priority: Annotated[int | None, typer.Option(help="-100 to 100, among your own queued jobs; default: 0.")] = None,
    expires_after: Annotated[
        int | None, typer.Option(help="Seconds from its end after which its files are deleted; default: they stay.")
    ] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="key=value, repeatable.")] = None,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> None:
    """Create a job and print its id. What is not given is resolved by the service and shown in the job."""
    if job is not None and not job.startswith("@"):
        raise typer.BadParameter(f"{job!r}: a file is given as @{job}", param_hint="@FILE")
    asked = given(
        type=method or ("soup" if soup else None), epochs=epochs, lr=lr, average=average, cycles=cycles, pull=pull,
        include_start=include_start, control=control, guard=guard, replicas=replicas, join_every=join_every,
        join_keep=join_keep,
        high=given(lr=high_lr, epochs=high_epochs) or None, low=given(lr=low_lr, epochs=low_epochs) or None,
        checkpoints=soup or None, weights=weight or None,
        interpolate=given(choose=alpha) if interpolate or alpha is not None else None,
    )  # fmt: skip
    trained = read_object(recipe, "--recipe") | given(batch_size=batch_size, image_size=image_size, augment=augment)
    trained = merged(trained, {"optimizer": {"name": optimizer}}) if optimizer else trained
    options = given(
        checkpoint=checkpoint, dataset=dataset, name=name, method=asked or None, recipe=trained or None, seed=seed,
        swag=swag, formats=format or None, flatness=flatness, max_seconds=max_seconds, priority=priority,
        expires_after=expires_after, metadata=tags(metadata) or None, evaluate=tags(evaluate) or None, select_on=select_on,
        probe=probe, surface=None if surface is None else {"points": surface},
        dry_run=dry_run or None,
    )  # fmt: skip
    body = patched(read_request(job, "@FILE"), options)
    if soup:
        body.setdefault("checkpoint", soup[0])
    for input_, option in (("checkpoint", "--checkpoint"), ("dataset", "--dataset")):
        if input_ not in body:
            raise typer.BadParameter("missing, and no @FILE names it", param_hint=option)
    if epochs is not None and method_type(body["method"]) == "cyclic_swa":
        raise typer.BadParameter(
            "cyclic_swa has cycles: give --cycles and --high-epochs, or a method that has epochs, as --method auto",
            param_hint="--epochs",
        )
    with connected() as client:
        made = client.jobs.create(**in_request(client, body))
        if "type" not in (body.get("method") or {}) and made.method.type == "cyclic_swa":
            note(_by_default(made.method))
        _show_created(client, made, wait)


@app.command()
@with_json
def clone(
    job: JobId,
    changes: Annotated[
        str | None, typer.Option(help='What differs, as JSON or @FILE: \'{"method": {"cycles": 12}}\'; null removes.')
    ] = None,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> None:
    """Create a job like another one, and print its id."""
    differing = read_request(changes, "--changes") | ({"dry_run": True} if dry_run else {})
    with connected() as client:
        same = job_of(client, job)
        _show_created(client, client.jobs.clone(same, **in_request(client, differing)), wait)


def _show_created(client: "Client", job: "Job", wait: bool) -> None:
    """Print a new job's id, and follow it if that is wanted; of a dry run, print what it would be."""
    if job.id is None:
        answer(job, job.model_dump_json(indent=2))
        return
    if not (wait and wants_json()):
        answer(job, job.id)
    if wait:
        follow(client, job.id)


def _by_default(method: "CyclicSwa") -> str:
    """Return what the method is that was not named, and what another one measures beyond it."""
    beside = "and a control" if method.control else "without a control"
    control = "" if method.control else " --control"
    compares = "" if method.control else ", and compares with a plain fine-tune of equal length"
    return (
        f"method cyclic_swa, {method.cycles} cycles, {beside}. --method auto{control} measures more: it tries the rate on the "
        f"start, chooses among many averages on half of the held-out images{compares}"
    )
