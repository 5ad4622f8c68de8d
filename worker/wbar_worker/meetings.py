"""The files that a replica meets the others by: the snapshots of all of them, fetched before its attempt begins."""

from wbar.errors import NotFound, ReplicaFailed
from wbar.spec import Meetings
from wbar_store.job_records import JobRecord
from wbar_store.snapshots import SnapshotRecord
from wbar_store.store import Store
from wbar_training.workspace import Workspace


def fetch_meeting(store: Store, job: JobRecord, workspace: Workspace, step: int) -> None:
    """Fetch the snapshots of the next meeting, where all replicas have come to it; those of others are deleted.

    step: that the attempt goes on from.

    Raises ReplicaFailed where a replica has ended otherwise than well, so that there is nothing to go on for.
    """
    meetings = job.spec.meetings
    if meetings is None:
        return
    own = store.snapshots.all(job.owner, job.id)
    n = next((one.n for one in own if one.step >= step and meetings.after(one.n)), None)
    wanted = {} if n is None else _met(store, job, meetings, n)
    paths = {workspace.met(one.n, number): one.sha256 for number, one in wanted.items()}
    for old in set(workspace.all_met()) - paths.keys():
        old.unlink(missing_ok=True)
    for path, blob in paths.items():
        if not path.exists():
            store.blobs.fetch(blob, path)


def _met(store: Store, job: JobRecord, meetings: Meetings, n: int) -> dict[int, SnapshotRecord]:
    """Return snapshot n of every replica, by its number; nothing while one has not taken it."""
    found, failed = dict[int, SnapshotRecord](), list[str]()
    for number, one in enumerate(meetings.replicas, start=1):
        try:
            status, taken = store.jobs.status(job.owner, one), store.snapshots.all(job.owner, one)
        except NotFound:
            failed.append(f"replica {number} ({one}) was deleted")
            continue
        if status in ("failed", "cancelled"):
            failed.append(f"replica {number} ({one}) {'was ' if status == 'cancelled' else ''}{status}")
        met = next((snapshot for snapshot in taken if snapshot.n == n), None)
        if met is not None:
            found[number] = met
        elif status == "succeeded":
            failed.append(f"replica {number} ({one}) ended without snapshot {n}")
    if failed:
        raise ReplicaFailed(
            f"{'; '.join(failed)}: after snapshot {n} the replicas go on from the mean of all of them, or not at all"
        )
    return found if len(found) == len(meetings.replicas) else {}
