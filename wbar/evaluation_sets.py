"""Whether an evaluation set fits a job: its task, its classes and its channels are the job's, and its images are others."""

from collections.abc import Sequence

from wbar.datasets import DatasetFacts
from wbar.errors import ChannelsMismatch, ClassesMismatch, ValidationFailed
from wbar.spec import Network, StoredDataset


def check_evaluation_set(
    name: str,
    other: StoredDataset,
    its_facts: DatasetFacts,
    dataset: StoredDataset,
    facts: DatasetFacts,
    network: Network,
    classes: Sequence[str] | None,
) -> None:
    """Raise ValidationFailed, ClassesMismatch or ChannelsMismatch (422) unless the network's outputs mean something on it."""
    pointer = f"/evaluate/{name}"
    if other.blob == dataset.blob:
        raise ValidationFailed(
            f"evaluate.{name} is {other.id}, whose images are those of the job's dataset {dataset.id}: its held-out images are "
            "reported anyway",
            [{"pointer": pointer, "detail": "the job's own dataset"}],
        )
    if its_facts.task != facts.task:
        raise ValidationFailed(
            f"evaluate.{name}: {other.id} is of task {its_facts.task}, the job's dataset {dataset.id} of {facts.task}",
            [{"pointer": pointer, "detail": f"task {its_facts.task}, not {facts.task}"}],
        )
    if network.architecture.finds_masks and not its_facts.masks:
        raise ValidationFailed(
            f"evaluate.{name}: {other.id} has boxes without masks, and the checkpoint's network is a {network.name}, whose "
            "masks are compared with some",
            [{"pointer": pointer, "detail": "no masks"}],
        )
    known = list(classes or facts.classes)
    unknown = sorted(set(its_facts.classes) - set(known))
    if unknown:
        raise ClassesMismatch(
            f"evaluate.{name}: {other.id} has images of {unknown[:20]}, which are no classes of the job ({known[:20]}"
            f"{', …' if len(known) > 20 else ''}): its folders, or its columns and categories, must have the same names"
        )
    if facts.task == "regression" and set(its_facts.classes) != set(known):
        raise ClassesMismatch(
            f"evaluate.{name}: {other.id} has the targets {sorted(its_facts.classes)[:20]}, and the job {sorted(known)[:20]}: "
            "each of these is needed"
        )
    if its_facts.shape.channels not in (1, network.channels):
        raise ChannelsMismatch(
            f"evaluate.{name}: the images of {other.id} have {its_facts.shape.channels} channels and the checkpoint's network "
            f"takes {network.channels}: only grey images can be repeated to fit"
        )
