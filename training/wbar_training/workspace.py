"""Where a job's files lie and what it runs on: all that an attempt needs beside the JobSpec, and that changes no number."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folder and the devices of one attempt.

    scratch: snapshots, resumable states and the result are written here. inputs: where start, dataset and other checkpoints
    lie; by default there too. device: `cpu` or `cuda`.
    threads: of torch on the CPU, None: torch's own choice; recorded in the resumable state. resume: the state to go on from.
    save_every_seconds: how far apart resumable states are within a phase. loaders: DataLoader processes, where images are
    decoded or augmented one by one.
    """

    scratch: Path
    inputs: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    resume: Path | None = None
    save_every_seconds: float = 60.0
    loaders: int = 0

    def input(self, blob: str) -> Path:
        """Where the blob of this sha256 lies (a safetensors file), once it has been fetched."""
        return (self.inputs or self.scratch) / f"input-{blob}.safetensors"

    def snapshot(self, n: int) -> Path:
        """Where snapshot n (from 1) is written."""
        return self.scratch / f"snapshot-{n:04d}.safetensors"
