"""What one job is asked to do, with nothing left to decide: the resolved method and recipe as plain typed values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.architectures import Network
from wbar.catalog import ARCHITECTURES
from wbar.method import Method
from wbar.recipe import Augment, Normalization, Recipe


@dataclass(frozen=True)
class Plan:
    """A job's numbers. Built from resolved models only: a remaining `auto` is a ValueError."""

    cycles: int
    high_lr: float
    low_lr: float
    high_epochs: int
    low_epochs: int
    pull: float
    include_start: bool
    optimizer: str
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    weight_decay: float
    batch_size: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    bfloat16: bool
    label_smoothing: float
    grad_clip_norm: float | None
    seed: int

    @classmethod
    def of(cls, method: Method, recipe: Recipe, seed: int) -> "Plan":
        optimizer = recipe.optimizer
        high, low, pull = method.high.lr, method.low.lr, method.pull
        if high == "auto" or low == "auto" or pull == "auto" or optimizer.weight_decay == "auto":
            raise ValueError("the method or the optimizer is not resolved: an `auto` is left")
        if recipe.batch_size == "auto" or not isinstance(recipe.image_size, tuple):
            raise ValueError("the recipe is not resolved: batch_size or image_size is `auto`")
        if not isinstance(recipe.normalize, Normalization) or "auto" in (recipe.augment, recipe.precision):
            raise ValueError("the recipe is not resolved: normalize, augment or precision is `auto`")
        return cls(
            cycles=method.cycles,
            high_lr=high,
            low_lr=low,
            high_epochs=method.high.epochs,
            low_epochs=method.low.epochs,
            pull=pull,
            include_start=method.include_start,
            optimizer=optimizer.name,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov and optimizer.momentum > 0,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            batch_size=recipe.batch_size,
            image_size=recipe.image_size,
            mean=tuple(recipe.normalize.mean),
            std=tuple(recipe.normalize.std),
            augment=recipe.augment,
            bfloat16=recipe.precision == "bfloat16",
            label_smoothing=recipe.label_smoothing,
            grad_clip_norm=recipe.grad_clip_norm,
            seed=seed,
        )


@dataclass(frozen=True)
class Work:
    """Everything an attempt needs, as files and plain values: it crosses a process boundary."""

    method: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    network: Network
    checkpoint: Path  # safetensors, under the uploaded names
    prefix: str  # what the uploaded names have before the network's own
    dataset: Path  # a packed dataset
    classes: list[str] | None  # the checkpoint's class order, where it is not the dataset's
    start_sha256: str
    dataset_sha256: str
    scratch: Path  # snapshots, resumable states and the result are written here
    device: str = "cpu"
    threads: int | None = None
    resume: Path | None = None
    save_every_seconds: float = 60.0

    def plan(self) -> Plan:
        return Plan.of(Method.model_validate(self.method), Recipe.model_validate(self.recipe), self.seed)

    @property
    def reproducible(self) -> bool:
        return ARCHITECTURES[self.network.name].reproducible
