"""`wbar doctor`: what a process with this environment finds of the parts that it needs, each in a line, with what to do.

Where the environment names no part, it is not an operator's: the service that the command line talks to is looked at.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from kombu.utils.url import maybe_sanitize_url
from sqlalchemy import Connection

from wbar_service import local_checks
from wbar_service.host_checks import Finding, clock, disk, software, torch_and_devices
from wbar_service.settings import ServiceSettings
from wbar_store import migrate, row_security
from wbar_store.store import Store

MIGRATE = "run `wbar migrate`"
PARTS = {"database_url", "broker_url", "blobs_url"}


def examine(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield what is found, part by part; nothing is made, but for a small object in a bucket, which is deleted."""
    yield from software()
    yield torch_and_devices()
    if not PARTS & settings.model_fields_set:
        yield from local_checks.examine()
        return
    folder = _folder(settings.blobs_url)
    not_yet = folder is not None and not folder.exists()
    try:
        store = Store.open(settings.model_copy(update={"blobs_url": "memory:///"}) if not_yet else settings)
    except Exception as error:
        yield Finding("store", "fault", _reason(error))
        return
    try:
        yield from _database(store)
        yield _checked("broker", store.notifier.check, str(maybe_sanitize_url(settings.broker_url)), "WBAR_BROKER_URL")
        shown = str(maybe_sanitize_url(settings.blobs_url))
        if not_yet:
            yield Finding(
                "blobs", "warning", f"{shown} is not there yet", "`wbar serve` makes it, if WBAR_BLOBS_URL is right"
            )
        else:
            check = store.blobs.check if folder is None else lambda: _writable(folder)
            yield _checked("blobs", check, shown, "WBAR_BLOBS_URL")
        for part, where in (("blobs' disk", folder), ("scratch", settings.scratch)):
            if where is not None:
                yield disk(part, where)
    finally:
        store.close()


def _folder(blobs_url: str) -> Path | None:
    """Return the folder of local blobs; None for a bucket."""
    parsed = urlparse(blobs_url)
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else None


def _writable(folder: Path) -> None:
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError("this user cannot write there")


def _database(store: Store) -> Iterator[Finding]:
    shown = store.database.engine.url.render_as_string(hide_password=True)
    file = store.database.engine.url.database if store.database.engine.dialect.name == "sqlite" else None
    if file and not Path(file).exists():  # to open it would make it
        yield Finding("database", "fault", f"{shown} is not there", f"is WBAR_DATABASE_URL right? Then {MIGRATE}")
        return
    found = _checked("database", store.check, shown, "WBAR_DATABASE_URL")
    yield found
    if found.verdict == "fault":
        return
    try:
        differences, live = migrate.difference(store.database), store.workers.live()
    except Exception as error:
        yield Finding("tables", "fault", _reason(error), MIGRATE)
        return
    if differences:
        yield Finding("tables", "fault", f"{len(differences)} differences from this version", MIGRATE)
        return
    yield Finding("tables", "ok", "as this version has them")
    yield clock(store.database)
    with store.database.read() as connection:
        yield _second_wall(connection)
    for queue in ("train", "ingest"):
        names = [f"{worker.name} ({worker.slots} on {worker.device})" for worker in live if worker.queue == queue]
        if names:
            yield Finding(f"{queue} workers", "ok", ", ".join(names))
        else:
            yield Finding(f"{queue} workers", "fault", "none lives", f"start `wbar worker --queue {queue}`")


def _second_wall(connection: Connection) -> Finding:
    if connection.dialect.name != "postgresql":
        return Finding("row security", "ok", "of PostgreSQL only")
    if row_security.available(connection):
        return Finding("row security", "ok", f"requests take the role {row_security.ROLE}")
    return Finding("row security", "warning", row_security.missing(connection))


def _checked(part: str, check: Callable[[], None], where: str, setting: str) -> Finding:
    try:
        check()
    except Exception as error:
        return Finding(part, "fault", f"{where}: {_reason(error)}", f"is {setting} right, and does it run there?")
    return Finding(part, "ok", where)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
