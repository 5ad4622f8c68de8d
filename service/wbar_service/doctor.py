"""`wbar doctor`: what a process with this environment finds of the parts that it needs, each in a line."""

import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from kombu.utils.url import maybe_sanitize_url
from sqlalchemy import Connection

from wbar import __version__
from wbar_service.settings import GIB, ServiceSettings
from wbar_store import migrate, row_security
from wbar_store.store import Store

Verdict = Literal["ok", "warning", "fault"]
LITTLE_SPACE = 5 * GIB
_LIBRARIES = ("torch", "torchvision", "fastapi", "celery", "sqlalchemy")


@dataclass(frozen=True)
class Finding:
    """One line of the report. verdict: `fault` where the service cannot work like that."""

    part: str
    verdict: Verdict
    words: str


def examine(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield what is found, part by part; nothing is changed, but for a small object that is written and deleted."""
    installed = ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    yield Finding("software", "ok", f"wbar {__version__}, Python {platform.python_version()}, {installed}")
    try:
        store = Store.open(settings)
    except Exception as error:
        yield Finding("store", "fault", _reason(error))
        return
    try:
        yield from _database(store)
        yield _checked("broker", store.notifier.check, str(maybe_sanitize_url(settings.broker_url)))
        yield _checked("blobs", store.blobs.check, str(maybe_sanitize_url(settings.blobs_url)))
        for part, folder in (("blobs' disk", store.blobs.root), ("scratch", settings.scratch)):
            if folder is not None:
                yield _space(part, folder)
    finally:
        store.close()


def _database(store: Store) -> Iterator[Finding]:
    shown = store.database.engine.url.render_as_string(hide_password=True)
    found = _checked("database", store.check, shown)
    yield found
    if found.verdict == "fault":
        return
    try:
        differences, live = migrate.difference(store.database), store.workers.live()
    except Exception as error:
        yield Finding("tables", "fault", f"run `wbar migrate` ({_reason(error)})")
        return
    if differences:
        yield Finding("tables", "fault", f"{len(differences)} differences from this version: run `wbar migrate`")
        return
    yield Finding("tables", "ok", "as this version has them")
    with store.database.read() as connection:
        yield _second_wall(connection)
    for queue in ("train", "ingest"):
        names = [f"{worker.name} ({worker.slots} on {worker.device})" for worker in live if worker.queue == queue]
        words = ", ".join(names) or f"none lives: start `wbar worker --queue {queue}`"
        yield Finding(f"{queue} workers", "ok" if names else "fault", words)


def _second_wall(connection: Connection) -> Finding:
    if connection.dialect.name != "postgresql":
        return Finding("row security", "ok", "of PostgreSQL only")
    if row_security.available(connection):
        return Finding("row security", "ok", f"requests take the role {row_security.ROLE}")
    return Finding("row security", "warning", row_security.missing(connection))


def _checked(part: str, check: Callable[[], None], where: str) -> Finding:
    try:
        check()
    except Exception as error:
        return Finding(part, "fault", f"{where}: {_reason(error)}")
    return Finding(part, "ok", where)


def _space(part: str, folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    return Finding(part, "ok" if free > LITTLE_SPACE else "warning", f"{folder}: {free / GIB:.1f} GiB are free")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
