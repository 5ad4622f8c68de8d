"""How well the start knows its training images: as they are trained on, or as they are where it knows no augmentation.

A start that was trained with the recipe's augmentation is about as good on augmented training images as on held-out ones,
or better. One that is far worse there, and not on the same images as they are, was not trained with it (digits are not
mirrored): its loss there is the augmentation's, and says nothing about whether it has memorised them.

    unfamiliar   if L_augmented > FAMILIAR · max(L_plain, L_held-out);   the start is then known by L_plain
"""

from dataclasses import dataclass

from torch import nn

from wbar.recipe import OF_MASKS
from wbar_training.data.augment import FLIPS, RESIZED
from wbar_training.evaluator import Evaluator

# Of the starts that were measured, familiar ones came to 1.31 and unfamiliar ones began at 1.56 (ADR 37).
FAMILIAR = 1.5


@dataclass(frozen=True)
class StartLosses:
    """The start's mean losses in nats.

    augmented: on training images, augmented as they are trained on.
    plain: on the same images as they are; None where it was not asked, since the augmentation is no harder than held-out
        images.
    held_out: on held-out images; on the selection split, where there is one.
    """

    augmented: float
    plain: float | None
    held_out: float

    @property
    def unfamiliar(self) -> bool:
        """Whether the start was most likely not trained with the recipe's augmentation."""
        return self.plain is not None and self.augmented > FAMILIAR * max(self.plain, self.held_out)

    @property
    def training(self) -> float:
        """The loss on training images that the start is known by."""
        return self.plain if self.unfamiliar and self.plain is not None else self.augmented

    def in_words(self) -> str:
        """Return what was found, as the beginning of a sentence."""
        words = f"the start's loss is {self.augmented:.4f} on augmented training images"
        if self.unfamiliar:
            words += f", {self.plain:.4f} on the same ones as they are"
        return f"{words} and {self.held_out:.4f} on held-out ones"

    def warning(self, augment: str) -> str | None:
        """Return what to say about an unfamiliar augmentation; None about a familiar one."""
        if not self.unfamiliar:
            return None
        nearest = "scale_crop_flip" if augment in OF_MASKS else "resized_crop" if augment in RESIZED else "pad_crop"
        milder = {"none"} if augment == "flip" else {nearest, "none"} - {augment}
        others = " or ".join(repr(one) for one in sorted(milder, reverse=True))
        mirrored = ", which mirrors images" if augment in FLIPS else ""
        return (
            f"augment {augment}{mirrored}: {self.in_words()}: it was probably not trained with this augmentation, and learns "
            "it first. Where changed images are no longer of their class (mirrored digits), set recipe.augment to "
            f"{others}"
        )


def measured(evaluator: Evaluator, model: nn.Module, augmented: float, held_out: float) -> StartLosses:
    """Return the losses of the start, which `model` must hold. augmented, held_out: as of `StartLosses`."""
    plain = None
    if evaluator.plan.augment != "none" and augmented > FAMILIAR * held_out:
        plain = evaluator.train_score(model, augmented=False).loss
    return StartLosses(augmented, plain, held_out)
