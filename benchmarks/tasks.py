"""`python -m benchmarks.tasks`: what averaging gives where an image has a mask or boxes; drawn shapes, errors over seeds.

    python -m benchmarks.tasks --problem segmentation --results tasks.jsonl --minutes 30
    python -m benchmarks.tasks --problem detection masks --device cuda --results tasks.jsonl
    python -m benchmarks.tasks --quick

A start is trained from its initialization by a cosine; the arms go on from it with equal epochs, and all are scored on images
that no job saw. Every finished arm is a line of the results file, and is not run again; an arm that would not be finished in
time is not begun. The table goes to stdout and beside the results file, as markdown.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch

from benchmarks.gain.arms import Silent
from benchmarks.gain.tables import Line, read
from benchmarks.shapes import CLASSES, write_archive, write_boxes_archive
from wbar.errors import Diverged
from wbar.job_request import JobOptions
from wbar.scores import Score
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.local import prepare_dataset, prepare_job, prepare_weights
from wbar_training.loop import run
from wbar_training.networks.architectures import initialized
from wbar_training.outcome import Outcome
from wbar_training.workspace import Workspace

START, UNSEEN = "start", "unseen"
ARMS: dict[str, dict[str, Any]] = {"control": {"type": "none"}, "cyclic": {}, "auto": {"type": "auto"}}
SOME = 24  # training images of an archive of which only the others are used: some with a shape of every class
SLACK = 1.15  # an arm may take so many times what the longest before took
# Of a problem, the measure beside the loss: its name and where a score has it.
MEASURES = {"segmentation": "mean IoU", "detection": "AP", "masks": "mask AP"}


@dataclass(frozen=True)
class Problem:
    """One problem. side: pixels. train, held_out, unseen: images. start_epochs, epochs: of the start, and of every arm.

    masks: whether boxes have masks.
    start_lr: of AdamW, by which a detector learns from its initialization in a few epochs; None: the network's own optimizer.
    """

    task: Literal["segmentation", "detection"]
    network: str
    masks: bool = False
    side: int = 64
    train: int = 400
    held_out: int = 100
    unseen: int = 300
    start_epochs: int = 15
    epochs: int = 12
    batch: int = 16
    start_lr: float | None = None

    def measure(self, score: Score) -> float:
        found = score.mean_iou if self.task == "segmentation" else score.accuracy  # which is AP
        if score.masks is not None:
            found = score.masks.ap
        assert found is not None
        return found


# Half an hour to an hour a seed on one core.
_BOXES: dict[str, Any] = {
    "side": 96, "train": 200, "held_out": 60, "unseen": 150, "start_epochs": 10, "epochs": 6, "batch": 8, "start_lr": 1e-3
}  # fmt: skip
PROBLEMS = {
    "segmentation": Problem("segmentation", "lraspp_mobilenet_v3_large"),
    "detection": Problem("detection", "ssdlite320_mobilenet_v3_large", **_BOXES),
    "masks": Problem("detection", "maskrcnn_resnet18_96_fpn", masks=True, **_BOXES),
}
QUICK: dict[str, Any] = {
    "train": 24, "held_out": 4, "unseen": 4, "start_epochs": 1, "epochs": 2, "side": 48, "batch": 4
}  # fmt: skip


class Bench:
    """A problem, by its name, and a seed. folder: for its files, which the caller removes. starts: where a start is kept."""

    def __init__(self, name: str, problem: Problem, seed: int, device: str, folder: Path, starts: Path) -> None:
        self.name, self.problem, self.seed, self.device, self.folder = name, problem, seed, device, folder
        self.start = starts / f"{name}-{seed}.safetensors"
        write = write_archive if problem.task == "segmentation" else partial(write_boxes_archive, masks=problem.masks)
        size = ((problem.side, problem.side),)
        write(folder / "jobs.zip", problem.train, problem.held_out, size, seed=2 * seed)
        write(folder / "unseen.zip", SOME, problem.unseen, size, seed=2 * seed + 1)

    def scores(self, arm: str) -> Iterator[tuple[str, Score]]:
        """Run an arm; yield its name and the score of what it delivers on the unseen images. The first has the start's, too."""
        start = self.start
        if not start.exists():
            self._make_start()
        method = ARMS[arm]
        length = {"epochs": self.problem.epochs} if "type" in method else {"cycles": self.problem.epochs // 2}
        result = self._run(method | length, start).result
        scores = result.evaluation[UNSEEN].metrics.named()
        yield START, scores[START]
        yield arm, scores[result.delivered]

    def _make_start(self) -> None:
        problem, fresh = self.problem, self.folder / "fresh.safetensors"
        torch.manual_seed(self.seed)
        network = initialized(Network(problem.network, len(CLASSES)))
        write_safetensors(fresh, network.state_dict(), {})
        method: dict[str, Any] = {"type": "none", "epochs": problem.start_epochs}
        recipe: dict[str, Any] = {}
        if problem.task == "detection":
            recipe["batch_norm"] = "recompute"  # frozen statistics of an initialization are none
        if problem.start_lr is not None:
            method |= {"lr": problem.start_lr}
            recipe["optimizer"] = {"name": "adamw", "weight_decay": 0.01}
        made = self._run(method, fresh, recipe)
        self.start.parent.mkdir(exist_ok=True)
        shutil.copyfile(made.weights, self.start)

    def _run(self, method: dict[str, Any], start: Path, recipe: dict[str, Any] | None = None) -> Outcome:
        problem, scratch = self.problem, self.folder / "job"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        threads = torch.get_num_threads()
        workspace = Workspace(scratch, device=self.device, threads=threads, save_every_seconds=1e9)
        weights = prepare_weights(start, workspace, architecture=problem.network)
        dataset, facts = prepare_dataset(str(self.folder / "jobs.zip"), workspace, problem.task)
        unseen = prepare_dataset(str(self.folder / "unseen.zip"), workspace, problem.task, UNSEEN)
        recipe = {"image_size": problem.side, "batch_size": problem.batch, "precision": "float32"} | (recipe or {})
        if problem.task == "segmentation":
            recipe |= {"augment": "none"}
        options = JobOptions.model_validate(
            {"method": method, "recipe": recipe, "seed": self.seed, "evaluate": {UNSEEN: f"ds_{UNSEEN}"}}
        )
        spec = prepare_job(options, weights, dataset, facts, workspace, evaluation={UNSEEN: unseen})
        return run(spec, workspace, Silent())


def main() -> int:
    options = _arguments()
    until, longest = time.monotonic() + 60 * options.minutes, 0.0
    for name in options.problem:
        problem = replace(PROBLEMS[name], **QUICK) if options.quick else PROBLEMS[name]
        for seed in range(options.from_seed, options.seeds):
            done = {line["arm"] for line in read(options.results) if (line["problem"], line["seed"]) == (name, seed)}
            missing = [arm for arm in ARMS if arm not in done]
            if not missing:
                continue
            with tempfile.TemporaryDirectory(prefix="wbar-tasks-") as folder:
                starts = options.starts or Path(folder)
                bench = Bench(name, problem, seed, options.device, Path(folder), starts)
                for arm in missing:
                    began = time.monotonic()
                    if began + SLACK * longest > until:
                        break
                    for line in lines_of(bench, arm, done):
                        done.add(line["arm"])
                        with options.results.open("a") as file:
                            file.write(json.dumps(line | {"seconds": round(time.monotonic() - began, 1)}) + "\n")
                    longest = max(longest, time.monotonic() - began)
    page = "\n".join(tables(read(options.results)))
    options.results.with_suffix(".md").write_text(page + "\n")
    print(page)
    return 0


def lines_of(bench: Bench, arm: str, done: Collection[str]) -> list[Line]:
    """Run an arm; return its line, and the start's where that is not done. One that diverges is said, and has none."""
    problem = bench.problem
    try:
        scores = list(bench.scores(arm))
    except Diverged as error:
        print(f"{bench.name}, seed {bench.seed}, {arm}: {error}", file=sys.stderr)
        return []
    head = {"problem": bench.name, "seed": bench.seed}
    return [
        head | {"arm": name, "loss": score.loss, "measure": problem.measure(score), "accuracy": score.accuracy}
        for name, score in scores
        if name not in done
    ]


def tables(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a markdown page: the arms of each problem, mean ± standard error over the seeds, and the differences to `auto`."""
    for problem, measure in MEASURES.items():
        by_arm = {
            arm: {line["seed"]: line for line in lines if (line["problem"], line["arm"]) == (problem, arm)}
            for arm in (START, *ARMS)
        }
        seeds = sorted(set.intersection(*(set(found) for found in by_arm.values())))
        if not seeds:
            continue
        yield f"\n### {problem}, {PROBLEMS[problem].network}, {len(seeds)} seeds\n"
        yield f"| arm | {measure} | loss | Δ {measure} to `auto` | Δ loss to `auto` |\n|---|---|---|---|---|"
        for arm, found in by_arm.items():
            cells = [_spread([found[seed][key] for seed in seeds]) for key in ("measure", "loss")]
            cells += [
                "–" if arm == "auto" else _spread([found[seed][key] - by_arm["auto"][seed][key] for seed in seeds], "+")
                for key in ("measure", "loss")
            ]
            yield f"| {'**auto**' if arm == 'auto' else arm} | {' | '.join(cells)} |"


def _spread(values: Sequence[float], sign: str = "") -> str:
    error = f" ± {stdev(values) / sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.4f}{error}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=sorted(PROBLEMS), nargs="+", default=sorted(PROBLEMS, reverse=True))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument(
        "--results", type=Path, help="one line per finished arm; default: tasks.jsonl, not with --quick"
    )
    parser.add_argument("--starts", type=Path, help="where starts are kept for another call; default: they are not")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--from-seed", type=int, default=0, help="the first one, for a process beside another")
    parser.add_argument("--quick", action="store_true", help="a few images and epochs: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.seeds = 1
    if options.results is None:
        options.results = (
            Path(tempfile.mkdtemp(prefix="wbar-tasks-"), "tasks.jsonl") if options.quick else Path("tasks.jsonl")
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
