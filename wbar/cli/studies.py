"""`wbar study create|list|show|watch|report|cancel|pause|resume|delete`: one job over a grid of batch sizes, rates, seeds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wbar.cli.completion import After, Limit, Order, checkpoint_ids, dataset_ids, study_ids
from wbar.cli.job_file import read_request
from wbar.cli.names import in_request, study_of
from wbar.cli.options import given, numbers
from wbar.cli.output import answer, answer_page, connected, console, note, print_json, wants_json, with_json
from wbar.merge_patch import patched

if TYPE_CHECKING:
    from wbar.client import Client
    from wbar.studies import Study
    from wbar.study_results import ReportRows, StudyReport

app = typer.Typer(no_args_is_help=True, help="One job over a grid of batch sizes, rates, seeds and other fields.")

StudyId = Annotated[str, typer.Argument(help="study_…, or its name.", autocompletion=study_ids)]


@app.command()
@with_json
def create(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="[@FILE]",
            help="A whole study in YAML or JSON, as POST /v1/studies takes it; @- reads stdin. Options go before it.",
        ),
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="ckpt_…, or its name.", autocompletion=checkpoint_ids)] = None,
    dataset: Annotated[str | None, typer.Option(help="ds_…, or its name.", autocompletion=dataset_ids)] = None,
    job: Annotated[
        str | None,
        typer.Option(help='The rest of what all jobs have in common, as JSON or @FILE: \'{"method": {"epochs": 6}}\'.'),
    ] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="For example 16,64,256.")] = None,
    rates: Annotated[str | None, typer.Option(help="Highest rates: 0.05,0.1.")] = None,
    scaling: Annotated[
        str | None, typer.Option(help="How they grow with the batch: none, linear, sqrt; several with commas.")
    ] = None,
    base_batch: Annotated[int | None, typer.Option(help="The batch that the rates are for. Default: 128.")] = None,
    vary: Annotated[
        list[str] | None, typer.Option(help="Another field and its values, as JSON: method.pull=[0,0.001]; repeatable.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="For example 0,1,2.")] = None,
    at_once: Annotated[int | None, typer.Option(help="Jobs that run at a time, at most. Default: 4.")] = None,
    flatness: Annotated[bool | None, typer.Option(help="Measure distances, sharpness and curvature of each.")] = None,
    surface: Annotated[
        int | None, typer.Option(help="With --flatness, the loss on a grid with so many points along a side: 11.")
    ] = None,
    name: Annotated[str | None, typer.Option()] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve and estimate all of its jobs, create nothing.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all jobs have ended, then print the report.")
    ] = False,
) -> None:
    """Create a study, and print its id. Its jobs are the product of all that is varied."""
    if study is not None and not study.startswith("@"):
        raise typer.BadParameter(f"{study!r}: a file is given as @{study}", param_hint="@FILE")
    body = read_request(study, "@FILE")
    in_file = body.pop("job", None) or {}
    if not isinstance(in_file, dict):
        raise typer.BadParameter(f"`job` is {str(in_file)[:40]!r}: an object is wanted", param_hint="@FILE")
    common = patched(in_file, read_request(job, "--job"))
    common |= given(checkpoint=checkpoint, dataset=dataset, flatness=flatness)
    common |= {"surface": {"points": surface}} if surface is not None else {}
    for input_ in ("checkpoint", "dataset"):
        if input_ not in common:
            raise typer.BadParameter("missing, and no @FILE names it", param_hint=f"--{input_}")
    fields = body | given(
        batch_sizes=None if batch_sizes is None else numbers("--batch-sizes", batch_sizes, int),
        rates=None if rates is None else numbers("--rates", rates, float),
        scaling=scaling.split(",") if scaling else None,
        base_batch=base_batch,
        vary=_varied(vary) or None,
        seeds=None if seeds is None else numbers("--seeds", seeds, int),
        at_once=at_once,
        name=name,
    )
    with connected() as client:
        if dry_run or fields.pop("dry_run", False):
            print_json(client.studies.plan(in_request(client, common), **fields))
            return
        made = client.studies.create(in_request(client, common), **fields)
        if not (wait and wants_json()):
            answer(made, made.id)
        note(f"{made.jobs} jobs, {made.at_once} at a time", "dim")
        if wait:
            _show_report(client, client.studies.wait(made.id).id)


@app.command(name="list")
@with_json
def list_studies(limit: Limit = 20, after: After = None, order: Order = None) -> None:
    """List the studies, newest first."""
    with connected() as client:
        page = client.studies.list(limit=limit, after=after, order=order)
    answer_page(page, ("id", "name", "status", "jobs", "created"), lambda one: (
        one.id, one.name or "", one.status, _counts(one), one.created_at[:19]
    ))  # fmt: skip


@app.command()
@with_json
def show(study: StudyId) -> None:
    """Print a study and its jobs as JSON."""
    with connected() as client:
        print_json(client.studies.get(study_of(client, study)))


@app.command()
@with_json
def watch(study: StudyId) -> None:
    """Wait until all jobs of a study have ended, then print the report. Ctrl-C leaves it running."""
    with connected() as client:
        _show_report(client, client.studies.wait(study_of(client, study)).id)


@app.command()
@with_json
def report(
    study: StudyId,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it there: .json, or .csv with a row for each job.")
    ] = None,
    epochs: Annotated[bool, typer.Option("--epochs", help="In CSV, a row for each epoch of each job.")] = False,
    updates: Annotated[
        bool, typer.Option("--updates", help="In CSV, the histograms of update norms: a row for each epoch and bin.")
    ] = False,
    surface: Annotated[
        bool, typer.Option("--surface", help="In CSV, a row for each point of the loss surfaces.")
    ] = False,
    patience: Annotated[
        float | None, typer.Option(help="Epochs without a lower validation loss that settle the minimum. Default: 5.")
    ] = None,
) -> None:
    """Print what the jobs of a study measured so far, or write all of it to a file."""
    with connected() as client:
        study = study_of(client, study)
        if output is None:
            _show_report(client, study, patience)
            return
        tables: dict[ReportRows, bool] = {"epochs": epochs, "updates": updates, "surface": surface}
        asked = [rows for rows, wanted in tables.items() if wanted]
        csv = output.suffix == ".csv"
        if asked and not csv:
            raise typer.BadParameter(
                f"{output.name} is no .csv, and JSON has the {asked[0]} anyway", param_hint=f"--{asked[0]}"
            )
        if len(asked) > 1:
            raise typer.BadParameter(f"a file holds one table: not --{asked[0]} too", param_hint=f"--{asked[1]}")
        rows: ReportRows = asked[0] if asked else "jobs"
        text = (
            client.studies.report_csv(study, rows, patience)
            if csv
            else client.studies.report(study, patience).model_dump_json(indent=2) + "\n"
        )
    output.write_bytes(text.encode())
    answer({"path": str(output)}, str(output))


@app.command()
@with_json
def cancel(study: StudyId) -> None:
    """End all jobs of a study that have not ended."""
    with connected() as client:
        now = client.studies.cancel(study_of(client, study))
    answer(now, _counts(now))


@app.command()
@with_json
def pause(study: StudyId) -> None:
    """Let no further job of a study begin, and stop those that run, exactly resumable."""
    with connected() as client:
        now = client.studies.pause(study_of(client, study))
    answer(now, _counts(now))


@app.command()
@with_json
def resume(study: StudyId) -> None:
    """Let the jobs of a paused study go on."""
    with connected() as client:
        now = client.studies.resume(study_of(client, study))
    answer(now, _counts(now))


@app.command()
@with_json
def delete(study: StudyId) -> None:
    """Delete a study whose jobs have all ended, with the jobs and everything they made."""
    with connected() as client:
        study = study_of(client, study)
        client.studies.delete(study)
    answer({"id": study, "object": "study", "deleted": True}, study)


def _show_report(client: "Client", study: str, patience: float | None = None) -> None:
    made = client.studies.report(study, patience)
    if wants_json():
        print_json(made)
        return
    from rich.table import Table

    table = Table(title=f"{made.study}: {made.status}", box=None, header_style="bold")
    table.add_column("job")
    table.add_column("settings", overflow="fold")
    for name in ("status", "min. loss", "epoch", "s", made.score, "s/epoch", "‖w̄ − w₀‖", "sharp. %"):
        table.add_column(name, min_width=len("succeeded") if name == "status" else None)
    for row in _rows(made):
        table.add_row(*row)
    console().print(table)


def _rows(made: "StudyReport") -> list[tuple[str, ...]]:
    return [
        (
            str(one.n),
            one.settings.in_words(),
            one.error or one.status,
            _shown(one.minimum and one.minimum.loss, ".4f"),
            _shown(one.minimum and one.minimum.epoch, "g"),
            _shown(one.minimum and one.minimum.seconds, ".2f"),
            _shown(one.accuracy, ".4f"),
            _shown(one.seconds_per_epoch, ".3f"),
            _shown(one.flatness and one.flatness.distance, ".3f"),
            _shown(one.flatness and one.flatness.sharpness, ".3g"),
        )
        for one in made.jobs
    ]


def _shown(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _counts(study: "Study") -> str:
    return ", ".join(f"{count} {status}" for status, count in study.counts.items())


def _varied(pairs: list[str] | None) -> dict[str, Any]:
    found = {}
    for pair in pairs or []:
        path, equals, text = pair.partition("=")
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not equals or not isinstance(values, list):
            raise typer.BadParameter(f"{pair!r} is not field=[value, …] in JSON", param_hint="--vary")
        found[path] = values
    return found
