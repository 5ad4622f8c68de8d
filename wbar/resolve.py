"""`auto` becomes a number: a static, pure function of the catalog, the checkpoint and the dataset. No search, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from wbar.attributes import check_outputs
from wbar.catalog import BATCH
from wbar.datasets import DatasetFacts
from wbar.errors import CheckpointsDiffer, ClassesMismatch, ValidationFailed
from wbar.evaluation_sets import check_evaluation_set
from wbar.job_request import JobOptions
from wbar.method import MAX_EPOCHS, AutoMethod, CyclicSwa, Ema, Lawa, Phase, Soup, Straight, Swa, Training
from wbar.probe_images import check_probe
from wbar.recipe import Recipe, is_about_training
from wbar.recipe_defaults import (
    check_image_size,
    known_normalization,
    resolve_recipe,
    told_apart,
    validated,
    with_head_rate,
)
from wbar.replicas import check_replicas
from wbar.results import HUB_LIBRARIES, FurtherFormat
from wbar.schedule import build_schedule, steps_per_epoch
from wbar.spec import EvaluationSet, JobSpec, Network, StoredDataset, StoredWeights
from wbar.task_checks import check_task

PULL = 5e-4
BASE_BATCH = 256  # the batch that a base_lr belongs to
PEAK_RATES = {
    "sgd": 0.05,
    "adam": 1.25e-4,
    "adamw": 1.25e-4,
    "rmsprop": 1.25e-4,
    "adagrad": 0.005,
}  # per 128 images, where it is not the architecture's own optimizer
# Of SGD, per 128 images, where no batch's statistics renormalize what a step blows up: as VGG and AlexNet are trained.
UNNORMALIZED_PEAK = 0.005


def resolve_job(
    options: JobOptions,
    start: StoredWeights,
    dataset: StoredDataset,
    facts: DatasetFacts,
    gpu: bool,
    ingredients: Sequence[StoredWeights] = (),
    teachers: Sequence[StoredWeights] = (),
    evaluation: Mapping[str, tuple[StoredDataset, DatasetFacts]] | None = None,
    probe: tuple[StoredDataset, DatasetFacts] | None = None,
) -> JobSpec:
    """Make the JobSpec of a request: every `auto` replaced, everything checked that can be before the job runs.

    facts: of the dataset.
    gpu: whether a live worker has a GPU.
    ingredients: the checkpoints that a soup names, in its order.
    teachers: the networks of a distillation.
    evaluation: the datasets of `options.evaluate`, by name, with their facts.
    probe: the dataset of `options.probe`, with its facts.

    Raises Refused (422, 409) with the field and both values: ValidationFailed, TaskUnsupported, ClassesMismatch,
    ChannelsMismatch, ImageSizeUnsupported, CheckpointsDiffer.
    """
    _check_applies(options)
    check_task(options, start.network, facts)
    network, classes = _outputs(options, start, facts)
    recipe, method = _recipe_and_method(options, start, network, facts, gpu)
    sets = evaluation or {}
    for name, (other, its_facts) in sets.items():
        check_evaluation_set(name, other, its_facts, dataset, facts, network, classes)
    if probe is not None:
        check_probe(*probe, facts, network)
    for teacher in teachers:
        _check_teacher(teacher, network, recipe)
    if isinstance(method, Soup):
        _check_soup(method, options, start, ingredients)
    else:
        _check_training(method, options, recipe, facts)
    spec = JobSpec(
        start=start,
        dataset=dataset,
        network=network,
        classes=tuple(classes) if classes else None,
        method=method,
        recipe=recipe,
        seed=options.seed,
        # A head that is started afresh says nothing about what the start was trained with.
        find_normalization=recipe.head == "keep"
        and not recipe.reset
        and options.recipe.normalize == "auto"
        and facts.task != "detection"
        and not known_normalization(start.pretrained, network),
        flatness=options.flatness,
        surface=options.surface,
        swag=options.swag,
        ingredients=tuple(ingredients),
        teachers=tuple(teachers),
        evaluation=tuple(EvaluationSet(name=name, dataset=other) for name, (other, _) in sets.items()),
        select_on=options.select_on,
        formats=_formats(options, network),
        probe=probe and probe[0],
    )
    check_replicas(options, spec, snapshots_of_one(spec, facts))
    _check_selects(spec)
    return spec


def _outputs(options: JobOptions, start: StoredWeights, facts: DatasetFacts) -> tuple[Network, list[str] | None]:
    """Return the network with the outputs that are trained, and their classes, in their order; None for the dataset's."""
    network, asked = start.network, options.classes
    if options.recipe.head == "reset":
        asked = asked or list(facts.classes)  # the job shows the names of the new outputs
        network = replace(network, num_classes=len(asked))
    elif asked is None:
        asked = _named_classes(start, facts)
    return network, resolve_classes(asked, network, facts)


def _recipe_and_method(
    options: JobOptions, start: StoredWeights, network: Network, facts: DatasetFacts, gpu: bool
) -> tuple[Recipe, Training | Soup]:
    recipe = resolve_recipe(options.recipe, network, facts, gpu, options.method, start.pretrained)
    method = resolve_method(options.method, recipe, network)
    # A classifier that is trained by itself has the rate of moving statistics: all else stands still then anyway.
    moving = recipe.model_copy(update={"batch_norm": "recompute"})
    return with_head_rate(recipe, resolve_method(options.method, moving, network)), method


def planned_steps_per_epoch(facts: DatasetFacts, recipe: Recipe) -> int:
    """Return the optimizer steps of one pass over the training images, as training will count them."""
    assert recipe.batch_size != "auto"
    return steps_per_epoch(facts.train_images, recipe.batch_size, recipe.devices)


def planned_steps(spec: JobSpec, facts: DatasetFacts) -> int:
    """Return the optimizer steps of the whole job, the control's included and back-offs not; 0 for a soup.

    Of a job with replicas they are those of all of them; one of them has the control.
    """
    if isinstance(spec.method, Soup):
        return 0
    steps = build_schedule(spec.method, planned_steps_per_epoch(facts, spec.recipe)).total_steps
    return (spec.method.replicas + spec.method.control) * steps


def planned_snapshots(spec: JobSpec, facts: DatasetFacts) -> int:
    """Return how many snapshots the job keeps, those of its replicas included; 0 for a soup."""
    return 0 if isinstance(spec.method, Soup) else spec.method.replicas * snapshots_of_one(spec, facts)


def snapshots_of_one(spec: JobSpec, facts: DatasetFacts) -> int:
    """Return how many snapshots one replica of the job takes, or the job itself; 0 for a soup."""
    if isinstance(spec.method, Soup):
        return 0
    return len(build_schedule(spec.method, planned_steps_per_epoch(facts, spec.recipe)).snapshots)


def resolve_method(method: Training | Soup, recipe: Recipe, network: Network) -> Training | Soup:
    """Return the method with every `auto` replaced; `recipe` must be resolved already.

    Rates follow from the architecture's customary peak rate p × batch / 128 (linear scaling, Goyal et al. 2017):
    cyclic_swa, swa, ema and lawa use p / 2, `none`, the control and `auto` use p, which `auto` then measures the start by.
    With `batch_norm: frozen` and SGD, p is at most that of networks without normalization, but for masks and
    boxes (decision 59).
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
            "probe_rate": _probes(method, (method.high, method.low), method.average != "uniform"),
        }
        return validated(method.model_copy(update=update), "method")
    gentle = isinstance(method, Swa | Ema | Lawa)
    rate = _rate(method, peak / 2 if gentle else peak, batch)
    update |= {"lr": rate, "base_lr": None, "pull": 0.0 if method.pull == "auto" else method.pull}
    if isinstance(method, Swa):
        update["anneal_from"] = max(peak, rate) if method.anneal_from == "auto" else method.anneal_from
    elif isinstance(method, AutoMethod):
        update["probe_rate"] = _probes(method, (method,), True)
    elif method.final_lr == "auto":
        update["final_lr"] = rate / 10 if gentle else 0.0
    return validated(method.model_copy(update=update), "method")


def _check_soup(method: Soup, options: JobOptions, start: StoredWeights, ingredients: Sequence[StoredWeights]) -> None:
    """Raise CheckpointsDiffer for an ingredient of another network, ValidationFailed for what a soup cannot do (422)."""
    for ingredient in ingredients:
        _check_same_network(ingredient, start)
    if method.average == "stock" and start.id in method.checkpoints:
        raise ValidationFailed(
            f"method.average is stock, and {start.id} is both `checkpoint`, the start of the runs, and one of the runs: leave "
            "it out of method.checkpoints",
            [{"pointer": "/method/checkpoints", "detail": f"{start.id} is the start"}],
        )
    if options.swag:
        raise ValidationFailed(
            "swag samples around the snapshots of a training, and a soup trains nothing: leave it out"
        )


def _check_training(method: Training, options: JobOptions, recipe: Recipe, facts: DatasetFacts) -> None:
    """Raise ValidationFailed (422) for fewer images than the devices need, and for a schedule that cannot be."""
    if facts.train_images < 2 * recipe.devices:
        raise ValidationFailed(
            f"recipe.devices is {recipe.devices} and there are {facts.train_images} training images: each device needs two "
            "of every batch"
        )
    _check_schedule(method, options.swag, planned_steps_per_epoch(facts, recipe))


def _check_selects(spec: JobSpec) -> None:
    """Raise ValidationFailed (422) for a `select_on` of a job that chooses nothing."""
    if spec.select_on is not None and not spec.selects:
        raise ValidationFailed(
            f"select_on is {spec.select_on!r}, and this job chooses nothing by held-out images: leave it out, or ask for a "
            "choice (method auto; average greedy, window or swad; interpolate; guard; recipe.early_stopping)",
            [{"pointer": "/select_on", "detail": "nothing is chosen"}],
        )


def _check_schedule(method: Training, swag: int, steps: int) -> None:
    """Raise ValidationFailed (422) for more than MAX_CYCLES snapshots, and for SWAG over fewer than two."""
    try:
        schedule = build_schedule(method, steps)
    except ValueError as error:
        raise ValidationFailed(f"method: {error}") from None
    if schedule.total_steps > MAX_EPOCHS * steps:
        raise ValidationFailed(
            f"method: {schedule.total_steps / steps:g} passes over the training images are at most {MAX_EPOCHS}: "
            "take fewer cycles or epochs"
        )
    falls = schedule.phase(schedule.total_steps - 1) == "low"  # a low phase is the last, in every method
    if method.pull_in == "low" and method.pull and not falls:
        raise ValidationFailed(
            f'method: pull_in is "low" and the rate never falls, so that the pull of {method.pull:g} would never act: '
            'give pull_in "all" or "late", or pull 0'
        )
    if swag and len(schedule.snapshots) < 2:
        raise ValidationFailed(
            f"swag needs two snapshots or more (two cycles of cyclic_swa): method is {method.model_dump(mode='json')}"
        )


def _formats(options: JobOptions, network: Network) -> tuple[FurtherFormat, ...]:
    """Return the further formats, each once: what says what the network is, of transformers' and exported ones, always."""
    asked = dict.fromkeys(options.formats)
    library = network.architecture.library
    if "huggingface" in asked and library not in HUB_LIBRARIES:
        raise ValidationFailed(
            f"formats has huggingface, and {network.name} is a network of {library}: only transformers and timm load such a "
            "folder",
            [{"pointer": "/formats", "detail": "not of this network"}],
        )
    own: list[FurtherFormat] = ["huggingface"] if library == "transformers" else ["pt2"] if network.program else []
    return tuple(dict.fromkeys([*asked, *own]))


def _check_applies(options: JobOptions) -> None:
    """Raise ValidationFailed (422) for options about training that are given to a soup, which trains nothing."""
    if not isinstance(options.method, Soup):
        return
    asked = sorted(name for name in options.recipe.model_fields_set if is_about_training(name))
    if asked:
        raise ValidationFailed(
            f"a soup trains nothing, and recipe.{asked[0]} is about training: leave it out",
            [{"pointer": f"/recipe/{name}", "detail": "not with a soup"} for name in asked],
        )


def _check_same_network(ingredient: StoredWeights, start: StoredWeights) -> None:
    """Raise CheckpointsDiffer (422) unless an ingredient of a soup is the start's network."""
    one, other = ingredient.network, start.network
    if one != other:
        names = [field.name for field in fields(Network) if field.compare]
        differ = [name for name in names if getattr(one, name) != getattr(other, name)]
        # Configurations and digests of programs are too long to be read beside each other.
        both = [
            name if name in ("config", "program") else f"{name} {getattr(one, name)} and {getattr(other, name)}"
            for name in differ
        ]
        raise CheckpointsDiffer(
            f"{ingredient.id} is not of the network of {start.id}: they differ in {', '.join(both)}"
        )


def _check_teacher(teacher: StoredWeights, student: Network, recipe: Recipe) -> None:
    """Raise CheckpointsDiffer or ImageSizeUnsupported (422) unless the teacher has the inputs and outputs of the student."""
    network = teacher.network
    if (network.num_classes, network.channels) != (student.num_classes, student.channels):
        raise CheckpointsDiffer(
            f"the teacher {teacher.id} is a {network.name} with {network.num_classes} outputs and {network.channels} input "
            f"channels, the student has {student.num_classes} and {student.channels}"
        )
    check_image_size(recipe, network)


def _peak_rate(recipe: Recipe, network: Network) -> float:
    architecture = network.architecture
    assert recipe.batch_size != "auto"
    name = recipe.optimizer.name
    assert name != "auto"
    peak = architecture.peak_lr if name == architecture.optimizer else PEAK_RATES[name]
    # Detectors' published rates are for kept statistics, and of networks for every pixel none was seen that lost its start.
    if recipe.batch_norm == "frozen" and name == "sgd" and architecture.outputs == "image":
        peak = min(peak, UNNORMALIZED_PEAK)
    return peak * recipe.batch_size / BATCH


def _rate(given: Phase | Straight, default: float, batch: int) -> float:
    if given.base_lr is not None:
        return given.base_lr * batch / BASE_BATCH
    return default if given.lr == "auto" else given.lr


def _probes(method: CyclicSwa | AutoMethod, rates: Sequence[Phase | Straight], selects: bool) -> bool:
    """Return whether the job looks for the rate that the start bears. selects: whether it has a selection split anyway."""
    if method.probe_rate != "auto":
        return method.probe_rate
    return selects and all(each.lr == "auto" and each.base_lr is None for each in rates)


def resolve_classes(classes: list[str] | None, network: Network, facts: DatasetFacts) -> list[str] | None:
    """Return the checkpoint's class order, checked: every class of the dataset must have an output of the network.

    Raises ClassesMismatch (422): labels beyond num_classes, or names that do not cover the dataset's.
    """
    told = told_apart(network, facts.task)
    if facts.task == "attributes":
        check_outputs(classes, told, facts.classes)
    if classes is None:
        if len(facts.classes) > told:
            raise ClassesMismatch(
                f"the dataset has {len(facts.classes)} classes and the checkpoint's network has {network.num_classes} "
                f"outputs: labels {told}..{len(facts.classes) - 1} would have none"
            )
        return None
    if len(classes) != told or len(set(classes)) != len(classes):
        raise ClassesMismatch(
            f"`classes` names {len(set(classes))} different classes and the checkpoint's network tells {told} "
            "apart: give one name for each, in the checkpoint's order"
        )
    unknown = sorted(set(facts.classes) - set(classes))
    if unknown:
        raise ClassesMismatch(f"`classes` does not name {unknown[:20]}, which the dataset has images of")
    return classes


def _named_classes(start: StoredWeights, facts: DatasetFacts) -> list[str] | None:
    """Return the names that the start came with, where they cover the dataset's in another order; None where they do not."""
    names = start.pretrained.classes if start.pretrained else None
    if names is None or len(names) != told_apart(start.network, facts.task) or len(set(names)) != len(names):
        return None
    return list(names) if names != facts.classes and set(facts.classes) <= set(names) else None
