"""`wbar doctor`: what a process with this environment finds of the parts that it needs, each in a line, with what to do."""

from collections.abc import Callable, Iterator

from kombu.utils.url import maybe_sanitize_url
from sqlalchemy import Connection

from wbar_service.host_checks import Finding, clock, disk, software, torch_and_devices
from wbar_service.settings import ServiceSettings
from wbar_store import migrate, row_security
from wbar_store.store import Store

MIGRATE = "run `wbar migrate`"


def examine(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield what is found, part by part; nothing is changed, but for a small object that is written and deleted."""
    yield from software()
    yield torch_and_devices()
    try:
        store = Store.open(settings)
    except Exception as error:
        yield Finding("store", "fault", _reason(error))
        return
    try:
        yield from _database(store)
        yield _checked("broker", store.notifier.check, str(maybe_sanitize_url(settings.broker_url)), "WBAR_BROKER_URL")
        yield _checked("blobs", store.blobs.check, str(maybe_sanitize_url(settings.blobs_url)), "WBAR_BLOBS_URL")
        for part, folder in (("blobs' disk", store.blobs.root), ("scratch", settings.scratch)):
            if folder is not None:
                yield disk(part, folder)
    finally:
        store.close()


def _database(store: Store) -> Iterator[Finding]:
    shown = store.database.engine.url.render_as_string(hide_password=True)
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
