"""The loss on a grid around a network, along two filter-normalized random directions (Li et al. 2018, § 4).

    L(w + x·d₁ + y·d₂)      d ← d·‖w‖/‖d‖, filter by filter

The draws and the images depend on the network and the dataset alone, not on the job's seed: surfaces of different jobs, and of
the children of a study, show the same slice at the same scale.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from wbar.loss_surface import LossSurface, Rows, SurfaceOptions
from wbar.scores import Score
from wbar_averaging import filter_normalized_direction, surface
from wbar_training.data.examples import Examples
from wbar_training.draws import permutation
from wbar_training.setup import Setup

IMAGES = 512  # of training and of held-out images that a point is evaluated on, at most
X_SEED, Y_SEED = 1_802, 1_803  # of the two directions' draws, whatever the job's seed
IMAGES_SEED = 0


def surface_images(setup: Setup, options: SurfaceOptions, recomputed: int) -> int:
    """Return how many images `random_surface` sends through the network. recomputed: of one BatchNorm recompute."""
    evaluated = min(IMAGES, len(setup.data.train)) + min(IMAGES, len(setup.data.report))
    return len(options.around) * options.points**2 * (evaluated + recomputed)


def random_surface(
    setup: Setup,
    options: SurfaceOptions,
    points: Mapping[str, Mapping[str, Tensor]],
    score: Callable[[nn.Module, Examples], Score],
    recompute: Callable[[nn.Module], None],
) -> LossSurface:
    """Measure the loss on the grid around each centre.

    points: whole state dicts of the network by name, those of `options.around` among them.
    score: of the network as it is; a loss that is not finite is NaN.
    recompute: recomputes BatchNorm statistics, at each point.
    """
    train, held_out = (
        split.select(permutation(len(split), IMAGES_SEED, "surface")[:IMAGES])
        for split in (setup.data.train, setup.data.report)
    )

    def losses(model: nn.Module) -> dict[str, float]:
        return {"train": score(model, train).loss, "val": score(model, held_out).loss}

    found: dict[str, dict[str, Rows]] = {"train": {}, "val": {}}
    for name in options.around:
        centre = points[name]
        across, along = (filter_normalized_direction(centre, seed) for seed in (X_SEED, Y_SEED))
        around = surface(
            setup.evaluator.network, centre, across, along, losses, options.positions, options.positions, recompute
        )
        for split, rows in around.values.items():
            found[split][name] = [_finite(row) for row in rows]
    return LossSurface(
        positions=options.positions,
        train_images=len(train),
        val_images=len(held_out),
        train_loss=found["train"],
        val_loss=found["val"],
    )


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
