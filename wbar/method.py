"""How to get to an average: n cycles of a high and a low phase, the pull toward w̄, the running mean of the troughs; or the
mean of checkpoints that are there already (a soup)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, model_validator

Auto = Literal["auto"]
Rate = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
MAX_CYCLES = 1000


class Phase(BaseModel):
    """One phase of a cycle at one constant learning rate."""

    model_config = ConfigDict(extra="forbid")

    lr: Auto | Rate = Field("auto", description="Learning rate of the phase. `auto`: see `Method`.")
    epochs: int = Field(1, ge=1, le=1000, description="Passes over the training images in this phase.")


class Method(BaseModel):
    """Cyclic stochastic weight averaging (Izmailov et al. 2018) with a proximal pull toward the running mean.

    `auto` is static: high.lr = 0.5 × the architecture's customary peak rate × batch_size / 128, low.lr = high.lr / 10,
    pull = 5e-4.
    """

    model_config = ConfigDict(extra="forbid")

    type: Literal["cyclic_swa"] = "cyclic_swa"
    cycles: int = Field(6, ge=1, le=MAX_CYCLES, description="n, the number of snapshots that enter the mean.")
    high: Phase = Field(default_factory=Phase, description="Leaves the basin's floor.")
    low: Phase = Field(default_factory=Phase, description="Settles again; the snapshot is taken at its end.")
    pull: Auto | Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = Field(
        "auto", description="λ of λ‖w̄ − w‖², with w̄ held constant: its gradient is 2λ(w − w̄)."
    )
    include_start: bool = Field(False, description="Whether the start w_0 counts as one more point of the mean.")
    average: Literal["uniform"] = "uniform"


class Soup(BaseModel):
    """The mean of several checkpoints of one architecture (Wortsman et al. 2022), with BatchNorm recomputed for it.

    `greedy` orders them by their held-out loss and lets one in only if the mean's held-out loss does not rise. It chooses
    on one half of the held-out images, drawn with the job's seed; the report's numbers are from the other half.
    """

    model_config = ConfigDict(extra="forbid")

    type: Literal["soup"]
    checkpoints: list[Annotated[str, Field(max_length=64)]] = Field(
        min_length=2,
        max_length=64,
        description="What is averaged. `checkpoint`, the start, is in it only if it is listed.",
    )
    average: Literal["uniform", "greedy"] = "uniform"
    weights: list[Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]] | None = Field(
        None, description="One per checkpoint, with `uniform`; they are divided by their sum."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Soup":
        if len(set(self.checkpoints)) != len(self.checkpoints):
            raise ValueError("a checkpoint is listed twice: give it a larger weight instead")
        if self.weights is not None and self.average != "uniform":
            raise ValueError("weights go with average uniform: greedy chooses them itself")
        if self.weights is not None and len(self.weights) != len(self.checkpoints):
            raise ValueError(f"there are {len(self.checkpoints)} checkpoints and {len(self.weights)} weights")
        return self


def _type(value: Any) -> str:
    return str(value.get("type", "cyclic_swa") if isinstance(value, dict) else getattr(value, "type", "cyclic_swa"))


AnyMethod = Annotated[
    Annotated[Method, Tag("cyclic_swa")] | Annotated[Soup, Tag("soup")],
    Discriminator(
        _type, custom_error_type="method_type", custom_error_message="type must be cyclic_swa (the default) or soup"
    ),
]  # without a type it is cyclic_swa
METHODS: TypeAdapter[Method | Soup] = TypeAdapter(AnyMethod)
