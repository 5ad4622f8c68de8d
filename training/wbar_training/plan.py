"""A recipe's numbers, with no `auto` left in their types."""

from dataclasses import dataclass

import torch

from wbar.recipe import Augment, BatchNorm, Normalization, Recipe


@dataclass(frozen=True)
class Plan:
    """A resolved recipe and the seed.

    image_size: (height, width) in pixels.
    mean, std: one number per channel, for pixels in [0, 1].
    """

    recipe: Recipe
    weight_decay: float
    batch_size: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int

    @classmethod
    def of(cls, recipe: Recipe, seed: int) -> "Plan":
        """Make the plan of a resolved recipe. Raises ValueError where an `auto` is left."""
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
        """The dtype of convolutions and products, where it is not float32."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.recipe.precision)

    @property
    def augment(self) -> Augment:
        """The recipe's augmentation."""
        return self.recipe.augment

    @property
    def batch_norm(self) -> BatchNorm:
        """The source of w̄'s BatchNorm statistics."""
        return self.recipe.batch_norm

    @property
    def recomputes_batch_norm(self) -> bool:
        """Whether statistics are recomputed; else they are means of the tracked ones (`track`) or the start's (`frozen`)."""
        return self.batch_norm in ("recompute", "consistent")

    @property
    def grad_clip_norm(self) -> float | None:
        """The norm to which gradients are clipped; None: no clipping."""
        return self.recipe.grad_clip_norm
