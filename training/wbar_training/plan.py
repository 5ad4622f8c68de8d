"""What one job is asked to do, with nothing left to decide: the resolved method and recipe as plain typed values; and what
comes out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wbar.catalog import ARCHITECTURES
from wbar.jobs import Arms, Choice, CurvePoint, Flatness, HeldOut, Selected, Verdict
from wbar.method import METHODS, Soup, Training
from wbar.recipe import Augment, BatchNorm, Normalization, Recipe
from wbar_training.networks.architectures import Network


@dataclass(frozen=True)
class Plan:
    """A recipe's numbers. Built from a resolved recipe only: a remaining `auto` is a ValueError."""

    recipe: Recipe
    weight_decay: float
    batch_size: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int

    @classmethod
    def of(cls, recipe: Recipe, seed: int) -> "Plan":
        optimizer = recipe.optimizer
        if optimizer.weight_decay == "auto" or optimizer.name == "auto":
            raise ValueError("the optimizer is not resolved: an `auto` is left")
        if recipe.batch_size == "auto" or not isinstance(recipe.image_size, tuple):
            raise ValueError("the recipe is not resolved: batch_size or image_size is `auto`")
        if not isinstance(recipe.normalize, Normalization) or "auto" in (
            recipe.augment,
            recipe.precision,
            recipe.batch_norm,
        ):
            raise ValueError("the recipe is not resolved: normalize, augment, precision or batch_norm is `auto`")
        return cls(
            recipe=recipe,
            weight_decay=optimizer.weight_decay,
            batch_size=recipe.batch_size,
            image_size=recipe.image_size,
            mean=tuple(recipe.normalize.mean),
            std=tuple(recipe.normalize.std),
            seed=seed,
        )

    @property
    def autocast(self) -> torch.dtype | None:
        """What convolutions and products are computed in, where it is not float32."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.recipe.precision)

    @property
    def augment(self) -> Augment:
        return self.recipe.augment

    @property
    def batch_norm(self) -> BatchNorm:
        return self.recipe.batch_norm

    @property
    def grad_clip_norm(self) -> float | None:
        return self.recipe.grad_clip_norm


@dataclass(frozen=True)
class Ingredient:
    """One checkpoint of a soup, as safetensors under its uploaded names."""

    id: str
    path: Path
    prefix: str
    sha256: str


@dataclass(frozen=True)
class Teacher:
    """One member of a distillation's teacher, as safetensors."""

    path: Path
    prefix: str
    network: Network
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
    teachers: tuple[Teacher, ...] = ()  # of a distillation
    loaders: int = 0  # DataLoader workers, where images are handled one by one; they change no number

    def plan(self) -> Plan:
        return Plan.of(Recipe.model_validate(self.recipe), self.seed)

    def chosen_method(self) -> Training | Soup:
        return METHODS.validate_python(self.method)

    @property
    def chooses(self) -> bool:
        """Whether held-out images decide about the result: one half of them is then set aside for that, and every
        reported number is from the other."""
        method = self.chosen_method()
        chosen = getattr(method, "average", "uniform") != "uniform" or getattr(method, "guard", False)
        return chosen or self.recipe.get("early_stopping") is not None

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
    held_out: HeldOut
    flatness: Flatness | None = None
    chosen: list[str] | None = None  # a soup's ingredients, in the order they came in
    choice: Choice | None = None  # what greedy or window kept
    selected: Selected = "averaged"  # what the weights' file holds
