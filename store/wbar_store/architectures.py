"""The networks of a library that a worker has installed: the API lists their names, and loads no framework for it.

What is always there (`wbar.catalog.ARCHITECTURES`) has no rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from sqlalchemy import delete, insert, select

from wbar.catalog import Architecture, Library
from wbar_store.database import Database
from wbar_store.tables import architectures

_LARGEST = 500  # rows of one insert


class InstalledArchitectures:
    """The networks that ingest workers have announced."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def version(self, library: Library) -> str | None:
        """Return the version of a library that was announced last."""
        known = select(architectures.c.version).where(architectures.c.library == library).limit(1)
        with self.database.read() as connection:
            found: str | None = connection.execute(known).scalar()
        return found

    def announce(self, library: Library, version: str, entries: Iterable[Architecture]) -> bool:
        """Replace a library's networks by those of another version. False, and nothing written, for the same version."""
        rows = [{"name": one.name, "library": library, "version": version, "entry": asdict(one)} for one in entries]
        with self.database.write() as connection:
            known = select(architectures.c.version).where(architectures.c.library == library).limit(1)
            if connection.execute(known).scalar() == version:
                return False
            connection.execute(delete(architectures).where(architectures.c.library == library))
            for begin in range(0, len(rows), _LARGEST):
                connection.execute(insert(architectures), rows[begin : begin + _LARGEST])
        return True

    def page(self, words: Sequence[str], after: str | None, limit: int) -> list[Architecture]:
        """Return networks by name whose names hold all words, in any order.

        after: the name before the first.
        """
        query = select(architectures.c.entry).order_by(architectures.c.name).limit(limit)
        for word in words:
            query = query.where(architectures.c.name.icontains(word, autoescape=True))
        if after is not None:
            query = query.where(architectures.c.name > after)
        with self.database.read() as connection:
            return [Architecture(**entry) for entry in connection.execute(query).scalars()]

    def find(self, name: str) -> Architecture | None:
        """Return one network by its catalog name."""
        with self.database.read() as connection:
            entry = connection.execute(select(architectures.c.entry).where(architectures.c.name == name)).scalar()
        return None if entry is None else Architecture(**entry)

    def names(self) -> list[str]:
        """Return all names."""
        with self.database.read() as connection:
            return list(connection.execute(select(architectures.c.name)).scalars())
