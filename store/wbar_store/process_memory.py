"""The memory and environment of a process with credentials, closed to other processes of its user, where Linux allows it."""

import ctypes
import logging
import os
import platform

log = logging.getLogger("wbar.store")

_DUMPABLE = 4  # PR_SET_DUMPABLE


def close_memory() -> None:
    """Keep other processes of this user from reading this one's memory and environment; core dumps end, too.

    Never raises: what the platform refuses is logged.
    """
    if platform.system() != "Linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_DUMPABLE, 0, 0, 0, 0) != 0:
        log.debug("this process's memory stays open to its user: %s", os.strerror(ctypes.get_errno()))
