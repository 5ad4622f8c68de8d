"""`python -m benchmarks.plots gain.jsonl docs/plots`: the plots of the guide and of the results, as SVG.

Needs `kaleido` and a Chromium (the extra `bench`), which draw plotly's figures without a window.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import plotly.graph_objects as go

from benchmarks.gain import ORDER, SETS, read
from wbar.method import METHODS
from wbar.schedule import build_schedule

STEPS_PER_EPOCH = 40
PEAK = 0.1
METHODS_DRAWN: dict[str, dict[str, Any]] = {
    "auto": {"type": "auto", "lr": PEAK},
    "cyclic_swa": {"high": {"lr": PEAK / 2}, "low": {"lr": PEAK / 20}, "pull": 0},
    "swa, annealed": {"type": "swa", "lr": PEAK / 2, "anneal_epochs": 2, "anneal_from": PEAK},
    "ema, lawa": {"type": "ema", "lr": PEAK / 2, "final_lr": PEAK / 20},
    "none, the control": {"type": "none", "lr": PEAK, "final_lr": 0.0, "warmup_epochs": 1},
}
LAYOUT = {"template": "plotly_white", "font": {"size": 13}, "margin": {"l": 60, "r": 20, "t": 40, "b": 50}}


def rates() -> go.Figure:
    """The rate of every method over twelve epochs; dots where a snapshot is taken."""
    figure = go.Figure()
    for name, fields in METHODS_DRAWN.items():
        schedule = build_schedule(METHODS.validate_python(fields | {"control_lr": PEAK}), STEPS_PER_EPOCH)
        places = [schedule.at(step) for step in range(schedule.total_steps)]
        epochs = [(place.step + 1) / STEPS_PER_EPOCH for place in places]
        line = go.Scatter(x=epochs, y=[place.lr for place in places], name=name, mode="lines")
        figure.add_trace(line)
        marked = [(epoch, place.lr) for epoch, place in zip(epochs, places, strict=True) if place.ends_cycle]
        figure.add_trace(
            go.Scatter(
                x=[x for x, _ in marked], y=[y for _, y in marked], mode="markers", showlegend=False,
                marker={"size": 7, "color": figure.layout.template.layout.colorway[len(figure.data) // 2]},
            )
        )  # fmt: skip
        figure.data[-2].line.color = figure.data[-1].marker.color
    figure.update_layout(
        title="The rates of the methods (dots: snapshots)", xaxis_title="epoch", yaxis_title="learning rate", **LAYOUT
    )
    return figure


def losses(lines: list[dict[str, Any]], name: str) -> go.Figure:
    """Mean NLL of every arm minus the start's, paired by seed, with one standard deviation; a bar per block."""
    figure = go.Figure()
    mine = [line for line in lines if line["set"] == name]
    for start in sorted({line["start"] for line in mine}):
        for epochs in sorted({line["epochs"] for line in mine if line["epochs"]}):
            starts = {x["seed"]: x["loss"] for x in mine if x["arm"] == "start" and x["start"] == start}
            arms, heights, errors = [], [], []
            for arm in ORDER[1:]:
                found = [
                    x["loss"] - starts[x["seed"]]
                    for x in mine
                    if (x["arm"], x["start"], x["epochs"]) == (arm, start, epochs)
                ]
                if found:
                    arms.append(arm)
                    heights.append(mean(found))
                    errors.append(stdev(found) if len(found) > 1 else 0.0)
            figure.add_trace(go.Bar(x=arms, y=heights, name=f"{start}, +{epochs} epochs", error_y={"array": errors}))
    figure.update_layout(
        title=f"{name}, {SETS[name].network.name}: NLL on unseen images, minus the start's",
        yaxis_title="Δ NLL (nats; below 0 is better)",
        barmode="group",
        **LAYOUT,
    )
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rates().write_image(options.out / "rates.svg", width=860, height=420)
    lines = read(options.results)
    for name in SETS:
        losses(lines, name).write_image(options.out / f"gain-{name}.svg", width=860, height=420)
    return 0


if __name__ == "__main__":
    sys.exit(main())
