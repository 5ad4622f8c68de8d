"""Which queued jobs wait for their replicas, or are paused with them: decided in rows, where a job is claimed.

A job with replicas needs them as it needs its checkpoint: they stand in `job_inputs`. It is held while one of them has not
ended. It is paused while it is queued by its own `stop`, and its replicas that are queued are then held. Nothing counts
what has ended but the rows themselves, so that it does not matter who is killed, or which replica ends last.
"""

from sqlalchemy import Connection, and_, exists, func, or_, select

from wbar.states import TERMINAL
from wbar_store.tables import job_inputs, jobs

_needed = jobs.alias("needed_jobs")
_joining = jobs.alias("joining_jobs")
_inputs = job_inputs.alias("inputs_of_joining")

# One condition within the other, and no join: which table is looked into first is then no planner's choice.
_open = exists().where(_needed.c.id == _inputs.c.input, _needed.c.status.not_in(TERMINAL)).correlate(_inputs)
# Of the three or four inputs of an ordinary job none is a job: nothing more is looked up for it.
_is_job = _inputs.c.input.startswith("job_", autoescape=True)
_waits = exists().where(_inputs.c.job == jobs.c.id, _is_job, _open).correlate(jobs)
_paused = exists().where(_joining.c.id == _inputs.c.job, _joining.c.status == "queued", _joining.c.stop == "pause")
_paused_with_others = exists().where(_inputs.c.input == jobs.c.id, _paused.correlate(_inputs)).correlate(jobs)
PAUSED = and_(jobs.c.status == "queued", func.coalesce(jobs.c.stop, "") == "pause")
# The condition on a queued row of `jobs` that it waits for its replicas, or is paused with them.
HELD = or_(PAUSED, _waits, _paused_with_others)


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
