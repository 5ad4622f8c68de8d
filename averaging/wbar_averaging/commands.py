"""`wbar merge`, and `wbar average` as the short name of its mean: here and offline. `wbar schedule`: rates, printed and drawn.

`python -m wbar_averaging.commands average` is the same without the client's modules, a quarter of a second sooner.
"""

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wbar_averaging.merge_command import end, merge, need_numpy, progress_bar, size_in_bytes, weights_or_shape

if TYPE_CHECKING:
    from wbar_averaging.cyclic_lr import Position

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", show_default=False)]
app = typer.Typer()


@app.callback()
def group() -> None:
    """Merge and average checkpoint files, and show schedules."""


app.command()(merge)


@app.command()
def average(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="safetensors or PyTorch files, ….index.json of sharded ones, folders holding one."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to write the mean; what lay there is replaced.")
    ] = Path("mean.safetensors"),
    weights: Annotated[
        str | None,
        typer.Option(
            help="One per checkpoint: 1,2,1. Or, for checkpoints of one run, oldest first, the shape of the decay that their "
            "mean replaces: linear, cosine, 1-sqrt, ema:0.9. Default: equal."
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="F16, BF16, F32 or F64. Default: each tensor's own.")] = None,
    accumulate: Annotated[str, typer.Option(help="float64 or float32: what is summed in.")] = "float64",
    max_shard_size: Annotated[
        str | None, typer.Option(help="Split the output: 5GB, 500MiB. Default: one file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the weighted mean of checkpoint files, and print its path: `wbar merge --method mean` into one file."""
    need_numpy()
    from wbar_averaging.merging import WeightedMean, checked_out, merge_checkpoints

    try:
        with progress_bar(f"average {len(checkpoints)} checkpoints") as progress:
            method = WeightedMean(None if weights is None else weights_or_shape(weights), accumulate)
            written = merge_checkpoints(
                checkpoints, checked_out(output), method, dtype=dtype, max_shard_bytes=size_in_bytes(max_shard_size),
                progress=progress,
            ).path  # fmt: skip
    except (ValueError, OSError) as error:
        end(str(error))
    typer.echo(json.dumps({"path": str(written)}) if as_json else str(written))


@app.command()
def schedule(
    cycles: Annotated[int, typer.Option(help="High and low phases, one of each per cycle.")] = 6,
    high_lr: Annotated[float, typer.Option(help="Rate of the high phases.")] = 0.05,
    low_lr: Annotated[float, typer.Option(help="Rate of the low phases.")] = 0.005,
    high_epochs: Annotated[int, typer.Option(help="Length of a high phase.")] = 1,
    low_epochs: Annotated[int, typer.Option(help="Length of a low phase.")] = 1,
    steps_per_epoch: Annotated[int, typer.Option(help="Batches in an epoch; 1 makes epochs steps.")] = 100,
    shape: Annotated[
        str, typer.Option(help="Shape of the high phase: constant, linear, cosine, exponential, step, sawtooth, poly.")
    ] = "constant",
    warmup_steps: Annotated[int, typer.Option(help="First steps of each high phase, from the low rate up.")] = 0,
    warmup: Annotated[str, typer.Option(help="gradual or constant.")] = "gradual",
    plot: Annotated[Path | None, typer.Option(help="Write the plot here, as one HTML page.")] = None,
    as_json: Json = False,
) -> None:
    """Print the phases of a schedule, with the rates they begin and end at; --plot draws every step."""
    from wbar_averaging.cyclic_lr import CyclicSchedule

    try:
        planned = CyclicSchedule(
            cycles, high_lr, low_lr, high_epochs, low_epochs, steps_per_epoch,
            shape=shape, warmup_steps=warmup_steps, warmup=warmup,  # type: ignore[arg-type]  # checked there
        )  # fmt: skip
    except ValueError as error:
        end(str(error))
    positions = [planned.at(step) for step in range(planned.total_steps)]
    phases: dict[tuple[int, str], list[Position]] = {}
    for at in positions:
        phases.setdefault((at.cycle, at.phase), []).append(at)
    if plot is not None:
        _write_plot(plot, positions)
    spans = [_Span.of(cycle, phase, own) for (cycle, phase), own in phases.items()]
    if as_json:
        written = None if plot is None else str(plot)
        typer.echo(json.dumps({"phases": [asdict(span) for span in spans], "plot": written}, indent=2))
        return
    typer.echo(
        f"{'cycle':>5}  {'phase':<5}  {'steps':>15}  {'rate at its beginning':>21}  {'largest':>9}  {'at its end':>10}"
    )
    for span in spans:
        steps = f"{span.first_step}–{span.last_step}"
        first, largest, last = span.first_lr, span.largest_lr, span.last_lr
        typer.echo(f"{span.cycle:>5}  {span.phase:<5}  {steps:>15}  {first:>21.4g}  {largest:>9.4g}  {last:>10.4g}")
    if plot is not None:
        typer.echo(str(plot))


@dataclass(frozen=True)
class _Span:
    """One phase of one cycle, as it is printed."""

    cycle: int
    phase: str
    first_step: int
    last_step: int
    first_lr: float
    largest_lr: float
    last_lr: float

    @classmethod
    def of(cls, cycle: int, phase: str, steps: "list[Position]") -> "_Span":
        rates = [at.lr for at in steps]
        return cls(cycle, phase, steps[0].step, steps[-1].step, rates[0], max(rates), rates[-1])


def _write_plot(path: Path, positions: "list[Position]") -> None:
    if importlib.util.find_spec("plotly") is None:
        end("--plot needs plotly: pip install 'wbar[average]'")
    from wbar_averaging.figures import schedule_figure

    figure = schedule_figure(
        [at.step for at in positions],
        [at.lr for at in positions],
        [at.phase for at in positions],
        snapshots=[at.step for at in positions if at.ends_cycle],
    )
    try:
        path.write_text(figure.to_html(include_plotlyjs=True, config={"displaylogo": False}), encoding="utf-8")
    except OSError as error:
        end(f"{path}: {error.strerror}")


if __name__ == "__main__":
    app()
