"""The request to a child that answers predictions, and its messages. Torch-free, since the worker imports it."""

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from wbar.predictions import Given, NotAnswered, PredictedNetwork, Wanted
from wbar_worker.processes import Entry


@dataclass(frozen=True)
class PredictWork:
    """The request to hold a network and answer.

    weights: its file, which may go once the child is ready.
    orders: where requests come: an `Order`, then each image's file.
    memory, seconds: the limits of the child.
    pixels: the most that one image may have.
    threads: of torch.
    """

    network: PredictedNetwork
    weights: Path
    orders: Connection
    memory: int
    seconds: float
    pixels: int
    threads: int


class Order(BaseModel):
    """The beginning of a request. images: that follow."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    images: int
    wanted: Wanted


class Ready(BaseModel):
    """The network is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["ready"] = "ready"


FromPredicting: TypeAdapter[Ready | Given | NotAnswered] = TypeAdapter(
    Annotated[Ready | Given | NotAnswered, Field(discriminator="type")]
)
PREDICT_IMAGES: Entry[PredictWork] = Entry("wbar_worker.predict_child", "predict_images", isolated=True)
