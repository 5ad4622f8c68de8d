"""The result of a job: scores of the comparisons, the curve over n, the selection, flatness."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from wbar.loss_surface import Histogram, LossSurface
from wbar.method import StartKind
from wbar.probe_results import ProbeResult
from wbar.recipe import Normalization

Verdict = Literal["better", "same", "worse"]
Delivered = Literal["averaged", "start"]
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


class BoxScore(BaseModel):
    """COCO's average precision of boxes or masks, in [0, 1]; null where no held-out box is of that size or class."""

    ap: float | None = Field(description="The mean over IoU thresholds 0.5, 0.55 … 0.95, and over classes.")
    ap50: float | None = Field(description="At IoU 0.5.")
    ap75: float | None = Field(description="At IoU 0.75.")
    ap_small: float | None = Field(description="Of boxes below 32² pixels of the image.")
    ap_medium: float | None = Field(description="From 32² to 96².")
    ap_large: float | None = Field(description="Above 96².")
    by_class: dict[str, float | None] = Field(description="AP by the class's name.")


class TargetScore(BaseModel):
    """How far the predictions of one target are from it on held-out images, in the target's own units."""

    mse: float = Field(description="The mean squared error.")
    rmse: float = Field(description="Its square root.")
    mae: float = Field(description="The mean absolute error.")
    r2: float | None = Field(
        description="1 − Σ(ŷ − y)² / Σ(y − ȳ)²: 1 is best, 0 is that of always giving the mean; null for a target that is one "
        "number on all these images."
    )


class RegressionScore(BaseModel):
    """The errors of a regression: of each target, and R² as a mean."""

    r2: float | None = Field(description="The mean over the targets that have one.")
    by_target: dict[str, TargetScore] = Field(description="By the target's name.")


class AttributeScore(BaseModel):
    """How one attribute is answered on the held-out images that it is known of."""

    images: int = Field(description="The images that it is known of.")
    accuracy: float | None = Field(
        description="The share of these that got the right category; null where it is known of none."
    )
    loss: float | None = Field(description="The mean of −log p of the right category over these, in nats.")


class Score(BaseModel):
    """Accuracy in [0, 1], mean negative log-likelihood in nats, and expected calibration error (15 bins).

    Where an image has several labels, accuracy is the share of right yes-or-no answers, loss their mean, and mean average
    precision is added. Of attributes, accuracy is the mean over them of the share that got the right category, of the
    images that each is known of; loss is the mean over images of the mean over their known attributes. Of segmentation,
    accuracy is that of all labelled pixels, loss the mean over the images of the mean over their labelled pixels, and
    intersections over unions are added. Of detection, accuracy is AP, loss the mean over the images of the network's own
    losses, and `boxes` is added. Of regression, accuracy is the mean R² (below 0 where it is worse than the mean), loss the
    mean squared error of standardized targets, and `regression` is added.
    """

    accuracy: float
    loss: float
    ece: float | None = Field(None, description="Null in segmentation, detection and regression.")
    mean_iou: float | None = Field(
        None, description="Of segmentation: the mean of `iou` over the classes that have one."
    )
    iou: dict[str, float | None] | None = Field(
        None,
        description="Of segmentation: pixels of both over pixels of either, of the class by its labels and by the outputs, by "
        "the class's name; null for a class that no held-out image has, by either.",
    )
    boxes: BoxScore | None = Field(None, description="Of detection.")
    masks: BoxScore | None = Field(None, description="Of a Mask R-CNN: the same by what masks have in common.")
    regression: RegressionScore | None = Field(None, description="Of regression.")
    attributes: dict[str, AttributeScore] | None = Field(None, description="Of attributes, by their names.")
    map: float | None = Field(None, description="Mean of `average_precision`; null for one label per image.")
    average_precision: list[float | None] | None = Field(
        None, description="By class, in the order of the outputs; null for a class that no held-out image has."
    )
    nll_calibrated: float | None = Field(
        None,
        description="The loss at `temperature`, in nats: what is left once confidence is set right (Guo et al. 2017). "
        "Where there is no selection split, half of the report split at the temperature of the other half, and vice versa.",
    )
    temperature: float | None = Field(
        None,
        description="T of softmax(z/T), fitted on the selection split, else on the report split. Not applied to the weights, "
        "nor to `loss` and `ece`. Null in the curve, and of tasks other than classes and labels.",
    )


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the mean of several scores, number by number over those that have it; of classes and targets, of boxes alone."""
    return Score(
        accuracy=sum(one.accuracy for one in scores) / len(scores),
        loss=sum(one.loss for one in scores) / len(scores),
        **{
            name: _mean([getattr(one, name) for one in scores]) for name in ("ece", "mean_iou", "map", "nll_calibrated")
        },
        boxes=_mean_precision([one.boxes for one in scores if one.boxes is not None]),
        masks=_mean_precision([one.masks for one in scores if one.masks is not None]),
        regression=_mean_regression([one.regression for one in scores if one.regression is not None]),
        attributes=_mean_attributes([one.attributes for one in scores if one.attributes is not None]),
    )


def _mean_regression(scores: Sequence[RegressionScore]) -> RegressionScore | None:
    """Return the mean R²; by target there is none, whose errors are of one network."""
    return RegressionScore(r2=_mean([one.r2 for one in scores]), by_target={}) if scores else None


def _mean_attributes(scores: Sequence[dict[str, AttributeScore]]) -> dict[str, AttributeScore] | None:
    """Return the means by attribute, of scores of the same images."""
    if not scores:
        return None
    return {
        name: AttributeScore(
            images=first.images,
            accuracy=_mean([one[name].accuracy for one in scores]),
            loss=_mean([one[name].loss for one in scores]),
        )
        for name, first in scores[0].items()
    }


def _mean_precision(scores: Sequence[BoxScore]) -> BoxScore | None:
    if not scores:
        return None
    by_class = {name: _mean([one.by_class.get(name) for one in scores]) for name in scores[0].by_class}
    plain = {
        name: _mean([getattr(one, name) for one in scores]) for name in BoxScore.model_fields if name != "by_class"
    }
    return BoxScore(**plain, by_class=by_class)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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


class HeldOut(BaseModel):
    """The sizes of the held-out splits: no reported number is from an image that decided a selection."""

    selection: int = Field(
        description="Images of the selection split; 0 where nothing was selected by held-out images."
    )
    report: int = Field(description="Images of the report split, which every number of the result is from.")


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
        0, description="How often the high rate was divided by 3, because the start was forgotten at it."
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
