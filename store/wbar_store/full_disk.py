"""Which errors mean that no room is left: each part of the store says it in its own words."""

import errno
import sqlite3

from sqlalchemy.exc import DBAPIError

_SQLITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)  # the latter where its shared memory cannot grow
_NUMBERS = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException) -> bool:
    """Return whether an error of the database, the blob store or the file system says that no room is left."""
    if isinstance(error, DBAPIError):
        # psycopg's DiskFull has this SQLSTATE; SQLite names its result code.
        original = error.orig
        return getattr(original, "sqlite_errorcode", None) in _SQLITE or getattr(original, "sqlstate", None) == "53100"
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    # obstore passes the system's error on as text only.
    return any(f"(os error {number})" in str(error) for number in _NUMBERS)
