"""`wbar export tensorboard|mlflow|csv|parquet JOB`: what a job did, for other tools. Their libraries are loaded when used."""

from pathlib import Path
from typing import Annotated

import typer

from wbar.cli import need
from wbar.cli.completion import JobId
from wbar.cli.names import job_of
from wbar.cli.output import note

app = typer.Typer(no_args_is_help=True, help="A job's series and files for TensorBoard, MLflow, CSV, Parquet.")

Output = Annotated[Path, typer.Option("-o", "--output", help="The file to write.")]
Follow = Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")]


@app.command()
def tensorboard(
    job: JobId,
    logdir: Annotated[Path, typer.Option(help="The folder of this job's event files, one for each job.")],
    follow: Follow = False,
) -> None:
    """Write TensorBoard event files; what the folder has already is not repeated."""
    need("tensorboard", "tensorboard")
    from wbar.client import Client
    from wbar.exports.series import looks
    from wbar.exports.tensorboard import EventFiles

    with Client() as client:
        job = str(client.jobs.get(job_of(client, job)).id)  # before the folder is made
        with EventFiles(logdir, job) as files:
            written = sum(files.write(look.samples) for look in looks(client, job, follow))
    note(f"{written:,} numbers written; look at them with: tensorboard --logdir {logdir}")
    typer.echo(str(logdir))


@app.command()
def mlflow(
    job: JobId,
    tracking_uri: Annotated[str | None, typer.Option(help="Default: MLflow's own, MLFLOW_TRACKING_URI.")] = None,
    experiment: Annotated[str, typer.Option(help="Made where there is none of that name.")] = "wbar",
    register: Annotated[
        str | None, typer.Option(help="Register the averaged weights as a version of this model.")
    ] = None,
    follow: Follow = False,
) -> None:
    """Write an MLflow run (parameters, metrics, files, model) and print its id; a run that is there is continued."""
    need("mlflow", "mlflow")
    from wbar import config

    config.quiet_mlflow()  # before it is imported
    from mlflow.exceptions import MlflowException

    try:
        run, version = _to_mlflow(job, tracking_uri, experiment, register, follow)
    except MlflowException as error:
        raise ValueError(f"MLflow: {error.message}") from None
    if register is not None:
        note(f"{register} version {version}" if version else f"{job} has no weights to register")
    typer.echo(run)


def _to_mlflow(
    job_id: str, tracking_uri: str | None, experiment: str, register: str | None, follow: bool
) -> tuple[str, str | None]:
    """Return the run's id and, where a model was registered, its version."""
    from wbar.client import Client
    from wbar.exports.mlflow import RunOfJob
    from wbar.exports.series import looks
    from wbar.states import TERMINAL

    with Client() as client:
        job_id = job_of(client, job_id)
        run = RunOfJob(client.jobs.get(job_id), tracking_uri, experiment)
        for look in looks(client, job_id, follow):
            run.write(look.job, look.samples)
            if look.job.status in TERMINAL:
                has_model = run.end(client, look.job)
                return run.id, run.register(register) if register is not None and has_model else None
    return run.id, None


@app.command("csv")
def write_csv(job: JobId, output: Output) -> None:
    """Write the training series as CSV."""
    from wbar.client import Client
    from wbar.exports import files

    with Client() as client:
        files.write_csv(client, job_of(client, job), output)
    typer.echo(str(output))


@app.command("parquet")
def write_parquet(job: JobId, output: Output) -> None:
    """Write the training series as Parquet."""
    need("parquet", "pyarrow")
    from wbar.client import Client
    from wbar.exports import files

    with Client() as client:
        files.write_parquet(client, job_of(client, job), output)
    typer.echo(str(output))
