"""What timm is installed here: its names go to the store at once, and the table that recognizes its networks is made once.

A child does both, since the worker loads no framework. It is as nice as can be: the table takes minutes of one core, and
until it is there an upload waits for the few networks that it may be to be built for it alone.
"""

import importlib.util
import logging
import os
import threading
from pathlib import Path

from wbar_store.store import Store
from wbar_worker import processes
from wbar_worker.children import DESCRIBE_TIMM, TIMM, TimmNames, TimmRequest, TimmTable
from wbar_worker.outages import retry_while_unavailable
from wbar_worker.processes import Child, ControlChannel

log = logging.getLogger("wbar.worker")


class InstalledTimm(threading.Thread):
    """Announces the installed timm and has its table made, beside an ingest worker's work. tables: the table's folder."""

    def __init__(self, store: Store, tables: Path) -> None:
        super().__init__(name="timm", daemon=True)
        self._store, self._tables = store, tables
        self._child: Child | None = None

    @staticmethod
    def is_there() -> bool:
        """Return whether timm is installed; it is not imported."""
        return importlib.util.find_spec("timm") is not None

    def run(self) -> None:
        child = self._child = processes.start(DESCRIBE_TIMM, TimmRequest(self._tables))
        try:
            while True:
                message = child.receive(TIMM)
                if not isinstance(message, TimmNames):
                    log.info("the table of timm's networks is at %s", message.path)
                    return
                found = message
                retry_while_unavailable(
                    lambda found=found: self._store.architectures.announce("timm", found.version, found.entries)  # type: ignore[misc]
                )
        except (EOFError, OSError):
            log.warning("timm's networks were not looked at to the end: %s", child.crashed().why)
        except Exception:
            log.exception("timm's networks could not be announced")

    def stop(self) -> None:
        """End the child; a table that is half made is made again at the next start."""
        if self._child is not None:
            self._child.end()


# In the child.


def describe_timm(request: TimmRequest, channel: ControlChannel) -> None:
    """Send the names of the installed timm, and make its table where it is missing."""
    from wbar_training.networks import timm_models, timm_table

    os.nice(19)
    version = timm_models.installed()
    assert version is not None
    channel.send(TimmNames(version=version, entries=list(timm_models.entries())))
    if timm_table.load(request.tables) is None:
        timm_table.write(request.tables)
    channel.send(TimmTable(path=str(timm_table.path_in(request.tables))))
