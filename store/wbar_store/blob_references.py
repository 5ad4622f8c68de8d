"""The holds and references of blobs: the rows behind `wbar_store.blobs`, and the only SQL about them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import ColumnElement, and_, delete, literal, or_, select, update

from wbar_store.database import Database, clock, now, upsert
from wbar_store.row_security import lifted
from wbar_store.tables import REFERENCES, blobs

ABANDONED = 3600.0  # a hold older than this belongs to a process that died


class BlobReferences:
    """The rows that say which blobs are held, referred to, or marked for deletion."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def hold(self, sha256: str, size: int) -> bool:
        """Keep the content from being collected; False while it is being deleted.

        size: of the content, in bytes.
        """
        with self.database.write() as connection:
            held = connection.execute(
                upsert(connection, blobs)
                .values(sha256=sha256, bytes=size, holds=1, touched_at=now(), deleting=False)
                .on_conflict_do_update(
                    index_elements=[blobs.c.sha256],
                    set_={"holds": blobs.c.holds + 1, "touched_at": now()},
                    where=~blobs.c.deleting,
                )
                .returning(blobs.c.sha256)
            ).first()
        return held is not None

    def release(self, sha256: str) -> None:
        """Give up one hold on the content."""
        with self.database.write() as connection:
            connection.execute(update(blobs).where(blobs.c.sha256 == sha256).values(holds=blobs.c.holds - 1))

    def free(self) -> dict[str, int]:
        """Return every blob without a reference and a hold, with its size: what `mark_free` would mark, and what is marked."""
        query = select(blobs.c.sha256, blobs.c.bytes).where(or_(blobs.c.deleting, _unused(now() - ABANDONED)))
        with self.database.read() as connection, lifted(connection):
            return {row.sha256: row.bytes for row in connection.execute(query)}

    def unknown(self, digests: Sequence[str]) -> list[str]:
        """Return those of the digests that no row is about."""
        with self.database.read() as connection:
            known = set(connection.execute(select(blobs.c.sha256).where(blobs.c.sha256.in_(digests))).scalars())
        return [sha256 for sha256 in digests if sha256 not in known]

    def mark_unknown(self, sha256: str, size: int) -> None:
        """Mark content that no row is about; content that a writer has brought meanwhile stays as it is."""
        values = {"sha256": sha256, "bytes": size, "holds": 0, "touched_at": now(), "deleting": True}
        with self.database.write() as connection:
            connection.execute(upsert(connection, blobs).values(**values).on_conflict_do_nothing())

    def mark_free(self, candidates: list[str] | None) -> None:
        """Mark every blob (or those of `candidates`) without a reference and a hold; a marked blob cannot be held again."""
        with self.database.write() as connection, lifted(connection):
            stale = clock(connection) - ABANDONED
            free = _unused(literal(stale))
            unreferenced = select(blobs.c.sha256).where(free)
            if candidates is not None:
                unreferenced = unreferenced.where(blobs.c.sha256.in_(candidates))
            # Locked first, decided again under the lock: a hold that committed in between must be seen.
            locked = list(connection.execute(unreferenced.with_for_update()).scalars())
            connection.execute(update(blobs).where(blobs.c.sha256.in_(locked), free).values(deleting=True))

    def marked(self) -> list[str]:
        """Return the digests of the blobs that are marked for deletion."""
        with self.database.read() as connection:
            return list(connection.execute(select(blobs.c.sha256).where(blobs.c.deleting)).scalars())

    @contextmanager
    def forgetting(self, sha256: str) -> Iterator[bool]:
        """Delete a marked blob's row, whose lock is kept for the block; yields False if another process deleted it."""
        with self.database.write() as connection:
            yield connection.execute(delete(blobs).where(blobs.c.sha256 == sha256, blobs.c.deleting)).rowcount == 1


def _unused(stale: ColumnElement[float]) -> ColumnElement[bool]:
    return and_(~_referenced(), or_(blobs.c.holds <= 0, blobs.c.touched_at < stale))


def _referenced() -> ColumnElement[bool]:
    return or_(*(select(column).where(column == blobs.c.sha256).exists() for column in REFERENCES))
