"""A trial of a job: it begins, a fault at its moment, and everything that the job left is checked.

The moment is a named point, at which a process waits for `go`, or a random one while the job runs.
"""

import time
from collections.abc import Iterator

from tests.faults import checks, work
from tests.faults.acting import FAULTS, PREPARED
from tests.faults.house import LEASE
from tests.faults.plans import MOMENT
from tests.faults.trial import REACH_SECONDS, Post, Trial
from wbar_store.database import IDLE_SECONDS
from wbar_store.jobs import NOTIFY_AGAIN

LATENCY = 2.0  # of processes that share two cores: from a row to the worker that waits for it


def check_job(trial: Trial) -> Iterator[str]:
    """Yield what is wrong with the job, the blobs and the processes after the trial."""
    house, ended = trial.house, work.wait_for_end(trial.house, trial.job)
    status = ended["status"]
    if status != trial.expected:
        yield f"the job is {status}, not {trial.expected}: {ended['error']}"
    if trial.error is not None and (ended["error"] or {}).get("code") != trial.error:
        yield f"the job's error is {ended['error']}, not {trial.error}"
    yield from checks.of_processes(house)
    yield from checks.of_history(house, trial.job, status)
    if status == "succeeded" and trial.undisturbed_weights:
        yield from checks.of_result(house, trial.job, trial.references[trial.large])
    if status == "cancelled":
        made, wanted = work.snapshots_of(house, trial.job), trial.references[False].snapshots
        if made != wanted[: len(made)]:
            yield f"the snapshots of the cancelled job are {made}, not the first of {wanted}"
    if trial.status() != status:
        yield f"the job was {status} and is {trial.status()}"
    yield from checks.quiet(lambda: [*checks.of_blobs(house), *checks.of_scratch(house, trial.job)])


def recovery(trial: Trial) -> float | None:
    """Return the seconds from the fault to the next claim; None if there was none."""
    later = [at for at in checks.claims(trial.house, trial.job) if at > trial.fault_at]
    return later[0] - trial.fault_at if later and trial.fault_at else None


def allowed_recovery(trial: Trial) -> float:
    """Return the promise: two leases (a lost message: NOTIFY_AGAIN, too), from when a worker is there."""
    waited = max(0.0, trial.ready_at - trial.fault_at)
    locked = IDLE_SECONDS if trial.plan.point == "in-transaction" else 0.0
    return waited + max(2 * LEASE, NOTIFY_AGAIN + 0.5) + locked + LATENCY


def run_job(trial: Trial) -> Iterator[str]:
    """Create a job, do the fault at its moment, and yield what is wrong afterwards."""
    house, plan = trial.house, trial.plan
    trial.body = trial.inputs.body()
    if plan.kind in PREPARED:
        PREPARED[plan.kind](trial)
    if plan.point != MOMENT and not plan.point.startswith("sweep-"):
        house.arm(plan)
    post = Post(house, "/v1/jobs", json=trial.body)
    post.start()
    if not plan.point.startswith("api-"):
        trial.job = post.first()["id"]
    if _at_moment(trial) if plan.point == MOMENT else plan.point.startswith("sweep-") or trial.wait_at_point():
        trial.fault_at = time.time()
        FAULTS[plan.kind](trial)
    else:
        trial.notes.append("not reached")
    trial.go()
    trial.job = trial.job or post.first()["id"]
    post.join(60)
    yield from post.problems()
    yield from check_job(trial)
    took = recovery(trial)
    if took is not None and "paused" not in trial.notes and took > allowed_recovery(trial):
        yield f"the next claim came {took:.1f} s after the fault; allowed are {allowed_recovery(trial):.1f} s"
    if trial.cancel_seconds is not None and trial.cancel_seconds > 2.0:
        yield f"cancel took {trial.cancel_seconds:.2f} s"


def _at_moment(trial: Trial) -> bool:
    """Wait until the job runs, and for the plan's fraction of its time."""
    deadline = time.monotonic() + REACH_SECONDS
    while trial.status() == "queued" and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(trial.plan.fraction * trial.references[False].seconds)
    return True
