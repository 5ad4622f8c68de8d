"""JobSpec: everything that decides what a job's weights are, and what is measured about them.

It is made once, from the request, when the job is created; stored as one JSON document in the job's row; and handed as it is
to the worker and to training. Where files lie and what they run on is not part of it: that changes no number.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from wbar import __version__
from wbar.catalog import ARCHITECTURES, Architecture
from wbar.loss_surface import SurfaceOptions
from wbar.method import AnyMethod, Soup, Swad
from wbar.recipe import NEW_OPTIONS, Interpolation, Recipe
from wbar.results import FurtherFormat


@dataclass(frozen=True)
class Network:
    """A network that can be built: its catalog name, and the sizes that a checkpoint's tensors decide.

    image_size: pixels per side, only where the weights are tied to one (position tables).
    projection: whether the shortcuts of a CIFAR ResNet are 1 × 1 convolutions.
    auxiliary: whether a segmentation network has the auxiliary head of its training.
    frozen_norm: whether a detector's BatchNorm layers are torchvision's frozen ones, which training never changes.
    entry: of a network whose catalog entry depends on what a worker has installed; it travels with the network.
    config: of a network of transformers, what its configuration says about the network, as canonical JSON.
    program: of an exported network, the sha256 of its program, which lies beside its weights.
    """

    name: str
    num_classes: int
    channels: int = 3
    image_size: int | None = None
    projection: bool = False
    auxiliary: bool = False
    frozen_norm: bool = False
    entry: Architecture | None = field(default=None, compare=False)
    config: str | None = None
    program: str | None = None

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
    """The facts that came with a checkpoint about the images that it was trained on.

    They are timm's `pretrained_cfg`, or transformers' `preprocessor_config.json` and `id2label`.

    mean, std: one number per channel, for pixels in [0, 1].
    image_size: (height, width) in pixels.
    crop_ratio: of a held-out image's short side, the part that is cut out of its centre.
    interpolation: how images were resized.
    classes: the names of the outputs, in their order.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    crop_ratio: float | None = None
    interpolation: Interpolation | None = None
    classes: tuple[str, ...] | None = None


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


class Meetings(_Frozen):
    """When a replica meets the others, and what it keeps of itself.

    replicas: the jobs that meet, in their order, this one among them.
    number: this one's place among them, from 1.
    every: they meet after the snapshots n = every, 2·every, …
    last: the last such n; none is after the end of the training, where they are joined.
    keep: α of w ← α·w + (1 − α)·w̄.
    """

    replicas: tuple[str, ...]
    number: int
    every: int
    last: int
    keep: float = 0.0

    def after(self, n: int) -> bool:
        """Return whether they meet after snapshot n."""
        return 0 < n <= self.last and n % self.every == 0


class EvaluationSet(_Frozen):
    """A further dataset that every comparison is scored on. name: as the request has it."""

    name: str
    dataset: StoredDataset


class JobSpec(_Frozen):
    """The work of one job, with no `auto` left in method and recipe.

    start: the weights that training starts from.
    network: the network that is trained: the start's, with as many outputs as a new head has.
    classes: the order of the outputs, where it is not the dataset's.
    find_normalization: `recipe.normalize` was `auto`: it holds the dataset's own statistics, and training finds out
        which ones the start was trained with.
    flatness: whether flatness is measured when the weights are there.
    surface: the grid of the loss surface that is measured then; None: none.
    swag: samples of the Bayesian average that is measured then; 0: none.
    ingredients: the checkpoints of a soup, in its order.
    teachers: the networks of a distillation, one checkpoint or a former job's snapshots.
    evaluation: further datasets to score the comparisons on.
    select_on: the name of the one among them that stands for the selection split; None: half of the held-out images does.
    replicas: the jobs that this one joins, in their order; empty: it is no job with replicas.
    keeps_mean: whether the exact sums of the mean are kept, which a replica's are joined by; they change no weight.
    meetings: of a replica that meets the others on its way.
    probe: images whose outputs are kept and compared when the job ends.
    formats: that the weights are written in beside safetensors and PyTorch's; they change no weight.
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
    evaluation: tuple[EvaluationSet, ...] = ()
    select_on: str | None = None
    formats: tuple[FurtherFormat, ...] = ()
    replicas: tuple[str, ...] = ()
    keeps_mean: bool = False
    meetings: Meetings | None = None
    probe: StoredDataset | None = None
    surface: SurfaceOptions | None = None

    @property
    def selects(self) -> bool:
        """Whether held-out images decide about the result.

        One half of them is then the selection split, and every number that is reported is from the other half, the
        report split; with `select_on` that set is the selection split, and all held-out images are the report split.
        """
        method = self.method
        if method.interpolate is not None and method.interpolate.choose == "selection":
            return True
        if isinstance(method, Soup):
            return method.average == "greedy"
        chooses = getattr(method, "average", "uniform") != "uniform" or method.guard
        return chooses or getattr(method, "probe_rate", False) is True or self.recipe.early_stopping is not None

    @property
    def trains(self) -> bool:
        """Whether the job takes training steps; a soup does not, nor what joins replicas."""
        return not isinstance(self.method, Soup) and not self.replicas

    @property
    def reproducible(self) -> bool:
        """Whether the same spec gives the same bits on a GPU."""
        return self.network.architecture.reproducible

    def document(self) -> dict[str, Any]:
        """Return the JSON that is stored; options of new versions are left out while they have their defaults."""
        document = without_new_defaults(self.model_dump(mode="json"))
        for weights in (document, document["start"], *document["ingredients"], *document["teachers"]):
            weights["network"] = network_document(weights["network"])
        return document

    def blobs(self) -> list[str]:
        """Return the blobs that training reads, each once."""
        weights = (self.start, *self.ingredients, *self.teachers)
        return list(dict.fromkeys([*(one.blob for one in weights), *(one.blob for one in self._datasets())]))

    def needs(self) -> list[str]:
        """Return the ids of all that must stay until the job has ended, each once: checkpoints, datasets, former job."""
        teacher = [self.recipe.distillation.teacher] if self.recipe.distillation else []
        datasets = [one.id for one in self._datasets()]
        ingredients = (one.id for one in self.ingredients)
        return list(dict.fromkeys([self.start.id, *datasets, *ingredients, *teacher, *self.replicas]))

    def _datasets(self) -> list[StoredDataset]:
        probe = [self.probe] if self.probe else []
        return [self.dataset, *(one.dataset for one in self.evaluation), *probe]

    def run_digest(self) -> str:
        """Return the sha256 of everything that the weights are a function of, on the same hardware and thread count.

        Checkpoints are named by their content: ids differ between two runs of the same work.
        """
        inputs: dict[str, Any] = {
            "start": self.start.sha256,
            "network": network_document(asdict(self.network) | {"entry": None}),  # tensors alone may fit several
            "dataset": self.dataset.sha256,
            "images": self.dataset.blob,  # one archive is packed in more than one way
            "method": self.method.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": self.seed,
            "classes": self.classes,
            "find_normalization": self.find_normalization,
            "version": __version__,
        }
        if self.select_on is not None:
            inputs["select_on"] = [one.dataset.sha256 for one in self.evaluation if one.name == self.select_on]
        if self.meetings is not None:
            inputs["meetings"] = {**self.meetings.model_dump(mode="json"), "replicas": len(self.meetings.replicas)}
        if self.ingredients:
            inputs["method"]["checkpoints"] = [one.sha256 for one in self.ingredients]
        if self.teachers:
            inputs["recipe"]["distillation"]["teacher"] = [one.sha256 for one in self.teachers]
        return hashlib.sha256(canonical(inputs).encode()).hexdigest()


# Options that came after 0.6, by their place in a spec or a request, with their defaults.
_NEW: dict[tuple[str, ...], Any] = {
    ("method", "interpolate"): None,
    ("method", "swad"): Swad().model_dump(mode="json"),
    ("method", "replicas"): 1,
    ("method", "join_every"): None,
    ("method", "join_keep"): 0.0,
    **{("recipe", name): Recipe.model_fields[name].default for name in NEW_OPTIONS},
    ("evaluation",): [],
    ("evaluate",): {},
    ("select_on",): None,
    ("formats",): [],
    ("replicas",): [],
    ("keeps_mean",): False,
    ("meetings",): None,
    ("probe",): None,
    ("surface",): None,
}


def without_new_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """Return a spec's or a request's document without the options that came after 0.6 and have their defaults.

    A worker of 0.6 refuses fields that it does not know: it goes on with jobs that ask for nothing new. A request of then
    keeps its digest, too.
    """
    whole = {name: dict(value) if isinstance(value, dict) else value for name, value in document.items()}
    for (*outer, name), default in _NEW.items():
        place = whole.get(outer[0]) if outer else whole
        if isinstance(place, dict) and name in place and place[name] == default:
            del place[name]
    return whole


def network_document(network: dict[str, Any]) -> dict[str, Any]:
    """Return a network's JSON without what it does not have and a worker of 0.6 knows nothing of."""
    absent = {"entry": None, "auxiliary": False, "frozen_norm": False, "config": None, "program": None}
    return {name: value for name, value in network.items() if name not in absent or value != absent[name]}


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
