"""Networks that no catalog has, exported as a user would export them."""

import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tests.training.jobs import LocalJob, make_job
from wbar.method import Soup, Training
from wbar.spec import StoredWeights
from wbar_training.uploads.checkpoint_files import ValidCheckpoint, validate


class Block(nn.Module):
    """A residual block that is left out now and then."""

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.depth = StochasticDepth(rate, "row")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.depth(F.relu(self.norm(self.conv(x)), inplace=True))


class OwnNet(nn.Module):
    """BatchNorm, dropout, stochastic depth, a bare parameter, a buffer that no state dict has, and a constant."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.blocks = nn.ModuleList(Block(8, rate) for rate in (0.0, 0.2))
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.register_buffer("grid", torch.linspace(0, 1, 8), persistent=False)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8 * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = F.max_pool2d(x * self.scale + self.grid - torch.tensor(0.5), 2)
        logits: Tensor = self.head(self.drop(x.view(x.shape[0], -1)))
        return logits


def own_net(**sizes: int) -> OwnNet:
    torch.manual_seed(5)
    return OwnNet(**sizes)


def program_of(network: nn.Module, shape: tuple[int, ...] = (3, 8, 8), batch: Any = None) -> Any:
    """Return torch's ExportedProgram of a network, in the mode that it is in."""
    sizes = ({0: torch.export.Dim("batch") if batch is None else batch},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(network, (torch.randn(2, *shape),), dynamic_shapes=sizes)


def saved(program: Any) -> bytes:
    out = io.BytesIO()
    torch.export.save(program, out)
    return out.getvalue()


def exported(network: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> bytes:
    """Return the archive of a network in training mode, with a free batch size."""
    return saved(program_of(network.train(), shape))


def old_layout(program: Any) -> bytes:
    """Return the archive that torch 2.1 to 2.7 wrote: the same parts, each as torch.save wrote it."""
    import zipfile

    from torch._export.serde.serialize import serialize

    artifact, out = serialize(program), io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", artifact.exported_program)
        archive.writestr("serialized_state_dict.pt", artifact.state_dict)
        archive.writestr("serialized_constants.pt", artifact.constants)
        archive.writestr("serialized_example_inputs.pt", artifact.example_inputs)
    return out.getvalue()


def middle_layout(program: Any) -> bytes:
    """Return an archive with today's places and each part as torch.save wrote it, as torch 2.8 did."""
    import zipfile

    from torch._export.serde.serialize import serialize

    artifact, out = serialize(program), io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/byteorder", "little")
        archive.writestr("m/models/model.json", artifact.exported_program)
        archive.writestr("m/data/weights/model.pt", artifact.state_dict)
        archive.writestr("m/data/constants/model.pt", artifact.constants)
        archive.writestr("m/data/sample_inputs/model.pt", artifact.example_inputs)
    return out.getvalue()


def rezipped(data: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> bytes:
    """Write an archive again, entry by entry, stored. change: of the name below the archive's folder, and the content."""
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            root, _, name = entry.filename.partition("/")
            for other, content in change(name, old.read(entry)):
                new.writestr(f"{root}/{other}", content)
    return out.getvalue()


def uploaded(folder: Path, data: bytes, out: Path | None = None) -> ValidCheckpoint:
    """Validate an archive as the worker does. Raises Rejected."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "upload").write_bytes(data)
    return validate(folder / "upload", None, None, out or folder / "out.safetensors")


def exported_job(folder: Path, data: bytes, method: Training | Soup | None = None, **changes: object) -> LocalJob:
    """A job like those of `make_job`, on an archive."""
    job = make_job(folder, **({"method": method} if method else {}), **changes)  # type: ignore[arg-type]
    found = uploaded(folder, data, job.workspace.input("start"))
    assert found.network is not None
    start = StoredWeights(id="ckpt_start", sha256="0" * 64, blob="start", prefix="", network=found.network)
    classes = len(job.spec.classes) if job.spec.classes else found.network.num_classes
    return job.changed(start=start, network=replace(found.network, num_classes=classes))
