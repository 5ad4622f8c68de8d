"""Figures show the numbers that they were given, on titled axes, without a fixed width, and refuse what does not fit."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("plotly")

from wbar_averaging import figures
from wbar_averaging.figures import Comparison, Point

STEPS = list(range(12))
PHASES = (["high"] * 4 + ["low"] * 2) * 2
RATES = [0.05 if phase == "high" else 0.001 for phase in PHASES]
ALPHAS = [-1.0, 0.0, 0.5, 1.0, 2.0]


def curve() -> Any:
    comparisons = [
        Comparison("start", 0.9, 0.5),
        Comparison("last snapshot", 0.91, 0.45),
        Comparison("ensemble", None, 0.4),
    ]
    return figures.curve_figure([1, 2, 3], [0.91, 0.92, 0.93], [0.45, 0.42, 0.41], comparisons=comparisons)


def interpolation() -> Any:
    losses = {"train": [2.0, 0.5, 0.2, 0.1, 1.0], "held-out": [2.1, 0.6, 0.3, 0.3, 1.2]}
    return figures.interpolation_figure(ALPHAS, losses, {"held-out": [0.5, 0.9, 0.92, 0.91, 0.6]})


def surface() -> Any:
    return figures.surface_figure([0, 1, 2], [0, 1], [[1, 10, 0], [2, 20, 3]], [Point(0, 0, "averaged")], log=True)


FIGURES: dict[str, Callable[[], Any]] = {
    "schedule": lambda: figures.schedule_figure(STEPS, RATES, PHASES, snapshots=[5, 11]),
    "curve": curve,
    "interpolation": interpolation,
    "surface": surface,
    "surface on a scale": lambda: figures.surface_figure([0, 1], [0, 1], [[1, 2], [3, 4]], limits=(0.5, 8), log=True),
    "histogram": lambda: figures.histogram_figure([1, 2], [0.1, 1, 10], [[3, 1], [0, 2]]),
    "series": lambda: figures.series_figure(STEPS, loss=RATES, lr=RATES, distance_to_mean=RATES),
    "distances": lambda: figures.distances_figure({"conv1": 0.5, "fc": 2.0}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_titled_fills_its_place_and_can_be_written(name: str) -> None:
    figure = FIGURES[name]()
    assert figure.layout.title.text
    assert figure.layout.width is None
    assert figure.layout.template == figures.TEMPLATE
    axes = list(figure.select_yaxes())
    assert all(axis.title.text for axis in axes)
    assert list(figure.select_xaxes())[-1].title.text
    assert '"data"' in figure.to_json()


def test_the_schedule_shades_each_run_of_a_phase() -> None:
    figure = FIGURES["schedule"]()
    assert [(shape.x0, shape.x1) for shape in figure.layout.shapes] == [(0, 4), (4, 6), (6, 10), (10, 12)]
    snapshots = next(trace for trace in figure.data if trace.name == "snapshot")
    assert snapshots.x == (5, 11)
    assert snapshots.y == (0.001, 0.001)


def test_an_arm_has_a_line_only_where_its_number_is_known_and_one_legend_entry() -> None:
    lines = [trace for trace in curve().data if trace.name == "ensemble"]
    assert [tuple(trace.y) for trace in lines] == [(0.4, 0.4)]
    for name in ("averaged weights", "start", "last snapshot", "ensemble"):
        assert sum(trace.showlegend is not False for trace in curve().data if trace.name == name) == 1


def test_lines_are_told_apart_without_their_colours() -> None:
    dashes = {trace.name: trace.line.dash for trace in curve().data}
    assert len({dash or "solid" for dash in dashes.values()}) == len(dashes)


def test_the_ends_of_the_interpolation_are_marked_in_both_panels() -> None:
    shapes = interpolation().layout.shapes
    assert sorted(shape.x0 for shape in shapes) == [0, 0, 1, 1]
    assert {note.text for note in interpolation().layout.annotations} == {"start", "averaged"}


def test_a_logarithmic_surface_leaves_out_what_has_no_logarithm() -> None:
    contour = surface().data[0]
    assert list(contour.z[0]) == [0.0, 1.0, None]
    assert contour.customdata[0][1] == 10


def test_relative_distances_are_divided_and_a_layer_without_a_norm_is_named() -> None:
    figure = figures.distances_figure({"conv1": 0.5, "fc": 2.0}, relative_to={"conv1": 2.0, "fc": 4.0})
    assert list(figure.data[0].x) == [0.25, 0.5]
    with pytest.raises(ValueError, match=r"does not name \['fc'\]"):
        figures.distances_figure({"conv1": 0.5, "fc": 2.0}, relative_to={"conv1": 2.0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: figures.schedule_figure(STEPS, RATES[:-1]), "rates has 11 values and steps 12"),
        (lambda: figures.curve_figure([1, 2]), "accuracy, loss must be given"),
        (lambda: figures.surface_figure([0, 1], [0], [[1, 2, 3]]), r"1 rows of \[3\], for 1 ys and 2 xs"),
        (lambda: figures.series_figure([], loss=[]), "steps is empty"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_figures_need_no_torch() -> None:
    code = "import sys, wbar_averaging.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_an_accuracy_axis_of_equal_values_shows_the_percent_around_them() -> None:
    figure = figures.curve_figure(
        [1, 2], [0.98, 0.98], comparisons=[figures.Comparison("start", accuracy=0.98, loss=None)]
    )
    assert list(figure.layout.yaxis.range) == pytest.approx([0.975, 0.985])


def test_a_score_that_is_no_share_has_its_own_name_and_no_percent() -> None:
    units = figures.Units("R²", is_share=False, loss="loss (standardized MSE)")
    drawn = figures.curve_figure([1, 2], [-0.4, -0.4], [2.0, 1.5], units=units)
    assert (drawn.layout.yaxis.title.text, drawn.layout.yaxis2.title.text) == ("R²", "loss (standardized MSE)")
    assert drawn.layout.yaxis.tickformat is None
    assert drawn.layout.yaxis.range[0] < -0.4 < drawn.layout.yaxis.range[1]
    line = figures.interpolation_figure([0.0, 1.0], {"held-out": [2.0, 1.0]}, {"held-out": [-1.0, 0.5]}, units=units)
    assert line.layout.yaxis2.title.text == "R²"
