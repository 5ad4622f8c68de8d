"""The installed timm: its names go to the store at once, and its networks' table is made when one is wanted.

Children do both, since the worker loads no framework, and as nice as can be: the table takes minutes of one core. It is made
once, after the first upload that is one of timm's networks or none that is known; until it is there, an upload waits for the
few networks that it may be to be built for it alone.
"""

import importlib.util
import logging
import os
import threading
from pathlib import Path

from wbar.errors import UnknownArchitecture
from wbar_store.store import Store
from wbar_training.messages import Crashed
from wbar_worker import processes
from wbar_worker.children import (
    DESCRIBE_TIMM,
    TIMM,
    CheckpointFound,
    TimmNames,
    TimmRequest,
    TimmTable,
    UploadRejected,
    Verdict,
)
from wbar_worker.outages import retry_while_unavailable
from wbar_worker.processes import Child, ControlChannel

log = logging.getLogger("wbar.worker")


class InstalledTimm(threading.Thread):
    """Announces the installed timm and has its table made, beside an ingest worker's work. tables: the table's folder."""

    def __init__(self, store: Store, tables: Path) -> None:
        super().__init__(name="timm", daemon=True)
        self._store, self._tables = store, tables
        self._wanted, self._stopping = threading.Event(), False
        self._child: Child | None = None

    @staticmethod
    def is_there() -> bool:
        """Return whether timm is installed; it is not imported."""
        return importlib.util.find_spec("timm") is not None

    def heard(self, verdict: Verdict | None) -> None:
        """Have the table made, unless it is there, where an upload was one of timm's or of an unknown network."""
        rejected = isinstance(verdict, UploadRejected) and verdict.fault.code == UnknownArchitecture.code
        network = verdict.facts.network if isinstance(verdict, CheckpointFound) else None
        if rejected or (network is not None and network.entry is not None and network.entry.library == "timm"):
            self._wanted.set()

    def run(self) -> None:
        names = self._ask(TimmRequest(self._tables, make_table=False))
        if isinstance(names, TimmNames):
            version, entries = names.version, names.entries
            retry_while_unavailable(lambda: self._store.architectures.announce("timm", version, entries))
        self._wanted.wait()
        if not self._stopping and isinstance(table := self._ask(TimmRequest(self._tables, make_table=True)), TimmTable):
            log.info("the table of timm's networks is at %s", table.path)

    def _ask(self, request: TimmRequest) -> TimmNames | TimmTable | Crashed:
        child = self._child = processes.start(DESCRIBE_TIMM, request)
        try:
            return child.receive(TIMM)
        except (EOFError, OSError, ValueError):
            crashed = child.crashed()
            if not self._stopping:
                log.warning("timm could not be looked at: %s", crashed.why)
            return crashed
        finally:
            child.end()

    def stop(self) -> None:
        """End the child; a table that is half made is made again when it is wanted again."""
        self._stopping = True
        self._wanted.set()
        if self._child is not None:
            self._child.process.kill()


# In the child.


def describe_timm(request: TimmRequest, channel: ControlChannel) -> None:
    """Send the names of the installed timm; or make its table where it is missing, and say where it is."""
    from wbar_training.networks import timm_models, timm_table

    os.nice(19)
    if not request.make_table:
        version = timm_models.installed()
        assert version is not None
        channel.send(TimmNames(version=version, entries=list(timm_models.entries())))
        return
    if timm_table.load(request.tables) is None:
        timm_table.write(request.tables)
    channel.send(TimmTable(path=str(timm_table.path_in(request.tables))))
