"""Two measurements of `flatness` that are laid beside those of other jobs: a loss surface on a fixed grid, and histograms of
update norms in fixed bins.

    surface:    L(w + x·d₁ + y·d₂),  d₁, d₂ random, every filter of the length of the weights' filter   (Li et al. 2018, § 4)
    histogram:  bin k counts the updates with  10^(k/8) ≤ ‖w_t − w_{t−1}‖ < 10^((k+1)/8)
"""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wbar.request import RequestModel

Centre = Literal["start", "last", "averaged"]
MOST_POINTS = 31  # along a side
PER_DECADE = 8  # bins
LOWEST, HIGHEST = -9 * PER_DECADE, 3 * PER_DECADE  # bins from 1e-9 to 1e3: what lies beyond counts in the outermost

Rows = list[list[float | None]]


class SurfaceOptions(RequestModel):
    """The grid of a loss surface. It costs `points`² evaluations of `images` training and held-out images for each centre."""

    points: int = Field(
        11, ge=3, le=MOST_POINTS, description="Along a side; an odd number, so that the centre is one of them."
    )
    reach: float = Field(
        1.0,
        gt=0,
        le=2,
        allow_inf_nan=False,
        description="The grid goes from −reach to reach on both axes; at 1 every filter has moved by its own length.",
    )
    around: list[Centre] = Field(
        default_factory=lambda: list[Centre](["start", "averaged"]),
        min_length=1,
        max_length=3,
        description="The networks that a surface is drawn around: `start`, `last` snapshot, `averaged` w̄.",
    )

    @field_validator("points")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"{value} points have none in the middle: take {value - 1} or {value + 1}")
        return value

    @field_validator("around")
    @classmethod
    def _each_once(cls, value: list[Centre]) -> list[Centre]:
        twice = next((one for at, one in enumerate(value) if one in value[:at]), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is given twice: name it once")
        return value

    @property
    def positions(self) -> list[float]:
        """The grid's positions along either axis, in units of the directions; the middle one is 0."""
        half = self.points // 2
        return [self.reach * step / half for step in range(-half, half + 1)]


class LossSurface(BaseModel):
    """The mean loss around each centre, in nats; rows are y, columns are x, null where it is not finite.

    The draws of both directions, and the images, are the same in every job on the same network and dataset, whatever its seed:
    surfaces of different jobs can be laid over each other. BatchNorm statistics are recomputed at every point.
    """

    model_config = ConfigDict(frozen=True)

    positions: list[float] = Field(
        description="Along either axis, in units of the filter-normalized directions (Li et al. 2018, § 4)."
    )
    train_images: int = Field(description="Training images that each point is evaluated on, without augmentation.")
    val_images: int = Field(description="Likewise of the report split.")
    train_loss: dict[str, Rows] = Field(description="By centre: `start`, `last`, `averaged`.")
    val_loss: dict[str, Rows] = Field(description="Likewise.")


class Histogram(BaseModel):
    """How many updates had which norm, in bins of an eighth of a decade that are the same for every job and epoch.

    `counts[i]` are the norms from 10^((first + i)/8) on, below 10^((first + i + 1)/8). Bins begin at 1e-9 and end at 1e3;
    smaller and larger norms count in the outermost ones. Histograms add up bin by bin.
    """

    model_config = ConfigDict(frozen=True)

    first: int
    counts: list[int]

    @classmethod
    def of(cls, counts: Sequence[int], first: int = LOWEST) -> Self | None:
        """Return the histogram of counts from bin `first` on, empty bins at both ends left out; None where all are."""
        filled = [at for at, count in enumerate(counts) if count]
        if not filled:
            return None
        return cls(first=first + filled[0], counts=list(counts[filled[0] : filled[-1] + 1]))

    @classmethod
    def total(cls, histograms: Sequence["Histogram"]) -> "Histogram | None":
        """Return the sum of histograms; None for none."""
        counts = [0] * (HIGHEST - LOWEST)
        for one in histograms:
            for at, count in enumerate(one.counts, start=one.first - LOWEST):
                counts[at] += count
        return cls.of(counts)

    def bins(self) -> list[tuple[float, float, int]]:
        """Return lower edge, upper edge and count of every bin between the first and the last that has any."""
        edges = [10 ** (k / PER_DECADE) for k in range(self.first, self.first + len(self.counts) + 1)]
        return list(zip(edges, edges[1:], self.counts, strict=False))
