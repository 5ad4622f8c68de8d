"""What a job decided by looking at images: which mean it delivers, where on a line, by which rate and normalization."""

from typing import Literal

from pydantic import BaseModel, Field

from wbar.recipe import Normalization

Delivered = Literal["averaged", "start"]


CandidateKind = Literal["range", "last", "exponential", "soup"]


class Candidate(BaseModel):
    """One mean that could have been chosen, with its loss on the selection split."""

    kind: CandidateKind = Field(
        "range",
        description="`range`: the mean of the segments first to last; `last`: the last weights, with "
        "the BatchNorm statistics that training tracked; "
        "`exponential`: an exponential mean of the walk; `soup`: the greedy soup of some segments from first to last.",
    )
    first: int = Field(description="The first segment that its points are from; they are counted from 1.")
    last: int
    alpha: float = Field(1.0, description="Its place on the line from the start, which is at 0, to the mean, at 1.")
    loss: float = Field(description="Mean loss in nats, when it was evaluated last.")
    images: int | None = Field(
        None,
        description="Images of the selection split that the loss is from: candidates that fell behind saw fewer. Null: all.",
    )

    def in_words(self) -> str:
        """Return what it is, as part of a sentence."""
        segments = f"segment {self.last}" if self.first == self.last else f"segments {self.first} to {self.last}"
        names = {
            "range": f"the mean of {segments}",
            "last": "the last iterate",
            "exponential": "an exponential mean of the walk",
            "soup": f"the greedy soup of some of {segments}",
        }
        line = "" if self.alpha == 1 else f", at {self.alpha:g} of the way from the start to it"
        return names[self.kind] + line


class Valley(BaseModel):
    """Where dense averaging (`swad`) found the valley of the loss: the mean is of every step from `first` to `last`."""

    first: int | None = Field(
        description="The evaluation that it began at, from 1; null: none was found, so every step."
    )
    last: int = Field(description="The evaluation that it ended at.")
    bound: float | None = Field(
        description="The loss that ended it, once all evaluations in a row were above; in nats."
    )
    losses: list[float] = Field(description="Of w at every evaluation, on the selection split, in nats.")


class Selection(BaseModel):
    """The choices that were made on the selection split."""

    delivered: Delivered = Field(
        description="The weights that `/weights` answers with; `start` only where `guard` chose them."
    )
    kept: list[int] | list[str] | None = Field(
        None,
        description="The members of the mean: numbers of snapshots (`greedy`) or segments (`window`, `auto`), or checkpoint "
        "ids in the order in which a soup took them in; null where only `guard` chose, and for the last weights and an "
        "exponential mean.",
    )
    of: int | None = Field(None, description="How many snapshots, segments or checkpoints there were to choose from.")
    loss: float | None = Field(None, description="Of the mean that was kept, on the selection split.")
    chosen: Candidate | None = Field(None, description="Of `window` and `auto`: what w̄ is.")
    assumed: bool = Field(
        False,
        description="Of `auto`: the selection split, or the budget of the choice, is too small to tell candidates apart, so "
        "w̄ is the mean of the last third of the walk, and was not chosen.",
    )
    optimism: float | None = Field(
        None,
        description="How much less w̄ gains over the start on the report split than on the selection split, which it was "
        "chosen by: mean loss in nats, above 0 where the choice flattered itself.",
    )
    candidates: list[Candidate] | None = Field(None, description="Of `window` and `auto`: every mean that was tried.")
    valley: Valley | None = Field(None, description="Of `swad`.")


class SetPoint(BaseModel):
    """The score of a point on an evaluation set."""

    accuracy: float
    loss: float


class AlphaPoint(BaseModel):
    """A point of the line from the start to w̄; its losses are null where they are not finite."""

    alpha: float
    accuracy: float | None = Field(description="On the report split.")
    loss: float | None = Field(description="On the report split, in nats.")
    selection_loss: float | None = Field(description="On the selection split, in nats; null too where there is none.")
    evaluation: dict[str, SetPoint] = Field(
        default_factory=dict, description="On the sets of `evaluate`, by name; empty where the losses are not finite."
    )


class AlphaLine(BaseModel):
    """The line (1 − α)·w_0 + α·w̄ of `method.interpolate`, BatchNorm recomputed at every point; w̄ stands at α = 1.

    `/weights`, and the comparison `averaged`, are the point at the chosen α.
    """

    chosen: float
    by: Literal["selection", "request"] = Field(description="Whether the selection split chose α, or the request.")
    points: list[AlphaPoint]

    def in_words(self) -> str:
        """Return what was chosen, as a sentence."""
        by = "the selection split chose it" if self.by == "selection" else "as asked for"
        return f"delivered is the point at α = {self.chosen:g} of the line from the start (0) to w̄ (1): {by}"


NormalizationName = Literal["dataset", "imagenet", "half", "none"]


class NormalizationProbe(BaseModel):
    """The normalization that the start was trained with, as far as its loss on training images tells.

    `dataset`: the training split's mean and standard deviation; `imagenet`: ImageNet's; `half`: 0.5 and 0.5; `none`: 0
    and 1. Another one than the dataset's own was chosen only where its loss is lower by more than two standard errors.
    """

    chosen: NormalizationName
    losses: dict[NormalizationName, float] = Field(description="Mean loss of the start by normalization.")
    normalization: Normalization


class TriedRate(BaseModel):
    """A rate that the start was moved with for ten steps. loss: then, on training images, in nats; null: not finite."""

    factor: float
    lr: float
    loss: float | None

    def in_words(self) -> str:
        """Return what was found, as part of a sentence."""
        loss = "not finite" if self.loss is None else f"{self.loss:.4f}"
        return f"{loss} after ten steps at {self.lr:g}"


class RateProbe(BaseModel):
    """The rate that the start was found to bear: its training loss may rise to 1.05 × its held-out loss, and no further."""

    factor: float = Field(description="`lr` over the rate that the method names.")
    lr: float
    held_out_loss: float = Field(
        description="Of the start on the selection split, in nats; with recomputed BatchNorm statistics where that is lower."
    )
    tried: list[TriedRate]
