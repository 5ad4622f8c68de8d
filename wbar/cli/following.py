"""Commands that stay with a job: watch, logs, open. Ctrl-C leaves the job alone and says how to come back."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from wbar.cli.completion import JobId, job_ids
from wbar.cli.names import job_of
from wbar.cli.output import (
    DETACHED,
    FAILED,
    answer,
    connected,
    console,
    note,
    print_json,
    wants_json,
    with_json,
)

if TYPE_CHECKING:
    from wbar.client import Client
    from wbar.jobs import Event, EventType

app = typer.Typer()


@app.command()
@with_json
def watch(job: JobId) -> None:
    """Follow a job to its end, from its first event on. Ctrl-C leaves it running."""
    with connected() as client:
        follow(client, job_of(client, job))


@app.command()
@with_json
def logs(
    job: JobId,
    following: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job ends.")] = False,
    progress: Annotated[bool, typer.Option("--progress", help="Also how far it was, once a second.")] = False,
) -> None:
    """Print what a job has said: its states, snapshots, means and messages. With --json -f one event a line."""
    types: tuple[EventType, ...] = ("status", "metrics", "snapshot", "log", *(("progress",) if progress else ()))
    with connected() as client:
        job = job_of(client, job)
        if not following:
            events = [*client.jobs.iterate_events(job, types)]
            if wants_json():
                print_json([event.model_dump(mode="json") for event in events])
                return
            for event in events:
                _print_event(event)
            return
        try:
            for event in client.jobs.events(job):
                if event.type in types:
                    _print_event(event)
        except KeyboardInterrupt:
            raise typer.Exit(DETACHED) from None


def _print_event(event: "Event") -> None:
    if wants_json():
        typer.echo(event.model_dump_json())
        return
    from wbar.display import line_of

    typer.echo(f"{event.created_at[:19]}  {event.type:<8}  {line_of(event).strip()}")


@app.command(name="open")
@with_json
def open_page(
    job: Annotated[
        str | None, typer.Argument(help="job_…, or its name; none: all jobs.", autocompletion=job_ids)
    ] = None,
) -> None:
    """Open the dashboard in a browser, signed in, at a job where one is given. Prints the address, which opens it once."""
    import webbrowser

    with connected() as client:
        if job is not None:
            job = client.jobs.get(job_of(client, job)).id  # a wrong id is better said here than in a browser
        link = client.keys.sign_in_link()
        url = client.url + link.url + ("" if job is None else f"&next=/jobs/{job}")
    opened = webbrowser.open(url)
    if not opened:
        note("no browser here: open this address")
    answer({"url": url, "opened": opened}, url)


def follow(client: "Client", job_id: str) -> None:
    """Stay with a job to its end, and print what came of it. Exits with 1 unless it succeeded, with 130 at Ctrl-C."""
    try:
        _stay(client, job_id)
    except KeyboardInterrupt:
        note(f"{job_id} goes on. Come back: wbar watch {job_id}. End it: wbar cancel {job_id}")
        if wants_json():
            with suppress(KeyboardInterrupt):
                print_json(client.jobs.get(job_id))
        raise typer.Exit(DETACHED) from None
    job = client.jobs.get(job_id)
    if wants_json():
        print_json(job)
    elif job.result is not None:
        from wbar import display

        console().print(display.comparison(job))
        sets = display.evaluation(job)
        if sets is not None:
            console().print(sets)
        for line in display.summary(job.result):
            console().print(line, soft_wrap=True)
    elif job.error is not None:
        note(f"{job.error.code}: {job.error.message}", "red")
    else:
        note(f"{job_id} was {job.status}: wbar logs {job_id} says what happened")
    if job.result is None:
        raise typer.Exit(FAILED)


def _stay(client: "Client", job_id: str) -> None:
    if wants_json():
        client.jobs.wait(job_id, progress=False)
        return
    from wbar import display

    display.follow(client.jobs.events(job_id), console(stderr=True))
