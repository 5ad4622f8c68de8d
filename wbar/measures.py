"""What the number `accuracy` of a score is in each task: its name, its unit and how it is written. Known here alone.

Every surface takes it from here: pages, terminal, notebooks, reports, cards, exports.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from wbar.datasets import LabelledTask, Task
from wbar.scores import Score


@dataclass(frozen=True)
class Measure:
    """The score of one task.

    name: as it stands before a number or in the head of a table.
    key: as it stands in names of series.
    term: the glossary's entry.
    is_share: whether it is a share of one, which is written in percent; else it is a number with four digits.
    loss: the name of the loss; `loss_term` and `loss_unit` are its glossary's entry and its unit.
    """

    name: str
    key: str
    term: str
    is_share: bool
    loss: str = "NLL"
    loss_term: str = "loss"
    loss_unit: str = "nats"

    @property
    def title(self) -> str:
        """The name as it begins a line."""
        return self.name[0].upper() + self.name[1:]

    @property
    def loss_title(self) -> str:
        """The name of the loss as it begins a line."""
        return "Loss (NLL)" if self.loss == "NLL" else "Loss"

    def text(self, value: float | None, places: int = 2) -> str:
        """Return a score as text, a dash for none. places: of percent; a plain number has two more."""
        if value is None:
            return "–"
        return f"{value:.{places}%}" if self.is_share else f"{value:.{places + 2}f}"

    def named(self, value: float | None, places: int = 2) -> str:
        """Return a score as text, after its name."""
        return f"{self.name} {self.text(value, places)}"


MEASURES: Mapping[Task, Measure] = {
    "classification": Measure("accuracy", "accuracy", "accuracy", is_share=True),
    "multilabel": Measure("accuracy", "accuracy", "label_accuracy", is_share=True, loss_term="label_loss"),
    "attributes": Measure(
        "mean accuracy", "mean_accuracy", "attribute_accuracy", is_share=True, loss_term="attribute_loss"
    ),
    "segmentation": Measure(
        "pixel accuracy", "pixel_accuracy", "pixel_accuracy", is_share=True, loss_term="pixel_loss"
    ),
    "detection": Measure(
        "AP", "ap", "ap", is_share=False, loss="loss", loss_term="box_loss", loss_unit="the network's own"
    ),
    "regression": Measure(
        "R²", "r2", "r2", is_share=False, loss="loss", loss_term="number_loss", loss_unit="standardized MSE"
    ),
}


def measure_in(task: Task | None) -> Measure:
    """Return the score of a task; of one that is not known, that of classes."""
    return MEASURES.get(task or "classification", MEASURES["classification"])


def task_of(score: Score) -> LabelledTask:
    """Return the task of a score, which is told by what stands beside `accuracy`."""
    if score.regression is not None:
        return "regression"
    if score.boxes is not None:
        return "detection"
    if score.mean_iou is not None:
        return "segmentation"
    if score.attributes is not None:
        return "attributes"
    return "multilabel" if score.average_precision is not None or score.map is not None else "classification"


def measure_of(score: Score) -> Measure:
    """Return what `accuracy` is in a score."""
    return MEASURES[task_of(score)]
