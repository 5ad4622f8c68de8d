"""Answers of a job's networks about pictures that are sent with the request: `POST /v1/jobs/{id}/predict`."""

from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from wbar.recipe import Augment, Interpolation, Recipe
from wbar.request import RequestModel
from wbar.spec import StoredWeights

MOST_IMAGES = 64
MOST_BYTES = 16 * 1024 * 1024  # of all images of a request, as files
NETWORK = r"^(averaged|start|control|swag|snapshot_[1-9][0-9]{0,5})$"
MOST_DRAWS = 20  # networks drawn from SWAG's Gaussian for one request
MOST_DRAWN_BYTES = 2 * 1024**3  # of their weights together, which take about ten seconds on one core


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PredictRequest(RequestModel):
    """Images as files (JPEG, PNG, WebP), each in base64. `multipart/form-data` with a field `file` for each is the same."""

    images: Annotated[list[Base64Bytes], Field(min_length=1, max_length=MOST_IMAGES, fail_fast=True)]


class ClassProbability(BaseModel):
    """A class, or one of several labels, and its probability."""

    label: str
    probability: float
    deviation: float | None = Field(None, description="With `network=swag`, as in `deviations`.")


class Prediction(BaseModel):
    """The answer about one image. index: of the image in the request, from 0."""

    index: int
    top: list[ClassProbability] = Field(description="The most probable classes or labels, first.")
    probabilities: list[float] = Field(
        description="Of all classes or labels, in the order of `classes`; with `network=swag` their means over the draws."
    )
    deviations: list[float] | None = Field(
        None, description="With `network=swag` and two draws or more: the standard deviation of each over the draws."
    )


class Predictions(BaseModel):
    """The answers of one network of a job, on the CPU. Nothing of the request is kept."""

    object: Literal["predictions"] = "predictions"
    job: str
    network: str = Field(description="`averaged`, `start`, `snapshot_n` or `swag`.")
    task: Literal["classification", "multilabel"] = Field(
        description="Probabilities add up to 1 over the classes, or are of each label by itself."
    )
    classes: list[str]
    data: list[Prediction]
    draws: int | None = Field(None, description="With `network=swag`: the networks that were drawn and asked.")
    cached: bool = Field(description="Whether the worker still had the network from a request before.")
    seconds: float = Field(description="That the worker took.")


# Between the API and a worker, through the broker.


class PredictedNetwork(_Frozen):
    """A network to be asked, and how images are made its inputs: everything that decides an answer.

    labels: the names of its outputs' probabilities.
    image_size: (height, width) in pixels; mean, std: one number per channel of the network, for pixels in [0, 1].
    augment: of the training, which decides how images of other sizes are cut.
    recipe, seed: of the job, where the weights are the start's as uploaded, whose fresh layers follow from them.
    draws: where the weights are SWAG's Gaussian, the networks that are drawn from it with `seed`, and asked; else 0.
    """

    weights: StoredWeights
    task: Literal["classification", "multilabel"]
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

    def document(self) -> dict[str, Any]:
        """Return the JSON of it; a worker of before, which refuses what it does not know, is told of no draws."""
        return self.model_dump(mode="json", exclude=None if self.draws else {"draws"})


class Answered(_Frozen):
    """The probabilities of each image, in order; of several draws their means, and their standard deviations."""

    type: Literal["answered"] = "answered"
    probabilities: list[list[float]]
    deviations: list[list[float]] | None = None
    cached: bool = False
    seconds: float = 0.0


class NotAnswered(_Frozen):
    """Why there is no answer. index: of the image whose fault it is; None: it is no image's."""

    type: Literal["not_answered"] = "not_answered"
    message: str
    index: int | None = None


Answer = Annotated[Answered | NotAnswered, Field(discriminator="type")]
