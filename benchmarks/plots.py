"""`python -m benchmarks.plots training.jsonl docs/plots`: the plots of the guide and of the results, as SVG.

Needs `kaleido` and a Chromium (the extra `bench`), which draw plotly's figures without a window.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import plotly.graph_objects as go

from benchmarks.gain.arms import ORDER, SINGLE
from benchmarks.gain.blocks import PARTS, Block
from benchmarks.gain.tables import Line, complete, paired, read
from wbar.method import METHODS, Soup, StartKind
from wbar.schedule import build_schedule

STEPS_PER_EPOCH = 40
PEAK = 0.1
METHODS_DRAWN: dict[str, dict[str, Any]] = {
    "auto, none, the control": {"type": "auto", "lr": PEAK},
    "auto, memorised start": {"type": "auto", "lr": PEAK},
    "cyclic_swa": {"high": {"lr": PEAK / 2}, "low": {"lr": PEAK / 20}, "pull": 0},
    "swa, annealed": {"type": "swa", "lr": PEAK / 2, "anneal_epochs": 2, "anneal_from": PEAK},
    "ema, lawa": {"type": "ema", "lr": PEAK / 2, "final_lr": PEAK / 20},
    "none, warmed up": {"type": "none", "lr": PEAK, "final_lr": 0.0, "warmup_epochs": 1},
}
LAYOUT = {"template": "plotly_white", "font": {"size": 13}, "margin": {"l": 60, "r": 20, "t": 40, "b": 50}}


def rates() -> go.Figure:
    """The rate of every method over twelve epochs; dots where a snapshot is taken."""
    figure = go.Figure()
    for name, fields in METHODS_DRAWN.items():
        method = METHODS.validate_python(fields | {"control_lr": PEAK})
        assert not isinstance(method, Soup)
        kind: StartKind = "memorised" if "memorised" in name else "underfit"
        schedule = build_schedule(method, STEPS_PER_EPOCH, start_kind=kind)
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


def gains(lines: list[Line], blocks: Sequence[Block], measure: str, title: str) -> go.Figure:
    """A row for each block, a mark for each arm: its mean minus the best of the other single networks', paired by seed."""
    figure = go.Figure()
    done = [(block, found) for block in blocks if (found := complete(lines, block))]
    sign = -1 if measure == "accuracy" else 1
    for arm in ORDER:
        places, errors = [], []
        for _, found in done:
            others = [one for one in SINGLE if one != "auto"]
            best = min(others, key=lambda one: sign * mean(line[measure] for line in found[one]))
            difference, error = paired(found[arm], found[best], measure)
            places.append(difference)
            errors.append(error)
        marker = {"size": 12 if arm == "auto" else 8, "symbol": "diamond" if arm == "auto" else "circle"}
        names = [block.name for block, _ in done]
        bars = {"type": "data", "array": errors} if arm == "auto" else None
        figure.add_trace(go.Scatter(x=places, y=names, mode="markers", name=arm, marker=marker, error_x=bars))
    figure.update_layout(title=title, xaxis_title="difference to the best single network but auto", **LAYOUT)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rates().write_image(options.out / "rates.svg", width=860, height=420)
    lines = read(options.results)
    for part, blocks in PARTS.items():
        if part == "quick" or not any(complete(lines, block) for block in blocks):
            continue
        for measure, title in (("loss", "NLL on unseen images"), ("nll_calibrated", "NLL at the fitted temperature")):
            figure = gains(lines, blocks, measure, f"{title}, {part}: left is better")
            figure.write_image(options.out / f"gain-{part}-{measure.replace('_', '-')}.svg", width=1000, height=560)
    return 0


if __name__ == "__main__":
    sys.exit(main())
