"""A study of the batch size through the service: an untrained ResNet-20, batches 16 … 1,024, with and without a scaled rate.

    wbar up &
    python -m benchmarks.batch_study --dataset digits --out digits
    python -m benchmarks.batch_study --dataset fashion-mnist --out fashion --minutes 24

Fashion-MNIST is packed smaller: so many images, of so many pixels a side, that the study ends in half an hour on two cores.
`--minutes` bounds it: what has not ended by then is cancelled, and the report is of what has.

Writes OUT.json and four tables (OUT.csv, OUT-epochs.csv, OUT-updates.csv, OUT-surface.csv), and prints the groups as Markdown.
"""

import argparse
import io
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.start import write_start
from wbar.client import Client
from wbar.errors import InvalidTransition
from wbar.study_results import ReportRows, Spread, StudyReport
from wbar_training.uploads.builtin_images import fashion

BATCHES, BASE, RATE = [16, 64, 256, 1024], 64, 0.05


@dataclass(frozen=True)
class Size:
    """What a study is run on by default. images, held_out: 0 where the dataset is taken whole. side: pixels."""

    images: int
    held_out: int
    side: int
    epochs: int
    seeds: int


SIZES = {"digits": Size(0, 0, 8, 15, 2), "fashion-mnist": Size(4000, 1000, 14, 10, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=tuple(SIZES), default="digits")
    parser.add_argument("--images", type=int, help="training images, at most; fashion-mnist: 4,000")
    parser.add_argument("--held-out", type=int, help="of fashion-mnist, of its test images; 1,000")
    parser.add_argument("--side", type=int, help="of fashion-mnist, pixels of an image's side; 14")
    parser.add_argument("--epochs", type=int, help="digits: 15, fashion-mnist: 10")
    parser.add_argument("--seeds", type=int, help="digits: 2, fashion-mnist: 1")
    parser.add_argument("--surface", type=int, default=0, help="points along a side of the loss surfaces; 0: none")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="after which the jobs that have not ended are cancelled")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    size = _size(asked)
    with Client() as client, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = client.checkpoints.create(write_start(folder / "start.safetensors"))
        if asked.dataset == "digits":
            dataset = client.datasets.create("builtin:digits", max_train_images=size.images or None)
        else:
            dataset = client.datasets.create(write_fashion(folder / "fashion.zip", size))
        job = {
            "checkpoint": checkpoint.id,
            "dataset": dataset.id,
            # The last weights themselves, scored after every epoch, at a constant rate.
            "method": {
                "type": "lawa", "window": 1, "snapshot_epochs": 1, "epochs": size.epochs, "shape": "constant",
                "back_off": False,
            },
            "recipe": {"augment": "none", "optimizer": {"nesterov": False, "weight_decay": 0}},
            "flatness": True,
            "surface": {"points": asked.surface, "around": ["averaged"]} if asked.surface else None,
        }  # fmt: skip
        began = time.monotonic()
        study = client.studies.create(
            job, name=f"{asked.dataset}: batch", batch_sizes=BATCHES, rates=[RATE], scaling=["none", "linear"],
            base_batch=BASE, seeds=list(range(size.seeds)), at_once=asked.at_once,
        )  # fmt: skip
        print(f"{study.id}: {study.jobs} jobs, {size}", flush=True)
        try:
            client.studies.wait(study.id, timeout=None if asked.minutes is None else 60 * asked.minutes)
        except TimeoutError:
            with suppress(InvalidTransition):  # the last one has ended just now
                client.studies.cancel(study.id)
            study = client.studies.get(study.id)
            print(f"cancelled after {asked.minutes:g} minutes: {study.counts}")
        print(f"{study.jobs} jobs in {time.monotonic() - began:.0f} s, {asked.at_once} at a time\n")
        report = client.studies.report(study.id)
        asked.out.with_suffix(".json").write_text(report.model_dump_json(indent=1))
        asked.out.with_suffix(".csv").write_text(client.studies.report_csv(study.id))
        tables: tuple[ReportRows, ...] = ("epochs", "updates", "surface")
        for rows in tables:
            asked.out.with_name(f"{asked.out.name}-{rows}.csv").write_text(client.studies.report_csv(study.id, rows))
    print(markdown(report))


def _size(asked: argparse.Namespace) -> Size:
    usual = SIZES[asked.dataset]
    given = {name: getattr(asked, name) for name in vars(usual) if getattr(asked, name) is not None}
    return Size(**{**vars(usual), **given})


def write_fashion(path: Path, size: Size) -> Path:
    """Write the first images of Fashion-MNIST as an archive of PNGs, made smaller by averaging."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, kind, count in (("train", "train", size.images), ("val", "t10k", size.held_out)):
            images, labels = fashion(kind)
            for n, (image, label) in enumerate(zip(images[:count], labels[:count].tolist(), strict=True)):
                png = io.BytesIO()
                small = Image.fromarray(image[0].numpy()).resize((size.side, size.side), Image.Resampling.BOX)
                small.save(png, "PNG")
                archive.writestr(zipfile.ZipInfo(f"{split}/{label}/{n:05d}.png"), png.getvalue())
    return path


def markdown(report: StudyReport) -> str:
    """The groups of the report as a table: mean ± standard error over the seeds."""
    lines = [
        "| batch | rate | lowest validation loss, tracked BatchNorm | recomputed | at epoch | after s | "
        "accuracy at the end | s/epoch | ‖w − w₀‖ | "
        "sharpness 1e-3 % | 5e-4 % | λ₁ |",
        "|" + "---|" * 12,
    ]
    for group in sorted(report.groups, key=lambda one: (one.settings.batch_size or 0, one.settings.lr or 0)):
        cells = (
            f"{group.settings.batch_size}", f"{group.settings.lr:g}", _shown(group.min_val_loss, 3),
            _shown(group.min_averaged_loss, 3), _shown(group.min_averaged_epoch, 1),
            _shown(group.min_averaged_seconds, 1), _shown(group.accuracy, 3), _shown(group.seconds_per_epoch, 2),
            _shown(group.distance, 1), _shown(group.sharpness, 1), _shown(group.sharpness_half, 1),
            _shown(group.top_eigenvalue, 2),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "–"
    error = "" if spread.error is None else f" ± {spread.error:.{digits}f}"
    return f"{spread.mean:.{digits}f}{error}"


if __name__ == "__main__":
    main()
