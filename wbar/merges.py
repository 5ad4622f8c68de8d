"""A merge: checkpoints, results and snapshots combined without training, as a request asks for it and as the API sends it.

The formulas stand in `wbar_averaging.decay_weights` and `wbar_averaging.task_vectors`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, model_validator

from wbar.checkpoints import Fault
from wbar.request import ExpiresAfter, RequestModel, Seed
from wbar.text import Name, Text
from wbar_averaging.decay_weights import weight_sum

MergeStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: frozenset[MergeStatus] = frozenset({"succeeded", "failed", "cancelled"})
MOST_SOURCES = 256
MOST_SCALE = 1e6
MOST_RANK = 65_536
LEAST_SHARD = 1_000_000  # bytes

SourceId = Annotated[Text, Field(max_length=64)]
DecayShape = Literal["linear", "cosine", "1-sqrt"]
Weight = Annotated[float, Field(ge=-MOST_SCALE, le=MOST_SCALE, allow_inf_nan=False)]
Weights = Annotated[list[Weight], Field(min_length=1, max_length=MOST_SOURCES, fail_fast=True)]


class MeanMerge(RequestModel):
    """The weighted mean Σ wᵢxᵢ / Σ wᵢ; equal weights unless one of the others is given."""

    type: Literal["mean"] = "mean"
    weights: Weights | None = Field(None, description="One per checkpoint, with a sum above 0; divided by it.")
    shape: DecayShape | None = Field(
        None,
        description="For the checkpoints of one run, oldest first: weights shaped like the decay of the rate that their mean "
        "replaces (Tian et al. 2025, WSM). `linear` is the equal mean.",
    )
    ema: float | None = Field(
        None, ge=0, lt=1, description="For the checkpoints of one run, oldest first: the decay of an exponential mean."
    )
    lora_rank: int | None = Field(
        None,
        ge=1,
        le=MOST_RANK,
        description="Of LoRA adapters, and required there: ΔW = B·A is averaged, and written as the nearest product of this "
        "rank. The sum of the adapters' ranks leaves nothing out, `result.residuals` says what less does, and "
        "more is filled with zeros.",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(one is not None for one in (self.weights, self.shape, self.ema)) > 1:
            raise ValueError("give one of weights, shape and ema")
        if self.weights is not None:
            weight_sum(self.weights)
        return self


class _Added(RequestModel):
    scale: Weight | Weights = Field(
        1.0,
        description="λ: one for all checkpoints, or one for each.",
    )


class TaskArithmeticMerge(_Added):
    """w₀ + Σ λᵢ(wᵢ − w₀) (Ilharco et al. 2023); with one checkpoint and λ = α WiSE-FT's line (Wortsman et al. 2022)."""

    type: Literal["task_arithmetic"]


class TiesMerge(RequestModel):
    """w₀ + λ times the mean of the trimmed differences that have the elected sign (TIES, Yadav et al. 2023)."""

    type: Literal["ties"]
    density: float = Field(
        0.2, gt=0, le=1, description="The share of each difference, over all its tensors, that is kept."
    )
    scale: Weight = Field(1.0, description="λ.")


class DareMerge(_Added):
    """Task arithmetic with numbers of each difference dropped at random and the others made larger (DARE, Yu et al. 2024)."""

    type: Literal["dare"]
    drop: float = Field(0.9, ge=0, lt=1, description="The share that is dropped; the rest is divided by 1 − drop.")
    seed: Seed = Field(0, description="Of what is dropped: the same seed gives the same bits.")


AnyMerge = Annotated[MeanMerge | TaskArithmeticMerge | TiesMerge | DareMerge, Discriminator("type")]
MergeDtype = Literal["float16", "bfloat16", "float32", "float64"]
# A file of tensors; or a zip of a folder, with the configuration and the tokenizer beside the weights.
MergeFormat = Literal["safetensors", "huggingface"]
EXTENSIONS: Mapping[MergeFormat, str] = MappingProxyType({"safetensors": ".safetensors", "huggingface": ".zip"})


class MergeRequest(RequestModel):
    """A request to merge checkpoints. Only `checkpoints` is required."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"checkpoints": ["job_0mk3q8v3zr5d2a7x9c4t"], "last": 5, "method": {"type": "mean", "shape": "1-sqrt"}},
                {
                    "checkpoints": ["ckpt_0mk3q8v1zr5d2a7x9c4t", "ckpt_0mk3q8v4zr5d2a7x9c4t"],
                    "base": "ckpt_0mk3q8v0zr5d2a7x9c4t",
                    "method": {"type": "ties", "density": 0.2},
                    "name": "two tasks",
                },
                {
                    "checkpoints": ["ckpt_0mk3q8v1zr5d2a7x9c4t", "ckpt_0mk3q8v4zr5d2a7x9c4t"],
                    "method": {"type": "mean", "lora_rank": 16},
                    "name": "two adapters",
                },
            ]
        }
    )

    checkpoints: Annotated[list[SourceId], Field(min_length=1, max_length=MOST_SOURCES, fail_fast=True)] = Field(
        description="Ids of checkpoints, of jobs (their results), of snapshots and of merges, in order; of one run, the oldest "
        "first. Of a merge that is a folder, make a checkpoint first."
    )
    last: int | None = Field(
        None,
        ge=1,
        le=MOST_SOURCES,
        description="With one job in `checkpoints`: its last so many snapshots instead of its result.",
    )
    base: SourceId | None = Field(None, description="w₀, the checkpoint that the others began from; not of a mean.")
    method: AnyMerge = Field(default_factory=MeanMerge)
    dtype: MergeDtype | None = Field(
        None, description="Of all floating-point tensors; default: as in the first checkpoint, or in the base."
    )
    format: MergeFormat | None = Field(
        None,
        description="`huggingface`: a zip of a folder, with `config.json`, tokenizer and preprocessor files of the first "
        "checkpoint (the base where there is one), which was uploaded as a folder. Default: of LoRA adapters that, else "
        "`safetensors`.",
    )
    max_shard_bytes: int | None = Field(
        None,
        ge=LEAST_SHARD,
        description="Of `huggingface`: larger weights are split into files of at most so many bytes, with their index.",
    )
    name: Name | None = None
    expires_after: ExpiresAfter | None = Field(
        None, description="Seconds from its end after which it is deleted. Default: it stays."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.base is None) != (self.method.type == "mean"):
            needs = "adds to a base: give `base`" if self.base is None else "has no base: leave `base` out"
            raise ValueError(f"the method {self.method.type} {needs}")
        if self.last is not None and not (len(self.checkpoints) == 1 and self.checkpoints[0].startswith("job_")):
            raise ValueError("`last` goes with one job in `checkpoints`")
        numbers = self.method.weights if isinstance(self.method, MeanMerge) else self.method.scale
        count = self.last or len(self.checkpoints)
        if isinstance(numbers, list) and len(numbers) != count:
            name = "weights" if isinstance(self.method, MeanMerge) else "scales"
            raise ValueError(f"{len(numbers)} {name} for {count} checkpoints")
        if self.max_shard_bytes is not None and self.format != "huggingface":
            raise ValueError(
                "`max_shard_bytes` goes with the format huggingface of whole networks: other results have one file of weights"
            )
        return self

    def document(self) -> dict[str, Any]:
        """Return the request as JSON that does not change with what it does not ask for: retries go on over an upgrade."""
        return _without_what_is_new(self.model_dump(mode="json"))


class MergeSource(BaseModel):
    """One of the things that were merged. sha256: of its tensors as a safetensors file, which is what was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    sha256: str


class MergeSpec(BaseModel):
    """Everything that decides a merge's bits. It is made once, when the merge is created.

    archives: of the format huggingface, the sha256 of the archive that an input was uploaded as, by the input's id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[MergeSource, ...]
    base: MergeSource | None
    method: AnyMerge
    dtype: MergeDtype | None
    format: MergeFormat = "safetensors"
    max_shard_bytes: int | None = None
    archives: Mapping[str, str] = {}

    @property
    def inputs(self) -> list[MergeSource]:
        """The sources, after the base where there is one."""
        return [*([self.base] if self.base else []), *self.sources]

    @property
    def blobs(self) -> list[str]:
        """The digests of all that the merge reads, each once."""
        return list(dict.fromkeys([*(source.sha256 for source in self.inputs), *self.archives.values()]))

    def document(self) -> dict[str, Any]:
        """Return the JSON that is stored, which a worker of 0.6 reads where nothing is new in it."""
        document = self.model_dump(mode="json")
        if self.format == "safetensors":
            document |= {"format": None, "archives": None}
        return _without_what_is_new(document)


def _without_what_is_new(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out the keys of 0.7 where they are null."""
    document["method"] = {
        key: value for key, value in document["method"].items() if (key, value) != ("lora_rank", None)
    }
    new = ("format", "max_shard_bytes", "archives")
    return {key: value for key, value in document.items() if value is not None or key not in new}


class MergedFile(BaseModel):
    """The file that a merge has made: its size in bytes and its sha256."""

    bytes: int
    sha256: str
    format: MergeFormat = "safetensors"


class MergeResult(BaseModel):
    """The result of a merge."""

    weights: MergedFile
    residuals: dict[str, float] | None = Field(
        None,
        description="Of LoRA adapters, by module: ‖ΔW − B·A‖ / ‖ΔW‖ (Frobenius), what the rank left out; the hundred largest.",
    )

    @property
    def left_out(self) -> str | None:
        """A sentence about what the rank left out of adapters; None of other merges."""
        if not self.residuals:
            return None
        worst, share = max(self.residuals.items(), key=lambda item: item[1])
        return f"The rank leaves out {share:.2%} of ΔW (Frobenius norm) in {worst}, the most of any module."


class Merge(BaseModel):
    """A merge: what it is made of, its status and, once it has succeeded, its result."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "merge_0mk3q8v6zr5d2a7x9c4t",
                "object": "merge",
                "name": "two tasks",
                "status": "succeeded",
                "method": {"type": "ties", "density": 0.2, "scale": 1.0},
                "dtype": None,
                "format": "safetensors",
                "max_shard_bytes": None,
                "base": {
                    "id": "ckpt_0mk3q8v0zr5d2a7x9c4t",
                    "sha256": "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c",
                },
                "sources": [
                    {
                        "id": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                        "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
                    }
                ],
                "fraction": 1.0,
                "result": {
                    "weights": {
                        "bytes": 1105032,
                        "sha256": "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9",
                        "format": "safetensors",
                    },
                    "residuals": None,
                },
                "error": None,
                "attempts": 1,
                "expires_at": None,
                "created_at": "2026-11-21T09:00:00.000000Z",
                "started_at": "2026-11-21T09:00:00.100000Z",
                "finished_at": "2026-11-21T09:00:01.000000Z",
            }
        }
    )

    id: str
    object: Literal["merge"] = "merge"
    name: str | None
    status: MergeStatus
    method: AnyMerge
    dtype: MergeDtype | None
    format: MergeFormat = "safetensors"
    max_shard_bytes: int | None = None
    base: MergeSource | None
    sources: list[MergeSource] = Field(description="What is merged, in order; `last` is resolved to snapshots.")
    fraction: float = Field(description="How much of the reading is done, from 0 to 1.")
    result: MergeResult | None
    error: Fault | None
    attempts: int
    expires_at: str | None = Field(None, description="Once it has ended: it is deleted within ten minutes after.")
    created_at: str
    started_at: str | None
    finished_at: str | None
