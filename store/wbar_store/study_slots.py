"""The slots of a study: how many of its jobs may run at a time, decided where a job is claimed.

All jobs of a study are queued from the beginning. Those whose study has no free slot are held: no message is sent for them
and no worker claims them. Nothing counts slots but the rows of the running jobs themselves, so that whoever is killed
leaves none taken: its job's lease runs out, and the job waits again.
"""

from sqlalchemy import Connection, Select, func, select, union_all

from wbar_store.tables import jobs, studies, study_children

_others = jobs.alias("others")
_mates = study_children.alias("mates")


def _full() -> Select[tuple[str]]:
    """Select the studies of which no further job may begin. Only the jobs that run are read for it."""
    running = (
        select(_mates.c.study)
        .join(_others, _others.c.id == _mates.c.job)
        .join(studies, studies.c.id == _mates.c.study)
        .where(_others.c.status == "running")
        .group_by(_mates.c.study, studies.c.at_once)
        .having(func.count() >= studies.c.at_once)
    )
    paused = select(studies.c.id).where(studies.c.paused)
    full = union_all(running, paused).subquery("full_studies")
    return select(full.c[0])


# The condition on a row of `jobs` that its study has no slot for it; of a job without a study it is false.
WITHOUT_SLOT = jobs.c.id.in_(select(study_children.c.job).where(study_children.c.study.in_(_full())))


def beside(job_id: str) -> Select[tuple[str]]:
    """Select the jobs of the study that a job is of, itself among them."""
    mine = select(_mates.c.study).where(_mates.c.job == job_id)
    return select(study_children.c.job).where(study_children.c.study.in_(mine))


def has_room(connection: Connection, job_id: str) -> bool:
    """Return whether a job's study has a slot for it, and keep others from taking it until the transaction ends.

    True for a job without a study.
    """
    study = connection.execute(select(study_children.c.study).where(study_children.c.job == job_id)).scalar()
    if study is None:
        return True
    connection.execute(select(studies.c.id).where(studies.c.id == study).with_for_update())
    return connection.execute(select(jobs.c.id).where(jobs.c.id == job_id, ~WITHOUT_SLOT)).first() is not None
