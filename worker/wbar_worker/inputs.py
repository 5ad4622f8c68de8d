"""The contents of an attempt's workspace when it starts: its inputs, and the state and snapshots of earlier attempts."""

from dataclasses import replace
from pathlib import Path

from wbar.errors import NotFound, ReplicaFailed
from wbar_store.job_records import JobRecord
from wbar_store.store import Store
from wbar_training.state_files import latest, path_of, step_of
from wbar_training.workspace import Workspace
from wbar_worker.meetings import fetch_meeting


def fetch_inputs(store: Store, job: JobRecord, workspace: Workspace) -> Workspace:
    """Fetch everything that the job reads; returns the workspace with the state to go on from.

    Files that an earlier attempt on this host fetched are there: whole, or not at all.
    """
    workspace.scratch.mkdir(parents=True, exist_ok=True)
    for blob in job.spec.blobs():
        _fetch(store, blob, workspace.input(blob))
    if job.spec.swag or job.spec.flatness or job.spec.network.architecture.outputs == "pixels":
        # An earlier attempt made them on another host, and the end of the job reads them again (of segmentation for the mean
        # of their outputs).
        for snapshot in store.snapshots.all(job.owner, job.id):
            _fetch(store, snapshot.sha256, workspace.snapshot(snapshot.n))
    _fetch_replicas(store, job, workspace)
    state = _state(store, job, workspace)
    fetch_meeting(store, job, workspace, 0 if state is None else step_of(state))
    return replace(workspace, resume=state)


def _fetch_replicas(store: Store, job: JobRecord, workspace: Workspace) -> None:
    """Fetch the exact sums and the result of every replica that the job joins. Raises ReplicaFailed with those that failed."""
    replicas = [(n, one, _replica(store, job, one)) for n, one in enumerate(job.spec.replicas, start=1)]
    failed = [
        f"replica {n} ({one}) {_ending(record)}"
        for n, one, record in replicas
        if record is None or record.status != "succeeded"
    ]
    if failed:
        raise ReplicaFailed(
            f"{'; '.join(failed)}: a mean is joined of all replicas or of none; those that succeeded keep their results"
        )
    for n, one, record in replicas:
        assert record is not None
        assert record.result is not None
        sums = store.jobs.file(record, "mean")
        if sums is None:
            raise ReplicaFailed(f"replica {n} ({one}) kept no sums to be joined by: make the job again")
        _fetch(store, sums, workspace.replica(n))
        workspace.replica_result(n).write_text(record.result.model_dump_json())


def _replica(store: Store, job: JobRecord, replica: str) -> JobRecord | None:
    try:
        return store.jobs.get(job.owner, replica)
    except NotFound:
        return None


def _ending(record: JobRecord | None) -> str:
    if record is None:
        return "was deleted"
    return f"failed ({record.error.code}: {record.error.message})" if record.error else f"was {record.status}"


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
