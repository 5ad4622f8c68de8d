"""From a request to a MergeSpec: what it names is looked up and locked here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wbar.errors import CheckpointNotReady, JobNotFinished, NoWeights, ValidationFailed
from wbar.merges import MeanMerge, MergeFormat, MergeRequest, MergeSource, MergeSpec
from wbar.states import TERMINAL
from wbar_store.database import Tenant
from wbar_store.ids import kind_of
from wbar_store.merges import MergeRecord
from wbar_store.quotas import Quota
from wbar_store.store import Store


@dataclass(frozen=True)
class Found:
    """A source, and what is known of it.

    archive: of a checkpoint that was uploaded as a folder, the blob of that.
    adapter: whether it is a LoRA adapter.
    """

    source: MergeSource
    bytes: int
    archive: str | None = None
    adapter: bool = False


def insert_merge(store: Store, tenant: Tenant, body: MergeRequest, quota: Quota) -> MergeRecord:
    """Write the row of a merge, in a block of `write()`; a worker is to be notified of it once the block has committed.

    Raises NotFound, CheckpointNotReady, JobNotFinished, NoWeights, ValidationFailed and QuotaExceeded.
    """
    named = _snapshots_of(store, tenant, body.checkpoints[0], body.last) if body.last else body.checkpoints
    # All of them in one order, before anything else is locked: two merges of the same checkpoints must not cross.
    wanted = {*named, *([body.base] if body.base else [])}
    found = {name: _source(store, tenant, name) for name in sorted(wanted)}
    first = body.base or named[0]
    form = _format(body, found, first)
    archives = {name: one.archive for name, one in sorted(found.items()) if one.archive}
    size = found[first].bytes
    store.quotas.check_jobs(tenant, quota)
    store.quotas.check_bytes(tenant, quota, size)
    spec = MergeSpec(
        sources=tuple(found[name].source for name in named),
        base=found[body.base].source if body.base else None,
        method=body.method,
        dtype=body.dtype,
        format=form,
        max_shard_bytes=body.max_shard_bytes,
        archives=archives if form == "huggingface" else {},
    )
    return store.merges.create(tenant, spec, body.name, size, body.expires_after)


def _format(body: MergeRequest, found: Mapping[str, Found], first: str) -> MergeFormat:
    """Return what the result is. Raises ValidationFailed where it cannot be that. first: the input that it is made like."""
    adapters = [name for name, one in found.items() if one.adapter]
    rank = body.method.lora_rank if isinstance(body.method, MeanMerge) else None
    if not adapters:
        if rank is not None:
            raise _refused("/method/lora_rank", f"{first} is no LoRA adapter: leave `lora_rank` out")
        if body.format == "huggingface" and found[first].archive is None:
            raise _refused(
                "/format",
                f"{first} was not uploaded as a folder, so that there is nothing to lay beside the merged weights: upload a "
                "zip or tar of its folder (of a result of transformers, make a checkpoint), or leave `format` out",
            )
        return body.format or "safetensors"
    whole = next((name for name, one in found.items() if not one.adapter), None)
    if whole is not None:
        raise _refused(
            "/base" if whole == body.base else "/checkpoints",
            f"{adapters[0]} is a LoRA adapter and {whole} is not: adapters are merged with adapters",
        )
    if not isinstance(body.method, MeanMerge):
        raise _refused("/method", "adapters are merged by a weighted mean of their ΔW only: take the method mean")
    if rank is None:
        raise _refused(
            "/method/lora_rank",
            "the mean of ΔW = B·A is no product of the factors' means: give `lora_rank`, the rank to write it with (the sum of "
            "the adapters' ranks leaves nothing out)",
        )
    if body.format == "safetensors":
        raise _refused("/format", "an adapter is its weights and its adapter_config.json: take the format huggingface")
    if body.max_shard_bytes is not None:
        raise _refused("/max_shard_bytes", "a merged adapter is one file: leave `max_shard_bytes` out")
    return "huggingface"


def _refused(pointer: str, detail: str) -> ValidationFailed:
    return ValidationFailed(detail, [{"pointer": pointer, "detail": detail}])


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
        "snap": lambda store, tenant, name: Found(*store.merges.snapshot(tenant, name)),
    }
    kind = kind_of(name)
    if kind not in find:
        raise ValidationFailed(f"{name[:64]!r} is no id of a checkpoint, a job, a snapshot or a merge")
    return find[kind](store, tenant, name)


def _checkpoint(store: Store, tenant: Tenant, name: str) -> Found:
    record = store.checkpoints.get(tenant, name, lock=True)
    if record.weights is None:
        raise CheckpointNotReady(f"{name} is {record.status}: only a ready checkpoint can be merged")
    adapter = record.facts is not None and record.facts.adapter
    return Found(MergeSource(id=name, sha256=record.weights), record.bytes, record.archive, adapter)


def _job(store: Store, tenant: Tenant, name: str) -> Found:
    record = store.jobs.get(tenant, name, lock=True)
    if record.weights is None or record.result is None:
        if record.status not in TERMINAL:
            raise JobNotFinished(f"{name} is {record.status}: its result can be merged once it has succeeded")
        raise NoWeights(f"{name} has {record.status} and has no averaged weights: name one of its snapshots (snap_…)")
    return Found(MergeSource(id=name, sha256=record.weights), record.result.weights.bytes)


def _merge(store: Store, tenant: Tenant, name: str) -> Found:
    record = store.merges.get(tenant, name, lock=True)
    weights = record.result()
    if record.spec.format == "huggingface":
        raise ValidationFailed(
            f'{name} is a folder: make a checkpoint of it ({{"source": "{name}"}}, purpose=merge), and name that'
        )
    return Found(MergeSource(id=name, sha256=weights), record.bytes)
