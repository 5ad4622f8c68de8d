"""A study of the batch size through the service: an untrained ResNet-20, batches 16 … 1,024, with and without a scaled rate.

    wbar up &
    python -m benchmarks.batch_study --dataset digits --out digits

Writes digits.json and two tables, digits.csv and digits-epochs.csv, and prints the groups as Markdown.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.start import write_start
from wbar.client import Client
from wbar.study_results import Spread, StudyReport

BATCHES, BASE, RATE = [16, 64, 256, 1024], 64, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("digits", "fashion-mnist"), default="digits")
    parser.add_argument("--images", type=int, default=None, help="training images, at most")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    with Client() as client, tempfile.TemporaryDirectory() as folder:
        checkpoint = client.checkpoints.create(write_start(Path(folder) / "start.safetensors"))
        dataset = client.datasets.create(f"builtin:{asked.dataset}", max_train_images=asked.images)
        job = {
            "checkpoint": checkpoint.id,
            "dataset": dataset.id,
            # The last weights themselves, scored after every epoch, at a constant rate.
            "method": {
                "type": "lawa", "window": 1, "snapshot_epochs": 1, "epochs": asked.epochs, "shape": "constant",
                "back_off": False,
            },
            "recipe": {"augment": "none", "optimizer": {"nesterov": False, "weight_decay": 0}},
            "flatness": True,
        }  # fmt: skip
        began = time.monotonic()
        study = client.studies.create(
            job, name=f"{asked.dataset}: batch", batch_sizes=BATCHES, rates=[RATE], scaling=["none", "linear"],
            base_batch=BASE, seeds=list(range(asked.seeds)), at_once=asked.at_once,
        )  # fmt: skip
        client.studies.wait(study.id)
        print(f"{study.jobs} jobs in {time.monotonic() - began:.0f} s, {asked.at_once} at a time\n")
        report = client.studies.report(study.id)
        asked.out.with_suffix(".json").write_text(report.model_dump_json(indent=1))
        asked.out.with_suffix(".csv").write_text(client.studies.report_csv(study.id))
        asked.out.with_name(f"{asked.out.name}-epochs.csv").write_text(client.studies.report_csv(study.id, "epochs"))
    print(markdown(report))


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
