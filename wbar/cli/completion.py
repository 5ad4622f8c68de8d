"""What the shell offers while a command is typed: ids of the newest objects, states. Silent where no service answers."""

from contextlib import suppress
from typing import Annotated, Any

import typer

from wbar.errors import WbarError
from wbar.states import TRANSITIONS

PATIENCE = 2.0  # seconds that a shell may hang
MOST = 50


def _newest(resource: str, incomplete: str) -> list[tuple[str, str]]:
    from wbar.client import Client

    found: list[Any] = []
    with suppress(WbarError, ValueError), Client(timeout=PATIENCE, retries=0) as client:
        found = getattr(client, resource).list(limit=MOST).data
    return [(item.id, f"{item.name or ''} {item.status}".strip()) for item in found if item.id.startswith(incomplete)]


def job_ids(incomplete: str) -> list[tuple[str, str]]:
    """Return the newest jobs whose id begins like this, with name and status."""
    return _newest("jobs", incomplete)


def checkpoint_ids(incomplete: str) -> list[tuple[str, str]]:
    """Return the newest checkpoints whose id begins like this, with name and status."""
    return _newest("checkpoints", incomplete)


def dataset_ids(incomplete: str) -> list[tuple[str, str]]:
    """Return the newest datasets whose id begins like this, with name and status."""
    return _newest("datasets", incomplete)


def merge_ids(incomplete: str) -> list[tuple[str, str]]:
    """Return the newest merges whose id begins like this, with name and status."""
    return _newest("merges", incomplete)


def study_ids(incomplete: str) -> list[tuple[str, str]]:
    """Return the newest studies whose id begins like this, with name and status."""
    return _newest("studies", incomplete)


def statuses(incomplete: str) -> list[str]:
    """Return the states of a job that begin like this."""
    return [status for status in TRANSITIONS if status.startswith(incomplete)]


JobId = Annotated[str, typer.Argument(help="job_…, or its name.", autocompletion=job_ids)]
Limit = Annotated[int, typer.Option(min=1, max=100, help="How many at most.")]
After = Annotated[str | None, typer.Option(help="Begin after this id: the last one of the page before.")]
Order = Annotated[str | None, typer.Option(help="asc: oldest first; desc (the default): newest first.")]
