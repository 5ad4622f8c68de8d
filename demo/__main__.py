"""The whole path of a user: train or bring a checkpoint, upload, submit, watch, download, check, compare."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from safetensors import safe_open
from torch import nn

from demo.start import train_start
from wbar import Client, config, display
from wbar.jobs import Job
from wbar.spec import Network
from wbar_training.data.packed import load_split
from wbar_training.networks.architectures import initialized
from wbar_training.uploads.dataset_archives import pack_builtin

console = Console(highlight=False)
# Fashion-MNIST has 60,000 training images: on two cores 10,000 of them keep the demo at a few minutes.
SETTINGS = {"builtin:digits": (None, 30), "builtin:fashion-mnist": (10_000, 15)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--dataset", default="builtin:digits", choices=sorted(SETTINGS))
    parser.add_argument(
        "--images", type=int, help="training images to keep; default: all digits, 10,000 of Fashion-MNIST"
    )
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where the service keeps its data")
    options = parser.parse_args()
    images, epochs = SETTINGS[options.dataset]
    images = options.images or images
    began = time.monotonic()
    start = _start(options.dataset, images, epochs, options.folder)
    with service(options.folder) as environment:
        os.environ.update(environment)
        known = config.read()  # not WBAR_URL or WBAR_API_KEY: those are of the user's own service
        with Client(known.url, known.api_key) as client:
            job, weights = _fine_tune(client, start, options.dataset, images, options.folder)
    if job.result is None:
        console.print(f"[red]the job ended as {job.status}[/red]: {job.error.message if job.error else ''}")
        return 1
    console.print(display.comparison(job))
    for line in display.summary(job.result):
        console.print(line, soft_wrap=True)
    accuracy = evaluate_plainly(weights, options.dataset, options.folder)
    console.print(
        f"loaded into a plain torch module with nothing but the file's own metadata: accuracy {accuracy:.2%} on the "
        f"held-out images (the job reports {job.result.metrics.averaged.accuracy:.2%})",
        soft_wrap=True,
    )
    console.print(f"{time.monotonic() - began:.0f} s in all; weights in {weights}", soft_wrap=True)
    return 0


def _start(dataset: str, images: int | None, epochs: int, folder: Path) -> Path:
    console.print(
        f"[bold]1[/bold]  a converged checkpoint: ResNet-20, {epochs} epochs on the training split of {dataset}"
    )
    columns = (TextColumn("   {task.description}"), BarColumn(bar_width=24), TaskProgressColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("cached", total=1.0)
        found = train_start(
            dataset, images, epochs, folder, lambda done, text: bar.update(task, completed=done, description=text)
        )
        bar.update(task, completed=1.0)
    return found


@contextmanager
def service(folder: Path) -> Iterator[dict[str, str]]:
    """`wbar up` on a free port, stopped at the end; yields the environment its client needs."""
    config = (folder / "config.toml").resolve()
    config.unlink(missing_ok=True)
    environment = {"WBAR_CONFIG": str(config)}
    command = [sys.executable, "-P", "-m", "wbar.cli", "up", "--port", "0", "--data", str(folder / "service")]
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


def _fine_tune(client: Client, start: Path, dataset: str, images: int | None, folder: Path) -> tuple[Job, Path]:
    with display.transfer(console) as bar:
        task = bar.add_task("   upload", total=None)
        checkpoint = client.checkpoints.create(
            start, step=lambda done, total: bar.update(task, completed=done, total=total)
        )
    assert checkpoint.architecture is not None
    console.print(
        f"[bold]3[/bold]  {checkpoint.id} is ready: {checkpoint.architecture.name}, sha-256 {checkpoint.sha256[:12]}…"
    )
    data = client.datasets.create(dataset, max_train_images=images)
    splits = data.splits or {}
    console.print(
        f"[bold]4[/bold]  {data.id} is ready: {splits['train'].images:,} training and {splits['val'].images:,} held-out images"
    )
    job = client.jobs.create(checkpoint=checkpoint.id, dataset=data.id, name=dataset)
    assert job.id is not None
    method = job.method
    console.print(
        f"[bold]5[/bold]  {job.id}: {method.cycles} cycles, high {method.high.lr} × {method.high.epochs}, "
        f"low {method.low.lr} × {method.low.epochs}, pull {method.pull}, batch {job.recipe.batch_size}"
    )
    status = display.follow(client.jobs.events(job.id), console)
    weights = folder / f"averaged-{dataset.removeprefix('builtin:')}.safetensors"
    if status == "succeeded":
        client.jobs.download(job.id, weights)
        console.print(f"[bold]6[/bold]  downloaded {weights}: digest verified")
    return client.jobs.get(job.id), weights


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
    mean, std = (torch.tensor(normalize[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    correct = 0
    for chosen in torch.arange(len(held_out)).split(1000):
        pixels = held_out.images[chosen].float() / 255
        logits = model((pixels.expand(-1, channels, -1, -1) - mean) / std)
        correct += int((logits.argmax(1) == held_out.labels[chosen]).sum())
    return correct / len(held_out)


if __name__ == "__main__":
    sys.exit(main())
