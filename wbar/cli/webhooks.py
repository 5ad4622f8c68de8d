"""`wbar webhooks create|list|delete|ping|enable|rotate|deliveries|replay`."""

from typing import Annotated

import typer

from wbar.cli.completion import After, Limit, Order
from wbar.cli.output import answer, answer_page, connected, note, with_json

app = typer.Typer(no_args_is_help=True, help="Webhooks: who is told when a job ends, and what was sent.")

Hook = Annotated[str, typer.Argument(help="Its id, as `wbar webhooks list` shows it.")]


@app.command()
@with_json
def create(
    url: Annotated[str, typer.Argument(help="Where events are sent to: https://…")],
    event: Annotated[list[str] | None, typer.Option(help="job.*, job.succeeded and the like; again for each.")] = None,
    name: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Create a webhook and print the secret that its messages are signed with: it is shown only this once."""
    with connected() as client:
        made = client.webhooks.create(url, events=event, name=name)
    note(
        f"{made.id}: {', '.join(made.events)}; the secret is shown only this once. Try it: wbar webhooks ping {made.id}"
    )
    answer(made, made.secret)


@app.command(name="list")
@with_json
def list_webhooks(limit: Limit = 20, after: After = None, order: Order = None) -> None:
    """List the webhooks, newest first."""
    with connected() as client:
        page = client.webhooks.list(limit=limit, after=after, order=order)
    answer_page(page, ("id", "name", "status", "events", "url"), lambda hook: (
        hook.id, hook.name or "", hook.status, " ".join(hook.events), hook.url
    ))  # fmt: skip


@app.command()
@with_json
def delete(webhook: Hook) -> None:
    """Delete a webhook, with the log of what was sent."""
    with connected() as client:
        client.webhooks.delete(webhook)
    answer({"id": webhook, "object": "webhook", "deleted": True}, webhook)


@app.command()
@with_json
def ping(webhook: Hook) -> None:
    """Send a test event, and print the id of its delivery."""
    with connected() as client:
        made = client.webhooks.ping(webhook)
    answer(made, made.id)


@app.command()
@with_json
def enable(webhook: Hook) -> None:
    """Send to a webhook again that was disabled."""
    with connected() as client:
        now = client.webhooks.enable(webhook)
    answer(now, now.status)


@app.command()
@with_json
def rotate(
    webhook: Hook,
    overlap: Annotated[int | None, typer.Option(help="Seconds for which the old secret signs, too.")] = None,
) -> None:
    """Give a webhook a new secret, and print it: it is shown only this once."""
    with connected() as client:
        made = client.webhooks.rotate(webhook, overlap_seconds=overlap)
    answer(made, made.secret)


@app.command()
@with_json
def deliveries(
    webhook: Hook,
    status: Annotated[str | None, typer.Option(help="pending, delivered or failed.")] = None,
    limit: Limit = 20,
    after: After = None,
    order: Order = None,
) -> None:
    """List what was sent, or is to be, newest first."""
    with connected() as client:
        page = client.webhooks.deliveries(webhook, status, limit=limit, after=after, order=order)  # type: ignore[arg-type]  # the service checks it
    answer_page(page, ("id", "event", "status", "attempts", "answer", "created"), lambda one: (
        one.id, one.type, one.status, one.attempts, one.response_status or one.error or "", one.created_at[:19]
    ))  # fmt: skip


@app.command()
@with_json
def replay(webhook: Hook, delivery: Annotated[str, typer.Argument(help="msg_…")]) -> None:
    """Send a delivery again, with the same id and content."""
    with connected() as client:
        made = client.webhooks.replay(webhook, delivery)
    answer(made, made.status)
