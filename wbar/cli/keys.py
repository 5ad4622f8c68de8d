"""`wbar keys create|list|revoke`."""

from typing import Annotated

import typer

from wbar.cli.completion import After, Limit, Order
from wbar.cli.output import answer, answer_page, connected, note, with_json

app = typer.Typer(no_args_is_help=True, help="API keys of your tenant: create, list, revoke.")


@app.command()
@with_json
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write or admin; again for each. Default: read, write.")
    ] = None,
    expires_in_days: Annotated[float | None, typer.Option(help="Default: it does not expire.")] = None,
) -> None:
    """Create an API key and print it: it is shown only this once."""
    with connected() as client:
        made = client.keys.create(name, scopes=scope or ("read", "write"), expires_in_days=expires_in_days)  # type: ignore[arg-type]  # the service checks them
    note(f"{made.id}: {', '.join(made.scopes)}; it is shown only this once")
    answer(made, made.key)


@app.command(name="list")
@with_json
def list_keys(limit: Limit = 20, after: After = None, order: Order = None) -> None:
    """List the API keys, newest first: names, scopes and times, not the keys."""
    with connected() as client:
        page = client.keys.list(limit=limit, after=after, order=order)
    columns = ("id", "name", "begins", "scopes", "last used", "expires")
    answer_page(page, columns, lambda key: (
        key.id, key.name, key.hint, " ".join(key.scopes), (key.last_used_at or "never")[:16], (key.expires_at or "never")[:16]
    ))  # fmt: skip


@app.command()
@with_json
def revoke(key: Annotated[str, typer.Argument(help="Its id, as `wbar keys list` shows it.")]) -> None:
    """Revoke an API key: it opens nothing any more."""
    with connected() as client:
        client.keys.revoke(key)
    answer({"id": key, "object": "key", "deleted": True}, key)
