"""Whether network, dataset and options are for one task: an answer for the image, or one for every pixel of it."""

from collections.abc import Iterator

from wbar.catalog import ARCHITECTURES, SEGMENTATION
from wbar.datasets import DatasetFacts
from wbar.errors import ClassesMismatch, TaskUnsupported, ValidationFailed
from wbar.jobs import JobOptions
from wbar.recipe import OF_MASKS, Recipe
from wbar.spec import Network

MOST_CLASSES = 255  # a mask has a byte for each pixel, and one value of it is void


def check_task(options: JobOptions, network: Network, facts: DatasetFacts) -> None:
    """Raise TaskUnsupported, ClassesMismatch or ValidationFailed (422) unless network, dataset and options are for one task."""
    outputs = network.architecture.outputs
    if facts.task == "segmentation" and outputs != "pixels":
        names = ", ".join(name for name, one in ARCHITECTURES.items() if one.family in SEGMENTATION)
        raise TaskUnsupported(
            f"the dataset is of task segmentation, and the checkpoint is a {network.name}, which has one answer for the whole "
            f"image: segmentation takes {names}"
        )
    if facts.task == "segmentation" and network.classes > MOST_CLASSES:
        raise ClassesMismatch(
            f"the checkpoint's network has {network.num_classes} outputs for each pixel, and a mask tells {MOST_CLASSES} "
            "classes apart"
        )
    if facts.task != "segmentation" and outputs == "pixels":
        raise TaskUnsupported(
            f"the checkpoint is a {network.name}, which has an answer for every pixel, and the dataset is of task "
            f"{facts.task}: upload one with masks, as task=segmentation"
        )
    refused = _of_images(options) if facts.task == "segmentation" else _of_masks(options.recipe)
    problems = [{"pointer": pointer, "detail": why} for pointer, why in refused]
    if problems:
        first = problems[0]
        field = first["pointer"].removeprefix("/").replace("/", ".")
        raise ValidationFailed(f"{field}: {first['detail']} (the dataset is of task {facts.task})", problems)


def _of_images(options: JobOptions) -> Iterator[tuple[str, str]]:
    """Yield what is asked for and has no meaning, or is not to be had, where every pixel has a class."""
    recipe, blank = options.recipe, Recipe()
    reasons = {
        "mixup": "a mask cannot be blended with another",
        "cutmix": "boxes of other images are not pasted with their masks",
        "distillation": "teachers are for one answer for the image",
        "gradient_penalty": "it is of one loss for the image",
        "crop_ratio": "held-out images are used whole, at their own size",
        "interpolation": "held-out images are used whole, at their own size",
    }
    for name, why in reasons.items():
        if getattr(recipe, name) != getattr(blank, name):
            yield f"/recipe/{name}", f"{why}: leave it out"
    if recipe.augment not in ("auto", "none", *OF_MASKS):
        yield (
            "/recipe/augment",
            f"{recipe.augment!r} changes images without their masks: take one of {', '.join(('none', *OF_MASKS))}",
        )
    if options.swag:
        yield "/swag", "a Bayesian average keeps the outputs for all pixels of all images: leave it out"
    if options.formats:
        yield "/formats", "a file of this format takes images of one size, and these have their own: leave it out"
    if getattr(options.method, "select_by", "loss") == "brier":
        yield "/method/select_by", "the Brier score is of one answer for the image: take loss or accuracy"


def _of_masks(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.dice:
        yield "/recipe/dice", "the Dice loss is of pixels: leave it out"
    if recipe.augment in OF_MASKS:
        yield "/recipe/augment", f"{recipe.augment!r} is of images with masks: leave it out"
