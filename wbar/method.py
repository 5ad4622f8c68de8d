"""How to visit and average: n cycles of a high and a low phase, the pull toward w̄, the running mean of the troughs."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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
