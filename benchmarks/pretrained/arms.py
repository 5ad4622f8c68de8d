"""One task and seed: the linear probe is made, then every arm goes on from it, and all are scored on unseen images.

    start        the linear probe
    control      cosine from the customary peak rate to 0; it has the scores of the start, too
    cyclic_swa   1 + 1 epochs, all snapshots; and `ensemble`, the mean of their outputs, which is no single network
    swa, ema     at their own default rates
    swad         `swa` of every step, in the valley of the held-out loss
    auto         `auto`
    auto + α     `auto`, and the point of the line from the start to it that the held-out images choose; where that is its
                 end, it is `auto` itself, which is trained once
    soup         the mean of three controls, of other seeds; `stock`: the same as a model stock with the start

Every arm has the same extra epochs, images, augmentation and BatchNorm: ImageNet's statistics, or those of the images, which
averages recompute and the control tracks. The jobs score themselves: the unseen images and their shifts
are their evaluation sets, by which nothing is chosen. An arm's score is that of what it delivers: the start, where `auto` does.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gain.arms import DIGITS, Execution, Silent
from benchmarks.pretrained.images import SHIFTS, Images, Task
from benchmarks.pretrained.network import NAME, NORMALIZATION, probed, read_weights, write_start
from wbar.job_request import JobOptions
from wbar.resolve import resolve_job
from wbar.results import JobResult
from wbar.scores import Score
from wbar.spec import JobSpec, Network, StoredDataset, StoredWeights
from wbar_training.data.packed import Packed
from wbar_training.local import facts_of
from wbar_training.loop import run
from wbar_training.outcome import Outcome
from wbar_training.uploads.dataset_archives import write_packed
from wbar_training.workspace import Workspace

UNSEEN = "unseen"
RUNS = 3  # of a soup
ARMS: dict[str, dict[str, Any]] = {
    "control": {"type": "none"},
    "auto": {"type": "auto"},
    "cyclic_swa": {},
    "swa": {"type": "swa"},
    "ema": {"type": "ema"},
    "soup": {"type": "soup"},
    "stock": {"type": "soup", "average": "stock"},
    "swad": {"type": "swa", "average": "swad", "snapshot_epochs": 0.5},
}
ORDER = ("start", "control", "cyclic_swa", "swa", "swad", "ema", "auto", "auto + α", "soup", "stock", "ensemble")
SINGLE = ORDER[:-1]


@dataclass(frozen=True)
class Bench:
    """A task and a seed.

    name: of the task. folder: for its files, which the caller removes. epochs: of every arm beside the probe.
    frozen: whether ImageNet's BatchNorm statistics stay.
    """

    name: str
    task: Task
    size: int
    seed: int
    epochs: int
    frozen: bool
    folder: Path
    execution: Execution

    @property
    def checkpoint(self) -> Path:
        return self.folder / "start.safetensors"

    def prepare(self, weights: Path) -> None:
        """Write the images and the start. weights: the pretrained file."""
        train, held_out = self.task.train, self.task.held_out
        self._pack("jobs", train, held_out)
        for name, images in {UNSEEN: self.task.unseen, **self.task.shifted}.items():
            self._pack(name, train[torch.arange(2)], images)
        device = torch.device(self.execution.device)
        start = probed(read_weights(weights), train.pixels, train.labels, len(DIGITS), device, self.frozen)
        write_start(start, self.checkpoint)

    def _pack(self, name: str, train: Images, held_out: Images) -> None:
        tensors = {"train.images": train.pixels, "train.labels": train.labels}
        tensors |= {"val.images": held_out.pixels, "val.labels": held_out.labels}
        write_packed(self.folder / f"{name}.safetensors", tensors, DIGITS, train.pixels, None, [])

    def arm(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Run an arm; yield its name and what was measured. Three have two: see the module."""
        method = ARMS[name]
        if name == "auto":
            line = self._delivered(self._run(self._with_epochs(method | {"interpolate": {}}), {}))
            yield f"{name} + α", line
            if line["alpha"] == 1:  # the same job to its end, and there the same point
                yield name, {key: value for key, value in line.items() if key not in ("alpha", "line")}
                return
        if method.get("type") == "soup":
            runs = {f"ckpt_{n}": self._control(n) for n in range(RUNS)}
            outcome = self._run(method | {"checkpoints": list(runs)}, runs)
        elif name == "control":
            outcome = self._run(self._with_epochs(method), {})
            self._keep(outcome, 0)
            yield "start", _measured(outcome.result, "start")
        else:
            outcome = self._run(self._with_epochs(method), {})
        yield name, self._delivered(outcome)
        if name == "cyclic_swa":
            yield "ensemble", _measured(outcome.result, "ensemble")

    def _delivered(self, outcome: Outcome) -> dict[str, Any]:
        delivered = outcome.result.delivered
        line = _measured(outcome.result, delivered) | _choice(outcome.result)
        if delivered != "averaged":  # w̄'s own, beside what is delivered in its place
            line["averaged"] = _measured(outcome.result, "averaged")
        return line

    def _with_epochs(self, method: Mapping[str, Any]) -> dict[str, Any]:
        return dict(method) | ({"epochs": self.epochs} if "type" in method else {"cycles": max(1, self.epochs // 2)})

    def _control(self, number: int) -> Path:
        """Return the weights of a control; number 0 is the arm's, if that ran."""
        path = self.folder / f"control-{number}.safetensors"
        if not path.exists():
            self._keep(self._run(self._with_epochs(ARMS["control"]), {}, 1000 * number), number)
        return path

    def _keep(self, outcome: Outcome, number: int) -> None:
        shutil.copyfile(outcome.weights, self.folder / f"control-{number}.safetensors")

    def _run(self, method: dict[str, Any], others: Mapping[str, Path], more_seed: int = 0) -> Outcome:
        scratch = self.folder / "job"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        execution = self.execution
        workspace = Workspace(scratch, device=execution.device, threads=torch.get_num_threads(), save_every_seconds=1e9)
        spec = self._spec(method, others, self.seed + more_seed)
        for blob in spec.blobs():
            workspace.input(blob).symlink_to(self.folder / f"{blob}.safetensors")
        return run(spec, workspace, Silent())

    def _spec(self, method: dict[str, Any], others: Mapping[str, Path], seed: int) -> JobSpec:
        execution = self.execution
        augment = "pad_crop_flip" if self.name == "fashion" else "pad_crop"
        recipe: dict[str, Any] = {"augment": augment, "image_size": self.size, "precision": execution.precision}
        recipe |= {"normalize": NORMALIZATION.model_dump(), "batch_norm": "frozen" if self.frozen else "auto"}
        sets = [UNSEEN, *SHIFTS]
        options = JobOptions.model_validate(
            {"method": method, "recipe": recipe, "seed": seed, "evaluate": {name: f"ds_{name}" for name in sets}}
        )

        def dataset(name: str) -> StoredDataset:
            return StoredDataset(id=f"ds_{name}", sha256=f"{self.name}-{self.size}-{self.seed}-{name}", blob=name)

        def facts(name: str) -> Any:
            return facts_of(Packed.read(self.folder / f"{name}.safetensors"), None)

        return resolve_job(
            options,
            _stored("start", self.checkpoint),
            dataset("jobs"),
            facts("jobs"),
            execution.device == "cuda",
            [_stored(name, path) for name, path in others.items()],
            evaluation={name: (dataset(name), facts(name)) for name in sets},
        )


def _stored(name: str, path: Path) -> StoredWeights:
    network = Network(NAME, len(DIGITS))
    return StoredWeights(id=name, sha256=path.stem, blob=path.stem, prefix="", network=network)


def _measured(result: JobResult, comparison: str) -> dict[str, Any]:
    """Return the scores on the unseen images and on each of their shifts."""
    scores = {name: one.metrics.named()[comparison] for name, one in result.evaluation.items()}
    return _numbers(scores[UNSEEN]) | {"shifts": {name: _numbers(scores[name]) for name in SHIFTS}}


def _numbers(score: Score) -> dict[str, Any]:
    return score.model_dump(include={"accuracy", "loss", "ece", "nll_calibrated"})


def _choice(result: JobResult) -> dict[str, Any]:
    """Return what was chosen, where something was."""
    found: dict[str, Any] = {}
    if result.interpolation is not None:
        found["alpha"] = result.interpolation.chosen
        found["line"] = [
            {"alpha": point.alpha, "loss": point.selection_loss}
            | {name: one.model_dump() for name, one in point.evaluation.items()}
            for point in result.interpolation.points
        ]
    if result.stock is not None:
        ratios = sorted(result.stock.values())
        found["stock"] = {"least": ratios[0], "median": ratios[len(ratios) // 2], "most": ratios[-1]}
    selection = result.selection
    if selection is not None:
        found |= {"delivered": selection.delivered, "start_kind": result.start_kind}
        if selection.chosen is not None:
            found["chosen"] = selection.chosen.model_dump(include={"kind", "first", "last", "alpha"})
        if selection.valley is not None:
            found["valley"] = selection.valley.model_dump(include={"first", "last"})
    return found
