"""From a request to a MergeSpec: what it names is looked up and locked here."""

from collections.abc import Callable

from wbar.errors import CheckpointNotReady, JobNotFinished, NoWeights, ValidationFailed
from wbar.merges import MergeRequest, MergeSource, MergeSpec
from wbar.states import TERMINAL
from wbar_store.database import Tenant
from wbar_store.ids import kind_of
from wbar_store.merges import MergeRecord
from wbar_store.quotas import Quota
from wbar_store.store import Store

Found = tuple[MergeSource, int]  # with its bytes


def insert_merge(store: Store, tenant: Tenant, body: MergeRequest, quota: Quota) -> MergeRecord:
    """Write the row of a merge, in a block of `write()`; a worker is to be notified of it once the block has committed.

    Raises NotFound, CheckpointNotReady, JobNotFinished, NoWeights, ValidationFailed and QuotaExceeded.
    """
    named = _snapshots_of(store, tenant, body.checkpoints[0], body.last) if body.last else body.checkpoints
    # All of them in one order, before anything else is locked: two merges of the same checkpoints must not cross.
    wanted = {*named, *([body.base] if body.base else [])}
    found = {name: _source(store, tenant, name) for name in sorted(wanted)}
    sources = tuple(found[name][0] for name in named)
    base = found[body.base][0] if body.base else None
    size = found[body.base or named[0]][1]
    store.quotas.check_jobs(tenant, quota)
    store.quotas.check_bytes(tenant, quota, size)
    spec = MergeSpec(sources=sources, base=base, method=body.method, dtype=body.dtype)
    return store.merges.create(tenant, spec, body.name, size, body.expires_after)


def _snapshots_of(store: Store, tenant: Tenant, job_id: str, last: int) -> list[str]:
    """Return the ids of a job's last snapshots, oldest first."""
    snapshots = store.snapshots.all(tenant, job_id)
    if len(snapshots) < last:
        raise ValidationFailed(
            f"{job_id} has {len(snapshots)} snapshots, and `last` asks for {last}",
            [{"pointer": "/last", "detail": f"the job has {len(snapshots)} snapshots"}],
        )
    return [one.id for one in snapshots[-last:]]


def _source(store: Store, tenant: Tenant, name: str) -> Found:
    """Return what an id names, which stays locked until the block ends."""
    find: dict[str, Callable[[Store, Tenant, str], Found]] = {
        "ckpt": _checkpoint,
        "job": _job,
        "merge": _merge,
        "snap": lambda store, tenant, name: store.merges.snapshot(tenant, name),
    }
    kind = kind_of(name)
    if kind not in find:
        raise ValidationFailed(f"{name[:64]!r} is no id of a checkpoint, a job, a snapshot or a merge")
    return find[kind](store, tenant, name)


def _checkpoint(store: Store, tenant: Tenant, name: str) -> Found:
    record = store.checkpoints.get(tenant, name, lock=True)
    if record.weights is None:
        raise CheckpointNotReady(f"{name} is {record.status}: only a ready checkpoint can be merged")
    return MergeSource(id=name, sha256=record.weights), record.bytes


def _job(store: Store, tenant: Tenant, name: str) -> Found:
    record = store.jobs.get(tenant, name, lock=True)
    if record.weights is None or record.result is None:
        if record.status not in TERMINAL:
            raise JobNotFinished(f"{name} is {record.status}: its result can be merged once it has succeeded")
        raise NoWeights(f"{name} has {record.status} and has no averaged weights: name one of its snapshots (snap_…)")
    return MergeSource(id=name, sha256=record.weights), record.result.weights.bytes


def _merge(store: Store, tenant: Tenant, name: str) -> Found:
    record = store.merges.get(tenant, name, lock=True)
    return MergeSource(id=name, sha256=record.result()), record.bytes
