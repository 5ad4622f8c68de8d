"""Replicas: one job trained k times from one start, with other seeds and data orders, and joined into one mean.

    w̄ = Σ_i s_i / Σ_i n_i        s_i the exact sum of replica i's points, n_i their number      (SWAP, Gupta et al. 2020)

Each replica is an ordinary job. The join takes their sums in the order of i, whichever ended first, and BatchNorm statistics
are recomputed for the joint mean. With `join_every` they meet on their way, too (`wbar.spec.Meetings`):

    w_i ← α·w_i + (1 − α)·(w_1 + … + w_k)/k                      (PAPA, Jolicoeur-Martineau et al. 2023)

What a replica would choose by held-out images, or begin by chance, cannot be joined: it is refused here, by name.
"""

from collections.abc import Sequence
from typing import Any

from wbar.errors import ValidationFailed
from wbar.job_request import JobOptions, JobRequest
from wbar.method import Soup, Training
from wbar.request import SEEDS
from wbar.spec import JobSpec, Meetings
from wbar.text import LONGEST_NAME

TAG = "replica_of"  # of a replica's metadata: the job that it is joined into
_STEP = 0x9E3779B1  # odd, so that the seeds of up to 2³¹ replicas differ
_OF_ALL = ("replicas", "join_every", "join_keep", "interpolate")  # of the whole job's method
# Of the whole job, and of none of its replicas.
_OWN = ("flatness", "surface", "formats", "probe", "dry_run")


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
    method = {name: value for name, value in asked["method"].items() if name not in _OF_ALL}
    if n > 1:
        method.pop("control", None)
    which = f": replica {n} of {count}"
    name = (body.name or "job")[: LONGEST_NAME - len(which)] + which
    asked |= {"method": method, "seed": seed_of(body.seed, n), "name": name}
    return JobRequest.model_validate(asked)


def meetings_of(options: JobOptions, replicas: Sequence[str], n: int, snapshots: int) -> Meetings | None:
    """Return when replica n (from 1) of a job meets the others; None where they are joined at the end alone.

    replicas: their jobs, in order. snapshots: that each of them takes.
    """
    method = options.method
    if isinstance(method, Soup) or method.join_every is None:
        return None
    every = method.join_every
    last = (snapshots - 1) // every * every  # after the last snapshot there is no training to go on with
    return Meetings(replicas=tuple(replicas), number=n, every=every, last=last, keep=method.join_keep)


def check_count(options: JobOptions, most: int) -> None:
    """Raise ValidationFailed (422) for more replicas than the service allows."""
    count = replicas_of(options)
    if count > most:
        raise ValidationFailed(
            f"method.replicas is {count}, and a job may have {most} (WBAR_MAX_REPLICAS): ask for fewer; nothing was made",
            [{"pointer": "/method/replicas", "detail": f"at most {most}"}],
        )


def check_replicas(options: JobOptions, spec: JobSpec, snapshots: int) -> None:
    """Raise ValidationFailed (422) where a job with replicas has what cannot be joined, and say what it is.

    snapshots: that each replica takes.
    """
    method, count = options.method, replicas_of(options)
    if isinstance(method, Soup):
        return
    if count == 1:
        _refuse_meetings_of_one(method)
        return
    reason = _obstacle(spec)
    if reason is not None:
        raise ValidationFailed(
            f"method.replicas is {count}, and {reason}",
            [{"pointer": "/method/replicas", "detail": "cannot be joined"}],
        )
    if method.join_every is None and method.join_keep:
        raise ValidationFailed(
            f"method.join_keep is {method.join_keep:g}, and the replicas meet nowhere on their way: give join_every, too",
            [{"pointer": "/method/join_keep", "detail": "needs join_every"}],
        )
    if method.join_every is not None and method.join_every >= snapshots:
        raise ValidationFailed(
            f"method.join_every is {method.join_every}, and the method takes {snapshots} snapshot(s), the last one at its end: "
            "the replicas would meet nowhere on their way; take fewer, or more snapshots, or leave join_every out",
            [{"pointer": "/method/join_every", "detail": f"below {snapshots}"}],
        )


def _refuse_meetings_of_one(method: Training) -> None:
    for name, value in (("join_every", method.join_every), ("join_keep", method.join_keep)):
        if value:
            raise ValidationFailed(
                f"method.{name} is {value:g}, and method.replicas is 1: one alone meets no others; ask for 2 replicas or more, "
                f"or leave {name} out",
                [{"pointer": f"/method/{name}", "detail": "needs replicas"}],
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
