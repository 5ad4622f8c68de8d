"""How flat the loss is around the weights of a job: `result.flatness`, measured when training is over."""

from pydantic import BaseModel, Field

from wbar.loss_surface import Histogram, LossSurface


class EpochPoint(BaseModel):
    """One epoch of the training."""

    epoch: int
    distance: float = Field(
        description="‖w_end − w_begin‖ of the epoch: the per-epoch distance of the batch-size literature."
    )
    distance_from_start: float = Field(description="‖w − w_0‖ at the epoch's end.")
    update_norms: list[float] | None = Field(
        description="Quantiles 0, 0.1, 0.25, 0.5, 0.75, 0.9 and 1 of the norms of the epoch's optimizer steps."
    )
    update_histogram: Histogram | None = Field(
        None, description="All of these norms, in bins that are the same for every epoch and job."
    )


class Eigenvalue(BaseModel):
    """The Hessian's largest eigenvalue by magnitude; residual: ‖Hv − λv‖/|λ|, small where `converged`."""

    value: float
    residual: float
    converged: bool


class Interpolation(BaseModel):
    """The loss on the line (1 − α)·w_0 + α·w̄, BatchNorm recomputed at every point."""

    alphas: list[float]
    train_loss: list[float | None] = Field(description="Null where it is not finite.")
    val_loss: list[float | None]
    val_accuracy: list[float | None]
    train_accuracy: list[float | None] | None = Field(None, description="Null in results of workers before 0.7.")


class Line(BaseModel):
    """The training loss along one filter-normalized random direction (Li et al. 2018) around each comparison."""

    positions: list[float]
    loss: dict[str, list[float | None]]


class PlanePoint(BaseModel):
    """A named point of the plane, by its coordinates there."""

    name: str
    x: float
    y: float


class Plane(BaseModel):
    """The training loss on the plane through the start, the last snapshot and w̄; loss[row][column] at (xs, ys)."""

    xs: list[float]
    ys: list[float]
    loss: list[list[float | None]]
    points: list[PlanePoint]


class Flatness(BaseModel):
    """How flat the loss is, measured on `images` training images, without augmentation, when training is over."""

    images: int
    distance: float = Field(description="‖w̄ − w_0‖₂ over all weights.")
    distance_by_layer: dict[str, float]
    length_by_layer: dict[str, float] = Field(description="‖w_0‖₂ by layer, to compare the distances with.")
    epochs: list[EpochPoint]
    sharpness: dict[str, float] = Field(
        description="ε-sharpness in percent by comparison, ε = 1e-3 (Keskar et al. 2017)."
    )
    sharpness_half: dict[str, float] = Field(
        default_factory=dict, description="Likewise for ε = 5e-4; empty where a worker before 0.7 measured it."
    )
    top_eigenvalue: dict[str, Eigenvalue]
    interpolation: Interpolation
    line: Line
    plane: Plane | None = Field(None, description="Null where the three points lie on a line.")
    surface: LossSurface | None = Field(None, description="Where the job asked for it.")
