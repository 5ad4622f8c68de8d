"""A worker's answer as the API sends it: names instead of indices, one model for each kind of task."""

from collections.abc import Sequence
from typing import Any

from wbar.attributes import categories_of, outputs_of
from wbar.errors import PredictionFailed, ValidationFailed
from wbar.predictions import (
    MOST_ANSWER_BYTES,
    Answered,
    AnsweredBoxes,
    AnsweredNumbers,
    AnsweredPixels,
    AnyPredictions,
    AttributePrediction,
    AttributePredictions,
    Boxes,
    BoxPrediction,
    BoxPredictions,
    ClassMap,
    ClassPrediction,
    ClassPredictions,
    ClassProbability,
    FoundBox,
    Given,
    NumberPrediction,
    NumberPredictions,
    PixelPrediction,
    PixelPredictions,
    PredictedNetwork,
    RunLengths,
)

NAMED_BYTES = 80  # of a category in the answer, with its probability
Spread = list[float] | None
Groups = list[tuple[str, list[int], list[str]]]  # an attribute, its outputs, its categories


def predictions_of(job_id: str, name: str, asked: PredictedNetwork, answer: Given, top: int) -> AnyPredictions:
    """Return the answers of the network `name` of a job. top: how many classes are named of each image, or attribute.

    Raises PredictionFailed (409) where the answer is of another task, ValidationFailed (422) where it would be too large.
    """
    labels = asked.labels
    told: dict[str, Any] = {
        "job": job_id, "network": name, "task": asked.task, "classes": list(labels), "draws": asked.draws or None,
        "cached": answer.cached, "seconds": answer.seconds,
    }  # fmt: skip
    if isinstance(answer, Answered) and asked.task in ("classification", "multilabel"):
        rows = zip(answer.probabilities, _spreads(answer), strict=True)
        return ClassPredictions(**told, data=[_classes(n, *row, labels, top) for n, row in enumerate(rows)])
    if isinstance(answer, Answered) and asked.task == "attributes":
        groups = _groups(labels)
        _check_size(len(answer.probabilities) * sum(min(top, len(outputs)) for _, outputs, _ in groups))
        rows = zip(answer.probabilities, _spreads(answer), strict=True)
        return AttributePredictions(**told, data=[_attributes(n, *row, groups, top) for n, row in enumerate(rows)])
    if isinstance(answer, AnsweredNumbers) and asked.task == "regression":
        rows = zip(answer.values, _spreads(answer), strict=True)
        return NumberPredictions(**told, data=[_numbers(n, *row, labels) for n, row in enumerate(rows)])
    if isinstance(answer, AnsweredPixels) and asked.task == "segmentation":
        return PixelPredictions(**told, data=[_pixels(n, one, labels) for n, one in enumerate(answer.maps)])
    if isinstance(answer, AnsweredBoxes) and asked.task == "detection":
        return BoxPredictions(**told, data=[_boxes(n, one, labels) for n, one in enumerate(answer.found)])
    raise PredictionFailed(f"the worker answered with {answer.type} where {asked.task} was asked: upgrade it")


def _spreads(answer: Answered | AnsweredNumbers) -> list[list[float]] | list[None]:
    """Return the deviations of each image; None for each where one network was asked."""
    rows = answer.probabilities if isinstance(answer, Answered) else answer.values
    return answer.deviations or [None] * len(rows)


def _classes(index: int, row: list[float], spread: Spread, labels: tuple[str, ...], most: int) -> ClassPrediction:
    return ClassPrediction(index=index, top=_top(row, spread, labels, most), probabilities=row, deviations=spread)


def _groups(labels: Sequence[str]) -> Groups:
    categories = categories_of(labels)
    return [(name, outputs, categories[name]) for name, outputs in outputs_of(labels).items()]


def _check_size(named: int) -> None:
    """Raise ValidationFailed (422) where so many categories make the answer too large. named: of all images together."""
    if named * NAMED_BYTES > MOST_ANSWER_BYTES:
        most = MOST_ANSWER_BYTES // NAMED_BYTES
        detail = f"{named} categories would be named, and at most {most} are: ask for fewer, or send fewer images"
        raise ValidationFailed(f"top: {detail}", [{"pointer": "", "parameter": "top", "detail": detail}])


def _attributes(index: int, row: list[float], spread: Spread, groups: Groups, most: int) -> AttributePrediction:
    found = {
        name: _top([row[k] for k in outputs], spread and [spread[k] for k in outputs], categories, most)
        for name, outputs, categories in groups
    }
    return AttributePrediction(index=index, attributes=found, probabilities=row, deviations=spread)


def _top(row: list[float], spread: Spread, labels: Sequence[str], most: int) -> list[ClassProbability]:
    order = sorted(range(len(row)), key=lambda k: -row[k])[:most]
    return [ClassProbability(label=labels[k], probability=row[k], deviation=spread and spread[k]) for k in order]


def _numbers(index: int, row: list[float], spread: Spread, labels: tuple[str, ...]) -> NumberPrediction:
    deviations = None if spread is None else dict(zip(labels, spread, strict=True))
    return NumberPrediction(index=index, values=dict(zip(labels, row, strict=True)), deviations=deviations)


def _pixels(index: int, one: ClassMap, labels: tuple[str, ...]) -> PixelPrediction:
    count = one.height * one.width
    shares = {label: pixels / count for label, pixels in zip(labels, one.pixels, strict=True)}
    return PixelPrediction(index=index, height=one.height, width=one.width, shares=shares, map=one.png)


def _boxes(index: int, one: Boxes, labels: tuple[str, ...]) -> BoxPrediction:
    size = [one.height, one.width]
    masks = [None if one.masks is None else RunLengths(size=size, counts=text) for text in one.masks or one.classes]
    rows = zip(one.classes, one.scores, one.corners, masks, strict=True)
    boxes = [FoundBox(label=labels[k], score=score, box=corners, mask=mask) for k, score, corners, mask in rows]
    return BoxPrediction(index=index, height=one.height, width=one.width, boxes=boxes)
