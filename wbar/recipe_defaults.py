"""`auto` in a recipe becomes a number: what the network, its checkpoint and the dataset make of it."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from wbar.catalog import BATCH, BUILTINS
from wbar.datasets import DatasetFacts, Task
from wbar.errors import ChannelsMismatch, FieldError, ImageSizeUnsupported, ValidationFailed
from wbar.method import CyclicSwa, Plain, Soup, Training
from wbar.recipe import AS_THEY_ARE, IMAGENET, Augment, BatchNorm, Normalization, Recipe
from wbar.spec import Network, PretrainedConfig

Resolved = TypeVar("Resolved", bound=BaseModel)
HEAD_RATE = 10.0  # of a classifier that is trained by itself, over the method's first rate
MIN_STEPS_PER_EPOCH = 20
MIN_BATCH = 8
DENSE_BATCH = 16 * 480**2  # pixels of a batch of segmentation, as in torchvision's references on a device or two
BOXES_BATCH = 16  # of detection, as in torchvision's references
BOXES_DECAY = 1e-4  # likewise


def resolve_recipe(
    recipe: Recipe,
    network: Network,
    facts: DatasetFacts,
    gpu: bool,
    method: Training | Soup | None = None,
    pretrained: PretrainedConfig | None = None,
) -> Recipe:
    """Return the recipe with every `auto` replaced; `normalize` becomes what the start came with, or the dataset's statistics.

    pretrained: what the start came with.

    Raises ImageSizeUnsupported, ChannelsMismatch and ValidationFailed (422) with both values.
    """
    architecture = network.architecture
    name = architecture.optimizer if recipe.optimizer.name == "auto" else recipe.optimizer.name
    weight_decay = recipe.optimizer.weight_decay
    if weight_decay == "auto":
        decays = {"sgd": BOXES_DECAY if facts.task == "detection" else 5e-4, "adamw": 0.05}
        weight_decay = decays.get(name, 0.0)
    precision = recipe.precision
    if precision == "auto":
        precision = "bfloat16" if gpu and facts.task != "detection" else "float32"
    elif precision == "tf32" and not gpu:
        raise ValidationFailed(
            'recipe.precision is "tf32", which GPUs have, and no live worker has one: choose "float32"'
        )
    _check_class_weights(recipe, told_apart(network, facts.task))
    size = _image_size(recipe, network, facts, pretrained)
    resolved = recipe.model_copy(
        update={
            "optimizer": recipe.optimizer.model_copy(update={"name": name, "weight_decay": weight_decay}),
            "batch_size": _batch_size(facts, size) if recipe.batch_size == "auto" else recipe.batch_size,
            "image_size": size,
            "normalize": _normalization(recipe, network, facts, pretrained),
            **_cropping(recipe, pretrained),
            "augment": _augment(facts) if recipe.augment == "auto" else recipe.augment,
            "precision": precision,
            "batch_norm": _batch_norm(recipe, method, facts),
        }
    )
    return validated(resolved, "recipe")


def validated(model: Resolved, field: str) -> Resolved:
    """Check the bounds again, now that numbers have taken the place of `auto`."""
    try:
        return type(model).model_validate(model.model_dump())
    except ValidationError as error:
        problems = [
            FieldError(pointer="/" + "/".join([field, *map(str, one["loc"])]), detail=one["msg"])
            for one in error.errors()
        ]
        first = problems[0]
        raise ValidationFailed(f"once `auto` is resolved, {first['pointer']}: {first['detail']}", problems) from None


def told_apart(network: Network, task: Task) -> int:
    """Return how many classes the outputs tell apart: of several labels each has an output of its own."""
    return network.num_classes if task in ("multilabel", "attributes", "regression") else network.classes


def _image_size(
    recipe: Recipe, network: Network, facts: DatasetFacts, pretrained: PretrainedConfig | None
) -> tuple[int, int]:
    architecture = network.architecture
    fixed_side = network.image_size or architecture.size
    if recipe.image_size == "auto" and pretrained and pretrained.image_size and not architecture.fixed_size:
        size = pretrained.image_size
    elif recipe.image_size == "auto" and facts.task == "segmentation":
        size = (min(architecture.size, facts.shape.height), min(architecture.size, facts.shape.width))  # of the crops
    elif recipe.image_size == "auto" and facts.task == "detection":
        # Of the training images, whole: their short side as the network would make it, where they are larger.
        scale = min(1.0, architecture.size / min(facts.shape.height, facts.shape.width))
        size = (round(facts.shape.height * scale), round(facts.shape.width * scale))
    elif recipe.image_size == "auto":
        size = (
            (fixed_side, fixed_side)
            if architecture.fixed_size or facts.are_photographs
            else (facts.shape.height, facts.shape.width)
        )
    elif isinstance(recipe.image_size, int):
        size = (recipe.image_size, recipe.image_size)
    else:
        size = recipe.image_size
    check_image_size(recipe.model_copy(update={"image_size": size}), network)
    return size


def check_image_size(recipe: Recipe, network: Network) -> None:
    """Raise ImageSizeUnsupported (422) if the network cannot take images of the resolved size."""
    architecture, size = network.architecture, recipe.image_size
    assert isinstance(size, tuple)
    fixed_side = network.image_size or architecture.size
    if architecture.fixed_size and size != (fixed_side, fixed_side):
        raise ImageSizeUnsupported(
            f"this {network.name} was trained at {fixed_side}x{fixed_side} and takes no other size, not {size[0]}x{size[1]}: "
            'set recipe.image_size to "auto"'
        )
    if min(size) < architecture.min_size:
        raise ImageSizeUnsupported(
            f"{network.name} needs images of at least {architecture.min_size}x{architecture.min_size} pixels and would get "
            f"{size[0]}x{size[1]}: set recipe.image_size to {architecture.min_size} or more (usual: {architecture.size})"
        )


def _batch_size(facts: DatasetFacts, size: tuple[int, int]) -> int:
    batch, dense = BATCH, facts.task == "segmentation"
    if facts.task == "detection":
        batch = BOXES_BATCH
    while batch > MIN_BATCH and (
        -(-facts.train_images // batch) < MIN_STEPS_PER_EPOCH or (dense and batch * size[0] * size[1] > DENSE_BATCH)
    ):
        batch //= 2
    return batch


def _augment(facts: DatasetFacts) -> Augment:
    if facts.task == "detection":
        return "flip"
    if facts.task == "segmentation":
        return "scale_crop_flip"
    if facts.task == "regression":
        return "none"  # a mirrored or moved image may have other targets
    return resolve_augment(facts.source, facts.are_photographs)


def resolve_augment(source: str | None, photographs: bool = False) -> Augment:
    """Return pad-crop-flip, or random boxes for photographs; no flip for a built-in set whose classes a mirror changes."""
    builtin = BUILTINS.get((source or "").removeprefix("builtin:"))
    if builtin is not None and not builtin.flip:
        return "pad_crop"
    return "resized_crop_flip" if photographs else "pad_crop_flip"


def _check_class_weights(recipe: Recipe, classes: int) -> None:
    weights = recipe.class_weights
    if isinstance(weights, list) and len(weights) != classes:
        raise ValidationFailed(
            f"recipe.class_weights has {len(weights)} numbers and the network {classes} outputs: one for each"
        )


def _batch_norm(recipe: Recipe, method: Training | Soup | None, facts: DatasetFacts) -> BatchNorm:
    if recipe.batch_norm != "auto":
        return recipe.batch_norm
    if facts.task == "detection":
        return "frozen"  # a few images make no batch, and the published method keeps them (Zhang et al. 2020)
    # The statistics of a point between two networks are neither one's.
    return "track" if isinstance(method, Plain) and method.interpolate is None else "recompute"


def with_head_rate(recipe: Recipe, method: Training | Soup) -> Recipe:
    """Return the recipe with the classifier's rate, where the classifier is trained by itself first."""
    if not recipe.head_epochs or recipe.head_lr is not None or isinstance(method, Soup):
        return recipe
    rate = method.high.lr if isinstance(method, CyclicSwa) else method.lr
    assert rate != "auto"
    return recipe.model_copy(update={"head_lr": HEAD_RATE * rate})


def _cropping(recipe: Recipe, pretrained: PretrainedConfig | None) -> dict[str, object]:
    """Return what the start came with of what the request left out."""
    found = {} if pretrained is None else {name: getattr(pretrained, name) for name in ("crop_ratio", "interpolation")}
    return {name: value for name, value in found.items() if value and name not in recipe.model_fields_set}


def known_normalization(pretrained: PretrainedConfig | None, network: Network) -> Normalization | None:
    """Return the normalization that the start came with, where it is one for the network's channels."""
    if pretrained is None or pretrained.mean is None or pretrained.std is None:
        return None
    fits = len(pretrained.mean) == len(pretrained.std) == network.channels
    return Normalization(mean=list(pretrained.mean), std=list(pretrained.std)) if fits else None


def _normalization(
    recipe: Recipe, network: Network, facts: DatasetFacts, pretrained: PretrainedConfig | None
) -> Normalization:
    if facts.shape.channels not in (1, network.channels):
        raise ChannelsMismatch(
            f"the images have {facts.shape.channels} channels and the checkpoint's network takes {network.channels}: "
            "only grey images can be repeated to fit"
        )
    if facts.task == "detection":
        asked = AS_THEY_ARE
    elif isinstance(recipe.normalize, Normalization):
        asked = recipe.normalize
    elif recipe.normalize == "imagenet":
        asked = IMAGENET
    elif (known := known_normalization(pretrained, network)) is not None:
        asked = known
    else:
        asked = Normalization(mean=list(facts.mean), std=list(facts.std))
    if len(asked.mean) == network.channels:
        return asked
    if len(asked.mean) == 1:
        return Normalization(mean=asked.mean * network.channels, std=asked.std * network.channels)
    raise ChannelsMismatch(
        f"recipe.normalize has {len(asked.mean)} channels and the checkpoint's network takes {network.channels}"
    )
