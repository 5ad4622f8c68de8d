"""`python -m wbar_training`: any job on a local checkpoint and folder, without the service.

    python -m wbar_training start.pth images/ --set method.cycles=4 --set recipe.batch_size=64
    python -m wbar_training start.pth builtin:digits --job job.json        {"method": {…}, "recipe": {…}, "seed": 0, …}
    python -m wbar_training a.pth images/ --with b=b.pth --set method.type=soup \
        --set 'method.checkpoints=["ckpt_start", "ckpt_b"]'

An interrupted job goes on from the state in its output folder, to the same bits.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from wbar.datasets import VOID_LABEL, Task
from wbar.errors import ValidationFailed, WbarError
from wbar.job_request import JobOptions
from wbar.jobs import MetricsPoint, Progress
from wbar.measures import measure_of
from wbar.scores import Score
from wbar_training.local import prepare_dataset, prepare_job, prepare_weights
from wbar_training.loop import run
from wbar_training.messages import LogLevel, StopReason
from wbar_training.outcome import Outcome
from wbar_training.state_files import latest
from wbar_training.workspace import Workspace

console = Console(stderr=True)


class Printer:
    """A reporter that shows a bar and writes the metrics beside the weights."""

    def __init__(self, bar: Bar, metrics: Path) -> None:
        self.bar, self.task, self.file = bar, bar.add_task("loading", total=1.0), metrics.open("a")

    def heartbeat(self, progress: Progress) -> StopReason | None:
        loss = "" if progress.loss is None else f"loss {progress.loss:.4f}"
        text = f"{progress.phase} · cycle {progress.cycle}/{progress.cycles} {loss}"
        self.bar.update(self.task, completed=progress.fraction, description=text)
        return None

    def metrics(self, points: list[MetricsPoint]) -> None:
        self.file.writelines(point.model_dump_json() + "\n" for point in points)
        self.file.flush()

    def snapshot(self, n: int, step: int, path: str, score: Score) -> None:
        named = measure_of(score).named(score.accuracy)
        console.print(f"snapshot {n} at step {step}: {named}, loss {score.loss:.4f} -> {path}")

    def averaged(self, n: int, score: Score) -> None:
        console.print(f"mean of {n}: {measure_of(score).named(score.accuracy)}, loss {score.loss:.4f}")

    def saved(self, path: str, step: int, durable: bool) -> None:
        pass  # the state lies in the output folder; a local run goes on from it by itself

    def log(self, level: LogLevel, message: str) -> None:
        console.print(f"{level}: {message}", markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m wbar_training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="safetensors or PyTorch file")
    parser.add_argument("dataset", help="folder or archive with train/<class>/ images, or builtin:digits")
    parser.add_argument("-o", "--out", type=Path, default=Path("wbar-run"), help="folder for states and results")
    parser.add_argument(
        "--job", type=Path, help="JSON with method, recipe, seed, classes, flatness, swag, select_on, as POST /v1/jobs"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="one field of the same, over --job: method.type=auto, recipe.mixup=0.2; the value is JSON, or else a word",
    )  # fmt: skip
    parser.add_argument(
        "--with", action="append", default=[], metavar="NAME=FILE", dest="others",
        help="another checkpoint, which a soup or a distillation names ckpt_NAME; the first is ckpt_start",
    )  # fmt: skip
    parser.add_argument(
        "--evaluate", action="append", default=[], metavar="NAME=PATH", dest="sets",
        help="a further dataset, of the same classes, that every comparison is scored on",
    )  # fmt: skip
    parser.add_argument(
        "--probe", metavar="PATH", help="images, with labels or without, whose outputs are kept and compared at the end"
    )
    parser.add_argument("--architecture", help="catalog name; default: detected from the tensors")
    tasks = parser.add_mutually_exclusive_group()
    tasks.add_argument(
        "--task", default="classification", choices=get_args(Task),
        help="what the dataset's labels are",
    )  # fmt: skip
    tasks.add_argument(
        "--multilabel", dest="task", action="store_const", const="multilabel",
        help="the labels are those of the dataset's labels.csv: --task multilabel",
    )  # fmt: skip
    parser.add_argument(
        "--void-label",
        type=int,
        default=VOID_LABEL,
        help="of segmentation: the label of pixels that belong to no class",
    )
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--device", default="cpu", choices=devices, help="cuda where torch sees a GPU")
    parser.add_argument("--threads", type=_positive, help="of torch on the CPU; part of what decides the bits")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main() -> int:
    """Run the command. Returns 0: done, the result is printed as JSON; 1: the job failed; 2: the options make no job."""
    parser = _parser()
    asked = parser.parse_args()
    try:
        sets = dict(map(_named, asked.sets))
        named = [f"evaluate.{name}=ds_{name}" for name in sets] + (["probe=ds_probe"] if asked.probe else [])
        options = _options(asked.job, [*asked.set, *named])
    except (ValueError, OSError) as error:
        parser.error(str(error))
    try:
        outcome = _run(asked, options, sets)
    except WbarError as error:
        console.print(f"{error.code}: {error.detail}", style="red", markup=False)
        return 1
    except OSError as error:
        console.print(f"{error.filename or ''}: {error.strerror or error}", style="red", markup=False)
        return 1
    json.dump({"weights": str(outcome.weights), "result": outcome.result.model_dump(mode="json")}, sys.stdout, indent=2)
    print()
    return 0


def _named(pair: str) -> tuple[str, str]:
    """Parse NAME=PATH. Raises ValueError."""
    name, equals, path = pair.partition("=")
    if not equals or not name or not path:
        raise ValueError(f"--evaluate {pair}: a name, an equals sign and a folder or archive are expected")
    return name, path


def _options(job: Path | None, assignments: list[str]) -> JobOptions:
    """Make the options from the JSON file and the assignments. Raises ValueError, naming the field and its mistake."""
    document: Any = json.loads(job.read_text()) if job else {}
    if not isinstance(document, dict):
        raise ValueError(f"--job {job}: an object is expected, not {str(document)[:60]}")
    for assignment in assignments:
        field, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(
                f"--set {assignment}: a field, an equals sign and a value are expected, as method.cycles=4"
            )
        *path, last = field.split(".")
        place = document
        for name in path:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {assignment}: {name} is {place!r} already, which has no fields")
        place[last] = _value(value)
    try:
        return JobOptions.model_validate(document)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc'])) or 'the job'}: {one['msg']}" for one in error.errors()]
        raise ValueError("; ".join(lines)) from None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _run(asked: argparse.Namespace, options: JobOptions, sets: Mapping[str, str]) -> Outcome:
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    workspace = Workspace(out, device=asked.device, threads=asked.threads, resume=latest(out))
    start = prepare_weights(asked.checkpoint, workspace, architecture=asked.architecture)
    others = {}
    for pair in asked.others:
        name, equals, path = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValidationFailed(
                f"--with {pair}: a name of letters and digits, an equals sign and a file are expected"
            )
        others[f"ckpt_{name}"] = prepare_weights(Path(path), workspace, name, asked.architecture)
    dataset, facts = prepare_dataset(asked.dataset, workspace, asked.task, void_label=asked.void_label)
    evaluation = {
        name: prepare_dataset(path, workspace, asked.task, name, asked.void_label) for name, path in sets.items()
    }
    probe = prepare_dataset(asked.probe, workspace, "unlabelled", "probe") if asked.probe else None
    spec = prepare_job(options, start, dataset, facts, workspace, others, evaluation, probe)
    with Bar(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), console=console
    ) as bar:
        return run(spec, workspace, Printer(bar, out / "metrics.jsonl"))


if __name__ == "__main__":
    if not sys.flags.safe_path:
        # The current folder, put there by `python -m`: multiprocessing would hand it on to its children.
        del sys.path[0]
    sys.exit(main())
