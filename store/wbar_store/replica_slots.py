"""Which queued jobs wait for their replicas or at a meeting of them, or are paused with them: decided where a job is claimed.

A job with replicas needs them as it needs its checkpoint: they stand in `job_inputs`. It is held while one of them has not
ended. It is paused while it is queued by its own `stop`, and its replicas that are queued are then held. A replica that meets
the others after some of its snapshots (`wbar.spec.Meetings`) is held from its own such snapshot on, while another one that
has not ended has fewer. Nothing counts what has ended or arrived but the rows themselves, so that it does not matter who is
killed, or which replica comes last.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, Select, and_, exists, func, or_, select

from wbar.states import TERMINAL
from wbar_store.tables import job_inputs, jobs, snapshots

_needed = jobs.alias("needed_jobs")
_joining = jobs.alias("joining_jobs")
_inputs = job_inputs.alias("inputs_of_joining")
_others = job_inputs.alias("other_inputs")
_mates = jobs.alias("mates")
_own, _theirs = snapshots.alias("own_snapshots"), snapshots.alias("their_snapshots")

# One condition within the other, and no join: which table is looked into first is then no planner's choice.
_open = exists().where(_needed.c.id == _inputs.c.input, _needed.c.status.not_in(TERMINAL)).correlate(_inputs)
# Of the three or four inputs of an ordinary job none is a job: nothing more is looked up for it.
_is_job = _inputs.c.input.startswith("job_", autoescape=True)
_waits = exists().where(_inputs.c.job == jobs.c.id, _is_job, _open).correlate(jobs)
_paused = exists().where(_joining.c.id == _inputs.c.job, _joining.c.status == "queued", _joining.c.stop == "pause")

# At a meeting: after the latest snapshot n of its own, and behind it is a mate that has none so far.
_latest = select(func.max(_own.c.n)).where(_own.c.job == jobs.c.id).correlate(jobs).scalar_subquery()
_every, _last = (jobs.c.spec[("meetings", name)].as_integer() for name in ("every", "last"))
_came = exists().where(_theirs.c.job == _mates.c.id, _theirs.c.n >= _latest).correlate(_mates, jobs)
_late = (
    exists().where(_mates.c.id == _others.c.input, _mates.c.status.not_in(TERMINAL), ~_came).correlate(_others, jobs)
)
_is_mate = _others.c.input.startswith("job_", autoescape=True)
_is_behind = exists().where(_others.c.job == _inputs.c.job, _is_mate, _late).correlate(_inputs, jobs)
_at_meeting = and_(_latest <= _last, _latest % _every == 0, _is_behind)

_with_others = or_(_paused.correlate(_inputs), _at_meeting)
_held_with_others = exists().where(_inputs.c.input == jobs.c.id, _with_others).correlate(jobs)
PAUSED = and_(jobs.c.status == "queued", func.coalesce(jobs.c.stop, "") == "pause")
# The condition on a queued row of `jobs` that it waits for its replicas or at a meeting, or is paused with them.
WAITS_FOR_REPLICAS = or_(PAUSED, _waits, _held_with_others)


def beside(job_id: str) -> Select[tuple[str]]:
    """Select the replicas of the job that a job is a replica of, itself among them, and what else that job needs."""
    joining = select(job_inputs.c.job).where(job_inputs.c.input == job_id)
    return select(_others.c.input).where(_others.c.job.in_(joining))


def snapshots_of(connection: Connection, ids: Sequence[str]) -> dict[str, int]:
    """Return the number of the latest snapshot of each of the jobs; 0 for one without."""
    query = select(snapshots.c.job, func.max(snapshots.c.n)).where(snapshots.c.job.in_(ids)).group_by(snapshots.c.job)
    found = {job: int(n) for job, n in connection.execute(query)}
    return {one: found.get(one, 0) for one in ids}


def lock_joining(connection: Connection, job_id: str) -> None:
    """Keep the jobs that wait for this one from being paused or resumed until the transaction ends."""
    waiting = select(job_inputs.c.job).where(job_inputs.c.input == job_id)
    query = select(jobs.c.id).where(jobs.c.id.in_(waiting), jobs.c.status == "queued").order_by(jobs.c.id)
    connection.execute(query.with_for_update())


def unfinished(connection: Connection, job_id: str) -> list[str]:
    """Return the jobs that a job waits for and that have not ended, in their order."""
    needed = select(job_inputs.c.input).where(job_inputs.c.job == job_id)
    query = select(jobs.c.id).where(jobs.c.id.in_(needed), jobs.c.status.not_in(TERMINAL)).order_by(jobs.c.id)
    return list(connection.execute(query).scalars())
