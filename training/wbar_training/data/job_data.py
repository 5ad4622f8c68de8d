"""The images of one job on its device: the training, report and selection splits, and the evaluation sets."""

from pathlib import Path

import torch

from wbar.errors import HeldOutTooSmall
from wbar.results import HeldOut
from wbar.spec import JobSpec
from wbar_training.data.augment import RESIZED, Preparer
from wbar_training.data.colour import principal_axes
from wbar_training.data.feed import Feed
from wbar_training.data.packed import Fit, Packed, Split, load_encoded, load_split
from wbar_training.draws import permutation
from wbar_training.plan import Plan
from wbar_training.workspace import Workspace


class JobData:
    """The three splits, the conversion of their pixels to inputs, and the names of the outputs.

    train: trained on; BatchNorm statistics are recomputed from it too.
    report: the held-out images that every number of the result is from.
    selection: the held-out images that selections are made on; None where there are none.
    sets: the images of the evaluation sets, by name; one of them is `selection` where the job selects on it.
    """

    def __init__(self, spec: JobSpec, workspace: Workspace, plan: Plan, device: torch.device) -> None:
        path = workspace.input(spec.dataset.blob)
        packed = Packed.read(path)
        order = [spec.classes.index(name) for name in packed.classes] if spec.classes else None
        outputs, centre = spec.network.num_classes, plan.augment in RESIZED
        fit = Fit(plan.recipe.crop_ratio, plan.recipe.interpolation)
        self.train = load_split(path, "train", plan.image_size, order, outputs=outputs, fit=fit)
        held_out = load_split(path, "val", plan.image_size, order, centre, outputs, fit)
        if device.type == "cuda" and self.train.images.numel() < torch.cuda.mem_get_info()[0] // 4:
            # Otherwise the images stay on the host and are sent a batch at a time; the bits are the same.
            self.train = Split(self.train.images.to(device), self.train.labels)
        names = list(spec.classes or packed.classes)
        self.sets = {
            one.name: _evaluation_set(workspace.input(one.dataset.blob), plan.image_size, names, centre, outputs, fit)
            for one in spec.evaluation
        }
        self.report: Split = held_out
        self.selection: Split | None = None
        self.select_on = spec.select_on if spec.selects else None
        if self.select_on is not None:
            self.selection = self.sets[self.select_on]
        elif spec.selects:
            self.report, self.selection = _halves(held_out, plan.seed)
        self.output_names = _output_names(list(spec.classes or packed.classes), outputs)
        self.prepare = Preparer(plan.mean, plan.std, plan.augment, plan.seed, device)
        self.prepare.axes = principal_axes(self.train.images).to(device) if plan.augment == "imagenet" else None
        encoded = load_encoded(path, "train") if plan.augment in RESIZED else None
        self.feed = Feed(self.train, self.prepare, encoded, workspace.loaders)

    @property
    def held_out(self) -> HeldOut:
        """The sizes of the held-out splits."""
        return HeldOut(selection=len(self.selection) if self.selection else 0, report=len(self.report))

    @property
    def evaluated_images(self) -> int:
        """The images that an evaluation on everything that is held out sends through the network."""
        selection = 0 if self.selection is None or self.select_on is not None else len(self.selection)
        return len(self.report) + selection + sum(map(len, self.sets.values()))

    @property
    def chance(self) -> float:
        """The accuracy of a guess on held-out images; of several labels, of always giving the commoner answer."""
        labels = self.report.labels
        if labels.dim() == 1:
            return 1 / len(set(labels.tolist()))
        present = labels.double().mean(dim=0)
        return torch.maximum(present, 1 - present).mean().item()


def _halves(held_out: Split, seed: int) -> tuple[Split, Split]:
    """Split the held-out images into the report split and the selection split, drawn with the job's seed."""
    half = len(held_out) // 2
    if half == 0:
        raise HeldOutTooSmall("a job that selects by held-out images needs two of them or more, and there is one")
    order = permutation(len(held_out), seed, "held-out")
    report, selection = order[half:].sort().values, order[:half].sort().values
    return (
        Split(held_out.images[report], held_out.labels[report]),
        Split(held_out.images[selection], held_out.labels[selection]),
    )


def _evaluation_set(
    path: Path, image_size: tuple[int, int], names: list[str], centre: bool, outputs: int, fit: Fit
) -> Split:
    """Return the images of an evaluation set: those of `val/`, or all where the archive had none.

    names: of the network's outputs, in their order. The others are as of `load_split`.
    """
    packed = Packed.read(path)
    order = [names.index(name) for name in packed.classes]
    parts = [
        load_split(path, split, image_size, order, centre, outputs, fit)
        for split in (["val"] if packed.held_out is None else ["train", "val"])
    ]
    if len(parts) == 1:
        return parts[0]
    return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def _output_names(classes: list[str], num_classes: int) -> list[str]:
    """Return one name per output: an output without a class of the dataset is named by its index."""
    return classes + [str(index) for index in range(len(classes), num_classes)]
