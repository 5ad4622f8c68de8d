"""The result of a job: scores of the comparisons, the curve over n, the selection, flatness."""

from typing import Literal

from pydantic import BaseModel, Field

from wbar.choices import AlphaLine, Delivered, NormalizationProbe, RateProbe, Selection
from wbar.flatness_results import Flatness
from wbar.method import StartKind
from wbar.probe_results import ProbeResult
from wbar.scores import Score

Verdict = Literal["better", "same", "worse"]
WeightsFormat = Literal["safetensors", "pytorch", "onnx", "pt2", "huggingface"]
FurtherFormat = Literal["onnx", "pt2", "huggingface"]  # beside safetensors and PyTorch's, which every job has
HUB_LIBRARIES = ("transformers", "timm")  # whose networks can be given back as a folder that the library loads

VERDICTS: dict[Verdict, str] = {
    "better": "the average is better than the start, by more than two standard errors of the loss",
    "worse": "the average is worse than the start, by more than two standard errors of the loss",
    "same": "the average and the start cannot be told apart: their losses differ by less than two standard errors",
}

CALIBRATED = (
    "Calibrated: the NLL once the outputs are divided by the temperature, which is fitted on other held-out images. A loss "
    "that is lower before, and not after it, was won by less confidence."
)


class CurvePoint(BaseModel):
    """w̄ as it stood when it was evaluated for the nth time: in `cyclic_swa` and `swa` the mean of the first n points."""

    n: int
    accuracy: float
    loss: float
    mean_iou: float | None = Field(None, description="Of segmentation.")
    ap50: float | None = Field(None, description="Of detection.")
    mask_ap: float | None = Field(None, description="Of a Mask R-CNN: AP of the masks.")

    @classmethod
    def of(cls, n: int, score: Score) -> "CurvePoint":
        """Return the point of w̄'s nth score."""
        ap50 = None if score.boxes is None else score.boxes.ap50
        mask_ap = None if score.masks is None else score.masks.ap
        return cls(n=n, accuracy=score.accuracy, loss=score.loss, mean_iou=score.mean_iou, ap50=ap50, mask_ap=mask_ap)


class ImageLosses(BaseModel):
    """The loss of each held-out image of the report split, in nats: of w̄, and of the start."""

    averaged: list[float]
    start: list[float]


class WeightsFile(BaseModel):
    """The file of the averaged weights: its size in bytes and its sha256."""

    bytes: int
    sha256: str
    format: Literal["safetensors"] = "safetensors"


class OfferedFormat(BaseModel):
    """A format that the job was asked for beside safetensors and PyTorch's: its file, or why there is none."""

    format: FurtherFormat
    bytes: int | None = Field(None, description="Null where there is no file.")
    sha256: str | None = None
    reason: str | None = Field(None, description="Why there is no file; null where there is one.")
    difference: float | None = Field(
        None,
        description="The largest difference of the file's logits from the network's, |a − b| / max(1, |b|), on `images` "
        "held-out images. A file is offered up to 1e-4.",
    )
    images: int | None = None


class Comparisons(BaseModel):
    """The averaged weights and everything they are compared with, on the held-out images of the report split.

    A field's title is its name in tables and plots.
    """

    start: Score = Field(title="start")
    start_recomputed: Score = Field(title="start, BatchNorm recomputed")
    last: Score = Field(title="last snapshot")
    averaged: Score = Field(title="averaged weights w̄")
    ensemble: Score | None = Field(
        None,
        title="ensemble of snapshots",
        description="Null in detection: no mean of several networks' boxes is defined.",
    )
    snapshots: Score | None = Field(
        None,
        title="mean score of the snapshots",
        description="Of detection: what a snapshot has by itself, on average; no network that could be downloaded.",
    )
    swag: Score | None = Field(
        None, title="Bayesian average (SWAG)", description="The Bayesian average, where the job asked for it."
    )
    best_replica: Score | None = Field(
        None,
        title="best replica",
        description="Of a job with replicas: the one with the lowest loss on these same images, which flatters it.",
    )
    replicas: Score | None = Field(
        None,
        title="mean score of the replicas",
        description="Of a job with replicas: what one of them has by itself, on average.",
    )
    control: Score | None = Field(
        None,
        title="control (cosine, equal epochs)",
        description="The cosine fine-tune of equal length, where the job asked for it.",
    )

    def named(self) -> dict[str, Score]:
        """Return the comparisons that the job has, by field, in the order of the fields."""
        return {name: score for name in type(self).model_fields if (score := getattr(self, name)) is not None}

    @classmethod
    def label(cls, name: str) -> str:
        """Return the name of a comparison in tables and plots."""
        title = cls.model_fields[name].title
        assert title is not None
        return title


class EvaluatedSet(BaseModel):
    """One of the sets of `evaluate`: the comparisons scored on its images.

    `nll_calibrated` there is at the temperature that the selection split gives; null where there is no selection split.
    """

    images: int
    selected_on: bool = Field(description="Whether these images made the choices of the job (`select_on`).")
    metrics: Comparisons


class HeldOut(BaseModel):
    """The sizes of the held-out splits: no reported number is from an image that decided a selection."""

    selection: int = Field(
        description="Images of the selection split; 0 where nothing was selected by held-out images."
    )
    report: int = Field(description="Images of the report split, which every number of the result is from.")


class ReplicaResult(BaseModel):
    """One replica in the joint mean: w̄ of it, BatchNorm recomputed as for the others, on the held-out images."""

    n: int
    seed: int
    points: int = Field(description="How many weights are averaged in it.")
    accuracy: float
    loss: float


class MeetingResult(BaseModel):
    """A meeting of replicas: how far their weights had gone from each other before it."""

    n: int = Field(description="The snapshot after which they met.")
    spread: float = Field(description="The mean over the replicas of ‖w_i − w̄‖, all parameters together, w̄ their mean.")
    norm: float = Field(description="‖w̄‖ of the same parameters, which the spread compares with.")


class JobResult(BaseModel):
    """The result of a job: made by training, stored as one document, sent as it is."""

    weights: WeightsFile
    formats: list[OfferedFormat] = Field(
        default_factory=list, description="What became of the further formats that the job was asked for."
    )
    metrics: Comparisons
    curve: list[CurvePoint]
    verdict: Verdict
    finished_early: bool = Field(
        False, description="Whether training ended before its planned steps: early stopping, or `POST …/finish`."
    )
    back_offs: int = Field(
        0,
        description="How often the high rate was divided by 3, because the start was forgotten or training diverged at it.",
    )
    start_kind: StartKind | None = Field(None, description="What method `auto` found the start to be.")
    rate_probe: RateProbe | None = Field(
        None, description="How the job came to its high rate, where it was to find one."
    )
    held_out: HeldOut
    selection: Selection | None = Field(None, description="Null where nothing was selected by held-out images.")
    evaluation: dict[str, EvaluatedSet] = Field(
        default_factory=dict, description="The comparisons on the sets of `evaluate`, by name."
    )
    interpolation: AlphaLine | None = Field(None, description="Where the method has `interpolate`.")
    stock: dict[str, float] | None = Field(
        None, description="Of a soup that is a model stock: t of each tensor, the share of the mean in it."
    )
    replicas: list[ReplicaResult] | None = Field(None, description="Of a job with replicas.")
    meetings: list[MeetingResult] | None = Field(
        None,
        exclude_if=lambda value: value is None,  # results of before are as they were
        description="Of a job whose replicas met on their way (`method.join_every`), and of each of these; absent elsewhere.",
    )
    normalization: NormalizationProbe | None = Field(None, description="Where `recipe.normalize` was `auto`.")
    flatness: Flatness | None = Field(None, description="Where the job asked for it.")
    probe: ProbeResult | None = Field(
        None,
        exclude_if=lambda value: value is None,  # results of before are as they were
        description="Where the job has probe images; it is absent elsewhere.",
    )

    @property
    def delivered(self) -> Delivered:
        """The weights that `/weights` answers with, by their name among the comparisons."""
        return self.selection.delivered if self.selection else "averaged"

    def selection_in_words(self) -> list[str]:
        """Return the selection as lines of text; no lines where nothing was selected."""
        selection, lines = self.selection, list[str]()
        if self.interpolation is not None:
            lines.append(self.interpolation.in_words())
        if selection is None:
            return lines
        if selection.chosen is not None:
            lines.append(f"w̄ is {selection.chosen.in_words()} ({selection.of} segments)")
        elif selection.valley is not None:
            first, last = selection.valley.first or 1, selection.valley.last
            lines.append(f"w̄ is the mean of every step from evaluation {first} to {last} (of {selection.of})")
        elif selection.kept is not None:
            kept = ", ".join(str(one) for one in selection.kept)
            lines.append(f"in the mean: {kept}" + (f" (of {selection.of})" if selection.of is not None else ""))
        if selection.assumed:
            lines.append(
                f"{self.held_out.selection} images of the selection split, after this much training, cannot tell candidates "
                "apart: w̄ is the mean of the last third of the walk, which was assumed, not chosen"
            )
        own = next((name for name, one in self.evaluation.items() if one.selected_on), None)
        if own is not None:
            lines.append(
                f"selected on the {self.held_out.selection} images of the evaluation set {own}; the numbers of the comparisons "
                f"are from the {self.held_out.report} held-out images of the dataset"
            )
        elif self.held_out.selection:
            lines.append(
                f"selected on {self.held_out.selection} held-out images; every number is from the other "
                f"{self.held_out.report}"
            )
        if selection.optimism is not None and not selection.assumed:
            lines.append(
                f"optimism: in the loss, w̄ gains {abs(selection.optimism):.4f} "
                f"{'less' if selection.optimism > 0 else 'more'} over the start on these than on those it was chosen by"
            )
        if selection.delivered == "start":
            lines.append(
                "guard: the average was worse than the start on the images that chose, so the weights to download are the "
                "start's, unchanged; the numbers of the average stay, to compare with"
            )
        return lines
