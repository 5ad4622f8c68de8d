"""How a checkpoint's tensors differ from a network's: names that are missing or unexpected, and shapes."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wbar.errors import ArchitectureMismatch
from wbar_averaging.quoting import shown

Shapes = Mapping[str, tuple[int, ...]]

# Tensors a checkpoint may hold beyond the network that is trained: auxiliary heads are carried along unchanged (the
# mean of equal tensors), AveragedModel's counter is dropped on upload.
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
COUNTER = "num_batches_tracked"  # BatchNorm's, missing in checkpoints from before PyTorch 0.4.1
LISTED = 20  # at most this many keys of a kind in a message


def names_digest(tensor_names: Iterable[str]) -> str:
    """Return a digest of the names that every checkpoint of a network has, whatever its age and its auxiliary heads."""
    kept = (name for name in tensor_names if not name.endswith(COUNTER) and not name.startswith(AUXILIARY))
    return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Difference:
    """How a checkpoint's tensors differ from a network's, each list sorted.

    alike: tensors of one name and shape in both. mis_shaped: name, shape in the checkpoint, shape in the network.
    """

    alike: int
    missing: list[str]
    unexpected: list[str]
    mis_shaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def is_empty(self) -> bool:
        """Whether the tensors fit."""
        return not (self.missing or self.unexpected or self.mis_shaped)

    @property
    def likeness(self) -> float:
        """The share of equal tensors among all of both, from 0 to 1 (Jaccard's index)."""
        different = len(self.missing) + len(self.unexpected) + 2 * len(self.mis_shaped)
        return self.alike / max(1, self.alike + different)

    def text(self, name: str, listed: int = LISTED) -> str:
        """List what differs from network `name`, at most `listed` keys of each kind, with both shapes."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing: {_some(self.missing, listed)}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected: {_some([shown(key) for key in self.unexpected], listed)}")
        if self.mis_shaped:
            lines = [f"{key}: {here} in the checkpoint, {there} in {name}" for key, here, there in self.mis_shaped]
            parts.append(f"{len(lines)} of another shape: {_some(lines, listed)}")
        return "; ".join(parts)

    def details(self) -> dict[str, object]:
        """Return the same for programs."""
        return {
            "missing": self.missing[:LISTED],
            "unexpected": [shown(key) for key in self.unexpected[:LISTED]],  # the file's names, of any length
            "mis_shaped": [
                {"name": key, "checkpoint": list(here), "architecture": list(there)}
                for key, here, there in self.mis_shaped[:LISTED]
            ],
        }

    def error(self, name: str) -> ArchitectureMismatch:
        """Return the error that says what differs from network `name`."""
        error = ArchitectureMismatch(f"the tensors are not {name}'s; {self.text(name)}")
        error.details = self.details()
        return error


def compare(uploaded: Shapes, expected: Shapes) -> Difference:
    """Compare a checkpoint's tensors with those of a network. BatchNorm's counters and auxiliary heads are optional."""
    both = expected.keys() & uploaded.keys()
    mis_shaped = [(key, uploaded[key], expected[key]) for key in sorted(both) if expected[key] != uploaded[key]]
    return Difference(
        alike=len(both) - len(mis_shaped),
        missing=sorted(key for key in expected.keys() - both if not key.endswith(COUNTER)),
        unexpected=sorted(key for key in uploaded.keys() - both if not key.startswith(AUXILIARY)),
        mis_shaped=mis_shaped,
    )


def _some(lines: list[str], listed: int) -> str:
    return ", ".join(lines[:listed]) + (f" and {len(lines) - listed} more" if len(lines) > listed else "")
