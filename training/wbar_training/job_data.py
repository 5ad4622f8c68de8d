"""The images of one job on its device: the training, report and selection splits, and the evaluation sets."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wbar.datasets import output_names
from wbar.errors import HeldOutTooSmall
from wbar.results import HeldOut
from wbar.spec import JobSpec
from wbar_training.data.augment import RESIZED, Preparer
from wbar_training.data.examples import Examples
from wbar_training.data.packed import Fit, Packed
from wbar_training.draws import permutation
from wbar_training.plan import Plan
from wbar_training.probes import read_probes
from wbar_training.tasks.choosing import task_of
from wbar_training.tasks.task import Reading, Task
from wbar_training.workspace import Workspace


class JobData:
    """The three splits, the conversion of their pixels to inputs, and the names of the outputs.

    packed: the metadata of the dataset.
    train: trained on; BatchNorm statistics are recomputed from it too.
    report: the held-out images that every number of the result is from.
    selection: the held-out images that selections are made on; None where there are none.
    sets: the images of the evaluation sets, by name; one of them is `selection` where the job selects on it.
    """

    def __init__(self, spec: JobSpec, workspace: Workspace, plan: Plan, device: torch.device) -> None:
        path = workspace.input(spec.dataset.blob)
        self.packed = packed = Packed.read(path)
        order = [spec.classes.index(name) for name in packed.classes] if spec.classes else None
        names = list(spec.classes or packed.classes)
        self.output_names = output_names(names, spec.network.num_classes)
        self.task = task_of(packed, spec.network, self.output_names, plan.recipe.standardize)
        reading = Reading(plan.image_size, order, fit=Fit(plan.recipe.crop_ratio, plan.recipe.interpolation))
        self.train = self.task.load(path, "train", reading).placed(device)
        reading = replace(reading, centre=plan.augment in RESIZED)
        held_out = self.task.load(path, "val", reading)
        self.sets = {
            one.name: _evaluation_set(self.task, workspace.input(one.dataset.blob), names, reading)
            for one in spec.evaluation
        }
        # The images of `spec.probe`, with labels that say nothing, and their names; read at their job's own image size.
        self.probe = None if spec.probe is None else read_probes(workspace.input(spec.probe.blob), reading)
        self.report: Examples = held_out
        self.selection: Examples | None = None
        self.select_on = spec.select_on if spec.selects else None
        if self.select_on is not None:
            self.selection = self.sets[self.select_on]
        elif spec.selects:
            self.report, self.selection = _halves(held_out, plan.seed)
        self.prepare = Preparer(plan.mean, plan.std, plan.augment, plan.seed, device)
        self.feed = self.task.feed(self.train, path, self.prepare, plan.image_size, workspace.loaders)

    @property
    def held_out(self) -> HeldOut:
        """The sizes of the held-out splits."""
        return HeldOut(selection=len(self.selection) if self.selection else 0, report=len(self.report))

    def inputs(self, most: int) -> Tensor:
        """Return the first images of the report split as the network takes them, (N, C, H, W) float32 on the CPU."""
        some = self.report.select(torch.arange(min(most, len(self.report))))
        batches = (some.batch(part, self.prepare).inputs for part in some.parts())
        return torch.cat([one.float().cpu() for one in batches]).contiguous()

    @property
    def evaluated_images(self) -> int:
        """The images that an evaluation on everything that is held out sends through the network."""
        selection = 0 if self.selection is None or self.select_on is not None else len(self.selection)
        probe = 0 if self.probe is None else len(self.probe.images)
        return len(self.report) + selection + sum(map(len, self.sets.values())) + probe

    @property
    def chance(self) -> float:
        """The accuracy of a guess on held-out images."""
        return self.task.chance(self.report.labels)


def _halves(held_out: Examples, seed: int) -> tuple[Examples, Examples]:
    """Split the held-out images into the report split and the selection split, drawn with the job's seed."""
    half = len(held_out) // 2
    if half == 0:
        raise HeldOutTooSmall("a job that selects by held-out images needs two of them or more, and there is one")
    order = permutation(len(held_out), seed, "held-out")
    report, selection = order[half:].sort().values, order[:half].sort().values
    return held_out.select(report), held_out.select(selection)


def _evaluation_set(task: Task, path: Path, names: list[str], reading: Reading) -> Examples:
    """Return the images of an evaluation set: those of `val/`, or all where the archive had none.

    names: of the network's outputs, in their order.
    reading: of the job's own held-out images.
    """
    packed = Packed.read(path)
    reading = replace(reading, order=[names.index(name) for name in packed.classes])
    splits = ["val"] if packed.held_out is None else ["train", "val"]
    parts = [task.load(path, split, reading) for split in splits]
    return parts[0] if len(parts) == 1 else task.joined(parts)
