"""How to get to an average: rates and phases, when to take snapshots, the pull toward w̄, and what the mean is made of.

auto         the control's walk, and of all that lies on it and back to the start the weights that held-out images choose
cyclic_swa   n cycles of a high and a low phase, the mean of the snapshots at their ends
swa          a constant rate after annealing, the mean of a snapshot per epoch   (Izmailov et al. 2018)
ema          the exponential mean of every step                                   (Polyak & Juditsky 1992)
lawa         the mean of the last L snapshots                                     (Kaddour 2022)
none         a plain fine-tune, nothing averaged
soup         the mean of checkpoints that are there already                       (Wortsman et al. 2022)

After each of them, `interpolate` may deliver a point of the line from the start to w̄ in the place of w̄.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, model_validator

from wbar.merge_patch import DEFAULT_TYPE
from wbar.request import RequestModel

Auto = Literal["auto"]
Rate = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


def _whole(value: Any) -> Any:
    """Make 2.0 epochs 2, so that equal lengths are written alike."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


MAX_EPOCHS = 10_000  # passes over the training images, of a phase and of a whole job
Epochs = Annotated[int | float, BeforeValidator(_whole), Field(gt=0, le=MAX_EPOCHS)]
EpochsOrZero = Annotated[int | float, BeforeValidator(_whole), Field(ge=0, le=MAX_EPOCHS)]
Shape = Literal["constant", "linear", "cosine", "exponential", "step", "sawtooth", "poly"]
Average = Literal["uniform", "greedy", "window"]
SwaAverage = Literal["uniform", "greedy", "window", "swad"]
StartKind = Literal["memorised", "settled", "underfit"]
SelectBy = Literal["loss", "accuracy", "brier"]
MAX_CYCLES = 1000
PULL_WORDS = (
    "How strongly the weights are held near the running mean: λ of λ‖w̄ − w‖², with w̄ held constant: its gradient is "
    "2λ(w − w̄). 0: not at all."
)
Alpha = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Interpolate(RequestModel):
    """The line from the start to w̄, w_α = (1 − α)·w_0 + α·w̄, BatchNorm recomputed at every point of it.

    What is delivered is the point at the chosen α (WiSE-FT, Wortsman et al. 2022, section 3).
    """

    alphas: list[Alpha] = Field(
        default=[n / 10 for n in range(11)],
        min_length=1,
        max_length=64,
        description="The points that are evaluated, 0 the start and 1 w̄; 1 and a fixed α are added where they are missing.",
    )
    choose: Literal["selection"] | Alpha = Field(
        "selection",
        description="α. `selection`: the selection split chooses, as `average` does: 1, unless another point is better by "
        "more than one standard error; then the best. It takes one half of the held-out images.",
    )

    def points(self) -> list[float]:
        """Return every α that is evaluated, rising."""
        fixed = [] if self.choose == "selection" else [self.choose]
        return sorted({*map(float, self.alphas), 1.0, *map(float, fixed)})


class Phase(RequestModel):
    """One phase of a cycle: its rate and its length."""

    lr: Auto | Rate = Field("auto", description="Learning rate of the phase, taken as given. `auto`: see the method.")
    base_lr: Rate | None = Field(
        None,
        description="Instead of `lr`: the rate for a batch of 256, scaled linearly: lr = base_lr × batch / 256 (Goyal et al. "
        "2017). Shown resolved, as `lr`.",
    )
    epochs: Epochs = Field(1, description="Passes over the training images in this phase; may be a fraction.")

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        _check_rate(self.lr, self.base_lr)
        return self


class Slope(RequestModel):
    """How a rate η starts and falls. u runs from 0 to 1 over the steps after the warm-up."""

    shape: Shape = Field(
        "constant",
        description="`constant`; `linear` and `cosine` down to the low rate; `exponential` η·gamma^epoch; `step` ÷ 10 at each "
        "milestone; `sawtooth` from η to η/100 within each epoch; `poly` (1 − t/T)^0.9.",
    )
    gamma: float = Field(0.98, gt=0, le=1, description="Of `exponential`, per epoch.")
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[0.5, 0.75], max_length=32, description="Of `step`, as fractions of the phase."
    )
    warmup_epochs: float = Field(0, ge=0, le=1000, description="Length of the warm-up; may be a fraction of an epoch.")
    warmup: Literal["gradual", "constant"] = Field(
        "gradual",
        description="`gradual`: at step i of m, iη/m (into a high phase: from the low rate up). `constant`: η/10 (into a high "
        "phase: the low rate).",
    )


class HighPhase(Phase, Slope):
    """The phase that leaves the basin's floor."""


class LowPhase(Phase):
    """The phase that settles again, at a constant rate."""

    epochs: EpochsOrZero = Field(
        1,
        description="As of `high`; 0: no low phase, and each cycle ends where the shape of the high phase ends. With "
        '`{"cycles": 12, "high": {"shape": "sawtooth", "epochs": 1}, "low": {"epochs": 0}}` these are the 12 one-epoch '
        "cycles of SWA for object detection (Zhang et al. 2020).",
    )


class _Trained(RequestModel):
    """The options that every method with training has."""

    pull: Auto | Strength = Field(0.0, description=PULL_WORDS)
    pull_in: Literal["all", "low", "late"] = Field(
        "all",
        description="When it pulls: always; in low phases only (cyclic_swa: the low phases; swa: after its annealing; else: "
        "once the rate has begun to fall); or in the second half of the steps.",
    )
    control: bool = Field(
        False,
        description="Also train a plain fine-tune of the same length from the same start (along a cosine), so that the result "
        "says what averaging won over it: `result.metrics.control`. It doubles the training, but not where `auto` walks the "
        "same way anyway.",
    )
    control_lr: Auto | Rate = Field("auto", description="Its peak rate. `auto`: the architecture's customary one.")
    guard: bool = Field(
        False,
        description="Give the start back where the average is worse: if w̄ has the higher loss on the selection split (the half "
        "of the held-out images that chooses), `/weights` answers with the start, and `result.selection.delivered` says so.",
    )
    interpolate: Interpolate | None = Field(
        None, description="Deliver a point of the line from the start to w̄; null: w̄ itself."
    )
    replicas: int = Field(
        1,
        ge=1,
        le=1024,
        description="How many times to train from the start, each time as a job of its own with another seed and data order, "
        "on any workers; at the end one job joins them by the exact mean of all their points, BatchNorm recomputed (SWAP, "
        "Gupta et al. 2020). The job is `queued` until they have ended, and fails where one of them does. 1: no replicas.",
    )
    join_every: int | None = Field(
        None,
        ge=1,
        le=MAX_CYCLES,
        description="Of a job with replicas: after every so many snapshots (of cyclic_swa: cycles) they meet, and each goes on "
        "from the mean of all their weights, w_i ← α·w_i + (1 − α)·w̄ with α = `join_keep` (PAPA, Jolicoeur-Martineau et al. "
        "2023). null: they are joined once, at the end.",
    )
    join_keep: float = Field(
        0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="α, the share of its own weights that a replica keeps where they meet; 0: it goes on from the mean.",
    )
    back_off: bool = Field(
        True,
        description="If the first snapshot lost more than half of what the start knows of its training images, or training "
        "diverged before it, start again at a third of the high rate; at most twice, each time said in the log. On several "
        "devices a job that diverged fails.",
    )


class CyclicSwa(_Trained):
    """Cyclic stochastic weight averaging (Izmailov et al. 2018) with a proximal pull toward the running mean.

    `auto` is high.lr = 0.5 × the architecture's customary peak rate × batch_size / 128, low.lr = high.lr / 10, pull = 5e-4;
    where the average takes a selection split, `probe_rate` may raise the rates for the start.
    """

    type: Literal["cyclic_swa"] = "cyclic_swa"
    cycles: int = Field(
        6,
        ge=1,
        le=MAX_CYCLES,
        description="How many times to go from the high rate to the low one; each cycle ends with a snapshot, and their mean "
        "is the result. As the phases are by default, a cycle is two passes over the training images.",
    )
    high: HighPhase = Field(default_factory=HighPhase, description="Leaves the basin's floor.")
    low: LowPhase = Field(default_factory=LowPhase, description="Settles again; the snapshot is taken at its end.")
    pull: Auto | Strength = Field("auto", description=PULL_WORDS)
    include_start: bool = Field(False, description="Whether the start w_0 counts as one more point of the mean.")
    average: Average = Field(
        "uniform",
        description="`uniform`: all snapshots. `greedy`: a snapshot enters only if the mean's held-out loss does not rise. "
        "`window`: the longest range of segments whose mean is within one standard error of the lowest held-out loss; or a "
        "point on its line from the start, if that is lower by more than one. "
        "The last two choose on one half of the held-out images and report on the other.",
    )
    probe_rate: Auto | bool = Field(
        "auto",
        description="As of `auto`, for both rates: they are multiplied by 2 or 3 if the start bears it. It takes one half "
        "of the held-out images. `auto`: where neither rate is given and `average` takes them too.",
    )
    anneal_last: bool = Field(
        False,
        description="The low phase of the last cycle falls along a cosine to 0, so that the last snapshot has settled.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_warmup(self.high.warmup_epochs, self.high.epochs, "high.epochs")
        high, low = self.high.lr, self.low.lr
        if high != "auto" and low != "auto" and low > high:
            raise ValueError(f"low.lr {low:g} is above high.lr {high:g}: the low phase settles at the lower rate")
        if self.include_start and self.average != "uniform":
            raise ValueError("include_start goes with average uniform: greedy and window choose among the snapshots")
        if self.anneal_last and not self.low.epochs:
            raise ValueError("anneal_last lets the last low phase fall, and low.epochs is 0: there is none")
        return self


class _Straight(_Trained):
    """One pass of `epochs` epochs instead of cycles."""

    epochs: Epochs = Field(12, description="How long to train: the number of passes over all training images.")
    lr: Auto | Rate = Field("auto", description="The highest rate, taken as given.")
    base_lr: Rate | None = Field(
        None, description="Instead of `lr`: lr = base_lr × batch / 256. Shown resolved, as `lr`."
    )

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        _check_rate(self.lr, self.base_lr)
        return self


class _Sloped(_Straight, Slope):
    """A pass whose rate follows a slope."""

    shape: Shape = Field("cosine", description="See `high.shape` of cyclic_swa; it falls to `final_lr`.")
    final_lr: Auto | Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = Field(
        "auto", description="Where `linear` and `cosine` end. `auto`: 0 for `none`, else lr / 10."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_warmup(self.warmup_epochs, self.epochs, "epochs")
        lr, final = self.lr, self.final_lr
        if lr != "auto" and final != "auto" and final > lr:
            raise ValueError(f"final_lr {final:g} is above lr {lr:g}: the rate falls from lr to final_lr")
        return self


class _Spaced(_Straight):
    """A pass with snapshots at a fixed spacing."""

    snapshot_epochs: Annotated[float, Field(ge=1e-4, le=1000)] = Field(
        1.0, description="Epochs between two snapshots; may be a fraction."
    )
    snapshot_steps: int | None = Field(
        None, ge=1, description="Instead of `snapshot_epochs`: steps between two snapshots."
    )


class Swad(RequestModel):
    """When dense averaging begins and ends, by the losses E_i of w at the evaluations i on the selection split.

    It begins at the first evaluation s that is no higher than the N_s − 1 after it, and ends at the last evaluation before
    N_e in a row that are all above r · (E_s + … + E_{s+N_s−1}) / N_s  (Cha et al. 2021, algorithm 1).
    """

    optimum_patience: int = Field(3, ge=1, le=100, description="N_s, evaluations.")
    overfit_patience: int = Field(6, ge=1, le=100, description="N_e, evaluations; each costs one copy of the network.")
    tolerance: float = Field(1.3, ge=1, le=100, allow_inf_nan=False, description="r.")


class Swa(_Spaced):
    """Stochastic weight averaging at a constant rate: annealing to it, then a snapshot per epoch (Izmailov et al. 2018).

    `auto`: lr = 0.5 × the architecture's customary peak rate × batch_size / 128; anneal_from = that peak rate,
    or lr where that is higher.
    """

    type: Literal["swa"]
    anneal_epochs: float = Field(0, ge=0, le=1000, description="Epochs from `anneal_from` to `lr`, without snapshots.")
    anneal_from: Auto | Rate = "auto"
    anneal: Literal["cosine", "linear"] = "cosine"
    average: SwaAverage = Field(
        "uniform",
        description="See cyclic_swa. `swad`: the mean of every step, not of the snapshots alone, from the first minimum of "
        "the loss on the selection split until it has risen (Cha et al. 2021); training ends there. w is evaluated at each "
        "snapshot.",
    )
    swad: Swad = Field(default_factory=Swad, description="Of `average` `swad`; ignored by the others.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_warmup(self.anneal_epochs, self.epochs, "epochs", "anneal_epochs")
        return self


class Ema(_Sloped):
    """The exponential mean of every step: w̄ ← d·w̄ + (1 − d)·w. `auto`: lr = 0.5 × the customary peak rate."""

    type: Literal["ema"]
    decay: float = Field(0.999, gt=0, lt=1, description="d, per step.")
    decay_warmup: bool = Field(True, description="d at step t is at most (1 + t)/(10 + t).")


class Lawa(_Spaced, _Sloped):
    """The mean of the last L snapshots (latest weight averaging, Kaddour 2022). `auto`: lr = 0.5 × the customary peak."""

    type: Literal["lawa"]
    window: int = Field(6, ge=1, le=100, description="L; each costs one copy of the network.")


class Plain(_Sloped):
    """A plain fine-tune: nothing is averaged, the last weights are the result. `auto`: lr = the customary peak rate."""

    type: Literal["none"]


class Memorised(RequestModel):
    """The treatment of a memorised start, whose gradients are almost zero."""

    ratio: float = Field(
        0.25,
        ge=0,
        le=10,
        description="The gate: a start is memorised whose training loss (augmented as in training) is below this share of "
        "its held-out loss.",
    )
    hold: float = Field(0.5, ge=0, lt=1, description="The share of the steps at the high rate, before it falls to 0.")
    pull: Strength = Field(0.0, description="λ while the rate falls.")


class Settled(RequestModel):
    """The border between a settled and an underfit start; `auto` does the same with both."""

    ratio: float = Field(0.6, ge=0, le=10, description="As of `memorised`.")


class AutoMethod(_Straight):
    """One default for every start: walk as the control does, along a cosine to 0, and choose among all that the walk and
    the way back to the start contain.

    The candidates are the last iterate, which is the control's model; the mean of every range of segments; exponential
    means of the whole walk; the greedy soup of the segments; the line from the start to the best of them; and the start
    itself (`guard`). The selection split chooses, by `select_by`: the longest mean that cannot be told from the best one; of
    fewer than 200 images, the one with the lowest mean rank over repeated halves of them.

    The high rate is what the start bears (`probe_rate`). A *memorised* start is held there for half of the steps; a
    settled and an underfit one walk as the control does from the beginning.
    """

    type: Literal["auto"]
    lr: Auto | Rate = Field(
        "auto",
        description="The highest rate. A number is taken as given. `auto`: the architecture's customary peak rate, times what "
        "`probe_rate` finds.",
    )
    probe_rate: Auto | bool = Field(
        "auto",
        description="Whether the job multiplies `lr` by 2 or 3, if ten steps at that rate do not raise the start's training "
        "loss above 1.05 × its held-out loss; not with fresh layers. `auto`: where `lr` is not given.",
    )
    visit_epochs: float = Field(
        0.25,
        ge=1e-4,
        le=1000,
        description="Epochs between two visits, at which the weights enter a mean; at least 24 visits are made, if there "
        "are as many steps.",
    )
    segments: int = Field(
        8,
        ge=2,
        le=24,
        description="Number of segments that the steps are cut into; a candidate is the mean of consecutive ones.",
    )
    select_by: SelectBy = Field(
        "loss",
        description="What the selection split compares, per image: the `loss`, the `accuracy`, or the `brier` score "
        "Σ (p − y)².",
    )
    memorised: Memorised = Field(default_factory=Memorised)
    settled: Settled = Field(default_factory=Settled)
    guard: bool = Field(True, description="Whether the start itself is a candidate for `/weights`.")
    average: Literal["chosen"] = "chosen"


class Soup(RequestModel):
    """The mean of several checkpoints of one architecture (Wortsman et al. 2022), with BatchNorm recomputed for it.

    `greedy` orders them by their held-out loss and lets one in only if the mean's held-out loss does not rise. It chooses
    on one half of the held-out images, drawn with the job's seed; the report's numbers are from the other half.
    `stock` takes `checkpoint` for the common start w_0 of N runs, and is (1 − t)·w_0 + t·w̄ in each tensor, t = N·cos θ /
    (1 + (N − 1)·cos θ), θ the mean angle between the runs' displacements from w_0 (Model Stock, Jang et al. 2024).
    """

    type: Literal["soup"]
    checkpoints: list[Annotated[str, Field(max_length=64)]] = Field(
        min_length=1,
        max_length=64,
        description="The checkpoints that are averaged. `checkpoint`, the start, is one of them only if it is listed. "
        "One alone is compared with the start as it is: with `flatness`, the line from one to the other.",
    )
    average: Literal["uniform", "greedy", "stock"] = "uniform"
    weights: (
        Annotated[
            list[Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]], Field(max_length=64, fail_fast=True)
        ]
        | None
    ) = Field(None, description="One per checkpoint, with `uniform`; they are divided by their sum.")
    interpolate: Interpolate | None = Field(
        None, description="Deliver a point of the line from `checkpoint` to the mean; null: the mean itself."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.checkpoints)) != len(self.checkpoints):
            raise ValueError("a checkpoint is listed twice: give it a larger weight instead")
        if self.average == "stock" and len(self.checkpoints) < 2:
            raise ValueError("average stock needs two checkpoints at least: it is the angle between them that decides")
        if self.weights is not None and self.average != "uniform":
            raise ValueError(f"weights go with average uniform: {self.average} chooses them itself")
        if self.weights is not None and len(self.weights) != len(self.checkpoints):
            raise ValueError(f"there are {len(self.checkpoints)} checkpoints and {len(self.weights)} weights")
        return self


def _check_rate(lr: float | str, base_lr: float | None) -> None:
    if lr != "auto" and base_lr is not None:
        raise ValueError(f"lr {lr} and base_lr {base_lr} are both given: one says the rate as it is, the other per 256")


def _check_warmup(length: float, epochs: float, of: str, name: str = "warmup_epochs") -> None:
    if length >= epochs and length > 0:
        raise ValueError(f"{name} is {length:g} and {of} {epochs:g}: it must be shorter")


Straight = Swa | Ema | Lawa | Plain | AutoMethod
Training = CyclicSwa | Straight
TYPES = ("cyclic_swa", "auto", "swa", "ema", "lawa", "none", "soup")


def _type(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return DEFAULT_TYPE if kind is None else str(kind)


AnyMethod = Annotated[
    Annotated[CyclicSwa, Tag("cyclic_swa")]
    | Annotated[AutoMethod, Tag("auto")]
    | Annotated[Swa, Tag("swa")]
    | Annotated[Ema, Tag("ema")]
    | Annotated[Lawa, Tag("lawa")]
    | Annotated[Plain, Tag("none")]
    | Annotated[Soup, Tag("soup")],
    Discriminator(
        _type,
        custom_error_type="method_type",
        custom_error_message=f"type must be one of {', '.join(TYPES)} ({DEFAULT_TYPE} where it is not given)",
    ),
]
METHODS: TypeAdapter[Training | Soup] = TypeAdapter(AnyMethod)
