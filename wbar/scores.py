"""The scores of one network on held-out images, of every task, and means of several."""

from collections.abc import Sequence

from pydantic import BaseModel, Field


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
