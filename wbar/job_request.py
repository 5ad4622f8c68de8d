"""The body of `POST /v1/jobs`: what a job is asked for."""

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from wbar.loss_surface import SurfaceOptions
from wbar.method import AnyMethod, CyclicSwa
from wbar.recipe import MAX_CLASSES, Recipe
from wbar.request import ExpiresAfter, RequestModel, Seed
from wbar.results import FurtherFormat
from wbar.text import ClassName, Name, Text

MOST_TAGS = 16
MOST_SETS = 16
Id = Annotated[Text, Field(max_length=64)]
SetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,31}$")]


class JobOptions(RequestModel):
    """The options of a job apart from its inputs. Every field has a default."""

    method: AnyMethod = Field(default_factory=CyclicSwa)
    recipe: Recipe = Field(default_factory=Recipe)
    seed: Seed = Field(
        0,
        description="Of all that is drawn by chance: the same job with the same seed gives the same weights.",
    )
    classes: Annotated[list[ClassName], Field(min_length=2, max_length=MAX_CLASSES, fail_fast=True)] | None = Field(
        None, description="The checkpoint's class order, if it is not the sorted names."
    )
    flatness: bool = Field(
        False,
        description="Measure how flat the loss is around the start and w̄ when training is over (about a minute for a small "
        "network): `result.flatness`, drawn in the report.",
    )
    surface: SurfaceOptions | None = Field(
        None,
        description="With `flatness`: the loss on a grid along two filter-normalized random directions (Li et al. 2018), the "
        "same ones for every job, in `result.flatness.surface`. Each point costs a BatchNorm recompute and two evaluations, "
        "of 512 images each: the default 11 × 11 points around two networks cost as much as training on 124,000 images. "
        "`{}`: with its defaults; null: none.",
    )
    swag: int = Field(
        0,
        ge=0,
        le=100,
        description="Samples of a Bayesian average over the snapshots' Gaussian (SWAG, Maddox et al. 2019), as one more "
        "comparison: `result.metrics.swag`. Each costs a BatchNorm recompute and an evaluation; 0: none.",
    )
    evaluate: dict[SetName, Id] = Field(
        default_factory=dict,
        max_length=MOST_SETS,
        description='Further datasets by names of your own, `{"sketch": "ds_…"}`: each comparison is scored on them too, in '
        "`result.evaluation`. Of a dataset whose archive had no `val/` all images count, else those of `val/`. Its classes are "
        "some of the job's, by name. Nothing is chosen by them.",
    )
    select_on: SetName | None = Field(
        None,
        description="The name of one of `evaluate` whose images make every choice in the place of half of the held-out images: "
        "which then are all reported.",
    )

    probe: Id | None = Field(
        None,
        description="A dataset of images to look at when the job ends, `task=unlabelled` or any other of whole images, whose "
        "labels do not matter: every comparison's outputs on each of them (`GET /v1/jobs/{id}/probe`), and what they say about "
        "the start, w̄ and the ensemble (`result.probe`). 512 images at most; nothing is chosen by them.",
    )

    formats: list[FurtherFormat] = Field(
        default_factory=list,
        max_length=3,
        description="Formats to make of the weights beside safetensors and PyTorch's. `onnx`, and `pt2` of torch.export, the "
        "network and its weights in one file, which an exported network's job makes by itself: each is checked to give the "
        "network's outputs before it is offered. `huggingface`: a zip of the folder that transformers' `from_pretrained` or "
        "timm's `local-dir:` loads, for their networks alone; a network of transformers has it without being asked. "
        "`result.formats` says what became of them.",
    )

    @field_validator("evaluate", mode="before")
    @classmethod
    def _few_sets(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MOST_SETS:
            raise ValueError(f"{len(value)} evaluation sets, and a job takes {MOST_SETS}")
        return value

    @field_validator("evaluate")
    @classmethod
    def _each_once(cls, value: dict[str, str]) -> dict[str, str]:
        for name, dataset in value.items():
            first = next(other for other in value if value[other] == dataset)
            if first != name:
                raise ValueError(f"{first} and {name} are both {dataset}: name it once")
        return value

    @model_validator(mode="after")
    def _surface_of_flatness(self) -> Self:
        if self.surface is not None and not self.flatness:
            raise ValueError(
                "surface is a measurement of flatness, which is false: set flatness to true, or leave surface out"
            )
        return self

    @model_validator(mode="after")
    def _known_set(self) -> Self:
        if self.select_on is not None and self.select_on not in self.evaluate:
            names = ", ".join(self.evaluate) or "none"
            raise ValueError(f"select_on is {self.select_on!r}, which is not among the names of `evaluate` ({names})")
        return self


TagName = Annotated[Name, Field(max_length=64)]


class JobRequest(JobOptions):
    """A request to create a job. Only `checkpoint` and `dataset` are required."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t", "dataset": "ds_0mk3q8v2zr5d2a7x9c4t"},
                {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "name": "digits, twelve cycles",
                    "metadata": {"team": "vision"},
                    "method": {
                        "type": "cyclic_swa",
                        "cycles": 12,
                        "high": {"lr": 0.05},
                        "low": {"lr": 0.005},
                        "pull": 0.001,
                    },
                    "recipe": {"batch_size": 64, "augment": "none"},
                    "seed": 1,
                    "flatness": True,
                    "swag": 10,
                },
                {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "name": "no numbers, compared with a plain fine-tune",
                    "method": {"type": "auto", "epochs": 12, "control": True, "guard": True},
                },
                {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "name": "pretrained elsewhere, to stay robust",
                    "method": {"type": "auto", "epochs": 12, "control": True, "interpolate": {"choose": "selection"}},
                    "evaluate": {"sketch": "ds_0mk3q8v5zr5d2a7x9c4t", "rotated": "ds_0mk3q8v6zr5d2a7x9c4t"},
                },
                {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "name": "other classes, from a larger teacher",
                    "method": {"type": "ema", "epochs": 20, "base_lr": 0.1, "warmup_epochs": 1},
                    "recipe": {
                        "head": "reset",
                        "freeze": ["conv1.*", "layer1.*"],
                        "augment": "rand_augment",
                        "mixup": 0.2,
                        "label_smoothing": 0.1,
                        "distillation": {"teacher": "ckpt_0mk3q8v4zr5d2a7x9c4t", "temperature": 4, "weight": 0.5},
                        "precision": "bfloat16",
                        "early_stopping": 3,
                    },
                },
                {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "name": "four trainings with other seeds, joined",
                    "method": {"type": "cyclic_swa", "cycles": 6, "replicas": 4},
                },
                {
                    "checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t",
                    "dataset": "ds_0mk3q8v2zr5d2a7x9c4t",
                    "method": {
                        "type": "soup",
                        "checkpoints": ["ckpt_0mk3q8v1zr5d2a7x9c4t", "ckpt_0mk3q8v4zr5d2a7x9c4t"],
                        "average": "greedy",
                    },
                },
            ]
        },
    )

    checkpoint: Id
    dataset: Id
    name: Name | None = Field(None, description="What to find the job by. Without one it is shown by its id.")
    metadata: dict[TagName, Annotated[Text, Field(max_length=512)]] = Field(default_factory=dict, max_length=MOST_TAGS)
    max_seconds: float | None = Field(
        None,
        gt=0,
        le=1e8,
        allow_inf_nan=False,
        description="How long the job may run, all its attempts together; beyond it fails with `time_limit`, and its "
        "snapshots stay. Default: as long as it takes, or as the operator allows.",
    )
    priority: int = Field(
        0,
        ge=-100,
        le=100,
        description="Of your queued jobs the one with the highest priority is taken first, the oldest of equals; jobs of other "
        "tenants are neither delayed nor overtaken by it.",
    )
    expires_after: ExpiresAfter | None = Field(
        None,
        description="Seconds from the job's end after which the files it made are deleted: weights, snapshots, report. Its "
        "record, events and series stay. Default: the files stay until the job is deleted.",
    )
    dry_run: bool = Field(False, description="Validate and resolve everything, create nothing.")

    def as_sent(self) -> dict[str, Any]:
        """Return the request as JSON, without what it left out."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"dry_run"})

    @field_validator("metadata", mode="before")
    @classmethod
    def _few(cls, value: Any) -> Any:
        # Before the tags are looked at one by one: a body has room for a hundred thousand.
        if isinstance(value, dict) and len(value) > MOST_TAGS:
            raise ValueError(f"{len(value)} tags, and a job takes {MOST_TAGS}")
        return value


# What a job is made of and found by. All other fields are its options: what it does, and how.
INPUTS_AND_LABELS = ("checkpoint", "dataset", "name", "metadata", "dry_run")
OPTIONS = tuple(name for name in JobRequest.model_fields if name not in INPUTS_AND_LABELS)
