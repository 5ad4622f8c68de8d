"""`wbar merge`: checkpoint files merged without training, here and offline."""

import importlib.util
import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from wbar_averaging.merging import MergeMethod

USAGE = 2
IDS = re.compile(r"(ckpt|job|snap|merge)_[0-9a-z]+")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# Each method with the options that are its own.
METHODS = {
    "mean": ("weights", "accumulate"),
    "task_arithmetic": ("scale",),
    "ties": ("density", "scale"),
    "dare": ("drop", "scale", "seed"),
}
MEAN = "Of a mean"
ADDED = "Of differences from a base"
OUTPUT = "Output"


def merge(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="safetensors or PyTorch files, ….index.json of sharded ones, folders holding one; or, with --last, the "
            "folder of a run."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="….safetensors for the weights alone, which replaces what lay there; another name for a new folder with "
            "config.json and tokenizer files beside them.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("merged.safetensors"),
    method: Annotated[str, typer.Option(help="mean, task_arithmetic (also WiSE-FT), ties or dare.")] = "mean",
    last: Annotated[
        int | None,
        typer.Option(help="Take the last so many: of a run's folder by the numbers in their names, or as named."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="One per checkpoint: 1,2,1. Or, for checkpoints of one run, oldest first, the shape of the decay that their "
            "mean replaces: linear, cosine, 1-sqrt, ema:0.9. Default: equal.",
            rich_help_panel=MEAN,
        ),
    ] = None,
    accumulate: Annotated[
        str | None,
        typer.Option(help="float64 (default) or float32: what is summed in.", rich_help_panel=MEAN),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(
            help="The rank of a merged LoRA adapter: ΔW = B·A is averaged and factored anew; what is left out is printed.",
            rich_help_panel=MEAN,
        ),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="w₀, the checkpoint that the others began from.", rich_help_panel=ADDED)
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            help="λ of w₀ + Σ λᵢ(wᵢ − w₀): one, or one per checkpoint (0.3,0.5). Default: 1.", rich_help_panel=ADDED
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="ties: the share of each difference that is kept. Default: 0.2.", rich_help_panel=ADDED),
    ] = None,
    drop: Annotated[
        float | None,
        typer.Option(help="dare: the share of each difference that is dropped. Default: 0.9.", rich_help_panel=ADDED),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="dare: of what is dropped. Default: 0.", rich_help_panel=ADDED)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="F16, BF16, F32 or F64. Default: each tensor's own.", rich_help_panel=OUTPUT)
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Split the output: 5GB, 500MiB. Default: one file.", rich_help_panel=OUTPUT)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", show_default=False)] = False,
) -> None:
    """Merge checkpoint files without training, and print the result's path. Memory does not grow with the files."""
    _end_on_signals()
    need_numpy()
    from wbar_averaging.merging import merge_checkpoints

    stored = next((path for path in map(str, checkpoints) if IDS.fullmatch(path) and not Path(path).exists()), None)
    if stored:
        end(
            f"{stored} is an id of the service and no file here: wbar merges create {stored} … has the service merge it"
        )

    given = {
        "weights": weights,
        "accumulate": accumulate,
        "scale": scale,
        "density": density,
        "drop": drop,
        "seed": seed,
    }
    try:
        chosen = _method(method, {name: value for name, value in given.items() if value is not None})
        paths = _paths(checkpoints, last)
        with progress_bar(f"merge {len(paths)} checkpoints") as progress:
            merged = merge_checkpoints(
                paths, output, chosen, base=base, dtype=dtype, max_shard_bytes=size_in_bytes(max_shard_size),
                lora_rank=lora_rank, progress=progress,
            )  # fmt: skip
    except (ValueError, OSError) as error:
        end(str(error))
    if as_json:
        answer = {"path": str(merged.path), "carried": list(merged.carried), "residuals": merged.residuals or None}
        typer.echo(json.dumps(answer))
        return
    if merged.residuals:
        worst = max(merged.residuals, key=lambda name: merged.residuals[name])
        typer.echo(
            f"rank {lora_rank} leaves out {merged.residuals[worst]:.2%} of ΔW (Frobenius norm) in {worst}, the most of "
            f"{len(merged.residuals)} modules",
            err=True,
        )
    typer.echo(str(merged.path))


def _end_on_signals() -> None:
    """Let what a scheduler sends, or a terminal that is closed, end the command as an error does: nothing half is left."""

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is None or threading.current_thread() is not threading.main_thread():
            continue
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored, and so it stays
            signal.signal(number, leave)


def _paths(checkpoints: list[Path], last: int | None) -> list[Path]:
    from wbar_averaging.run_checkpoints import last_checkpoints

    if last is not None and len(checkpoints) == 1 and checkpoints[0].is_dir():
        return last_checkpoints(checkpoints[0], last)
    if last is not None and not 1 <= last <= len(checkpoints):
        raise ValueError(f"--last {last}: {len(checkpoints)} checkpoints are named")
    return checkpoints[-last:] if last else checkpoints


def _method(name: str, given: dict[str, str | float | int]) -> "MergeMethod":
    from wbar_averaging import merging

    if name not in METHODS:
        raise ValueError(f"--method {name}: there are {', '.join(METHODS)}")
    foreign = [option for option in given if option not in METHODS[name]]
    if foreign:
        owners = ", ".join(method for method, options in METHODS.items() if foreign[0] in options)
        raise ValueError(f"--{foreign[0]} is an option of {owners}, not of {name}: say --method, or leave it out")
    options = dict[str, object](given)
    if "weights" in options:
        options["weights"] = weights_or_shape(str(options["weights"]))
    if "scale" in options:
        scales = _numbers("--scale", str(options["scale"]))
        options["scale"] = scales[0] if len(scales) == 1 else scales
        if name == "ties" and len(scales) > 1:
            raise ValueError("--scale: ties has one λ, since it adds one vector to the base")
    kinds: dict[str, Callable[..., MergeMethod]] = {
        "mean": merging.WeightedMean, "task_arithmetic": merging.TaskArithmetic, "ties": merging.Ties, "dare": merging.Dare,
    }  # fmt: skip
    return kinds[name](**options)


def weights_or_shape(text: str) -> list[float] | str:
    """Return the numbers of 1,2,1, or the name of a shape as it is. Raises ValueError."""
    try:
        return _numbers("--weights", text)
    except ValueError:
        if "," in text:
            raise
    return text


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: numbers with commas between them were expected, as in 1,2,1") from None


def size_in_bytes(text: str | None) -> int | None:
    """Return how many bytes 5GB or 500MiB are. Raises ValueError."""
    if text is None:
        return None
    number = text.rstrip("BKMGibkmg ")
    unit = text.removeprefix(number).strip().upper()
    if not number.isdecimal() or unit not in UNITS:
        raise ValueError(f"--max-shard-size {text}: a size was expected, as in 5GB or 500MiB")
    return int(number) * UNITS[unit]


def need_numpy() -> None:
    """End the command with a sentence where numpy is not installed."""
    if importlib.util.find_spec("numpy") is None:
        end("this command needs numpy: pip install 'wbar[average]'")


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None] | None]:
    """Draw a bar where a person looks on; elsewhere not even its module is loaded."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def end(message: str) -> NoReturn:
    """Print an error and leave with the exit code of wrong usage."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(USAGE)
