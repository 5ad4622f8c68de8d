"""The interface of a task: everything that depends on what the labels are.

A job's loop, its averages and its resumable state know losses per image, scores, and tensors of answers that are kept for
each image, and nothing of classes, labels or pixels. What a new task has to say is in this one class: how its split is read
and augmented with its labels, its training loss (a network that has its losses inside returns them from `Loss.forward`),
what is kept of the outputs on held-out images, its scores, and what a report draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from wbar.datasets import Task as TaskName
from wbar.method import SelectBy
from wbar.recipe import Recipe
from wbar.scores import Score
from wbar.spec import Network
from wbar_training.data.augment import Preparer
from wbar_training.data.examples import Batch, Examples, Feed
from wbar_training.data.packed import PLAIN, Fit, Packed
from wbar_training.evaluate import Outputs
from wbar_training.losses import Loss, Target


@dataclass(frozen=True)
class Reading:
    """How a job reads the splits of a packed file.

    image_size: (height, width) in pixels.
    order: for each class of the dataset, the network's output index; None: the same order.
    centre: whether images are cut out of their centre, see `data.packed.load_split`.
    fit: how images are resized.
    """

    image_size: tuple[int, int]
    order: list[int] | None = None
    centre: bool = False
    fit: Fit = PLAIN


class Task(ABC):
    """One task, for one network. names: of its outputs, in their order."""

    name: ClassVar[TaskName]
    # Whether the ensemble's answers are the mean of the members' answers. Else the members' probabilities are too many to
    # keep for all images: the members are run again, side by side.
    averages_answers: ClassVar[bool] = True
    # Whether an ensemble of outputs is defined at all.
    has_ensemble: ClassVar[bool] = True
    # Whether the order of the classes may explain a start near chance, and whether a better one can be looked for.
    warns_near_chance: ClassVar[bool] = False
    tells_order: ClassVar[bool] = False

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        self.network, self.names = network, list(names)

    # The images and their labels.

    @abstractmethod
    def load(self, path: Path, split: str, reading: Reading) -> Examples:
        """Return one split of a packed file."""

    @abstractmethod
    def joined(self, parts: Sequence[Any]) -> Examples:
        """Return several splits as one. parts: of `load`."""

    @abstractmethod
    def feed(self, train: Any, path: Path, prepare: Preparer, image_size: tuple[int, int], loaders: int) -> Feed:
        """Return the training images, augmented. train: of `load`, from the packed file at `path`."""

    @abstractmethod
    def batch_norm_batch(self, image_size: tuple[int, int]) -> int:
        """Return the images of a BatchNorm batch, by the image size alone, so that the hardware never changes a result."""

    # Training.

    @abstractmethod
    def loss(self, recipe: Recipe, train: Examples, packed: Packed, device: torch.device) -> Loss:
        """Return the training loss. packed: the metadata of the dataset."""

    @abstractmethod
    def target(self, recipe: Recipe, batch: Batch, seed: int, step: int) -> tuple[Tensor, Target]:
        """Return a step's inputs and targets; where images are mixed, draws depend on (seed, step) alone."""

    @abstractmethod
    def softened(self, logits: Tensor) -> Tensor:
        """Return a teacher's probabilities, of logits that are divided by the temperature."""

    # Evaluation.

    @abstractmethod
    def outputs(self, outputs: Any, labels: Tensor) -> Outputs:
        """Return what is kept of a network's outputs on one batch, in eval mode, on the CPU."""

    def forward(self, model: nn.Module, inputs: Tensor) -> Any:
        """Return a network's outputs on one batch, in eval mode."""
        return model(inputs)

    def answered(self, model: nn.Module, batch: Batch) -> Outputs:
        """Return what is kept of a network on one batch, in eval mode, on the CPU."""
        return self.outputs(self.forward(model, batch.inputs), batch.labels)

    def probabilities(self, outputs: Any) -> Tensor:
        """Return a batch's probabilities on the CPU, for an ensemble whose members are run side by side."""
        raise NotImplementedError(f"an ensemble's answers are the mean of its members' in {self.name}")

    def outputs_of(self, probabilities: Tensor, labels: Tensor) -> Outputs:
        """Return what is kept of the mean of such probabilities."""
        raise NotImplementedError(f"an ensemble's answers are the mean of its members' in {self.name}")

    def distributions(self, probabilities: Tensor) -> Tensor:
        """Return what an image is asked, (N, distributions, categories), for probe images; see `output_comparison`.

        probabilities: (N, outputs).
        """
        raise NotImplementedError(f"the service refuses probe images in {self.name}")

    def most_probable(self, probabilities: Tensor, distribution: int) -> int:  # noqa: ARG002
        """Return the output that is named for one image.

        probabilities: (outputs,).
        distribution: which of the image's matters most, for a task that names one of that.
        """
        return int(probabilities.argmax())

    @abstractmethod
    def score(self, answers: Tensor, labels: Tensor, losses: Tensor | None = None) -> Score:
        """Return the score of N images.

        answers, losses: of `Outputs`; the losses follow from the answers where they are not given and that can be.
        labels: of `Examples`.
        """

    @abstractmethod
    def calibrated(
        self, score: Score, answers: Tensor, labels: Tensor, fitted_on: tuple[Tensor, Tensor] | None
    ) -> Score:
        """Return the score with its temperature, where there is one; see `wbar_training.calibration.calibrated`."""

    @abstractmethod
    def per_image(self, outputs: Outputs, labels: Tensor, by: SelectBy) -> Tensor:
        """Return what a selection compares, one per image, (N,) float64; lower is better."""

    @abstractmethod
    def mean_loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar that has a gradient; labels are on its device."""

    @abstractmethod
    def chance(self, labels: Tensor) -> float:
        """Return the accuracy of a guess."""

    def strata(self, labels: Tensor) -> Tensor:
        """Return the stratum of each image, (N,) int64: random halves share every stratum evenly."""
        return torch.zeros(len(labels), dtype=torch.int64)

    # The report.

    @abstractmethod
    def draw(
        self,
        model: nn.Module,
        weights: Mapping[str, Callable[[], Mapping[str, Tensor]]],
        examples: Any,
        prepare: Preparer,
    ) -> Image.Image | None:
        """Return a picture of some held-out images and of the networks' answers; None where there is nothing to see.

        model: that is filled with each of the weights, by name, and left with the last.
        examples: of `load`.
        """
