"""Retries through a short outage of the database or the blob store, which must not cost an attempt."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from obstore.exceptions import GenericError
from sqlalchemy.exc import DBAPIError

from wbar_store.database import UNAVAILABLE

log = logging.getLogger("wbar.worker")
T = TypeVar("T")

OUTAGE_SECONDS = 120.0


def is_outage(error: Exception) -> bool:
    """Return whether the store, or room on a disk, is away and may come back: then the same may succeed later.

    A statement that the database refuses, a file that is missing and an object that the store does not have are none.
    """
    if isinstance(error, DBAPIError):
        return isinstance(error, UNAVAILABLE) or error.connection_invalidated
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    # GenericError is obstore's for what went wrong on the way: connections, time limits, answers of 5xx.
    return isinstance(error, (*UNAVAILABLE, GenericError))


def retry_while_unavailable(write: Callable[[], T]) -> T:
    """Write to the store; while it is away, try again for OUTAGE_SECONDS.

    Raises the error of the last try; at once if it is about something else than an outage.
    """
    deadline = time.monotonic() + OUTAGE_SECONDS
    while True:
        try:
            return write()
        except Exception as error:
            if not is_outage(error) or time.monotonic() > deadline:
                raise
            log.warning("the store is away (%s); trying again", type(error).__name__)
            time.sleep(1.0)
