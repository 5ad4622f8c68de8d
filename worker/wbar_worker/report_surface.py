"""The part of a report about the loss on a grid of random directions, and about how long the optimizer's steps were."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wbar.flatness_results import EpochPoint
from wbar.loss_surface import PER_DECADE, LossSurface, Rows
from wbar.results import Comparisons

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

AXES = ("along the first direction, in lengths of a filter", "along the second direction")


def figures_of(surface: LossSurface, unit: str) -> Iterator["Figure"]:
    """Yield a figure for each centre and split; all of a split have one colour scale, that of the losses of all.

    unit: the loss with its unit.
    """
    from wbar_averaging import figures

    for images, by_centre in (
        (f"{surface.train_images:,} training images", surface.train_loss),
        (f"{surface.val_images:,} held-out images", surface.val_loss),
    ):
        known = [loss for rows in by_centre.values() for row in rows for loss in row if loss is not None and loss > 0]
        limits = (min(known), max(known)) if known else None
        for name, rows in by_centre.items():
            yield figures.surface_figure(
                surface.positions,
                surface.positions,
                _gaps(rows),
                [figures.Point(0.0, 0.0, name)],
                unit=unit,
                axes=AXES,
                log=True,
                limits=limits,
                title=f"The loss around {Comparisons.label(name)}, {images}",
            )


def histograms_of(epochs: Sequence[EpochPoint]) -> Iterator["Figure"]:
    """Yield the histograms of update norms as one figure, an epoch in each row; nothing where none was recorded."""
    from wbar_averaging import figures

    found = [(epoch.epoch, one) for epoch in epochs if (one := epoch.update_histogram) is not None]
    if not found:
        return
    first = min(one.first for _, one in found)
    bins = max(one.first + len(one.counts) for _, one in found) - first
    counts = [
        [0] * (one.first - first) + one.counts + [0] * (bins - (one.first - first) - len(one.counts))
        for _, one in found
    ]
    yield figures.histogram_figure(
        [epoch for epoch, _ in found],
        [10 ** (k / PER_DECADE) for k in range(first, first + bins + 1)],
        counts,
        axes=("norm of an optimizer step, ‖w_t − w_{t−1}‖", "epoch"),
        title="How long the optimizer's steps were",
    )


def _gaps(rows: Rows) -> list[list[float]]:
    return [[math.nan if loss is None else loss for loss in row] for row in rows]
