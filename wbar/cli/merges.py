"""`wbar merges create|list|show|cancel|delete|download`: merges that the service makes; `wbar merge` makes them here."""

from pathlib import Path
from typing import Annotated, Any

import typer

from wbar.cli.completion import After, Limit, Order, merge_ids
from wbar.cli.options import given, numbers
from wbar.cli.output import FAILED, answer, answer_page, connected, note, step, transfer, with_json

app = typer.Typer(no_args_is_help=True, help="Merges of checkpoints in the service, without training.")

MergeId = Annotated[str, typer.Argument(help="merge_…", autocompletion=merge_ids)]
SHAPES = ("linear", "cosine", "1-sqrt")
EMA = "ema:"


@app.command()
@with_json
def create(
    checkpoints: Annotated[
        list[str], typer.Argument(help="ckpt_…, job_… (its result), snap_… or merge_…; of one run, oldest first.")
    ],
    last: Annotated[int | None, typer.Option(help="With one job: its last so many snapshots.")] = None,
    method: Annotated[str, typer.Option(help="mean, task_arithmetic (also WiSE-FT), ties or dare.")] = "mean",
    weights: Annotated[
        str | None, typer.Option(help="mean: 1,2,1; or the shape of a decay: linear, cosine, 1-sqrt, ema:0.9.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="w₀, of all methods but mean.")] = None,
    scale: Annotated[str | None, typer.Option(help="λ: one, or one per checkpoint (0.3,0.5). Default: 1.")] = None,
    density: Annotated[float | None, typer.Option(help="ties: the share that is kept. Default: 0.2.")] = None,
    drop: Annotated[float | None, typer.Option(help="dare: the share that is dropped. Default: 0.9.")] = None,
    seed: Annotated[int | None, typer.Option(help="dare: of what is dropped. Default: 0.")] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="mean of LoRA adapters, and needed there: the rank of the result.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float16, bfloat16, float32 or float64.")] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="safetensors; or huggingface, a zip of a folder with config.json and tokenizer files, of checkpoints that "
            "were uploaded as folders.",
        ),
    ] = None,
    max_shard_bytes: Annotated[
        int | None, typer.Option(help="huggingface: split larger weights into files of at most so many bytes.")
    ] = None,
    name: Annotated[str | None, typer.Option()] = None,
    expires_after: Annotated[int | None, typer.Option(help="Seconds from its end after which it is deleted.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Wait for it, and download the weights (a folder: a zip) to this file."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
) -> None:
    """Merge checkpoints that the service has, and print the merge's id."""
    options = given(type=method, density=density, drop=drop, seed=seed, lora_rank=lora_rank, **_weights(weights))
    if scale is not None:
        scales = numbers("--scale", scale, float)
        options["scale"] = scales[0] if len(scales) == 1 else scales
    fields = given(
        last=last, base=base, dtype=dtype, name=name, expires_after=expires_after, format=form,
        max_shard_bytes=max_shard_bytes, method=options,
    )  # fmt: skip
    with connected() as client:
        made = client.merges.create(checkpoints, **fields)
        if wait or output is not None:
            made = client.merges.wait(made.id)
        if output is not None and made.status == "succeeded":
            with transfer() as bar:
                client.merges.download(made.id, output, step(bar, "download"))
    answer(made, made.id)
    if made.result is not None and made.result.left_out:
        note(made.result.left_out)
    if made.status in ("failed", "cancelled"):
        note(f"{made.status}: {made.error.message if made.error else 'before its end'}", "red")
        raise typer.Exit(FAILED)


def _weights(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    if text in SHAPES:
        return {"shape": text}
    if text.startswith(EMA):
        decays = numbers("--weights", text.removeprefix(EMA), float)
        if len(decays) != 1:
            raise typer.BadParameter(f"{text!r}: one decay is wanted, as in ema:0.9", param_hint="--weights")
        return {"ema": decays[0]}
    return {"weights": numbers("--weights", text, float)}


@app.command(name="list")
@with_json
def list_merges(limit: Limit = 20, after: After = None, order: Order = None) -> None:
    """List the merges, newest first."""
    with connected() as client:
        page = client.merges.list(limit=limit, after=after, order=order)
    answer_page(page, ("id", "name", "status", "method", "of", "created"), lambda one: (
        one.id, one.name or "", one.status, one.method.type, len(one.sources), one.created_at[:19]
    ))  # fmt: skip


@app.command()
@with_json
def show(merge: MergeId) -> None:
    """Print a merge's status, and the reason where it failed."""
    with connected() as client:
        found = client.merges.get(merge)
    answer(found, f"{found.status}: {found.error.message}" if found.error else found.status)


@app.command()
@with_json
def cancel(merge: MergeId) -> None:
    """End a merge now."""
    with connected() as client:
        now = client.merges.cancel(merge)
    answer(now, now.status)


@app.command()
@with_json
def delete(merge: MergeId) -> None:
    """Delete a merge that has ended, and its weights."""
    with connected() as client:
        client.merges.delete(merge)
    answer({"id": merge, "object": "merge", "deleted": True}, merge)


@app.command()
@with_json
def download(
    merge: MergeId,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to; default: merged.safetensors, of a folder merged.zip."),
    ] = None,
) -> None:
    """Download the merged weights; an interrupted download goes on, and the digest is checked."""
    from wbar.merges import EXTENSIONS

    with connected() as client, transfer() as bar:
        target = output or Path(f"merged{EXTENSIONS[client.merges.get(merge).format]}")
        path = client.merges.download(merge, target, step(bar, "download"))
    answer({"id": merge, "path": str(path)}, str(path))
