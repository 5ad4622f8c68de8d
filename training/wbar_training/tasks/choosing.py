"""The task of a packed dataset, from what stands in its file."""

from collections.abc import Sequence

from wbar.spec import Network
from wbar_training.data.packed import Packed
from wbar_training.tasks.attributes import Attributes
from wbar_training.tasks.classification import Classification
from wbar_training.tasks.detection import Detection
from wbar_training.tasks.multilabel import Multilabel
from wbar_training.tasks.regression import Regression, Scale
from wbar_training.tasks.segmentation import Segmentation
from wbar_training.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    one.name: one for one in (Classification, Multilabel, Attributes, Segmentation, Detection)
}


def task_of(packed: Packed, network: Network, names: Sequence[str], standardize: bool = True) -> Task:
    """Return the task of a dataset. names: of the network's outputs. standardize: of regression, see `Recipe`."""
    if packed.task == "regression":
        return Regression(network, names, Scale.of(packed, names, standardize))
    return TASKS[packed.task](network, names)
