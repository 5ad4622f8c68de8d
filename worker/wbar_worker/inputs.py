"""The contents of an attempt's workspace when it starts: its inputs, and the state and snapshots of earlier attempts."""

from dataclasses import replace
from pathlib import Path

from wbar_store.jobs import JobRecord
from wbar_store.store import Store
from wbar_training.state_files import latest, path_of, step_of
from wbar_training.workspace import Workspace


def fetch_inputs(store: Store, job: JobRecord, workspace: Workspace) -> Workspace:
    """Fetch everything that the job reads; returns the workspace with the state to go on from.

    Files that an earlier attempt on this host fetched are there: whole, or not at all.
    """
    workspace.scratch.mkdir(parents=True, exist_ok=True)
    for blob in job.spec.blobs():
        _fetch(store, blob, workspace.input(blob))
    if job.spec.swag or job.spec.flatness:
        # An earlier attempt made them on another host, and the end of the job reads them again.
        for snapshot in store.snapshots.all(job.owner, job.id):
            _fetch(store, snapshot.sha256, workspace.snapshot(snapshot.n))
    return replace(workspace, resume=_state(store, job, workspace))


def _fetch(store: Store, blob: str, path: Path) -> None:
    if not path.exists():
        store.blobs.fetch(blob, path)


def _state(store: Store, job: JobRecord, workspace: Workspace) -> Path | None:
    """Return the furthest resumable state: the one on this host, or the last phase end's from the blob store."""
    local = latest(workspace.scratch)
    if job.state is None or job.state_step is None:
        return local
    durable = path_of(workspace.scratch, job.state_step)
    if local is not None and step_of(local) >= job.state_step:
        return local
    store.blobs.fetch(job.state, durable)
    return durable
