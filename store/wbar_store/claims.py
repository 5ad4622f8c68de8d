"""The fence: what every write of a worker carries, and what makes a late write of a dead attempt change nothing."""

from dataclasses import dataclass

from sqlalchemy import Connection, Update, update

from wbar_store.tables import jobs


@dataclass(frozen=True)
class Claim:
    """id: the job or upload that was claimed; attempt: the number that the claim raised."""

    id: str
    attempt: int


def of_running(claim: Claim) -> Update:
    """An update of the job's row, if it is still this claim's."""
    return update(jobs).where(jobs.c.id == claim.id, jobs.c.status == "running", jobs.c.attempts == claim.attempt)


def holds(connection: Connection, claim: Claim) -> bool:
    """Whether the job is still this claim's, until the caller's transaction ends."""
    # An update, not a select: it takes the row's lock, so that the fence still holds when the caller commits.
    return connection.execute(of_running(claim).values(attempts=claim.attempt)).rowcount == 1
