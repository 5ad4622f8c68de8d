"""Replicas: one job trained k times from one start, with other seeds and data orders, and joined into one mean.

    w̄ = Σ_i s_i / Σ_i n_i        s_i the exact sum of replica i's points, n_i their number      (SWAP, Gupta et al. 2020)

Each replica is an ordinary job. The join takes their sums in the order of i, whichever ended first, and BatchNorm statistics
are recomputed for the joint mean. What a replica would choose by held-out images, or begin by chance, cannot be joined: it is
refused here, by name.
"""

from typing import Any

from wbar.errors import ValidationFailed
from wbar.jobs import JobOptions, JobRequest
from wbar.method import Soup
from wbar.spec import JobSpec

TAG = "replica_of"  # of a replica's metadata: the job that it is joined into
SEEDS = 2**31
_STEP = 0x9E3779B1  # odd, so that the seeds of up to 2³¹ replicas differ
# Of the whole job, and of none of its replicas.
_OWN = ("flatness", "surface", "formats", "probe", "idempotency_key", "dry_run")


def replicas_of(options: JobOptions) -> int:
    """Return how many replicas a job is trained in; 1: it is an ordinary one."""
    return 1 if isinstance(options.method, Soup) else options.method.replicas


def seed_of(seed: int, n: int) -> int:
    """Return the seed of replica n (from 1) of a job with this seed: the first one has the job's own."""
    return (seed + (n - 1) * _STEP) % SEEDS


def request_of(body: JobRequest, n: int) -> JobRequest:
    """Return the request of replica n (from 1): the job's own, with another seed and without what is done once at the end.

    The control is the first one's, since it does not depend on the others.
    """
    count = replicas_of(body)
    asked: dict[str, Any] = {name: value for name, value in body.as_sent().items() if name not in _OWN}
    method = {name: value for name, value in asked["method"].items() if name not in ("replicas", "interpolate")}
    if n > 1:
        method.pop("control", None)
    name = f"{body.name or 'job'}: replica {n} of {count}"
    asked |= {"method": method, "seed": seed_of(body.seed, n), "name": name[-256:]}
    return JobRequest.model_validate(asked)


def check_count(options: JobOptions, most: int) -> None:
    """Raise ValidationFailed (422) for more replicas than the service allows."""
    count = replicas_of(options)
    if count > most:
        raise ValidationFailed(
            f"method.replicas is {count}, and a job may have {most} (WBAR_MAX_REPLICAS): ask for fewer; nothing was made",
            [{"pointer": "/method/replicas", "detail": f"at most {most}"}],
        )


def check_replicas(options: JobOptions, spec: JobSpec) -> None:
    """Raise ValidationFailed (422) where a job with replicas has what cannot be joined, and say what it is."""
    if replicas_of(options) == 1:
        return
    reason = _obstacle(spec)
    if reason is not None:
        raise ValidationFailed(
            f"method.replicas is {replicas_of(options)}, and {reason}",
            [{"pointer": "/method/replicas", "detail": "cannot be joined"}],
        )


def _obstacle(spec: JobSpec) -> str | None:
    method, recipe = spec.method, spec.recipe
    if method.type == "auto":
        return (
            "method auto chooses its mean by held-out images, each replica another one: take cyclic_swa, swa, ema, lawa or "
            "none"
        )
    average = getattr(method, "average", "uniform")
    if average != "uniform":
        return f"method.average is {average!r}, by which each replica would choose other points: take uniform"
    if spec.selects:
        return (
            "each replica would use held-out images to choose (method.guard, method.interpolate with choose selection, "
            "method.probe_rate or recipe.early_stopping): leave that out"
        )
    if recipe.head == "reset" or recipe.reset or recipe.head_epochs:
        return "recipe.head, reset or head_epochs would give each replica another start: replicas have one"
    if recipe.devices > 1:
        return (
            f"recipe.devices is {recipe.devices}: a replica has one device, and the replicas are what runs side by side"
        )
    if spec.swag:
        return f"swag is {spec.swag}, and samples around the snapshots of one training: leave it out"
    return None
