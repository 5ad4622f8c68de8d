"""Retries through a short outage of the database or the blob store, which must not cost an attempt."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

log = logging.getLogger("wbar.worker")
T = TypeVar("T")

OUTAGE_SECONDS = 120.0


def retry_while_unavailable(write: Callable[[], T]) -> T:
    """Write to the store; while it is away, try again for OUTAGE_SECONDS. Raises the error of the last try."""
    deadline = time.monotonic() + OUTAGE_SECONDS
    while True:
        try:
            return write()
        except (DBAPIError, OSError):
            if time.monotonic() > deadline:
                raise
            log.warning("the store is away; trying again")
            time.sleep(1.0)
