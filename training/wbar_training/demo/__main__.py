"""The whole path of a user, with three seeds: bring a checkpoint, upload, submit, watch, download, check, compare.

Each seed has a start of its own, a ResNet-20 whose training was stopped after a third. `auto` goes on from it, beside the
cosine fine-tune that a user would have run otherwise; the table has their means and standard errors over the seeds.
The seeds run side by side: networks as small as these use one core better than several.
"""

import argparse
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from safetensors import safe_open
from torch import nn

from wbar import Client, config, display
from wbar.jobs import Job
from wbar.method import AutoMethod
from wbar.results import VERDICTS, Comparisons, JobResult
from wbar.spec import Network
from wbar_training.data.packed import load_split
from wbar_training.demo.start import Told, begin_process, train_in_process
from wbar_training.evaluate import even_slices
from wbar_training.networks.architectures import initialized
from wbar_training.uploads.dataset_archives import pack_builtin

console = Console(highlight=False)
# Fashion-MNIST has 60,000 training images: on two cores 10,000 of them keep the demo at a few minutes.
SETTINGS = {"builtin:digits": (None, 30), "builtin:fashion-mnist": (10_000, 15)}
METHOD = {"type": "auto", "control": True}
SEEDS = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code. arguments: default: those of the command line."""
    parser = argparse.ArgumentParser(prog="wbar demo", description=__doc__)
    parser.add_argument("--dataset", default="builtin:digits", choices=sorted(SETTINGS))
    parser.add_argument(
        "--images", type=int, help="training images to keep; default: all digits, 10,000 of Fashion-MNIST"
    )
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where the service keeps its data")
    options = parser.parse_args(arguments)
    images, epochs = SETTINGS[options.dataset]
    images, folder = options.images or images, options.folder
    began = time.monotonic()
    starts = _starts(options.dataset, images, epochs, folder)
    with service(folder) as environment:
        os.environ.update(environment)
        known = config.read()  # not WBAR_URL or WBAR_API_KEY: those are of the user's own service
        with Client(known.url, known.api_key) as client:
            data = client.datasets.create(options.dataset, max_train_images=images)
            splits = data.splits or {}
            console.print(
                f"[bold]3[/bold]  {data.id} is ready: {splits['train'].images:,} training and {splits['val'].images:,} "
                "held-out images"
            )
            submitted = [_submit(client, start, data.id, seed) for seed, start in enumerate(starts)]
            done = [_follow(client, job, seed, folder) for seed, job in enumerate(submitted)]
    failed = [job for job, _, _ in done if job.result is None]
    for job in failed:
        console.print(f"[red]{job.id} ended as {job.status}[/red]: {job.error.message if job.error else ''}")
    if failed:
        return 1
    results = [job.result for job, _, _ in done if job.result is not None]
    console.print(_table(results))
    for line in _gains(results):
        console.print(line, soft_wrap=True)
    for seed, (result, (_, weights, report)) in enumerate(zip(results, done, strict=True)):
        accuracy = evaluate_plainly(weights, options.dataset, folder)
        chosen = "; ".join(result.selection_in_words()[:1])
        console.print(
            f"seed {seed}: {chosen}; {VERDICTS[result.verdict]}. {weights} in a plain torch module, with nothing but its own "
            f"metadata: {accuracy:.2%} of all held-out images; the report is {report}",
            soft_wrap=True,
        )
    console.print(
        f"{time.monotonic() - began:.0f} s in all. Next: [bold]wbar up[/bold] starts the service and prints a link to its "
        "dashboard, where a checkpoint and images of your own are dropped",
        soft_wrap=True,
    )
    return 0


def _starts(dataset: str, images: int | None, epochs: int, folder: Path) -> list[Path]:
    console.print(
        f"[bold]1[/bold]  {SEEDS} checkpoints with something to win: ResNet-20 on the training split of {dataset}, stopped "
        f"after a third of {epochs} epochs"
    )
    context = multiprocessing.get_context("spawn")
    told: Told = context.SimpleQueue()
    columns = (TextColumn("   {task.description}"), BarColumn(bar_width=24), TaskProgressColumn())
    with (
        Progress(*columns, console=console) as bar,
        ProcessPoolExecutor(SEEDS, context, begin_process, (told,)) as pool,
    ):
        tasks = [bar.add_task(f"seed {seed}", total=1.0) for seed in range(SEEDS)]
        trained = [pool.submit(train_in_process, dataset, images, epochs, seed, folder) for seed in range(SEEDS)]
        for one in trained:
            one.add_done_callback(lambda _: told.put(None))
        waiting = len(trained)
        while waiting:
            match told.get():
                case None:
                    waiting -= 1
                case seed, done, text:
                    bar.update(tasks[seed], completed=done, description=text)
        found = [one.result() for one in trained]
        for seed, task in enumerate(tasks):
            bar.update(task, completed=1.0, description=f"seed {seed}")
    return found


def _table(results: list[JobResult]) -> Table:
    """The comparisons of all seeds: mean ± standard error of the mean."""
    table = Table(title=f"held-out images, {len(results)} seeds, ± standard error", title_justify="left")
    for column in ("", "accuracy %", "NLL", "NLL calibrated"):
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    for name in results[0].metrics.named():
        scores = [result.metrics.named()[name] for result in results]
        table.add_row(
            Comparisons.label(name),
            _spread([100 * score.accuracy for score in scores], 2),
            _spread([score.loss for score in scores], 4),
            _spread([score.nll_calibrated or math.nan for score in scores], 4),
            style="bold" if name == "averaged" else "",
        )
    return table


def _gains(results: list[JobResult]) -> list[str]:
    """Return a sentence for the start and one for the control: what w̄ gained over it, by how much beyond its error."""
    lines = []
    for name, rival in (("start", "the start"), ("control", "the control, the fine-tune of equal length")):
        pairs = [
            (scores[name], scores["averaged"]) for scores in (one.metrics.named() for one in results) if name in scores
        ]
        if len(pairs) < 2:
            continue
        points = [100 * (ours.accuracy - theirs.accuracy) for theirs, ours in pairs]
        nats = [theirs.loss - ours.loss for theirs, ours in pairs]
        lines.append(
            f"over {rival}: accuracy {_signed(points, 2)} points, {_beyond(points)}; "
            f"NLL lower by {_signed(nats, 4)}, {_beyond(nats)}"
        )
    return lines


def _signed(values: list[float], digits: int) -> str:
    return f"{mean(values):+.{digits}f} ± {stdev(values) / math.sqrt(len(values)):.{digits}f}"


def _beyond(values: list[float]) -> str:
    """Say how a mean over the seeds stands to its standard error."""
    error = stdev(values) / math.sqrt(len(values))
    if abs(mean(values)) <= 2 * error:
        return "within two standard errors of nothing"
    return f"{abs(mean(values)) / error:.1f} standard errors" if error else "the same in every seed"


def _spread(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f} ± {stdev(values) / math.sqrt(len(values)):.{digits}f}"


@contextmanager
def service(folder: Path) -> Iterator[dict[str, str]]:
    """`wbar up` on a free port, stopped at the end; yields the environment its client needs."""
    config = (folder / "config.toml").resolve()
    config.unlink(missing_ok=True)
    environment = {"WBAR_CONFIG": str(config)}
    command = [sys.executable, "-P", "-m", "wbar.cli", "up", "--port", "0", "--workers", str(SEEDS)]
    command += ["--data", str(folder / "service")]
    console.print("[bold]2[/bold]  wbar up: API, workers, a private Valkey, SQLite")
    with (
        open(folder / "up.log", "wb") as log,
        subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_for(config, process, folder / "up.log")
            yield environment
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait_for(config: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while not config.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the service did not start:\n{log.read_text()}")
        time.sleep(0.1)


def _submit(client: Client, start: Path, dataset: str, seed: int) -> str:
    """Upload a start and create its job; return the job's id."""
    checkpoint = client.checkpoints.create(start)
    assert checkpoint.architecture is not None
    job = client.jobs.create(
        checkpoint=checkpoint.id, dataset=dataset, name=f"demo, seed {seed}", method=METHOD, seed=seed
    )
    assert job.id is not None
    assert isinstance(job.method, AutoMethod)
    console.print(
        f"[bold]4[/bold]  seed {seed}: {checkpoint.id} is a {checkpoint.architecture.name}; {job.id}: auto, "
        f"{job.method.epochs} epochs, rate {job.method.lr} or more, batch {job.recipe.batch_size}"
    )
    return job.id


def _follow(client: Client, job: str, seed: int, folder: Path) -> tuple[Job, Path, Path]:
    """Show a job to its end, download the weights and the report; return the job and both files."""
    console.print(f"[bold]{5 + seed}[/bold]  seed {seed}, from its beginning")
    status = display.follow(client.jobs.events(job), console)
    weights, report = folder / f"averaged-{seed}.safetensors", folder / f"report-{seed}.html"
    if status == "succeeded":
        client.jobs.download(job, weights)
        client.jobs.download_report(job, report)
    return client.jobs.get(job), weights, report


@torch.no_grad()
def evaluate_plainly(weights: Path, dataset: str, folder: Path) -> float:
    """Accuracy of the downloaded file in a plain module, using only its metadata: what any user could do."""
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a handle, no dict
    channels, height, width = json.loads(metadata["wbar.image_size"])
    normalize = json.loads(metadata["wbar.normalize"])
    model: nn.Module = initialized(Network(metadata["wbar.architecture"], int(metadata["wbar.num_classes"])))
    model.load_state_dict(state)
    model.eval()
    data = folder / "check.safetensors"
    pack_builtin(dataset.removeprefix("builtin:"), data, None)
    held_out = load_split(data, "val", (height, width), None)
    data.unlink()
    centre, std = (torch.tensor(normalize[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    correct = 0
    for chosen in even_slices(len(held_out), 1000):
        pixels = held_out.images[chosen].float() / 255
        logits = model((pixels.expand(-1, channels, -1, -1) - centre) / std)
        correct += int((logits.argmax(1) == held_out.labels[chosen]).sum())
    return correct / len(held_out)


if __name__ == "__main__":
    sys.exit(main())
