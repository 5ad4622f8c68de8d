"""The SWA paper's table (Izmailov et al. 2018, table 1) on any folder of 32 × 32 images, by one command.

    python -m benchmarks.swa_paper cifar10/ --device cuda --seeds 3 --out swa-paper
    python -m benchmarks.swa_paper --quick

The folder has `train/<class>/` and `val/<class>/` or `test/<class>/`; what is not `train` is what the scores are from. Each
network is trained twice from its initialization: by SGD for the whole budget, and by SGD and then SWA, at a constant rate with
a snapshot per epoch, whose means are scored at 1, 1.25 and 1.5 budgets. The schedule is the authors': the first rate for half
of SGD's part, a line down to the last one until nine tenths, the last one from there. Every piece is a job of
`wbar_training`, which a rerun does not do again, and in the middle of which it goes on.

Not run so far: the table itself, for want of CIFAR's images where this was written; `--quick` makes digits of 32 × 32 pixels,
and was. Known differences to the authors' runs: their VGG16 had no BatchNorm and the catalog's has; momentum starts at zero
where a piece begins; on a GPU convolutions are in bfloat16 unless `--precision` says otherwise.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.gain.arms import Silent
from wbar.datasets import DatasetFacts
from wbar.job_request import JobOptions
from wbar.jobs import Progress
from wbar.spec import Network, StoredDataset, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training.local import prepare_dataset, prepare_job
from wbar_training.loop import run
from wbar_training.messages import StopReason
from wbar_training.networks.architectures import initialized
from wbar_training.state_files import latest
from wbar_training.uploads.builtin_images import digits
from wbar_training.workspace import Workspace

SIDE, BATCH = 32, 128
SHARES = (1.0, 1.25, 1.5)


@dataclass(frozen=True)
class Row:
    """One network of the table. rates: of SGD at its beginning, of SWA. budget: epochs. sgd: epochs before SWA begins."""

    label: str
    network: str
    rate: float
    swa_rate: float
    weight_decay: float
    budget: int
    sgd: int


# Rates, decay and epochs as the authors' published commands have them for CIFAR-100; for CIFAR-10, PreResNet's SWA has 0.01.
TABLE = (
    Row("VGG16", "cifar_vgg16_bn", 0.05, 0.01, 5e-4, 200, 160),
    Row("PreResNet-164", "preresnet164", 0.1, 0.05, 3e-4, 150, 125),
    Row("WRN-28-10", "wide_resnet28_10", 0.1, 0.05, 5e-4, 200, 160),
)
QUICK = (Row("ResNet-20", "resnet20", 0.1, 0.05, 5e-4, 4, 2),)


@dataclass(frozen=True)
class Setting:
    """What all runs share: the packed images, the folder of results, and how jobs are run."""

    images: Path
    dataset: StoredDataset
    facts: DatasetFacts
    out: Path
    device: str
    precision: str


class Shown(Silent):
    """A reporter that shows where the job is, and keeps nothing."""

    def __init__(self, label: str) -> None:
        self.label = label

    def heartbeat(self, progress: Progress) -> StopReason | None:
        if sys.stderr.isatty():
            print(f"\r{self.label}: {progress.fraction:.1%} ", end="", file=sys.stderr)
        return None


def measure(row: Row, seed: int, setting: Setting) -> dict[str, Any]:
    """Run one network and seed; return its accuracies on the images that were not trained on, by column."""
    folder = setting.out / f"{row.network}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "fresh.safetensors"
    if not fresh.exists():
        torch.manual_seed(seed)
        network = Network(row.network, len(setting.facts.classes), channels=setting.facts.shape.channels)
        write_safetensors(fresh, initialized(network).state_dict(), {})
    plain = list(_sgd(row, row.rate / 100, row.budget))
    sgd = _chain(row, seed, setting, folder / "sgd", fresh, plain)["accuracy"]
    most = round(SHARES[-1] * row.budget)
    swa = {"type": "swa", "epochs": most - row.sgd, "lr": row.swa_rate, "anneal_from": row.rate}
    pieces = [*_sgd(row, row.swa_rate, row.sgd), swa]
    curve = _chain(row, seed, setting, folder / "swa", fresh, pieces)["curve"]
    found = {f"SWA, {share:g} budgets": curve[str(round(share * row.budget) - row.sgd)] for share in SHARES}
    return {"network": row.label, "seed": seed, "SGD": sgd} | found


def _sgd(row: Row, last: float, epochs: int) -> Iterator[dict[str, Any]]:
    """Yield the methods of SGD's three pieces: the first rate, the line down, the last rate."""
    yield _plain(row.rate, row.rate, 0.5 * epochs)
    yield _plain(row.rate, last, 0.4 * epochs)
    yield _plain(last, last, 0.1 * epochs)


def _plain(lr: float, final: float, epochs: float) -> dict[str, Any]:
    shape = "constant" if lr == final else "linear"
    return {"type": "none", "shape": shape, "lr": lr, "final_lr": final, "epochs": epochs, "warmup_epochs": 0}


def _chain(
    row: Row, seed: int, setting: Setting, folder: Path, start: Path, methods: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Run jobs, each from the weights of the one before; return what the last one found."""
    found: dict[str, Any] = {}
    for number, method in enumerate(methods):
        piece = folder / str(number)
        kept, weights = piece / "found.json", piece / "weights.safetensors"
        if not kept.exists():
            piece.mkdir(parents=True, exist_ok=True)
            _job(row, seed, setting, piece, start, method)
        found, start = json.loads(kept.read_text()), weights
    return found


def _job(row: Row, seed: int, setting: Setting, piece: Path, start: Path, method: dict[str, Any]) -> None:
    """Run one job; leave its weights, and last its scores, in its folder."""
    workspace = Workspace(piece, device=setting.device, resume=latest(piece))
    network = Network(row.network, len(setting.facts.classes), channels=setting.facts.shape.channels)
    stored = StoredWeights(id="start", sha256="", blob="start", prefix="", network=network)
    shutil.copyfile(start, workspace.input(stored.blob))
    shutil.copyfile(setting.images, workspace.input(setting.dataset.blob))
    recipe = {
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": row.weight_decay, "no_bias_decay": False},
        "batch_size": BATCH,
        "image_size": SIDE,
        "augment": "pad_crop_flip",
        "precision": setting.precision,
    }
    options = JobOptions.model_validate({"method": method | {"back_off": False}, "recipe": recipe, "seed": seed})
    spec = prepare_job(options, stored, setting.dataset, setting.facts, workspace)
    outcome = run(spec, workspace, Shown(f"{row.label}, seed {seed}, {piece.parent.name} {piece.name}"))
    shutil.copyfile(outcome.weights, piece / "weights.safetensors")
    accuracies = {str(point.n): point.accuracy for point in outcome.result.curve}
    kept = {"accuracy": outcome.result.metrics.averaged.accuracy, "curve": accuracies}
    (piece / "found.json").write_text(json.dumps(kept))
    for used in [*piece.glob("snapshot-*"), *piece.glob("input-*"), *piece.glob("state-*")]:
        used.unlink()


# The images.


def pack(folder: Path, workspace: Workspace) -> tuple[StoredDataset, DatasetFacts]:
    """Pack a folder of images; `test` is taken as `val`, which the packing asks for. Raises Rejected, and SystemExit."""
    if (folder / "test").is_dir() and not (folder / "val").is_dir():
        with tempfile.TemporaryDirectory(prefix="wbar-images-") as name:
            shutil.copytree(folder / "train", Path(name) / "train")
            shutil.copytree(folder / "test", Path(name) / "val")
            dataset, facts = prepare_dataset(name, workspace)
    else:
        dataset, facts = prepare_dataset(str(folder), workspace)
    found = (facts.shape.height, facts.shape.width)
    if facts.many_sizes or found != (SIDE, SIDE):
        what = "many sizes" if facts.many_sizes else f"{found[0]} × {found[1]}"
        raise SystemExit(f"{folder}: images of {SIDE} × {SIDE} pixels are expected, {what} were found")
    return dataset, facts


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits as a folder like CIFAR's: 32 × 32 pixels, `train` and `test`, a folder per class."""
    from PIL import Image
    from torchvision.transforms.v2.functional import resize

    images, labels = digits()
    images, labels = images[::4], labels[::4]  # enough to see that everything works
    for index, (image, label) in enumerate(zip(resize(images, [SIDE, SIDE]), labels.tolist(), strict=True)):
        place = folder / ("test" if index % 5 == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{index}.png")


def main() -> int:
    options = _arguments()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    workspace = Workspace(out)
    if options.quick and options.folder is None:
        options.folder = out / "digits"
        write_digits(options.folder)
    dataset, facts = pack(options.folder, workspace)
    images = workspace.input(dataset.blob)
    setting = Setting(images, dataset, facts, out, options.device, options.precision)
    rows = QUICK if options.quick else [row for row in TABLE if row.network in (options.network or [row.network])]
    found = []
    for seed in range(options.seeds):
        for row in rows:
            found.append(measure(row, seed, setting))
            print(json.dumps(found[-1]), flush=True)
    page = "\n".join(table(found))
    (out / "table.md").write_text(page + "\n")
    print(page)
    return 0


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a markdown table: accuracy in percent, its mean and deviation over the seeds."""
    columns = ["SGD", *(f"SWA, {share:g} budgets" for share in SHARES)]
    yield f"| network | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for label in dict.fromkeys(line["network"] for line in found):
        cells = []
        for column in columns:
            values = [100 * line[column] for line in found if line["network"] == label]
            cells.append(f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else ""))
        yield f"| {label} | {' | '.join(cells)} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.swa_paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="images: train/<class>/ and val/<class>/ or test/<class>/")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", help="a recipe's; default: bfloat16 on a GPU, else float32")
    parser.add_argument("--network", choices=[row.network for row in TABLE], action="append", help="default: all three")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("swa-paper"), help="results and what a rerun goes on from")
    parser.add_argument("--quick", action="store_true", help="a small network for a few epochs: does it run?")
    options = parser.parse_args()
    if options.folder is None and not options.quick:
        parser.error("a folder of images is needed")
    return options


if __name__ == "__main__":
    sys.exit(main())
