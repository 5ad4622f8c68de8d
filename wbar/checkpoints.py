"""A checkpoint as the API sends it: the upload, and the network that the worker recognized in it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wbar.catalog import NORMALIZED_INSIDE
from wbar.request import RequestModel
from wbar.spec import Network, PretrainedConfig, network_document
from wbar.states import UploadStatus

Purpose = Literal["train", "merge"]
# Of an upload: one file, an archive of a folder with `model.safetensors` and `config.json`, or of torch.export.
CheckpointFormat = Literal["safetensors", "pytorch", "zip", "tar", "pt2"]


class CheckpointSource(RequestModel):
    """The content of a new checkpoint: what a job or a merge has made."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"source": "job_0mk3q8v6zr5d2a7x9c4t"}]})

    source: str = Field(
        pattern=r"^(job|merge)_[0-9a-z]+$",
        max_length=64,
        description="The id of a job or a merge that has succeeded: the weights that it delivers, without download and upload.",
    )


class Fault(BaseModel):
    """The reason why an object was rejected or a job failed: a stable code and a sentence that says what to do."""

    code: str
    message: str
    details: dict[str, Any] | None = None


class NetworkArchitecture(BaseModel):
    """The catalog name that a checkpoint fits, and the sizes that were read off its tensors."""

    name: str
    num_classes: int
    channels: int = 3
    image_size: int | None = None
    source: Literal["given", "detected"]
    ambiguous_with: list[str] | None = Field(
        None,
        description="Of a `detected` architecture: published networks whose tensors have the same names and shapes and which "
        "give other outputs. A job computes `name`.",
    )

    @property
    def note(self) -> str | None:
        """A sentence about rarer networks with the same tensors, where `name` is the usual one; None where there are none."""
        if not self.ambiguous_with or self.name in NORMALIZED_INSIDE:
            return None
        return (
            f"Taken for {self.name}, the usual network with these tensors. Nothing is to be done, unless it is "
            f"{' or '.join(self.ambiguous_with)}: that has the same tensors and gives other outputs."
        )

    @property
    def warning(self) -> str | None:
        """A sentence about a relative that a published checkpoint is more likely to be; None where there is none."""
        if not self.ambiguous_with or self.name not in NORMALIZED_INSIDE:
            return None
        return (
            f"Taken for {self.name}. torchvision's pretrained weights are of {' or '.join(self.ambiguous_with)}, which has the "
            "same tensors and amounts to inputs normalized with mean 0.5 and deviation 0.5: a job tries that by itself "
            'where recipe.normalize is left "auto".'
        )


@dataclass(frozen=True)
class CheckpointFacts:
    """The facts about an uploaded checkpoint, read off its tensors once, when it is validated.

    parameters: how many numbers the network's parameters have, buffers not counted (of no known network: all tensors').
    network: None: of no known network, which can be merged and not trained.
    tensors: how many tensors the file has.
    prefix: the part of the uploaded names before the network's own.
    ambiguous_with: see NetworkArchitecture.
    pretrained: what came with it about its images.
    adapter: whether it is a LoRA adapter, with the configuration that says what it adds to its base.
    """

    format: CheckpointFormat
    parameters: int
    tensors: int
    network: Network | None
    source: Literal["given", "detected"]
    prefix: str
    ambiguous_with: list[str] | None
    pretrained: PretrainedConfig | None = None
    adapter: bool = False

    def document(self) -> dict[str, Any]:
        """Return the JSON that is stored, which a worker of 0.6 reads where nothing is new in it."""
        network = None if self.network is None else network_document(asdict(self.network))
        document = asdict(self) | {"network": network}
        return {name: value for name, value in document.items() if value or name not in ("pretrained", "adapter")}


class Checkpoint(BaseModel):
    """`status` is `processing` until a worker has validated the content; then `ready` or `rejected`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                "object": "checkpoint",
                "name": "resnet20-digits",
                "status": "ready",
                "format": "safetensors",
                "bytes": 1105032,
                "sha256": "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c",
                "parameters": 269722,
                "tensors": 123,
                "architecture": {
                    "name": "resnet20",
                    "num_classes": 10,
                    "channels": 3,
                    "image_size": None,
                    "source": "detected",
                    "ambiguous_with": None,
                },
                "pretrained": None,
                "adapter": False,
                "error": None,
                "expires_at": None,
                "created_at": "2026-11-21T09:00:00.000000Z",
            }
        }
    )

    id: str
    object: Literal["checkpoint"] = "checkpoint"
    name: str
    status: UploadStatus
    format: CheckpointFormat | None = Field(
        description="`zip` and `tar` are archives of a folder with weights and `config.json`, as timm and transformers save "
        "it, or of an adapter, as PEFT does; `pt2` is a network that torch.export has written down, with its weights."
    )
    bytes: int
    sha256: str
    parameters: int | None
    tensors: int | None
    architecture: NetworkArchitecture | None
    pretrained: PretrainedConfig | None = Field(
        None,
        description="What came with it about the images it was trained on, as defaults of a recipe: timm's `pretrained_cfg`, "
        "or transformers' `preprocessor_config.json`, with the names of `id2label` in the order of the outputs as `classes`.",
    )
    adapter: bool = Field(False, description="A LoRA adapter: it can be merged with others, and not trained.")
    error: Fault | None
    expires_at: str | None = Field(
        None, description="It is deleted within ten minutes after, once no queued, running or paused job needs it."
    )
    created_at: str
