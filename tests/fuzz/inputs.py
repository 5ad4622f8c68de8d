"""One hostile upload, and the valid ones that many are made from."""

import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import zstandard
from PIL import Image
from safetensors.torch import save

from tests.exporting import exported, own_net
from wbar.datasets import Task
from wbar.spec import Network
from wbar_training.networks.architectures import initialized

# A program names its own network.
Reader = Literal[
    "checkpoint", "program", "dataset", "multilabel", "attributes", "regression", "segmentation", "detection"
]
# The task of each reader of datasets.
TASKS: dict[Reader, Task] = {
    "dataset": "classification", "multilabel": "multilabel", "attributes": "attributes", "regression": "regression",
    "segmentation": "segmentation", "detection": "detection",
}  # fmt: skip
# What an accepted input may differ in from the valid file that it was made from:
# nothing; numbers, where the format has no checksum (names, shapes and dtypes stay); fewer pictures, each as it was, where
# the archive has no count and the pictures have checksums (a plain tar whose tail was overwritten by zeros is a shorter
# tar); other pictures, no more of them, where neither has. `never`: it must not be accepted.
Tolerance = Literal["never", "nothing", "numbers", "fewer", "pictures"]


@dataclass(frozen=True)
class Input:
    """A hostile upload. base: the name of the valid file that it was made from, in `BASES`."""

    kind: str
    reader: Reader
    data: bytes
    tolerance: Tolerance = "never"
    base: str = ""


@dataclass(frozen=True)
class Source:
    """What a generator draws from. canary: a folder in which a payload that runs leaves a file."""

    draws: random.Random
    canary: Path

    def command(self) -> str:
        """Return a shell command that leaves a file in the canary's folder."""
        return f"touch {self.canary}/{self.draws.randrange(10**9)}"


Generator = Callable[[Source], Input]


@cache
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(initialized(Network("resnet20", 10)).state_dict())


def saved(content: object, **options: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)  # type: ignore[arg-type]
    return out.getvalue()


@cache
def pictures() -> dict[str, bytes]:
    """Return a small dataset of all three formats: textured, so that flips change something."""
    draws = np.random.default_rng(0)
    members = {}
    for split, count in (("train", 3), ("val", 1)):
        for label in "ab":
            for number in range(count):
                kind = ("PNG", "JPEG", "WEBP")[number % 3]
                out = io.BytesIO()
                Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8)).save(out, kind)
                members[f"{split}/{label}/{number}.{kind.lower()}"] = out.getvalue()
    return members


@cache
def pngs() -> dict[str, bytes]:
    """Return the same of PNGs only, which have checksums of their own."""
    out = {}
    for name, data in pictures().items():
        written = io.BytesIO()
        Image.open(io.BytesIO(data)).save(written, "PNG")
        out[name.rpartition(".")[0] + ".png"] = written.getvalue()
    return out


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, method)
    return out.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


TABLE = b"image,red,green\ntrain/0.png,1,0\ntrain/1.png,1,1\ntrain/2.png,0,0\nval/0.png,0,1\n"


TARGETS = b"image,age,height\ntrain/0.png,31,1.74\ntrain/1.png,7.5,-1.2e1\ntrain/2.png,40,0\nval/0.png,20,1.6\n"
ATTRIBUTES = b"image,colour,size\ntrain/0.png,red,small\ntrain/1.png,blue,\ntrain/2.png,,large\nval/0.png,red,large\n"
NAMES = b"ground\nfigure\n"


def _four() -> list[bytes]:
    return [data for name, data in pngs().items() if name.startswith("train/a")] + [pngs()["val/a/0.png"]]


def labelled(table: bytes = TABLE) -> dict[str, bytes]:
    images = dict(zip(("train/0.png", "train/1.png", "train/2.png", "val/0.png"), _four(), strict=True))
    return images | {"labels.csv": table}


def targeted(table: bytes = TARGETS) -> dict[str, bytes]:
    images = {name: data for name, data in labelled().items() if name != "labels.csv"}
    return images | {"targets.csv": table}


def attributed(table: bytes = ATTRIBUTES) -> dict[str, bytes]:
    images = {name: data for name, data in labelled().items() if name != "labels.csv"}
    return images | {"attributes.csv": table}


def masked() -> dict[str, bytes]:
    """Return four images with a mask for each: labels 0 and 1, and some void."""
    members = {"classes.txt": NAMES}
    for number, data in enumerate(_four()):
        split, mask, out = "val" if number == 3 else "train", np.zeros((16, 16), np.uint8), io.BytesIO()
        mask[4:10, number : number + 6], mask[0] = 1, 255
        Image.fromarray(mask).save(out, "PNG")
        members |= {f"{split}/images/{number}.png": data, f"{split}/masks/{number}.png": out.getvalue()}
    return members


def annotations(split: str) -> dict[str, Any]:
    """Return COCO's annotations of the three images of train, or the one of val: a figure on each."""
    numbers = (3,) if split == "val" else (0, 1, 2)
    return {
        "images": [{"id": n + 1, "file_name": f"{n}.png", "width": 16, "height": 16} for n in numbers],
        "categories": [{"id": 5, "name": "figure"}],
        "annotations": [
            {"id": n + 1, "image_id": n + 1, "category_id": 5, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0}
            for n in numbers
        ],
    }


def boxed() -> dict[str, bytes]:
    """Return four images with a box on each, in COCO's JSON."""
    members = {f"{split}/annotations.json": json.dumps(annotations(split)).encode() for split in ("train", "val")}
    for number, data in enumerate(_four()):
        members[f"{'val' if number == 3 else 'train'}/images/{number}.png"] = data
    return members


def vocs() -> dict[str, bytes]:
    """Return the same in Pascal VOC's own folders."""
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    members = {"VOC/ImageSets/Main/train.txt": b"0\n1\n2\n", "VOC/ImageSets/Main/val.txt": b"3\n"}
    for number, data in enumerate(_four()):
        tree = f"<annotation><object><name>figure</name>{box}</object></annotation>"
        members |= {f"VOC/JPEGImages/{number}.png": data, f"VOC/Annotations/{number}.xml": tree.encode()}
    return members


def _zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


# The valid files. Where content has no checksum of its own, an accepted mutation may differ in it.
BASES: dict[str, tuple[Reader, Tolerance, Callable[[], bytes]]] = {
    "safetensors": ("checkpoint", "numbers", cache(lambda: save(state()))),
    "pytorch": ("checkpoint", "nothing", cache(lambda: saved(state()))),
    "pytorch legacy": ("checkpoint", "numbers", cache(lambda: saved(state(), _use_new_zipfile_serialization=False))),
    "exported": ("program", "nothing", cache(lambda: exported(own_net()))),
    "zip": ("dataset", "nothing", cache(lambda: zipped(pictures()))),
    "zip stored": ("dataset", "nothing", cache(lambda: zipped(pictures(), zipfile.ZIP_STORED))),
    "tar": ("dataset", "pictures", cache(lambda: tarred(pictures()))),
    "tar of pngs": ("dataset", "fewer", cache(lambda: tarred(pngs()))),
    "tar.gz": ("dataset", "nothing", cache(lambda: gzip.compress(tarred(pictures()), mtime=0))),
    "tar.zst": ("dataset", "nothing", cache(lambda: _zst(tarred(pictures())))),
    "multilabel": ("multilabel", "nothing", cache(lambda: zipped(labelled()))),
    "attributes": ("attributes", "nothing", cache(lambda: zipped(attributed()))),
    "regression": ("regression", "nothing", cache(lambda: zipped(targeted()))),
    "segmentation": ("segmentation", "nothing", cache(lambda: zipped(masked()))),
    "detection": ("detection", "nothing", cache(lambda: zipped(boxed()))),
    "voc": ("detection", "nothing", cache(lambda: zipped(vocs()))),
}
