"""`python -m benchmarks.golden record FOLDER` and `compare FOLDER`: do two versions give the same bytes?

One small job of every kind goes through a real `wbar up`; kept are the digests of w̄'s and every snapshot's tensors, the
result's numbers and the training series. The bits belong to a machine and a torch, so this is a tool for whoever rebuilds
something, run before and after on one machine, and no test. In results, what was uploaded has its name of
`Recording.names` in place of its id.
"""

import argparse
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from sklearn.datasets import load_digits

from benchmarks import shapes
from benchmarks.running import running, wait_until
from wbar.spec import Network
from wbar_training.demo.start import train_start
from wbar_training.networks.architectures import initialized

SHORT: dict[str, Any] = {"cycles": 3, "high": {"epochs": 1}, "low": {"epochs": 1}}
ENDED = ("succeeded", "failed", "cancelled")

# By name: the body of POST /v1/jobs beside the checkpoint and the digits. Names in capitals: see `_post`.
JOBS: dict[str, dict[str, Any]] = {
    "cyclic": {"method": SHORT},
    "cyclic-start-pull": {"method": SHORT | {"include_start": True, "pull": 0.01, "pull_in": "late"}},
    "cyclic-shapes": {
        "method": {
            "cycles": 2,
            "high": {"epochs": 2, "shape": "cosine", "warmup_epochs": 0.5, "lr": 0.05},
            "low": {"lr": 0.002},
        }
    },
    "cyclic-greedy-stop": {"method": SHORT | {"average": "greedy"}, "recipe": {"early_stopping": 2}},
    "cyclic-window": {"method": SHORT | {"average": "window"}},
    "auto": {"method": {"type": "auto", "epochs": 6, "control": True, "guard": True}},
    "swa-anneal": {"method": {"type": "swa", "epochs": 5, "anneal_epochs": 2}},
    "ema": {"method": {"type": "ema", "epochs": 4, "decay": 0.99}},
    "lawa": {"method": {"type": "lawa", "epochs": 4, "window": 2}},
    "none": {"method": {"type": "none", "epochs": 4}},
    "soup": {"method": {"type": "soup", "checkpoints": ["START", "SECOND"], "weights": [1, 3]}},
    "soup-greedy": {"method": {"type": "soup", "checkpoints": ["START", "SECOND"], "average": "greedy"}},
    "ranks": {"method": SHORT, "recipe": {"devices": 2, "batch_size": 32}},
    "mixup-accumulate": {
        "method": SHORT,
        "recipe": {"mixup": 0.2, "cutmix": 1.0, "accumulate": 2, "label_smoothing": 0.1},
    },
    "distillation": {"method": SHORT, "recipe": {"distillation": {"teacher": "FIRST", "temperature": 2}}},
    "multilabel": {"dataset": "MULTILABEL", "method": SHORT, "recipe": {"head": "reset"}},
    "regression": {
        "checkpoint": "NUMBERS_START",
        "dataset": "NUMBERS",
        "method": SHORT | {"average": "window", "control": True},
        "recipe": {"loss": "huber", "huber_delta": 1.5},
    },
    "segmentation": {
        "checkpoint": "MASKS_START",
        "dataset": "MASKS",
        "method": {"cycles": 2, "high": {"lr": 0.02, "shape": "poly"}, "low": {"lr": 0.002}},
        "recipe": {"dice": 0.5, "class_weights": "balanced"},
    },
    "attributes-probe": {
        "checkpoint": "ATTRIBUTES_START",
        "dataset": "ATTRIBUTES",
        "probe": "FIVE",
        "method": SHORT | {"average": "window"},
        "recipe": {"class_weights": "balanced"},
    },
    "detection": {
        "checkpoint": "BOXES_START",
        "dataset": "BOXES",
        "method": {"cycles": 2, "high": {"lr": 0.01}, "low": {"lr": 0.001}},
        "recipe": {"batch_norm": "recompute", "batch_size": 4},
    },
    "instance-masks": {
        "checkpoint": "INSTANCES_START",
        "dataset": "BOXES",
        "method": {"cycles": 2, "high": {"lr": 0.005}, "low": {"lr": 0.0005}},
        "recipe": {"batch_norm": "recompute", "batch_size": 4},
    },
    "replicas-that-meet": {"method": SHORT | {"replicas": 2, "join_every": 1, "control": True}},
    "new-head": {
        "dataset": "FIVE",
        "method": SHORT,
        "recipe": {"head": "reset", "freeze": ["conv1.*"], "reset": ["layer3.2.*"]},
    },
    "swag-flatness": {"method": {"cycles": 2}, "swag": 3, "flatness": True},
    "adamw-bfloat16": {
        "method": SHORT,
        "recipe": {
            "optimizer": {"name": "adamw"},
            "precision": "bfloat16",
            "class_weights": "balanced",
            "grad_clip_norm": 1.0,
        },
    },
    "rand-augment": {"method": {"cycles": 1}, "recipe": {"augment": "rand_augment"}},
}


def _archive(multilabel: bool, classes: int) -> bytes:
    """A zip of digits: 20 training and 10 held-out images of each of the first classes."""
    digits, out, rows = load_digits(), io.BytesIO(), ["image," + ",".join(f"c{n}" for n in range(classes))]
    with zipfile.ZipFile(out, "w") as archive:
        for label in range(classes):
            for position, index in enumerate(np.flatnonzero(digits.target == label)[:30]):
                png = io.BytesIO()
                Image.fromarray((digits.images[index] * 15.9).astype(np.uint8)).save(png, "PNG")
                split = "train" if position < 20 else "val"
                name = f"{split}/{index:04d}.png" if multilabel else f"{split}/{label}/{index:04d}.png"
                archive.writestr(zipfile.ZipInfo(name), png.getvalue())
                marks = [int(n == label or (n % 2 == label % 2 and index % 3 == 0)) for n in range(classes)]
                rows.append(f"{name}," + ",".join(map(str, marks)))
        if multilabel:
            archive.writestr(zipfile.ZipInfo("labels.csv"), "\n".join(rows) + "\n")
    return out.getvalue()


def _table(name: str, header: str, row: Callable[[Any, int], str]) -> bytes:
    """A zip of digits and a table of what is known of each. row: of a digit's pixels, (8, 8), and which it is."""
    digits, out, rows = load_digits(), io.BytesIO(), [f"image,{header}"]
    with zipfile.ZipFile(out, "w") as archive:
        for index, (image, digit) in enumerate(zip(digits.images[:160], digits.target[:160], strict=True)):
            png, path = io.BytesIO(), f"{'train' if index < 120 else 'val'}/{index:04d}.png"
            Image.fromarray((image * 15.9).astype(np.uint8)).save(png, "PNG")
            archive.writestr(zipfile.ZipInfo(path), png.getvalue())
            rows.append(f"{path},{row(image, digit)}")
        archive.writestr(zipfile.ZipInfo(name), "\n".join(rows) + "\n")
    return out.getvalue()


def _numbers() -> bytes:
    """Digits with two targets: the ink, and the height of its centre, in units that differ."""
    return _table(
        "targets.csv",
        "ink,height",
        lambda image, _: f"{1000 * image.sum():g},{0.01 * (image.sum(axis=1) @ range(8)) / image.sum():.6f}",
    )


def _attributes() -> bytes:
    """Digits with two attributes, of which the second is not known of every seventh class."""
    size = ("small", "small", "small", "middle", "middle", "middle", "middle", "", "large", "large")
    return _table("attributes.csv", "parity,size", lambda _, digit: f"{'odd' if digit % 2 else 'even'},{size[digit]}")


def _fresh(name: str, outputs: int) -> bytes:
    """A network's weights as they are initialized."""
    torch.manual_seed(0)
    return save({key: one.contiguous() for key, one in initialized(Network(name, outputs)).state_dict().items()})


def _masks(folder: Path) -> bytes:
    path = folder / "masks.zip"
    shapes.write_archive(path, 16, 8, [(48, 48), (40, 56)])
    return path.read_bytes()


def _boxes(folder: Path) -> bytes:
    path = folder / "boxes.zip"
    shapes.write_boxes_archive(path, 8, 4, [(64, 64), (64, 80)], masks=True)
    return path.read_bytes()


def _tensors(data: bytes, folder: Path) -> str:
    """The digest of a safetensors file's tensors: names, shapes, types and bytes, without the header's metadata."""
    path, digest = folder / "weights.safetensors", hashlib.sha256()
    path.write_bytes(data)
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


class Recording:
    """The jobs of one running service, and what they gave."""

    def __init__(self, http: httpx.Client, folder: Path) -> None:
        self.http, self.folder = http, folder
        start = folder / "start.safetensors"
        if not start.exists():
            train_start("builtin:digits", 300, 4, 0, folder / "training", lambda *_: None).rename(start)
        self.names = {
            "START": self._upload("/v1/checkpoints", start.read_bytes()),
            "DIGITS": self._ready("/v1/datasets", json={"source": "builtin:digits", "max_train_images": 400}),
            "MULTILABEL": self._upload("/v1/datasets?task=multilabel", _archive(True, 10)),
            "FIVE": self._upload("/v1/datasets", _archive(False, 5)),
            "NUMBERS": self._upload("/v1/datasets?task=regression", _numbers()),
            "NUMBERS_START": self._upload("/v1/checkpoints", _fresh("resnet20", 2)),
            "MASKS": self._upload("/v1/datasets?task=segmentation", _masks(folder)),
            "MASKS_START": self._upload("/v1/checkpoints", _fresh("lraspp_mobilenet_v3_large", len(shapes.CLASSES))),
            "ATTRIBUTES": self._upload("/v1/datasets?task=attributes", _attributes()),
            "ATTRIBUTES_START": self._upload("/v1/checkpoints", _fresh("resnet20", 5)),
            "BOXES": self._upload("/v1/datasets?task=detection", _boxes(folder)),
            "BOXES_START": self._upload(
                "/v1/checkpoints", _fresh("ssdlite320_mobilenet_v3_large", len(shapes.CLASSES))
            ),
            "INSTANCES_START": self._upload("/v1/checkpoints", _fresh("maskrcnn_resnet18_96_fpn", len(shapes.CLASSES))),
        }

    def _upload(self, path: str, data: bytes) -> str:
        return self._ready(path, content=data, headers={"Content-Type": "application/octet-stream"})

    def _ready(self, path: str, **request: Any) -> str:
        made = self.http.post(path, **request).raise_for_status().json()
        where = f"{path.split('?')[0]}/{made['id']}"
        wait_until(lambda: self.http.get(where).json()["status"] != "processing", 120, f"{path} to be ready")
        answer = self.http.get(where).json()
        if answer["status"] != "ready":
            raise RuntimeError(f"{path}: {answer['error']}")
        return str(made["id"])

    def _post(self, body: dict[str, Any]) -> str:
        text = json.dumps({"checkpoint": "START", "dataset": "DIGITS", **body})
        for name, known in self.names.items():
            text = text.replace(f'"{name}"', f'"{known}"')
        answer = self.http.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"})
        if answer.is_error:
            raise RuntimeError(answer.text)
        return str(answer.json()["id"])

    def _without_ids(self, text: str) -> str:
        """Return a text with the names of what was uploaded: its ids are others in each run."""
        for name, known in self.names.items():
            text = text.replace(f'"{known}"', f'"{name}"')
        return text

    def run(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        job = self._post(body)
        where = f"/v1/jobs/{job}"
        wait_until(lambda: self.http.get(where).json()["status"] in ENDED, 600, name)
        ended = self.http.get(where).json()
        if ended["status"] != "succeeded":
            return {"status": ended["status"], "error": ended["error"]}
        if name == "cyclic":
            self.names["FIRST"] = job
            last = self.http.get(f"{where}/snapshots/3/weights").content
            self.names["SECOND"] = self._upload("/v1/checkpoints", last)
        result = json.loads(self._without_ids(json.dumps(ended["result"])))
        result.pop("weights")
        points = self.http.get(f"{where}/metrics").json()["data"]
        for point in points:
            point.pop("images_per_second")
        count = len(self.http.get(f"{where}/snapshots?limit=100").json()["data"])
        beside = {"control": f"{where}/weights?which=control", "probe": f"{where}/probe"}
        there = {what: answer for what, path in beside.items() if (answer := self.http.get(path)).is_success}
        return {
            **{what: hashlib.sha256(answer.content).hexdigest() for what, answer in there.items()},
            "weights": _tensors(self.http.get(f"{where}/weights").content, self.folder),
            "snapshots": [
                _tensors(self.http.get(f"{where}/snapshots/{n}/weights").content, self.folder)
                for n in range(1, count + 1)
            ],
            "result": result,
            "metrics": hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest(),
            "loss": [point["loss"] for point in points][-3:],
        }


def _record(folder: Path, only: list[str]) -> dict[str, Any]:
    with running() as service:
        headers = {"Authorization": f"Bearer {service.api_key}"}
        with httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False) as http:
            recording, found = Recording(http, folder), {}
            for name, body in JOBS.items():
                if only and name not in only and name != "cyclic":  # others need its snapshots
                    continue
                found[name] = recording.run(name, body)
                print(name, str(found[name].get("weights", found[name]))[:80], flush=True)
            return found


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Every place where two recordings differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        missing = "(absent)"
        return [
            line
            for key in keys
            for line in differences(before.get(key, missing), after.get(key, missing), f"{place}/{key}")
        ]
    return [] if before == after else [f"{place}: {str(before)[:160]} -> {str(after)[:160]}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    found = _record(asked.folder, asked.only)
    name = asked.folder / ("before.json" if asked.action == "record" else "after.json")
    name.write_text(json.dumps(found, indent=1))
    if asked.action == "record":
        return
    before = {job: old for job, old in json.loads((asked.folder / "before.json").read_text()).items() if job in found}
    lines = differences(before, found)
    print("\n".join(lines) or f"{len(found)} jobs: the same bytes and numbers")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
