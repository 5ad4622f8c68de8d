"""Commands that look at jobs and control them: list, show, compare, cancel, pause, finish, resume, delete, download, card."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from wbar.cli.completion import After, JobId, Limit, Order, checkpoint_ids, job_ids, statuses
from wbar.cli.names import checkpoint_of, dataset_of, job_of
from wbar.cli.options import tags
from wbar.cli.output import (
    answer,
    answer_page,
    connected,
    console,
    note,
    print_json,
    step,
    transfer,
    wants_json,
    with_json,
)

if TYPE_CHECKING:
    from wbar.jobs import Job
    from wbar.results import JobResult, WeightsFormat

app = typer.Typer()
_FILES = {
    "pytorch": "a PyTorch file",
    "onnx": "an ONNX file",
    "pt2": "a pt2 archive",
    "huggingface": "a folder for transformers or timm",
}
WHICH: tuple[Literal["averaged", "swag", "control"], ...] = ("averaged", "swag", "control")
MOST_COMPARED = 12


@app.command()
@with_json
def jobs(
    status: Annotated[str | None, typer.Option(help="Keep those in this state.", autocompletion=statuses)] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Keep those that start from it.", autocompletion=checkpoint_ids)
    ] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="key=value; keep those with it; repeatable.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Keep those on it.")] = None,
    name: Annotated[str | None, typer.Option(help="Keep those with this in their name.")] = None,
    order_by: Annotated[
        str | None, typer.Option(help="created_at, finished_at, result.accuracy, result.loss_gain and the like.")
    ] = None,
    limit: Limit = 20,
    after: After = None,
    order: Order = None,
) -> None:
    """List the jobs, newest first."""
    with connected() as client:
        page = client.jobs.list(
            limit=limit, after=after, order=order, status=status, metadata=tags(metadata), name=name, order_by=order_by,
            checkpoint=checkpoint and checkpoint_of(client, checkpoint), dataset=dataset and dataset_of(client, dataset),
        )  # fmt: skip
    answer_page(page, ("id", "name", "status", "done", "verdict"), lambda job: (
        job.id, job.name or "", job.status, f"{job.progress.fraction:.0%}" if job.progress else "", _outcome(job)
    ))  # fmt: skip


def _outcome(job: "Job") -> str:
    return job.result.verdict if job.result else (job.error.code if job.error else "")


@app.command()
@with_json
def show(job: JobId) -> None:
    """Print one job as JSON."""
    with connected() as client:
        print_json(client.jobs.get(job_of(client, job)))


@app.command()
@with_json
def compare(
    compared: Annotated[
        list[str], typer.Argument(metavar="JOB JOB …", help="Two jobs or more.", autocompletion=job_ids)
    ],
) -> None:
    """Compare jobs: the options that differ, and the comparisons side by side, with their errors."""
    if not 2 <= len(compared) <= MOST_COMPARED:
        raise typer.BadParameter(f"{len(compared)} jobs: 2 to {MOST_COMPARED} can be compared", param_hint="JOB JOB …")
    from wbar.comparing import compared as side_by_side

    with connected() as client:
        made = side_by_side([client.jobs.get(job_of(client, job)) for job in compared])
    if wants_json():
        print_json(made)
        return
    from wbar.display import side_by_side as tables

    for table in tables(made):
        console().print(table)
    console().print(made.note, soft_wrap=True, markup=False)


@app.command()
@with_json
def cancel(job: JobId) -> None:
    """End a job now; its snapshots stay."""
    with connected() as client:
        now = client.jobs.cancel(job_of(client, job))
    answer(now, now.status)


@app.command()
@with_json
def pause(job: JobId) -> None:
    """Stop a running job at its next step, exactly resumable."""
    with connected() as client:
        answer(client.jobs.pause(job_of(client, job)), "pausing")


@app.command()
@with_json
def finish(job: JobId) -> None:
    """End a running job's training now, and have the average of what it visited so far."""
    with connected() as client:
        answer(client.jobs.finish(job_of(client, job)), "finishing")


@app.command()
@with_json
def resume(job: JobId) -> None:
    """Queue a paused job again."""
    with connected() as client:
        now = client.jobs.resume(job_of(client, job))
    answer(now, now.status)


@app.command()
@with_json
def delete(job: JobId) -> None:
    """Delete an ended job with everything it made: weights, snapshots, events, report."""
    with connected() as client:
        found = job_of(client, job)
        client.jobs.delete(found)
    answer({"id": found, "object": "job", "deleted": True}, found)


@app.command()
@with_json
def download(
    job: JobId,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the averaged weights.")] = Path(
        "averaged.safetensors"
    ),
    format: Annotated[
        str | None,
        typer.Option(help="safetensors, pytorch, onnx, pt2 or huggingface (.zip); default: by the output's suffix."),
    ] = None,
    averaged: Annotated[
        bool, typer.Option("--averaged", help="The average, also where the guard chose to deliver the start.")
    ] = False,
    snapshot: Annotated[int | None, typer.Option(help="Download w_n instead.")] = None,
    swag: Annotated[
        bool, typer.Option("--swag", help="Download the Gaussian of the snapshots (a job with swag).")
    ] = False,
    control: Annotated[
        bool, typer.Option("--control", help="Download the control (a method with it), which may have won.")
    ] = False,
) -> None:
    """Download the averaged weights: an interrupted download goes on, and the digest is verified."""
    from wbar.transfers import sha256_of

    suffixes: dict[str, WeightsFormat] = {
        ".pt": "pytorch", ".pth": "pytorch", ".onnx": "onnx", ".pt2": "pt2", ".zip": "huggingface"
    }  # fmt: skip
    formats: dict[str | None, WeightsFormat] = {kind: kind for kind in ("safetensors", *suffixes.values())}
    kind = suffixes.get(output.suffix, "safetensors") if format is None else formats.get(format)
    if kind is None:
        raise typer.BadParameter(f"{format!r} is not a format: {', '.join(filter(None, formats))}")
    if snapshot is not None and kind != "safetensors":
        raise typer.BadParameter(f"snapshots are safetensors files, and {output.name} would be {_FILES[kind]}")
    chosen = {"averaged": averaged, "swag": swag, "control": control}
    others = [name for name in WHICH if chosen[name]]
    if (snapshot is not None) + len(others) > 1:
        raise typer.BadParameter("--averaged, --swag, --control or --snapshot N: one of them")
    with connected() as client, transfer() as bar:
        job, moved = job_of(client, job), step(bar, f"download {output.name}")
        if others:
            client.jobs.download(job, output, kind, moved, which=others[0])
        elif snapshot is None:
            client.jobs.download(job, output, kind, moved)
            _about_others(job, client.jobs.get(job).result)
        else:
            client.jobs.download_snapshot(job, snapshot, output, moved)
    note("sha-256 verified")
    if wants_json():
        print_json({"path": str(output), "bytes": output.stat().st_size, "sha256": sha256_of(output)})
    else:
        typer.echo(str(output))


def _about_others(job: str, result: "JobResult | None") -> None:
    """Say which other weights of a job its result speaks for."""
    if result is None:
        return
    if result.delivered == "start":
        note(
            "the guard chose the start: these are its weights, unchanged, since the average was worse. The average itself: "
            f"wbar download {job} --averaged"
        )
    control, delivered = result.metrics.control, result.metrics.named()[result.delivered]
    if control is not None and round(control.loss, 4) < round(delivered.loss, 4):
        note(
            f"the control has the lower loss, {control.loss:.4f}, and these weights {delivered.loss:.4f}; it was kept, unless "
            f"the job is of before version 0.7: wbar download {job} --control"
        )


@app.command()
@with_json
def predict(
    job: JobId,
    files: Annotated[list[Path], typer.Argument(help="Images: JPEG, PNG or WebP, 64 at most.")],
    network: Annotated[str, typer.Option(help="averaged, start, snapshot_N, control, or swag.")] = "averaged",
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            help="How many classes, categories or boxes are named. Default: 3, 1 or 10.",
        ),
    ] = None,
    score: Annotated[float | None, typer.Option(min=0, max=1, help="Of detection: the least score of a box.")] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Of segmentation: write the class of every pixel there, FILE.png for each image."),
    ] = None,
) -> None:
    """Ask one of a job's networks what is in some images."""
    from wbar.cli.predictions import in_words, map_paths, write_maps

    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise typer.BadParameter(f"{str(missing)!r} is no file")
    maps = None if masks is None else map_paths(files, masks)
    with connected() as client:
        found = client.jobs.predict(job_of(client, job), files, network=network, top=top, score=score)
    if maps is not None:
        write_maps(found, maps)
    if wants_json():
        print_json(found)
        return
    if found.draws is not None:
        note(f"the mean over {found.draws} networks drawn from SWAG's Gaussian, ± one standard deviation")
    for file, said in zip(files, in_words(found, top), strict=True):
        typer.echo(f"{file}: {said}")


@app.command()
@with_json
def card(
    job: JobId,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it there, as README.md; default: print it.")
    ] = None,
) -> None:
    """Print or write the model card: what the weights are, what was done, how good they are, how to load them."""
    with connected() as client:
        text = client.jobs.card(job_of(client, job))
    if output is not None:
        output.write_bytes(text.encode())
    if wants_json():
        print_json({"card": text} if output is None else {"path": str(output)})
    else:
        typer.echo(text if output is None else str(output), nl=output is not None)
