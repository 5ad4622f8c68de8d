"""The libraries of networks that are installed: their names go to the store, and a table of timm's is made when one is wanted.

Children do both, since the worker loads no framework, and as nice as can be: the table takes minutes of one core. It is made
once, after the first upload that is one of timm's networks or none that is known; until it is there, an upload waits for the
few networks that it may be to be built for it alone.
"""

import importlib.util
import logging
import os
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from wbar.errors import UnknownArchitecture
from wbar_store.store import Store
from wbar_training.messages import Crashed
from wbar_worker import processes
from wbar_worker.children import (
    DESCRIBE_LIBRARY,
    DESCRIBE_TIMM,
    LIBRARY,
    TIMM,
    CheckpointFound,
    LibraryNames,
    LibraryRequest,
    TimmRequest,
    TimmTable,
    UploadRejected,
    Verdict,
)
from wbar_worker.outages import retry_while_unavailable
from wbar_worker.processes import Child, ControlChannel

log = logging.getLogger("wbar.worker")

Listed = Literal["transformers", "smp"]
# By the library's name in the catalog.
MODULES: dict[Listed, str] = {"transformers": "transformers", "smp": "segmentation_models_pytorch"}


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
        if isinstance(names, LibraryNames):
            found, entries = names.version, names.entries
            retry_while_unavailable(lambda: self._store.architectures.announce("timm", found, entries))
        self._wanted.wait()
        if not self._stopping and isinstance(table := self._ask(TimmRequest(self._tables, make_table=True)), TimmTable):
            log.info("the table of timm's networks is at %s", table.path)

    def _ask(self, request: TimmRequest) -> LibraryNames | TimmTable | Crashed:
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


class InstalledLibrary(threading.Thread):
    """Announces the networks of a library beside an ingest worker's work, unless its version was announced already."""

    def __init__(self, store: Store, library: Listed) -> None:
        super().__init__(name=library, daemon=True)
        self._store, self._library, self._stopping = store, library, False
        self._child: Child | None = None

    @staticmethod
    def is_there(library: Listed) -> bool:
        """Return whether a library is installed; it is not imported."""
        return importlib.util.find_spec(MODULES[library]) is not None

    def run(self) -> None:
        library = self._library
        installed, known = version(MODULES[library]), list[str | None]()
        retry_while_unavailable(lambda: known.append(self._store.architectures.version(library)))
        if known == [installed] or self._stopping:
            return
        child = self._child = processes.start(DESCRIBE_LIBRARY, LibraryRequest(library))
        try:
            entries = child.receive(LIBRARY).entries
        except (EOFError, OSError, ValueError):
            if not self._stopping:
                log.warning("%s could not be looked at: %s", library, child.crashed().why)
            return
        finally:
            child.end()
        retry_while_unavailable(lambda: self._store.architectures.announce(library, installed, entries))

    def stop(self) -> None:
        """End the child."""
        self._stopping = True
        if self._child is not None:
            self._child.process.kill()


# In the child.


def describe_library(request: LibraryRequest, channel: ControlChannel) -> None:
    """Send the names of the installed library's networks."""
    from wbar_training.networks import smp_models, transformers_models

    os.nice(19)
    entries = {"transformers": transformers_models.entries, "smp": smp_models.entries}[request.library]
    channel.send(LibraryNames(version=version(MODULES[request.library]), entries=list(entries())))


def describe_timm(request: TimmRequest, channel: ControlChannel) -> None:
    """Send the names of the installed timm; or make its table where it is missing, and say where it is."""
    from wbar_training.networks import timm_models, timm_table

    os.nice(19)
    if not request.make_table:
        found = timm_models.installed()
        assert found is not None
        channel.send(LibraryNames(version=found, entries=list(timm_models.entries())))
        return
    if timm_table.load(request.tables) is None:
        timm_table.write(request.tables)
    channel.send(TimmTable(path=str(timm_table.path_in(request.tables))))
