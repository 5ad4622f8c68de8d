"""Answers of a job's networks about pictures that are sent with the request: `POST /v1/jobs/{id}/predict`."""

import re
from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, TypeAdapter

from wbar.datasets import LabelledTask
from wbar.recipe import Augment, Interpolation, Recipe
from wbar.request import RequestModel
from wbar.spec import StoredWeights

MOST_IMAGES = 64
MOST_BYTES = 16 * 1024 * 1024  # of all images of a request, as files
NETWORK = r"^(averaged|start|control|swag|snapshot_[1-9][0-9]{0,5})$"
NETWORKS = "`averaged`, `start`, `control`, `swag`, and `snapshot_1`, `snapshot_2` and so on"
MOST_DRAWS = 20  # networks drawn from SWAG's Gaussian for one request
MOST_DRAWN_BYTES = 2 * 1024**3  # of their weights together, which take about ten seconds on one core
MOST_BOXES = 100  # of an image, as COCO has it
MOST_OUTPUTS = 2**28  # pixels of an image times classes: a GiB of float32
MOST_MASK_PIXELS = 2**29  # of the masks of an image together
MOST_ANSWER_BYTES = 8 * 1024 * 1024  # of all class maps, boxes and masks of an answer


def network_name(name: str) -> str:
    """Return the name of a network that may be asked. Raises ValueError with those that there are."""
    if not re.fullmatch(NETWORK, name):
        raise ValueError(f"there is no network {name!r}: a job may have {NETWORKS}")
    return name


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PredictRequest(RequestModel):
    """Images as files (JPEG, PNG, WebP), each in base64. `multipart/form-data` with a field `file` for each is the same."""

    images: Annotated[list[Base64Bytes], Field(min_length=1, max_length=MOST_IMAGES, fail_fast=True)]


class _Predictions(BaseModel):
    """The answers of one network of a job, on the CPU. Nothing of the request is kept."""

    object: Literal["predictions"] = "predictions"
    job: str
    network: str = Field(description="`averaged`, `start`, `snapshot_n`, `control` or `swag`.")
    classes: list[str] = Field(description="Of the network's outputs, in their order; of regression its targets.")
    draws: int | None = Field(None, description="With `network=swag`: the networks that were drawn and asked.")
    cached: bool = Field(description="Whether the worker still had the network from a request before.")
    seconds: float = Field(description="That the worker took.")


class ClassProbability(BaseModel):
    """A class, or one of several labels, and its probability."""

    label: str
    probability: float
    deviation: float | None = Field(None, description="With `network=swag`, as in `deviations`.")


class ClassPrediction(BaseModel):
    """The answer about one image. index: of the image in the request, from 0."""

    index: int
    top: list[ClassProbability] = Field(description="The most probable classes or labels, first.")
    probabilities: list[float] = Field(
        description="Of all classes or labels, in the order of `classes`; with `network=swag` their means over the draws."
    )
    deviations: list[float] | None = Field(
        None, description="With `network=swag` and two draws or more: the standard deviation of each over the draws."
    )


class ClassPredictions(_Predictions):
    """The class of each image, or its labels."""

    task: Literal["classification", "multilabel"] = Field(
        description="Probabilities add up to 1 over the classes, or are of each label by itself."
    )
    data: list[ClassPrediction]


class AttributePrediction(BaseModel):
    """The attributes of one image. index: of the image in the request, from 0."""

    index: int
    attributes: dict[str, list[ClassProbability]] = Field(
        description="By attribute, its most probable categories, first."
    )
    probabilities: list[float] = Field(
        description="Of all categories, in the order of `classes`: those of one attribute add up to 1. With `network=swag` "
        "their means over the draws."
    )
    deviations: list[float] | None = Field(
        None, description="With `network=swag` and two draws or more: the standard deviation of each over the draws."
    )


class AttributePredictions(_Predictions):
    """The attributes of each image."""

    task: Literal["attributes"]
    data: list[AttributePrediction]


class NumberPrediction(BaseModel):
    """The numbers of one image. index: of the image in the request, from 0."""

    index: int
    values: dict[str, float] = Field(
        description="By target, in its own units; with `network=swag` their means over the draws."
    )
    deviations: dict[str, float] | None = Field(
        None, description="With `network=swag` and two draws or more: the standard deviation of each over the draws."
    )


class NumberPredictions(_Predictions):
    """The numbers of each image."""

    task: Literal["regression"]
    data: list[NumberPrediction]


class PixelPrediction(BaseModel):
    """A class for every pixel of one image. index: of the image in the request, from 0."""

    index: int
    height: int = Field(description="Of the image, in pixels, once it is upright.")
    width: int
    shares: dict[str, float] = Field(description="By class, the share of the pixels that have it.")
    map: str = Field(
        description="A PNG in base64, of the image's own size: the index in `classes` of each pixel, with a palette."
    )


class PixelPredictions(_Predictions):
    """A class for every pixel of each image."""

    task: Literal["segmentation"]
    data: list[PixelPrediction]


class RunLengths(BaseModel):
    """A mask as COCO's library writes it: runs of pixels outside and inside in turn, down one column after another."""

    size: list[int] = Field(min_length=2, max_length=2, description="Height and width of the image, in pixels.")
    counts: str


class FoundBox(BaseModel):
    """A box that was found in an image."""

    label: str
    score: float
    box: list[float] = Field(
        min_length=4, max_length=4, description="Left, top, right and bottom, in pixels of the image."
    )
    mask: RunLengths | None = Field(None, description="Of a Mask R-CNN.")


class BoxPrediction(BaseModel):
    """The boxes in one image. index: of the image in the request, from 0."""

    index: int
    height: int = Field(description="Of the image, in pixels, once it is upright.")
    width: int
    boxes: list[FoundBox] = Field(description="The surest first.")


class BoxPredictions(_Predictions):
    """The boxes in each image."""

    task: Literal["detection"]
    data: list[BoxPrediction]


AnyPredictions = ClassPredictions | AttributePredictions | NumberPredictions | PixelPredictions | BoxPredictions
Predictions = Annotated[AnyPredictions, Field(discriminator="task")]
PREDICTIONS: TypeAdapter[AnyPredictions] = TypeAdapter(Predictions)


# Between the API and a worker, through the broker.


class Units(_Frozen):
    """Outputs · std + mean are the targets in their own units: one number of each for each output."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Wanted(_Frozen):
    """The boxes of an image that are wanted: so many of the surest, and none below this score."""

    most: int = MOST_BOXES
    score: float = 0.0


class PredictedNetwork(_Frozen):
    """A network to be asked, and how images are made its inputs: everything that decides its outputs.

    labels: the names of its outputs.
    image_size: (height, width) in pixels; mean, std: one number per channel of the network, for pixels in [0, 1].
    augment: of the training, which decides how images of other sizes are cut.
    recipe, seed: of the job, where the weights are the start's as uploaded, whose fresh layers follow from them.
    draws: where the weights are SWAG's Gaussian, the networks that are drawn from it with `seed`, and asked; else 0.
    units: of regression, what leads from the outputs to the targets.
    """

    weights: StoredWeights
    task: LabelledTask
    labels: tuple[str, ...]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    crop_ratio: float
    interpolation: Interpolation
    recipe: Recipe | None = None
    seed: int = 0
    draws: int = 0
    units: Units | None = None

    def document(self) -> dict[str, Any]:
        """Return the JSON of it, without new fields that say nothing: a worker of before refuses what it does not know."""
        unsaid = {name for name in ("draws", "units") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=unsaid)


class _Answer(_Frozen):
    cached: bool = False
    seconds: float = 0.0


class Answered(_Answer):
    """The probabilities of each image, in order; of several draws their means, and their standard deviations."""

    type: Literal["answered"] = "answered"
    probabilities: list[list[float]]
    deviations: list[list[float]] | None = None


class AnsweredNumbers(_Answer):
    """The targets of each image in their own units, in order; of several draws as above."""

    type: Literal["numbers"] = "numbers"
    values: list[list[float]]
    deviations: list[list[float]] | None = None


class ClassMap(_Frozen):
    """The class of every pixel of an image. pixels: that each class has. png: in base64."""

    height: int
    width: int
    pixels: list[int]
    png: str


class AnsweredPixels(_Answer):
    """The class map of each image, in order."""

    type: Literal["pixels"] = "pixels"
    maps: list[ClassMap]


class Boxes(_Frozen):
    """The boxes of an image, the surest first.

    classes: the index of each one's output.
    corners: left, top, right, bottom in pixels.
    masks: the runs of each one's mask as text, of networks that find masks.
    """

    height: int
    width: int
    classes: list[int]
    scores: list[float]
    corners: list[list[float]]
    masks: list[str] | None = None


class AnsweredBoxes(_Answer):
    """The boxes of each image, in order."""

    type: Literal["boxes"] = "boxes"
    found: list[Boxes]


class NotAnswered(_Frozen):
    """Why there is no answer. index: of the image whose fault it is; None: it is no image's."""

    type: Literal["not_answered"] = "not_answered"
    message: str
    index: int | None = None


Given = Answered | AnsweredNumbers | AnsweredPixels | AnsweredBoxes
Answer = Annotated[Given | NotAnswered, Field(discriminator="type")]
