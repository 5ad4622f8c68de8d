"""A dataset as the API sends it: its classes, splits and image size, as the worker read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from wbar.checkpoints import Fault
from wbar.request import RequestModel
from wbar.states import UploadStatus
from wbar.uploads import UPLOAD_ID

LabelledTask = Literal["classification", "multilabel", "attributes", "segmentation", "detection", "regression"]
# Unlabelled images are looked at by a job's networks, and never trained on.
Task = Literal[LabelledTask, "unlabelled"]
BACKGROUND = "background"  # class 0 of detection: what is in no box
VOID_LABEL = 255  # of pixels that belong to no class, where nothing else is said
THUMBNAIL = 96  # pixels a side: up to here images are trained on at their own size


class Split(BaseModel):
    """The number of images in one split."""

    images: int


class ImageShape(BaseModel):
    """The channels, height and width (in pixels) of the images; the median where they have many sizes."""

    channels: int
    height: int
    width: int


def output_names(classes: Sequence[str], outputs: int) -> list[str]:
    """Return a name for each output of a network: of its class, and beyond the classes of its index. All are different."""
    names = list(classes)
    for index in range(len(names), outputs):
        name = str(index)
        while name in names:
            name = f"output {name}"
        names.append(name)
    return names


@dataclass(frozen=True)
class DatasetFacts:
    """The facts of a dataset that a job's options are resolved from, read off the images once, when it is validated.

    classes: their names, sorted; of attributes see `wbar.attributes`.
    train_images: the number of images in the training split.
    shape: in pixels, the median where there are many sizes.
    mean, std: one number per channel of the training split, for pixels in [0, 1].
    source: `builtin:…` and the like; None for an upload.
    held_out_images: the number of images in `val`.
    masks: of detection, whether every box has a mask.
    """

    task: Task
    classes: tuple[str, ...]
    train_images: int
    shape: ImageShape
    many_sizes: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str | None = None
    held_out_images: int = 0
    masks: bool = False

    @property
    def images(self) -> int:
        """The number of all images."""
        return self.train_images + self.held_out_images

    @property
    def are_photographs(self) -> bool:
        """Whether `auto` treats the images as photographs: the architecture's image size, random boxes."""
        return self.many_sizes or max(self.shape.height, self.shape.width) > THUMBNAIL


class DatasetSource(RequestModel):
    """A dataset that is not the body: a built-in one, a location below a root that the operator allows, or an upload.

    Either `source` or `upload` is given.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"source": "builtin:digits"}]},
    )

    upload: str | None = Field(
        None,
        pattern=UPLOAD_ID,
        max_length=64,
        description="The id of a finished upload of an archive; it can be used once.",
    )
    source: str | None = Field(None, pattern=r"^(builtin:|file://|s3://)", max_length=1024, validate_default=True)
    max_train_images: int | None = Field(
        None, ge=40, description="Keep only this many training images, stratified by class with a fixed seed."
    )

    @field_validator("source")
    @classmethod
    def _one_of_both(cls, source: str | None, others: ValidationInfo) -> str | None:
        if (source is None) == (others.data.get("upload") is None):
            kind = (
                "missing" if source is None else "value_error"
            )  # a pointer leads to what is missing, as to what is wrong
            raise PydanticCustomError(kind, "give `source` or `upload`, one of them")
        return source

    @field_validator("max_train_images")
    @classmethod
    def _of_a_source(cls, images: int | None, others: ValidationInfo) -> int | None:
        if images is not None and others.data.get("upload") is not None:
            raise ValueError("it is for built-in datasets; leave images out of the archive instead")
        return images


class Dataset(BaseModel):
    """`status` is `processing` until a worker has read every image; then `ready` or `rejected`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "ds_0mk3q8v2zr5d2a7x9c4t",
                "object": "dataset",
                "name": "builtin:digits",
                "status": "ready",
                "task": "classification",
                "source": "builtin:digits",
                "classes": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
                "attributes": None,
                "splits": {"train": {"images": 1438}, "val": {"images": 359}},
                "class_counts": None,
                "image": {"channels": 1, "height": 8, "width": 8},
                "bytes": 115008,
                "sha256": "7d865e959b2466918c9863afca942d0fb89d7c9ac0c99bafc3749504ded97730",
                "warnings": [],
                "error": None,
                "expires_at": None,
                "created_at": "2026-11-21T09:00:00.000000Z",
            }
        }
    )

    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    status: UploadStatus
    task: Task
    source: str | None = Field(None, description="`builtin:…`, `file://…` or `s3://…` where it was not uploaded.")
    classes: list[str] | None = Field(
        description="Their names, in the order of the outputs; of task `attributes` they are `attribute=category`, one "
        "attribute after the other."
    )
    attributes: dict[str, list[str]] | None = Field(
        None, description="Of task `attributes`: the categories of each attribute, in the order of the outputs."
    )
    splits: dict[str, Split] | None
    class_counts: dict[str, list[int]] | None = Field(
        None, description="By split, how many images each class has, in the order of `classes`; null where unknown."
    )
    masks: bool = Field(
        False,
        description="Of detection: whether every box has a mask, which a Mask R-CNN learns and others do not read.",
    )
    image: ImageShape | None
    bytes: int | None
    sha256: str | None
    warnings: list[str] = Field(default_factory=list)
    error: Fault | None
    expires_at: str | None = Field(
        None, description="It is deleted within ten minutes after, once no queued, running or paused job needs it."
    )
    created_at: str
