"""Whether a dataset can be a job's probe images: what it is, how many images it has, and their channels."""

from wbar.datasets import DatasetFacts
from wbar.errors import ChannelsMismatch, TaskUnsupported, ValidationFailed
from wbar.probe_results import MOST_PROBES
from wbar.spec import Network, StoredDataset

PROBED = ("classification", "multilabel", "attributes")  # tasks of jobs that take probe images
WHOLE_IMAGES = (*PROBED, "regression", "unlabelled")  # tasks of datasets whose images can be probes


def check_probe(probe: StoredDataset, its_facts: DatasetFacts, facts: DatasetFacts, network: Network) -> None:
    """Raise TaskUnsupported, ValidationFailed or ChannelsMismatch (422) unless the network can answer the probe images.

    facts: of the job's dataset.
    """
    if facts.task not in PROBED:
        raise TaskUnsupported(
            f"probe is {probe.id}, and the job is of task {facts.task}: probe images are for {', '.join(PROBED)}, where a "
            "network's outputs are probabilities of the whole image; leave it out"
        )
    if its_facts.task not in WHOLE_IMAGES:
        raise TaskUnsupported(
            f"probe: {probe.id} is of task {its_facts.task}: upload its images as task=unlabelled, without masks or boxes"
        )
    if its_facts.images > MOST_PROBES:
        raise ValidationFailed(
            f"probe: {probe.id} has {its_facts.images} images, and a job takes {MOST_PROBES} probe images: choose some of them",
            [{"pointer": "/probe", "detail": f"{its_facts.images} images, over the limit of {MOST_PROBES}"}],
        )
    if its_facts.shape.channels not in (1, network.channels):
        raise ChannelsMismatch(
            f"probe: the images of {probe.id} have {its_facts.shape.channels} channels and the checkpoint's network takes "
            f"{network.channels}: only grey images can be repeated to fit"
        )
