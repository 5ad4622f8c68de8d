"""`auto` becomes a number: a static, pure function of the catalog, the checkpoint and the dataset. No search, no clock."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from wbar.catalog import ARCHITECTURES, BATCH, BUILTINS
from wbar.checkpoints import NetworkArchitecture
from wbar.datasets import Dataset, ImageShape
from wbar.errors import ChannelsMismatch, ClassesMismatch, ImageSizeUnsupported, ValidationFailed
from wbar.method import AutoMethod, CyclicSwa, Ema, Lawa, Phase, Plain, Soup, Straight, Swa, Training
from wbar.recipe import Augment, BatchNorm, Normalization, Recipe

Resolved = TypeVar("Resolved", bound=BaseModel)
IMAGENET = Normalization(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
PULL = 5e-4
MEMORISED, SETTLED = 3.0, 0.5  # × the rate of `auto`, for such starts: measured, see docs/results.md
BASE_BATCH = 256  # the batch that a base_lr belongs to
PEAK_RATES = {
    "sgd": 0.05,
    "adam": 1.25e-4,
    "adamw": 1.25e-4,
    "rmsprop": 1.25e-4,
    "adagrad": 0.005,
}  # per 128 images, where it is not the architecture's own optimizer
MIN_STEPS_PER_EPOCH = 20
MIN_BATCH = 8


def resolve_recipe(
    recipe: Recipe,
    network: NetworkArchitecture,
    dataset: Dataset,
    statistics: Normalization,
    gpu: bool,
    method: Training | Soup | None = None,
) -> Recipe:
    """The recipe with every `auto` replaced.

    statistics: mean and std per channel of the training split; gpu: whether a live worker has one.
    Raises ImageSizeUnsupported and ChannelsMismatch (422) with both values.
    """
    assert dataset.splits is not None
    assert dataset.image is not None
    known = ARCHITECTURES[network.name]
    height, width = _image_size(recipe, network, dataset.image)
    name = known.optimizer if recipe.optimizer.name == "auto" else recipe.optimizer.name
    weight_decay = recipe.optimizer.weight_decay
    if weight_decay == "auto":
        weight_decay = {"sgd": 5e-4, "adamw": 0.05}.get(name, 0.0)
    precision = recipe.precision
    if precision == "auto":
        precision = "bfloat16" if gpu else "float32"
    elif precision == "tf32" and not gpu:
        raise ValidationFailed(
            'recipe.precision is "tf32", which GPUs have, and no live worker has one: choose "float32"'
        )
    _check_class_weights(recipe, network)
    resolved = recipe.model_copy(
        update={
            "optimizer": recipe.optimizer.model_copy(update={"name": name, "weight_decay": weight_decay}),
            "batch_size": _batch_size(dataset.splits["train"].images)
            if recipe.batch_size == "auto"
            else recipe.batch_size,
            "image_size": (height, width),
            "normalize": _normalization(recipe, statistics, network, dataset.image),
            "augment": resolve_augment(dataset.source) if recipe.augment == "auto" else recipe.augment,
            "precision": precision,
            "batch_norm": _batch_norm(recipe, method),
        }
    )
    return _validated(resolved, "recipe")


def resolve_method(method: Training | Soup, recipe: Recipe, network: NetworkArchitecture) -> Training | Soup:
    """The method with every `auto` replaced; `recipe` must be resolved already.

    Rates follow from the architecture's customary peak rate p × batch / 128 (linear scaling, Goyal et al. 2017):
    cyclic_swa, swa, ema and lawa go at p / 2, `none`, the control and `auto` at p; `auto` from a memorised start at 3p,
    from a settled one at p / 2.
    """
    if isinstance(method, Soup):
        return method
    peak = _peak_rate(recipe, network)
    batch = recipe.batch_size
    assert batch != "auto"
    update: dict[str, object] = {"control_lr": peak if method.control_lr == "auto" else method.control_lr}
    if isinstance(method, CyclicSwa):
        high = _rate(method.high, peak / 2, batch)
        low = _rate(method.low, high / 10, batch)
        update |= {
            "high": method.high.model_copy(update={"lr": high, "base_lr": None}),
            "low": method.low.model_copy(update={"lr": low, "base_lr": None}),
            "pull": PULL if method.pull == "auto" else method.pull,
        }
        return _validated(method.model_copy(update=update), "method")
    gentle = isinstance(method, Swa | Ema | Lawa)
    rate = _rate(method, peak / 2 if gentle else peak, batch)
    update |= {"lr": rate, "base_lr": None, "pull": 0.0 if method.pull == "auto" else method.pull}
    if isinstance(method, Swa):
        update["anneal_from"] = peak if method.anneal_from == "auto" else method.anneal_from
    elif isinstance(method, AutoMethod):
        for name, factor in (("memorised", MEMORISED), ("settled", SETTLED)):
            regime = getattr(method, name)
            update[name] = regime.model_copy(update={"lr": factor * rate if regime.lr == "auto" else regime.lr})
    elif method.final_lr == "auto":
        update["final_lr"] = rate / 10 if gentle else 0.0
    return _validated(method.model_copy(update=update), "method")


def check_snapshots(method: Training, steps_per_epoch: int) -> int:
    """How many snapshots a resolved method keeps. Raises ValidationFailed (422) for more than MAX_CYCLES."""
    try:
        return method.snapshots(steps_per_epoch)
    except ValueError as error:
        raise ValidationFailed(f"method: {error}") from None


def _validated(model: Resolved, field: str) -> Resolved:
    """The bounds hold for the numbers that `auto` became, too."""
    try:
        return type(model).model_validate(model.model_dump())
    except ValidationError as error:
        found = [
            {"pointer": "/" + "/".join([field, *map(str, one["loc"])]), "detail": one["msg"]} for one in error.errors()
        ]
        first = found[0]
        raise ValidationFailed(f"once `auto` is resolved, {first['pointer']}: {first['detail']}", found) from None


def _peak_rate(recipe: Recipe, network: NetworkArchitecture) -> float:
    known = ARCHITECTURES[network.name]
    assert recipe.batch_size != "auto"
    name = recipe.optimizer.name
    assert name != "auto"
    peak = known.peak_lr if name == known.optimizer else PEAK_RATES[name]
    return peak * recipe.batch_size / BATCH


def _rate(given: Phase | Straight, default: float, batch: int) -> float:
    if given.base_lr is not None:
        return given.base_lr * batch / BASE_BATCH
    return default if given.lr == "auto" else given.lr


def resolve_classes(classes: list[str] | None, network: NetworkArchitecture, dataset: Dataset) -> list[str] | None:
    """The checkpoint's class order, checked: every class of the dataset must have an output of the network.

    Raises ClassesMismatch (422): labels beyond num_classes, or names that do not cover the dataset's.
    """
    assert dataset.classes is not None
    if classes is None:
        if len(dataset.classes) > network.num_classes:
            raise ClassesMismatch(
                f"the dataset has {len(dataset.classes)} classes and the checkpoint's network has "
                f"{network.num_classes} outputs: labels {network.num_classes}..{len(dataset.classes) - 1} would have none"
            )
        return None
    if len(classes) != network.num_classes or len(set(classes)) != len(classes):
        raise ClassesMismatch(
            f"`classes` names {len(set(classes))} different classes and the checkpoint's network has "
            f"{network.num_classes} outputs: give one name for each output, in the checkpoint's order"
        )
    unknown = sorted(set(dataset.classes) - set(classes))
    if unknown:
        raise ClassesMismatch(f"`classes` does not name {unknown[:20]}, which the dataset has images of")
    return classes


def _image_size(recipe: Recipe, network: NetworkArchitecture, image: ImageShape) -> tuple[int, int]:
    known = ARCHITECTURES[network.name]
    own = network.image_size or known.size
    if recipe.image_size == "auto":
        size = (own, own) if known.fixed_size else (image.height, image.width)
    elif isinstance(recipe.image_size, int):
        size = (recipe.image_size, recipe.image_size)
    else:
        size = recipe.image_size
    check_image_size(recipe.model_copy(update={"image_size": size}), network)
    return size


def check_image_size(recipe: Recipe, network: NetworkArchitecture) -> None:
    """Raises ImageSizeUnsupported (422) if the network cannot take images of the resolved size."""
    known, size = ARCHITECTURES[network.name], recipe.image_size
    assert isinstance(size, tuple)
    own = network.image_size or known.size
    if known.fixed_size and size != (own, own):
        raise ImageSizeUnsupported(
            f"this {network.name} was trained at {own}x{own} and takes no other size, not {size[0]}x{size[1]}: "
            'set recipe.image_size to "auto"'
        )
    if min(size) < known.min_size:
        raise ImageSizeUnsupported(
            f"{network.name} needs images of at least {known.min_size}x{known.min_size} pixels and would get "
            f"{size[0]}x{size[1]}: set recipe.image_size to {known.min_size} or more (usual: {known.size})"
        )


def _batch_size(images: int) -> int:
    batch = BATCH
    while batch > MIN_BATCH and -(-images // batch) < MIN_STEPS_PER_EPOCH:
        batch //= 2
    return batch


def resolve_augment(source: str | None) -> Augment:
    """Pad-crop-flip, without the flip for a built-in set whose classes a mirror would change."""
    builtin = BUILTINS.get((source or "").removeprefix("builtin:"))
    return "pad_crop" if builtin is not None and not builtin.flip else "pad_crop_flip"


def _check_class_weights(recipe: Recipe, network: NetworkArchitecture) -> None:
    weights = recipe.class_weights
    if isinstance(weights, list) and len(weights) != network.num_classes:
        raise ValidationFailed(
            f"recipe.class_weights has {len(weights)} numbers and the network {network.num_classes} outputs: one for each"
        )


def _batch_norm(recipe: Recipe, method: Training | Soup | None) -> BatchNorm:
    if recipe.batch_norm != "auto":
        return recipe.batch_norm
    return "track" if isinstance(method, Plain) else "recompute"


def _normalization(
    recipe: Recipe, statistics: Normalization, network: NetworkArchitecture, image: ImageShape
) -> Normalization:
    if image.channels not in (1, network.channels):
        raise ChannelsMismatch(
            f"the images have {image.channels} channels and the checkpoint's network takes {network.channels}: "
            "only grey images can be repeated to fit"
        )
    if isinstance(recipe.normalize, Normalization):
        chosen = recipe.normalize
    else:
        chosen = IMAGENET if recipe.normalize == "imagenet" else statistics
    if len(chosen.mean) == network.channels:
        return chosen
    if len(chosen.mean) == 1:
        return Normalization(mean=chosen.mean * network.channels, std=chosen.std * network.channels)
    raise ChannelsMismatch(
        f"recipe.normalize has {len(chosen.mean)} channels and the checkpoint's network takes {network.channels}"
    )
