"""JobSpec: everything that decides what a job's weights are, and what is measured about them.

It is made once, from the request, when the job is created; stored as one JSON document in the job's row; and handed as it is
to the worker and to training. Where files lie and what they run on is not part of it: that changes no number.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from wbar import __version__
from wbar.catalog import ARCHITECTURES, Architecture
from wbar.method import AnyMethod, Soup
from wbar.recipe import Interpolation, Recipe, recipe_document


@dataclass(frozen=True)
class Network:
    """A network that can be built: its catalog name, and the sizes that a checkpoint's tensors decide.

    image_size: pixels per side, only where the weights are tied to one (position tables).
    projection: whether the shortcuts of a CIFAR ResNet are 1 × 1 convolutions.
    entry: of a network whose catalog entry depends on what a worker has installed; it travels with the network.
    """

    name: str
    num_classes: int
    channels: int = 3
    image_size: int | None = None
    projection: bool = False
    entry: Architecture | None = field(default=None, compare=False)

    @property
    def architecture(self) -> Architecture:
        """The catalog's entry. Raises KeyError for a name that no catalog has."""
        return self.entry or ARCHITECTURES[self.name]

    @property
    def classes(self) -> int:
        """The number of classes that the outputs tell apart: a single output is a sigmoid between two."""
        return 2 if self.num_classes == 1 else self.num_classes


@dataclass(frozen=True)
class PretrainedConfig:
    """The facts that came with a checkpoint about the images it was trained on (timm's `pretrained_cfg`).

    mean, std: one number per channel, for pixels in [0, 1].
    image_size: (height, width) in pixels.
    crop_ratio: of a held-out image's short side, the part that is cut out of its centre.
    interpolation: how images were resized.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    crop_ratio: float | None = None
    interpolation: Interpolation | None = None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredWeights(_Frozen):
    """One network's weights in the blob store.

    id: the checkpoint or snapshot that they belong to.
    sha256: of the bytes as they were uploaded.
    blob: the same tensors as safetensors, which is the file that training reads.
    prefix: the part of the uploaded names before the network's own (`module.`).
    pretrained: what a recipe's defaults are read off; no document has it, since the recipe is resolved by then.
    """

    id: str
    sha256: str
    blob: str
    prefix: str
    network: Network
    pretrained: PretrainedConfig | None = Field(None, exclude=True)


class StoredDataset(_Frozen):
    """One packed dataset in the blob store.

    sha256: of the upload.
    blob: the packed file that training reads.
    """

    id: str
    sha256: str
    blob: str


class JobSpec(_Frozen):
    """The work of one job, with no `auto` left in method and recipe.

    start: the weights that training starts from.
    network: the network that is trained: the start's, with as many outputs as a new head has.
    classes: the order of the outputs, where it is not the dataset's.
    find_normalization: `recipe.normalize` was `auto`: it holds the dataset's own statistics, and training finds out
        which ones the start was trained with.
    flatness: whether flatness is measured when the weights are there.
    swag: samples of the Bayesian average that is measured then; 0: none.
    ingredients: the checkpoints of a soup, in its order.
    teachers: the networks of a distillation, one checkpoint or a former job's snapshots.
    """

    start: StoredWeights
    dataset: StoredDataset
    network: Network
    classes: tuple[str, ...] | None
    method: AnyMethod
    recipe: Recipe
    seed: int
    find_normalization: bool = False
    flatness: bool = False
    swag: int = 0
    ingredients: tuple[StoredWeights, ...] = ()
    teachers: tuple[StoredWeights, ...] = ()

    @property
    def selects(self) -> bool:
        """Whether held-out images decide about the result.

        One half of them is then the selection split, and every number that is reported is from the other half, the
        report split.
        """
        method = self.method
        if isinstance(method, Soup):
            return method.average == "greedy"
        chooses = getattr(method, "average", "uniform") != "uniform" or method.guard
        return chooses or getattr(method, "probe_rate", False) is True or self.recipe.early_stopping is not None

    @property
    def trains(self) -> bool:
        """Whether the job takes training steps; a soup does not."""
        return not isinstance(self.method, Soup)

    @property
    def reproducible(self) -> bool:
        """Whether the same spec gives the same bits on a GPU."""
        return self.network.architecture.reproducible

    def document(self) -> dict[str, Any]:
        """Return the JSON that is stored; options of new versions are left out while they have their defaults."""
        document = self.model_dump(mode="json")
        document["recipe"] = recipe_document(self.recipe)
        for weights in (document, document["start"], *document["ingredients"], *document["teachers"]):
            weights["network"] = network_document(weights["network"])
        return document

    def blobs(self) -> list[str]:
        """Return the blobs that training reads, each once."""
        weights = (self.start, *self.ingredients, *self.teachers)
        return list(dict.fromkeys([*(one.blob for one in weights), self.dataset.blob]))

    def needs(self) -> list[str]:
        """Return the ids of all that must stay until the job has ended, each once: checkpoints, dataset, former job."""
        teacher = [self.recipe.distillation.teacher] if self.recipe.distillation else []
        return list(dict.fromkeys([self.start.id, self.dataset.id, *(one.id for one in self.ingredients), *teacher]))

    def run_digest(self) -> str:
        """Return the sha256 of everything that the weights are a function of, on the same hardware and thread count.

        Checkpoints are named by their content: ids differ between two runs of the same work.
        """
        inputs: dict[str, Any] = {
            "start": self.start.sha256,
            "dataset": self.dataset.sha256,
            "method": self.method.model_dump(mode="json"),
            "recipe": recipe_document(self.recipe),
            "seed": self.seed,
            "classes": self.classes,
            "find_normalization": self.find_normalization,
            "version": __version__,
        }
        if self.ingredients:
            inputs["method"]["checkpoints"] = [one.sha256 for one in self.ingredients]
        if self.teachers:
            inputs["recipe"]["distillation"]["teacher"] = [one.sha256 for one in self.teachers]
        return hashlib.sha256(canonical(inputs).encode()).hexdigest()


def network_document(network: dict[str, Any]) -> dict[str, Any]:
    """Return a network's JSON without an entry that it does not have: versions before 0.8 read no other."""
    return {name: value for name, value in network.items() if name != "entry" or value is not None}


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
