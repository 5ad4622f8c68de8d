"""The fence: every write of a worker carries it, and a late write of a dead attempt then changes nothing."""

from dataclasses import dataclass

from sqlalchemy import Connection, Update, update

from wbar_store.tables import jobs


@dataclass(frozen=True)
class Claim:
    """An attempt's right to write.

    id: the job or upload that was claimed.
    attempt: the number that the claim raised.
    """

    id: str
    attempt: int


def of_running(claim: Claim) -> Update:
    """Return an update of the job's row that takes effect only while the claim holds."""
    return update(jobs).where(jobs.c.id == claim.id, jobs.c.status == "running", jobs.c.attempts == claim.attempt)


def holds(connection: Connection, claim: Claim) -> bool:
    """Return whether the job is still this claim's, which stays so until the caller's transaction ends."""
    # An update, not a select: it takes the row's lock, so that the fence still holds when the caller commits.
    return connection.execute(of_running(claim).values(attempts=claim.attempt)).rowcount == 1
