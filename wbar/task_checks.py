"""Whether network, dataset and options are for one task: an answer for the image, one for every pixel of it, or boxes."""

from collections.abc import Iterator, Mapping

from wbar.catalog import ARCHITECTURES, Outputs
from wbar.datasets import BACKGROUND, DatasetFacts, Task
from wbar.errors import ClassesMismatch, FieldError, TaskUnsupported, ValidationFailed
from wbar.job_request import JobOptions
from wbar.recipe import AS_THEY_ARE, OF_BOXES, OF_MASKS, Recipe
from wbar.spec import Network

MOST_CLASSES = 255  # a mask has a byte for each pixel, and one value of it is void
OUTPUTS: dict[Task, Outputs] = {"segmentation": "pixels", "detection": "boxes"}
ANSWERS: dict[Outputs, str] = {
    "image": "has one answer for the whole image",
    "pixels": "has an answer for every pixel",
    "boxes": "finds boxes",
}
NEEDED: dict[Outputs, str] = {
    "image": "one with a class or labels for each image",
    "pixels": "one with masks, as task=segmentation",
    "boxes": "one with boxes, as task=detection",
}


def check_task(options: JobOptions, network: Network, facts: DatasetFacts) -> None:
    """Raise TaskUnsupported, ClassesMismatch or ValidationFailed (422) unless network, dataset and options are for one task."""
    if facts.task == "unlabelled":
        raise TaskUnsupported(
            "the dataset is of task unlabelled, and there is nothing to train on without labels: name it as `probe`"
        )
    outputs, wanted = network.architecture.outputs, OUTPUTS.get(facts.task, "image")
    if outputs != wanted and wanted != "image":
        names = ", ".join(name for name, one in ARCHITECTURES.items() if one.outputs == wanted)
        raise TaskUnsupported(
            f"the dataset is of task {facts.task}, and the checkpoint is a {network.name}, which {ANSWERS[outputs]}: "
            f"{facts.task} takes {names}"
        )
    if facts.task == "segmentation" and network.classes > MOST_CLASSES:
        raise ClassesMismatch(
            f"the checkpoint's network has {network.num_classes} outputs for each pixel, and a mask tells {MOST_CLASSES} "
            "classes apart"
        )
    if outputs != wanted:
        raise TaskUnsupported(
            f"the checkpoint is a {network.name}, which {ANSWERS[outputs]}, and the dataset is of task {facts.task}: upload "
            f"{NEEDED[outputs]}"
        )
    if facts.task == "regression":
        _check_targets(options, network, facts)
    if network.architecture.finds_masks and not facts.masks:
        raise TaskUnsupported(
            f"the checkpoint is a {network.name}, which learns a mask for each box, and the dataset has boxes without masks: "
            "give every annotation a `segmentation`, or take a detector without masks"
        )
    if wanted == "boxes" and options.classes and options.classes[0] != BACKGROUND:
        raise ClassesMismatch(
            f"`classes` begins with {options.classes[0]!r}: class 0 of a detector is {BACKGROUND!r}, and the categories follow"
        )
    refused = {"image": _not_of_images, "pixels": _not_of_pixels, "boxes": _not_of_boxes}[wanted](options)
    targets = _not_of_targets(options) if facts.task == "regression" else _of_targets_alone(options)
    problems = [FieldError(pointer=pointer, detail=why) for pointer, why in (*refused, *targets)]
    if problems:
        first = problems[0]
        field = first["pointer"].removeprefix("/").replace("/", ".")
        raise ValidationFailed(f"{field}: {first['detail']} (the dataset is of task {facts.task})", problems)


def _check_targets(options: JobOptions, network: Network, facts: DatasetFacts) -> None:
    """Raise ClassesMismatch (422) unless every target has an output and every output a target."""
    targets = list(facts.classes)
    if options.classes and set(options.classes) != set(targets):
        raise ClassesMismatch(
            f"`classes` names {list(options.classes)[:20]} and the dataset has the targets {targets[:20]}: give each of "
            "these once, in the order of the checkpoint's outputs"
        )
    if options.recipe.head == "keep" and network.num_classes != len(targets):
        raise ClassesMismatch(
            f"the dataset has {len(targets)} targets ({', '.join(targets[:5])}{', …' if len(targets) > 5 else ''}) and the "
            f'checkpoint\'s network has {network.num_classes} outputs: set recipe.head to "reset" for a new head'
        )


def _asked(recipe: Recipe, reasons: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the options that are not at their defaults. reasons: why each of them is refused."""
    blank = Recipe()
    for name, why in reasons.items():
        if getattr(recipe, name) != getattr(blank, name):
            yield f"/recipe/{name}", f"{why}: leave it out"


def _not_of_pixels(options: JobOptions) -> Iterator[tuple[str, str]]:
    """Yield what is asked for and has no meaning, or is not to be had, where every pixel has a class."""
    recipe = options.recipe
    reasons = {
        "mixup": "a mask cannot be blended with another",
        "cutmix": "boxes of other images are not pasted with their masks",
        "distillation": "teachers are for one answer for the image",
        "gradient_penalty": "it is of one loss for the image",
        "crop_ratio": "held-out images are used whole, at their own size",
        "interpolation": "held-out images are used whole, at their own size",
    }
    yield from _asked(options.recipe, reasons)
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


def _not_of_boxes(options: JobOptions) -> Iterator[tuple[str, str]]:
    """Yield what is asked for and has no meaning, or is not to be had, where an image has boxes."""
    recipe = options.recipe
    inside = "a detector computes its losses itself"
    reasons = {
        "cutmix": "boxes of other images are not pasted",
        "distillation": "teachers are for one answer for the image",
        "gradient_penalty": inside,
        "label_smoothing": inside,
        "class_weights": inside,
        "dice": inside,
        "compile": "the shapes inside a detector depend on its boxes",
        "crop_ratio": "held-out images are used whole, at their own size",
        "interpolation": "held-out images are used whole, at their own size",
    }
    yield from _asked(options.recipe, reasons)
    if recipe.normalize not in ("auto", AS_THEY_ARE):
        yield "/recipe/normalize", "a detector normalizes its images itself: leave it out"
    if recipe.augment not in ("auto", "none", *OF_BOXES):
        yield (
            "/recipe/augment",
            f"{recipe.augment!r} changes images without their boxes: take one of {', '.join(('none', *OF_BOXES))}",
        )
    if recipe.precision in ("bfloat16", "float16"):
        yield (
            "/recipe/precision",
            f"{recipe.precision!r} would round the coordinates of boxes to whole pixels and coarser: take float32, or tf32",
        )
    if options.swag:
        yield "/swag", "no mean of several networks' boxes is defined: leave it out"
    if options.flatness:
        yield "/flatness", "it is of one loss without draws, and a detector draws among its candidates: leave it out"
    if options.formats:
        yield "/formats", "a file of this format takes images of one size, and these have their own: leave it out"
    if getattr(options.method, "select_by", "loss") != "loss":
        yield (
            "/method/select_by",
            "an average precision is of many images, and a choice compares them one by one: take loss",
        )


def _not_of_images(options: JobOptions) -> Iterator[tuple[str, str]]:
    recipe = options.recipe
    if recipe.dice:
        yield "/recipe/dice", "the Dice loss is of pixels: leave it out"
    if recipe.augment in OF_BOXES:
        yield "/recipe/augment", f"{recipe.augment!r} is of images with masks or boxes: leave it out"


def _not_of_targets(options: JobOptions) -> Iterator[tuple[str, str]]:
    """Yield what is asked for and has no meaning where an image has numbers to predict."""
    reasons = {
        "mixup": "two images in one have no known target",
        "cutmix": "two images in one have no known target",
        "distillation": "teachers are for probabilities",
        "label_smoothing": "a number is no class",
        "class_weights": "a number is no class",
    }
    yield from _asked(options.recipe, reasons)
    by = getattr(options.method, "select_by", "loss")
    if by != "loss":
        yield "/method/select_by", f"{by!r} is of classes: take loss"


def _of_targets_alone(options: JobOptions) -> Iterator[tuple[str, str]]:
    why = "it is of task regression"
    yield from _asked(options.recipe, {"loss": why, "huber_delta": why, "standardize": why})
