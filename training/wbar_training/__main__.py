"""`python -m wbar_training`: one job on a local checkpoint and folder, without the service."""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from wbar.checkpoints import NetworkArchitecture
from wbar.datasets import Dataset, ImageShape, Split
from wbar.errors import WbarError
from wbar.jobs import MetricsPoint, Progress, Score
from wbar.method import CyclicSwa, HighPhase, Phase
from wbar.recipe import Normalization, Recipe
from wbar.resolve import resolve_classes, resolve_method, resolve_recipe
from wbar_training.loop import run
from wbar_training.plan import Work
from wbar_training.resume import latest
from wbar_training.uploads import checkpoint_files, dataset_archives

console = Console(stderr=True)


class Printer:
    """A reporter that shows a bar and writes the metrics beside the weights."""

    def __init__(self, bar: Bar, metrics: Path) -> None:
        self.bar, self.task, self.file = bar, bar.add_task("loading", total=1.0), metrics.open("a")

    def heartbeat(self, progress: Progress) -> str | None:
        loss = "" if progress.loss is None else f"loss {progress.loss:.4f}"
        text = f"{progress.phase} · cycle {progress.cycle}/{progress.cycles} {loss}"
        self.bar.update(self.task, completed=progress.fraction, description=text)
        return None

    def metrics(self, points: list[MetricsPoint]) -> None:
        self.file.writelines(point.model_dump_json() + "\n" for point in points)
        self.file.flush()

    def snapshot(self, n: int, step: int, path: str, score: Score) -> None:
        console.print(f"snapshot {n} at step {step}: accuracy {score.accuracy:.4f}, loss {score.loss:.4f} -> {path}")

    def averaged(self, n: int, score: Score) -> None:
        console.print(f"mean of {n}: accuracy {score.accuracy:.4f}, loss {score.loss:.4f}")

    def saved(self, path: str, step: int, durable: bool) -> None:
        pass  # the state lies in the scratch folder; a local run goes on from it by itself

    def log(self, level: str, message: str) -> None:
        console.print(f"[{level}] {message}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m wbar_training", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="safetensors or PyTorch file")
    parser.add_argument("dataset", help="folder or archive with train/<class>/ images, or builtin:digits")
    parser.add_argument("-o", "--out", type=Path, default=Path("wbar-run"), help="folder for states and results")
    parser.add_argument("--architecture", help="catalog name; default: detected from the tensors")
    parser.add_argument("--cycles", type=int, default=6)
    parser.add_argument("--high-lr", type=float)
    parser.add_argument("--low-lr", type=float)
    parser.add_argument("--pull", type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        outcome = _run(options)
    except WbarError as error:
        console.print(f"[red]{error.code}[/red]: {error.detail}")
        return 1
    json.dump({**outcome, "weights": str(outcome["weights"])}, sys.stdout, indent=2)
    print()
    return 0


def _run(options: argparse.Namespace) -> dict[str, object]:
    out: Path = options.out
    checkpoint = checkpoint_files.validate(options.checkpoint, options.architecture, None, out / "start.safetensors")
    packed_path = out / "dataset.safetensors"
    source: str = options.dataset
    if source.startswith("builtin:"):
        packed = dataset_archives.pack_builtin(source.removeprefix("builtin:"), packed_path, None)
    elif Path(source).is_dir():
        packed = dataset_archives.pack_folder(Path(source), packed_path, dataset_archives.Limits())
    else:
        packed = dataset_archives.pack_archive(Path(source), packed_path, dataset_archives.Limits())
    network = NetworkArchitecture(
        name=checkpoint.network.name,
        num_classes=checkpoint.network.num_classes,
        channels=checkpoint.network.channels,
        image_size=checkpoint.network.image_size,
        source=checkpoint.source,
        ambiguous_with=checkpoint.ambiguous_with,
    )
    if network.warning:
        console.print(network.warning, style="yellow", markup=False)
    dataset = Dataset(
        id="", name=source, status="ready", task="classification", source=source, classes=packed.classes,
        splits={name: Split(images=count) for name, count in packed.images.items()},
        image=ImageShape(channels=packed.channels, height=packed.height, width=packed.width),
        bytes=None, sha256=None, error=None, created_at="",
    )  # fmt: skip
    recipe = Recipe(batch_size=options.batch_size or "auto", image_size=options.image_size or "auto")
    recipe = resolve_recipe(
        recipe, network, dataset, Normalization(mean=packed.mean, std=packed.std), options.device.startswith("cuda")
    )
    method = CyclicSwa(
        cycles=options.cycles,
        high=HighPhase(lr=options.high_lr or "auto"),
        low=Phase(lr=options.low_lr or "auto"),
        pull="auto" if options.pull is None else options.pull,
    )
    work = Work(
        method=resolve_method(method, recipe, network).model_dump(mode="json"),
        recipe=recipe.model_dump(mode="json"),
        seed=options.seed,
        network=checkpoint.network,
        checkpoint=out / "start.safetensors",
        prefix=checkpoint.prefix,
        dataset=packed_path,
        classes=resolve_classes(None, network, dataset),
        start_sha256=_sha256(options.checkpoint),
        dataset_sha256=_sha256(packed_path),
        scratch=out,
        resume=latest(out),
        device=options.device,
    )
    with Bar(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), console=console
    ) as bar:
        outcome = run(work, Printer(bar, out / "metrics.jsonl"))
    return {
        "weights": outcome.weights,
        "verdict": outcome.verdict,
        "metrics": outcome.metrics.model_dump(),
        "curve": [point.model_dump() for point in outcome.curve],
    }


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
