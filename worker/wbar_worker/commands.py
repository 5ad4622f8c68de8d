"""`wbar worker` and `wbar sweep`."""

import os
import sys
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def worker(
    queue: Annotated[str, typer.Option(help="train (one job per device) or ingest (validates uploads).")] = "train",
) -> None:
    """Run a worker: configured by WBAR_DATABASE_URL, WBAR_BROKER_URL, WBAR_BLOBS_URL, WBAR_SCRATCH."""
    if queue not in ("train", "ingest"):
        raise typer.BadParameter(f"{queue!r} is not a queue: train or ingest")
    _become(queue)


@app.command()
def sweep() -> None:
    """Notify again of jobs whose worker or broker was lost, send webhooks, tidy up this host: one per host that trains."""
    _become("sweep")


def _become(kind: str) -> None:
    _need()
    # -P: not from the folder that this was typed in, which may hold anything.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "wbar_worker", kind])


def _need() -> None:
    from wbar.cli import need

    need("worker", "celery", "sqlalchemy", "torch", "torchvision")
