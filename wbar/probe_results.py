"""What a job's networks make of its probe images: `result.probe`, every number measured when the job ends."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_PROBES = 512  # images: each network's outputs on them are kept, of every point of the curve too
MOST_SHOWN = 24  # images that the report shows
THUMBNAIL = 64  # pixels of a side

# What is done to every probe image, and what it is called in words.
CHANGES = {
    "shift_1": "moved by 1 pixel",
    "shift_2": "moved by 2 pixels",
    "shift_3": "moved by 3 pixels",
    "shift_4": "moved by 4 pixels",
    "darker": "brightness × 0.9",
    "brighter": "brightness × 1.1",
    "jpeg_75": "JPEG of quality 75",
}
Change = Literal["shift_1", "shift_2", "shift_3", "shift_4", "darker", "brighter", "jpeg_75"]
Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Stability(_Frozen):
    """How one network answers images that were changed a little, against the same images unchanged."""

    unchanged: Share = Field(
        description="The share of predictions that stay: the most probable class, the yes or no of each label, the most "
        "probable category of each attribute."
    )
    probability_change: Share = Field(
        description="The mean of |p′ − p| of what was predicted for the unchanged image: the class, each label, the category "
        "of each attribute."
    )


class Consistency(_Frozen):
    """One change of the images, with the start and w̄ after it. A shift is the mean of one to the right and one down."""

    change: Change
    start: Stability
    averaged: Stability


class ProbeAnswer(_Frozen):
    """The most probable class or label of an image, or category of the attribute that changed the most; its probability."""

    label: str
    probability: float


class ProbeImage(_Frozen):
    """One of the images whose output changed the most from the start to w̄.

    changed: ½·Σ|p − q| of the classes; of labels and attributes the mean over them of each one's.
    """

    index: int = Field(description="Of the rows of the file at `/v1/jobs/{id}/probe`, from 0.")
    name: str | None = Field(description="In the archive; null where the dataset does not keep the names.")
    changed: Share
    start: ProbeAnswer
    averaged: ProbeAnswer


class ProbeResult(_Frozen):
    """The comparisons on the probe images, which need no labels. The outputs themselves are at `/v1/jobs/{id}/probe`."""

    images: int
    networks: list[str] = Field(description="The arrays of that file: the comparisons, and `curve_n` for each w̄_n.")
    kept: Share = Field(description="The share of the start's predictions that are w̄'s, too.")
    agreement: Share | None = Field(
        description="The share of predictions in which w̄ and the ensemble of outputs agree; null where there is no ensemble."
    )
    kl: float | None = Field(
        description="The mean of KL(ensemble ‖ w̄), in nats (of labels and attributes: the mean over them): to first order "
        "averaged weights give the average of outputs, and this is what is left. Null where there is no ensemble."
    )
    consistency: list[Consistency]
    most_changed: list[ProbeImage] = Field(description="The images whose outputs changed the most, first.")
