"""The files and devices of a job: all that an attempt needs beside the JobSpec, and that changes no number."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folder and the devices of one attempt.

    scratch: snapshots, resumable states and the result are written here.
    inputs: the folder of start, dataset and other checkpoints; None: `scratch`.
    device: `cpu` or `cuda`.
    threads: of torch on the CPU, recorded in the resumable state; None: torch's own choice.
    resume: the state to go on from.
    save_every_seconds: the longest time between resumable states within a phase.
    loaders: DataLoader processes, where images are decoded or augmented one by one.
    shared: the folder of what the jobs of a study find out once on this host; None: the job is of none.
    """

    scratch: Path
    inputs: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    resume: Path | None = None
    save_every_seconds: float = 60.0
    loaders: int = 0
    shared: Path | None = None

    def input(self, blob: str) -> Path:
        """Return the path of the blob of this sha256 (a safetensors file), once it has been fetched."""
        return (self.inputs or self.scratch) / f"input-{blob}.safetensors"

    def replica(self, n: int) -> Path:
        """Return the path of the exact sums of replica n (from 1), as `exact_mean.write` made them, once fetched."""
        return self.scratch / f"replica-{n:04d}.safetensors"

    def replica_result(self, n: int) -> Path:
        """Return the path of the result of replica n (from 1), a wbar.results.JobResult as JSON, once fetched."""
        return self.scratch / f"replica-{n:04d}.json"

    def met(self, n: int, replica: int) -> Path:
        """Return the path of snapshot n of replica `replica` (both from 1), after which the replicas meet, once fetched."""
        return self.scratch / f"met-{n:04d}-{replica:04d}.safetensors"

    def all_met(self) -> list[Path]:
        """Return the paths of all such snapshots that are there."""
        return sorted(self.scratch.glob("met-*.safetensors"))

    def snapshot(self, n: int) -> Path:
        """Return the path of snapshot n (from 1)."""
        return self.scratch / f"snapshot-{n:04d}.safetensors"
