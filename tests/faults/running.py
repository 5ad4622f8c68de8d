"""A trial from start to end: what each kind of work does, and how it ended."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tests.faults import checks, work
from tests.faults.acting import FAULTS
from tests.faults.in_parts import run_in_parts
from tests.faults.jobs import recovery, run_job
from tests.faults.plans import Work
from tests.faults.telling import run_webhook
from tests.faults.trial import Post, Trial
from wbar_store.validated_uploads import LEASE as UPLOAD_LEASE


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    reached: whether the fault could be done; a trial that did not reach its point says nothing.
    recovery: seconds from the fault to the next claim, where there was one.
    cancel_seconds: from the request to the end of the training process.
    """

    seed: int
    index: int
    database: str
    kind: str
    place: str
    work: str
    reached: bool
    status: str
    attempts: int
    seconds: float
    recovery: float | None
    cancel_seconds: float | None
    violations: tuple[str, ...]
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def run_upload(trial: Trial) -> Iterator[str]:
    """Upload a checkpoint or a dataset while a part is killed; yield what is wrong."""
    house, plan = trial.house, trial.plan
    content = work.another_upload(house, plan.work, f"trial-{plan.id}")
    house.arm(plan)
    post = Post(house, f"/v1/{plan.work}s?name={plan.id}", content=content)
    post.start()
    if not trial.wait_at_point():
        trial.notes.append("not reached")
    else:
        trial.fault_at = time.time()
        FAULTS[plan.kind](trial)
    trial.go()
    made = post.first()
    yield from post.problems()
    found = work.wait_for(house, f"/v1/{plan.work}s/{made['id']}", ("ready", "rejected"), UPLOAD_LEASE * 2 + 60)
    if found["status"] != "ready":
        yield f"the upload is {found['status']}: {found['error']}"
    rows = house.sql(f"SELECT id FROM {plan.work}s WHERE name = :name AND status <> 'deleted'", name=plan.id)
    if len(rows) != 1:
        yield f"one upload made {len(rows)} rows"
    yield from checks.of_processes(house)
    yield from checks.quiet(lambda: list(checks.of_blobs(house)))
    house.ask("DELETE", f"/v1/{plan.work}s/{made['id']}")


TRIALS: dict[Work, Callable[[Trial], Iterator[str]]] = {
    "job": run_job,
    "webhook": run_webhook,
    "parts": run_in_parts,
    "checkpoint": run_upload,
    "dataset": run_upload,
}


def run(trial: Trial) -> Outcome:
    """Run the trial; an error of the harness counts as a violation, so that it is looked at."""
    begun = time.monotonic()
    plan, house = trial.plan, trial.house
    try:
        trial.violations += list(TRIALS[plan.work](trial))
    except Exception as error:
        trial.violations.append(f"the harness failed: {type(error).__name__}: {str(error)[:300]}")
    trial.go()
    took = attempts = None
    status = "missing"
    if trial.job:
        try:
            took, attempts, status = recovery(trial), trial.attempts(), trial.status()
            if not trial.violations:
                house.ask("DELETE", f"/v1/jobs/{trial.job}")
        except Exception as error:
            trial.violations.append(f"the harness failed: {type(error).__name__}: {str(error)[:300]}")
    return Outcome(
        seed=plan.seed,
        index=plan.index,
        database=house.database_kind + ("" if house.apart else " (one host)"),
        kind=plan.kind,
        place=plan.place,
        work=plan.work,
        reached="not reached" not in trial.notes,
        status=status,
        attempts=attempts or 0,
        seconds=round(time.monotonic() - begun, 2),
        recovery=None if took is None else round(took, 2),
        cancel_seconds=trial.cancel_seconds,
        violations=tuple(trial.violations),
        notes=tuple(trial.notes),
    )
