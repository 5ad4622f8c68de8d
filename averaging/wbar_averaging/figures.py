"""Figures of a job as plotly figures: plain numbers in, `plotly.graph_objects.Figure` out. Imports nothing else of ours.

One template for all: white ground, one font, legend below the plot, margins that grow with their labels, no fixed width, so
that a figure fills whatever holds it, wide or narrow. Colours are those of Okabe & Ito (2008), which people of all colour
vision tell apart, and every colour comes with a dash or a marker of its own; surfaces use Cividis (Nuñez et al. 2018).
A share of one is shown in percent; what a score and a loss are called is for the caller to say (`Units`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

LEAST_RANGE = 0.01  # of an accuracy axis
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, YELLOW, BLACK, GREY = "#56B4E9", "#E69F00", "#000000", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, BLACK)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "diamond", "square", "triangle-up", "x", "star")
PHASE_COLOURS = {"high": ORANGE, "low": BLUE}
SURFACE_COLOURS = "Cividis"
PANEL, EDGES = 230, 150  # pixels: of one row's height, and of titles and legend together
BAR = 22  # pixels of height for one bar and its label

AXIS = {
    "gridcolor": "#E5E5E5",
    "linecolor": "#999999",
    "ticks": "outside",
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 12},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 14, "color": "#222222"},
        "title": {"x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 17}},
        "colorway": COLOURS,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 8, "r": 16, "t": 56, "b": 8},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "hovermode": "x unified",
        "xaxis": AXIS,
        "yaxis": AXIS,
    }
)


@dataclass(frozen=True)
class Units:
    """The names of what the axes show. is_share: whether the score is a share of one, shown in percent."""

    score: str = "accuracy"
    is_share: bool = True
    loss: str = "loss (nats)"


CLASSES = Units()


@dataclass(frozen=True)
class Comparison:
    """One network's numbers beside a curve: its name, accuracy (or another score) and loss, either None if unknown."""

    name: str
    accuracy: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Point:
    """A named point of a plane, in the coordinates of its axes."""

    x: float
    y: float
    name: str


def schedule_figure(
    steps: Sequence[int],
    rates: Sequence[float],
    phases: Sequence[str] = (),
    *,
    snapshots: Sequence[int] = (),
    log: bool = False,
    title: str = "Learning rate",
) -> go.Figure:
    """Draw the rate of every step, its phases shaded, and the steps after which a snapshot is taken.

    steps: numbers of optimizer steps.
    rates: one for each step.
    phases: each step's phase ("high" and "low" have colours of their own), or nothing.
    snapshots: numbers of steps, of those in `steps`.
    log: a logarithmic rate axis.

    Raises ValueError if lengths differ.
    """
    _same_length(steps=steps, rates=rates)
    figure = _figure(title, 1)
    figure.add_scatter(x=list(steps), y=list(rates), name="learning rate", line={"shape": "hv", "color": BLACK})
    if phases:
        _same_length(steps=steps, phases=phases)
        _shade(figure, steps, phases)
    if snapshots:
        rate_at = dict(zip(steps, rates, strict=True))
        figure.add_scatter(
            x=list(snapshots), y=[rate_at.get(step) for step in snapshots], name="snapshot", mode="markers",
            marker={"symbol": "diamond", "size": 10, "color": GREEN, "line": {"color": "white", "width": 1}},
        )  # fmt: skip
    figure.update_xaxes(title_text="optimizer step")
    figure.update_yaxes(title_text="learning rate", type="log" if log else "linear")
    return figure


def curve_figure(
    counts: Sequence[int],
    accuracy: Sequence[float] | None = None,
    loss: Sequence[float] | None = None,
    *,
    comparisons: Sequence[Comparison] = (),
    units: Units = CLASSES,
    title: str = "The more snapshots averaged",
) -> go.Figure:
    """Draw held-out accuracy and loss of the mean of the first n snapshots, and a horizontal line for each comparison.

    counts: the numbers n.
    accuracy, loss: one for each n, in `units`.
    comparisons: start, last snapshot, ensemble, …

    Raises ValueError if lengths differ or neither accuracy nor loss is given.
    """
    panels = _panels(accuracy=accuracy, loss=loss)
    figure = _figure(title, len(panels))
    for row, (kind, values) in enumerate(panels.items(), start=1):
        _same_length(counts=counts, **{kind: values})
        figure.add_scatter(
            x=list(counts), y=list(values), name="averaged weights", mode="lines+markers", legendgroup="curve",
            showlegend=row == 1, line={"color": BLUE, "width": 3}, marker={"size": 8}, row=row, col=1,
        )  # fmt: skip
        _held_out_axis(figure, row, kind, units)
        levels = [level for level in (getattr(one, kind) for one in comparisons) if level is not None]
        low, high = min([*values, *levels]), max([*values, *levels])
        if kind == "accuracy" and high - low < LEAST_RANGE:
            # Where all are (nearly) equal, plotly's own range goes from 0 to 150 %.
            middle = min((low + high) / 2, 1 - LEAST_RANGE / 2)
            middle = max(middle, LEAST_RANGE / 2) if units.is_share else middle
            figure.update_yaxes(range=[middle - LEAST_RANGE / 2, middle + LEAST_RANGE / 2], row=row, col=1)
        for number, comparison in enumerate(comparisons):
            level = getattr(comparison, kind)
            if level is not None:
                # A trace and not a shape: it has a name in the legend and widens the axis.
                figure.add_scatter(
                    x=[min(counts), max(counts)], y=[level, level], name=comparison.name, mode="lines",
                    legendgroup=comparison.name, line=_style(number + 1), row=row, col=1,
                    showlegend=row == 1 or getattr(comparison, next(iter(panels))) is None,
                )  # fmt: skip
    # Whole numbers: there is nothing between two snapshots.
    figure.update_xaxes(tickformat="d", **({"dtick": 1} if max(counts) - min(counts) <= 12 else {}))
    figure.update_xaxes(title_text="snapshots averaged, n", row=len(panels), col=1)
    return figure


def interpolation_figure(
    alphas: Sequence[float],
    losses: Mapping[str, Sequence[float]],
    accuracies: Mapping[str, Sequence[float]] | None = None,
    *,
    ends: tuple[str, str] | None = ("start", "averaged"),
    axis: str | None = None,
    units: Units = CLASSES,
    title: str = "From the start to the average",
) -> go.Figure:
    """Draw loss and accuracy against α, one line for each name ("train", "held-out"), with marks at α = 0 and 1.

    alphas: positions between the ends.
    losses, accuracies: by name, one value for each α, in `units`. A name has the same colour in both.
    ends: the names of the points at α = 0 and 1; None: no ends, as on a line around one point.
    axis: the title of the α axis, in place of the usual one.

    Raises ValueError if lengths differ or nothing is given.
    """
    panels = _panels(loss=losses or None, accuracy=accuracies or None)
    figure = _figure(title, len(panels))
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    shown: set[str] = set()
    for row, (kind, lines) in enumerate(panels.items(), start=1):
        for name, values in lines.items():
            _same_length(alphas=alphas, **{name: values})
            style = _style(names.index(name))
            figure.add_scatter(
                x=list(alphas), y=list(values), name=name, legendgroup=name, showlegend=name not in shown, line=style,
                mode="lines", row=row, col=1,
            )  # fmt: skip
            shown.add(name)
        _held_out_axis(figure, row, kind, units)
        for position, name in enumerate(ends or ()):
            note = {"annotation_text": name, "annotation_position": "top"} if row == 1 else {}
            figure.add_vline(x=position, line={"color": GREY, "dash": "dot", "width": 1}, row=row, col=1, **note)
    named = f"α  (0: {ends[0]}, 1: {ends[1]})" if ends else "α"
    figure.update_xaxes(title_text=axis or named, row=len(panels), col=1)
    return figure


def surface_figure(
    xs: Sequence[float],
    ys: Sequence[float],
    values: Sequence[Sequence[float]],
    points: Sequence[Point] = (),
    *,
    unit: str = "loss (nats)",
    axes: tuple[str, str] = ("distance in weight space", "distance in weight space"),
    log: bool = False,
    equal: bool = True,
    limits: tuple[float, float] | None = None,
    title: str = "Loss surface",
) -> go.Figure:
    """Draw contours of values[row][column] at (xs[column], ys[row]), with named points on them.

    log: contours of log₁₀ of the values, which shows a basin whose walls are a thousand times its floor; values at or
        below 0 are left out.
    equal: one unit is as long on both axes.
    limits: the values at both ends of the colours, so that several surfaces share them; None: those of this one.

    Raises ValueError if lengths differ.
    """
    if len(values) != len(ys) or any(len(row) != len(xs) for row in values):
        shape = f"{len(values)} rows of {sorted({len(row) for row in values})}"
        raise ValueError(f"values: {shape}, for {len(ys)} ys and {len(xs)} xs")
    shown = [[_log10(value) if log else value for value in row] for row in values]
    figure = _figure(title, 1, height=520)
    scale: dict[str, Any] = {"ncontours": 20}
    if limits is not None:
        low, high = (_log10(value) if log else value for value in limits)
        if low is not None and high is not None and low < high:
            scale = {"zmin": low, "zmax": high, "contours": {"start": low, "end": high, "size": (high - low) / 20}}
    figure.add_contour(
        x=list(xs), y=list(ys), z=shown, customdata=[list(row) for row in values], colorscale=SURFACE_COLOURS,
        **scale, line={"width": 0.5}, hovertemplate="x %{x:.4g}, y %{y:.4g}: %{customdata:.4g}<extra></extra>",
        colorbar={"title": {"text": f"log₁₀ {unit}" if log else unit, "side": "right"}, "thickness": 14},
    )  # fmt: skip
    for number, point in enumerate(points):
        figure.add_scatter(
            x=[point.x], y=[point.y], name=point.name, mode="markers",
            marker={"symbol": MARKERS[number % len(MARKERS)], "size": 12, "color": "white",
                    "line": {"color": "black", "width": 2}},
            hovertemplate=f"{point.name}: %{{x:.4g}}, %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(
            x=point.x, y=point.y, text=point.name, showarrow=False, yshift=18, bgcolor="rgba(255, 255, 255, 0.8)",
            borderpad=1, font={"size": 12},
        )  # fmt: skip
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(title_text=axes[0], constrain="domain")
    figure.update_yaxes(title_text=axes[1], **({"scaleanchor": "x", "constrain": "domain"} if equal else {}))
    return figure


def histogram_figure(
    rows: Sequence[int],
    edges: Sequence[float],
    counts: Sequence[Sequence[int]],
    *,
    axes: tuple[str, str] = ("norm", "epoch"),
    title: str = "Histogram",
) -> go.Figure:
    """Draw counts[row][bin] as a heat map: one row for each histogram, on a logarithmic axis of bins that all share.

    edges: of the bins, one more than there are bins, above 0. Colours are of the share of a row, so that rows of many and of
        few counts compare; empty bins have none.

    Raises ValueError if lengths differ.
    """
    if len(counts) != len(rows) or any(len(row) != len(edges) - 1 for row in counts):
        raise ValueError(f"counts: {len(counts)} rows, for {len(rows)} rows and {len(edges) - 1} bins")
    shares = [[count / sum(row) if count else None for count in row] for row in counts]
    figure = _figure(title, 1, height=EDGES + max(4, min(len(rows), 30)) * BAR)
    figure.add_heatmap(
        x=[math.log10(edge) for edge in edges], y=list(rows), z=shares, customdata=[list(row) for row in counts],
        colorscale=SURFACE_COLOURS, zmin=0, hovertemplate="%{y}: %{customdata} of 10^%{x:.3g}<extra></extra>",
        colorbar={"title": {"text": "share of its updates", "side": "right"}, "tickformat": ".0%", "thickness": 14},
    )  # fmt: skip
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(title_text=f"log₁₀ of the {axes[0]}")
    figure.update_yaxes(title_text=axes[1], autorange="reversed")
    return figure


def series_figure(
    steps: Sequence[int],
    *,
    loss: Sequence[float] | None = None,
    lr: Sequence[float] | None = None,
    distance_to_mean: Sequence[float] | None = None,
    units: Units = CLASSES,
    title: str = "Training",
) -> go.Figure:
    """Draw loss, learning rate and ‖w̄ − w‖ over the steps, in rows that share the step axis; None has no row.

    Raises ValueError if lengths differ or all are None.
    """
    panels = _panels(loss=loss, lr=lr, distance_to_mean=distance_to_mean)
    titles = {"loss": f"training {units.loss}", "lr": "learning rate", "distance_to_mean": "distance to mean, ‖w̄ − w‖"}
    figure = _figure(title, len(panels))
    for row, (kind, values) in enumerate(panels.items(), start=1):
        _same_length(steps=steps, **{kind: values})
        figure.add_scatter(
            x=list(steps), y=list(values), name=titles[kind], mode="lines", showlegend=False,
            line={"color": COLOURS[row - 1], "shape": "hv" if kind == "lr" else "linear", "width": 2}, row=row, col=1,
        )  # fmt: skip
        text = titles[kind].replace(", ", ",<br>").replace(" (", "<br>(")
        figure.update_yaxes(title_text=text, rangemode="normal" if kind == "loss" else "tozero", row=row, col=1)
    figure.update_xaxes(title_text="optimizer step", row=len(panels), col=1)
    return figure


def distances_figure(
    distances: Mapping[str, float],
    *,
    relative_to: Mapping[str, float] | None = None,
    title: str = "Distance from the start",
) -> go.Figure:
    """Draw one bar for each layer or tensor, in the order given from the top.

    relative_to: norms to divide by (‖w₀‖ of each layer), which compares layers of different sizes.

    Raises ValueError for a layer that `relative_to` does not name.
    """
    missing = sorted(distances.keys() - relative_to.keys()) if relative_to is not None else []
    if missing:
        raise ValueError(f"relative_to does not name {missing}")
    lengths = list(distances.values())
    if relative_to is not None:
        lengths = [value / relative_to[name] if relative_to[name] else math.nan for name, value in distances.items()]
    figure = _figure(title, 1, height=EDGES + max(4, len(lengths)) * BAR)
    figure.add_bar(
        x=lengths, y=list(distances), orientation="h", marker={"color": BLUE},
        hovertemplate="%{y}: %{x:.4g}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(hovermode="closest", bargap=0.25)
    unit = "distance ‖w − w₀‖" if relative_to is None else "relative distance ‖w − w₀‖ / ‖w₀‖"
    figure.update_xaxes(title_text=unit, rangemode="tozero")
    # Reversed: bars are drawn from the bottom. One tick each: plotly would leave out labels of close bars.
    figure.update_yaxes(title_text="layer", autorange="reversed", type="category", dtick=1)
    return figure


# What several figures use.


def _figure(title: str, rows: int, height: int | None = None) -> go.Figure:
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    figure.update_layout(template=TEMPLATE, title_text=title, height=height or rows * PANEL + EDGES, autosize=True)
    return figure


def _panels(**candidates: Any) -> dict[str, Any]:
    given = {name: values for name, values in candidates.items() if values is not None}
    if not given:
        raise ValueError(f"one of {', '.join(candidates)} must be given")
    return given


def _same_length(**sequences: Sequence[object]) -> None:
    (first, expected), *others = ((name, len(values)) for name, values in sequences.items())
    if not expected:
        raise ValueError(f"{first} is empty")
    for name, count in others:
        if count != expected:
            raise ValueError(f"{name} has {count} values and {first} {expected}")


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number % len(DASHES)], "width": 2}


def _held_out_axis(figure: go.Figure, row: int, kind: str, units: Units) -> None:
    """A share in percent, whose axis ends where it does: at 0 and at 100 %; other scores end at 1."""
    if kind == "accuracy" and not units.is_share:
        figure.update_traces(cliponaxis=False, row=row, col=1)
        figure.update_yaxes(title_text=units.score, hoverformat=".4f", maxallowed=1, row=row, col=1)
    elif kind == "accuracy":
        # Of a point at the end of the axis the marker is drawn whole.
        figure.update_traces(cliponaxis=False, row=row, col=1)
        figure.update_yaxes(
            title_text=f"{units.score} (%)",
            tickformat=".4~p",
            hoverformat=".2%",
            minallowed=0,
            maxallowed=1,
            row=row,
            col=1,
        )
    else:
        figure.update_yaxes(title_text=units.loss, hoverformat=".4g", row=row, col=1)


def _log10(value: float) -> float | None:
    return math.log10(value) if value > 0 and math.isfinite(value) else None


def _shade(figure: go.Figure, steps: Sequence[int], phases: Sequence[str]) -> None:
    """One rectangle for each run of equal phases, and one legend entry for each phase."""
    names = list(dict.fromkeys(phases))
    colours = {name: PHASE_COLOURS.get(name, COLOURS[2 + i % 5]) for i, name in enumerate(names)}
    begin = 0
    for i in range(1, len(steps) + 1):
        if i == len(steps) or phases[i] != phases[begin]:
            end = steps[i] if i < len(steps) else steps[-1] + 1
            style = {"fillcolor": colours[phases[begin]], "opacity": 0.12, "line_width": 0, "layer": "below"}
            figure.add_shape(type="rect", xref="x", yref="paper", x0=steps[begin], x1=end, y0=0, y1=1, **style)
            begin = i
    for name in names:
        marker = {"symbol": "square", "size": 12, "color": colours[name], "opacity": 0.35}
        figure.add_scatter(x=[None], y=[None], name=f"{name} phase", mode="markers", marker=marker)
