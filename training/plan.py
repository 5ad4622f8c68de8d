"""What one job is asked to do, with nothing left to decide: the resolved method and recipe as plain typed values; and what
comes out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.architectures import Network
from wbar.catalog import ARCHITECTURES
from wbar.jobs import Arms, CurvePoint, Flatness, Verdict
from wbar.method import METHODS, Method, Soup
from wbar.recipe import Augment, Normalization, Recipe


@dataclass(frozen=True)
class Plan:
    """A job's numbers. Built from resolved models only: a remaining `auto` is a ValueError.

    A soup trains nothing: its cycles, epochs and rates are 0.
    """

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
    def of(cls, method: Method | Soup, recipe: Recipe, seed: int) -> "Plan":
        optimizer = recipe.optimizer
        high: float | Literal["auto"] = 0.0
        low, pull, phases = high, high, (0, 0, 0)
        if isinstance(method, Method):
            high, low, pull = method.high.lr, method.low.lr, method.pull
            phases = (method.cycles, method.high.epochs, method.low.epochs)
        if high == "auto" or low == "auto" or pull == "auto" or optimizer.weight_decay == "auto":
            raise ValueError("the method or the optimizer is not resolved: an `auto` is left")
        if recipe.batch_size == "auto" or not isinstance(recipe.image_size, tuple):
            raise ValueError("the recipe is not resolved: batch_size or image_size is `auto`")
        if not isinstance(recipe.normalize, Normalization) or "auto" in (recipe.augment, recipe.precision):
            raise ValueError("the recipe is not resolved: normalize, augment or precision is `auto`")
        return cls(
            cycles=phases[0],
            high_lr=high,
            low_lr=low,
            high_epochs=phases[1],
            low_epochs=phases[2],
            pull=pull,
            include_start=isinstance(method, Method) and method.include_start,
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
class Ingredient:
    """One checkpoint of a soup, as safetensors under its uploaded names."""

    id: str
    path: Path
    prefix: str
    sha256: str


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
    flatness: bool = False  # measure the loss around the result
    swag: int = 0  # samples of the Bayesian average
    ingredients: tuple[Ingredient, ...] = ()  # what a soup is made of

    def plan(self) -> Plan:
        return Plan.of(METHODS.validate_python(self.method), Recipe.model_validate(self.recipe), self.seed)

    @property
    def reproducible(self) -> bool:
        return ARCHITECTURES[self.network.name].reproducible


@dataclass(frozen=True)
class Outcome:
    """The averaged weights' file and the comparison."""

    weights: Path
    pytorch: Path  # the same tensors as torch.save writes them
    metrics: Arms
    curve: list[CurvePoint]
    verdict: Verdict
    flatness: Flatness | None = None
    chosen: list[str] | None = None  # a soup's ingredients, in the order they came in
