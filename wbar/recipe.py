"""What to train with: optimizer, batch, image size, normalization, augmentation, precision, loss."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wbar.method import Auto

Augment = Literal["auto", "none", "pad_crop", "pad_crop_flip"]
Precision = Literal["auto", "float32", "bfloat16"]
BatchNorm = Literal["auto", "recompute", "consistent", "frozen", "track"]
OptimizerName = Literal["auto", "sgd", "adamw"]
Pixels = Annotated[int, Field(ge=4, le=4096)]


class Optimizer(BaseModel):
    """SGD with momentum, or AdamW. Weight decay acts on convolution and linear weights only."""

    model_config = ConfigDict(extra="forbid")

    name: OptimizerName = Field("auto", description="`auto`: what the architecture is customarily trained with.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum; ignored by AdamW.")
    nesterov: bool = Field(True, description="Nesterov's form of the momentum; ignored by AdamW.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's β; ignored by SGD.")
    weight_decay: Auto | Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = Field(
        "auto", description="`auto`: 5e-4 with SGD (coupled L2), 0.05 with AdamW (decoupled)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Optimizer":
        if self.nesterov and self.momentum == 0 and self.name == "sgd":
            raise ValueError("nesterov needs a momentum above 0: set nesterov to false or momentum to 0.9")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), not {self.betas}")
        return self


class Normalization(BaseModel):
    """Applied to pixels in [0, 1], per channel: (pixel − mean) / std."""

    model_config = ConfigDict(extra="forbid")

    mean: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(min_length=1, max_length=4)
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1, max_length=4)

    @model_validator(mode="after")
    def _consistent(self) -> "Normalization":
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels and std has {len(self.std)}")
        return self


class Recipe(BaseModel):
    """Every field has a default; `auto` is resolved when the job is created and shown in the job."""

    model_config = ConfigDict(extra="forbid")

    optimizer: Optimizer = Field(default_factory=Optimizer)
    batch_size: Auto | Annotated[int, Field(ge=2, le=65536)] = Field(
        "auto", description="`auto`: 128, or the power of two that gives a smaller set at least 20 steps an epoch."
    )
    image_size: Auto | Pixels | tuple[Pixels, Pixels] = Field(
        "auto", description="Side or [height, width]. `auto`: the dataset's own, or what the architecture insists on."
    )
    normalize: Literal["auto", "imagenet"] | Normalization = Field(
        "auto", description="`auto`: the training split's own mean and standard deviation."
    )
    augment: Augment = Field("auto", description="`auto`: pad-crop-flip (digits are not flipped).")
    precision: Precision = Field("auto", description="`auto`: bfloat16 autocast where a live worker has a GPU.")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    grad_clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Global norm to which gradients (with the pull's) are clipped."
    )
    batch_norm: BatchNorm = Field(
        "auto",
        description="Where w̄'s BatchNorm statistics come from. `recompute`: from training images, layer by layer in one pass. "
        "`consistent`: the same, each layer from the statistics of those before it (several passes; for small batches). "
        "`track`: the mean of what training tracked. `frozen`: the start's, which training leaves alone. `auto`: `recompute`, "
        "and `track` for method `none`.",
    )
