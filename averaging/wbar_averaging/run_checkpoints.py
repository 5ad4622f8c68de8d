"""The checkpoints that a training run left in its folder, in the order of their steps.

A trainer writes `checkpoint-500`, `step_1000.safetensors`, `epoch=3-val_loss=0.45.ckpt`. The number after `step` counts, or
else that after `epoch`, or else the last whole number of the name; a decimal fraction is a measurement and never a step.
"""

import re
from pathlib import Path

from wbar_averaging.pytorch_file import UnreadableCheckpoint

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_NAMED = tuple(
    (word, re.compile(rf"(?:^|[^a-z]){word}s?[ =_-]?(\d+)(?![.,]?\d)", re.IGNORECASE)) for word in ("step", "epoch")
)
_WHOLE = re.compile(r"(?<!\d)(?<!\d[.,])(\d+)(?![.,]?\d)")


def last_checkpoints(folder: Path, count: int | None) -> list[Path]:
    """Return the last `count` checkpoints in a run's folder, oldest first; None: all.

    Entries whose names have a number count: folders that hold a checkpoint's files, and files with a checkpoint's ending.
    Raises UnreadableCheckpoint where there are fewer, two of one step, or some named by steps and some by epochs; ValueError
    for a count below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"the last {count} checkpoints are none: at least 1 is needed")
    if any(folder.glob("*.index.json")):
        raise UnreadableCheckpoint(f"{folder}: holds an index, so it is one checkpoint and not a run's folder")
    steps, kinds = dict[int, Path](), dict[str, Path]()
    for path in sorted(folder.iterdir()):
        step = _step_of(path.stem if path.is_file() else path.name)
        if step is None or path.name.startswith(".") or not _is_checkpoint(path):
            continue
        kind, number = step
        kinds.setdefault(kind, path)
        if number in steps:
            raise UnreadableCheckpoint(f"{folder}: {steps[number].name} and {path.name} are both of step {number}")
        steps[number] = path
    if "epoch" in kinds and len(kinds) > 1:
        other = next(path for kind, path in kinds.items() if kind != "epoch")
        raise UnreadableCheckpoint(
            f"{folder}: {kinds['epoch'].name} counts epochs and {other.name} something else: name the checkpoints, oldest first"
        )
    found = [steps[number] for number in sorted(steps)]
    if len(found) < (count or 1):
        raise UnreadableCheckpoint(
            f"{folder}: holds {len(found)} checkpoints with a step in their names, not {count or 1}"
        )
    return found[-count:] if count else found


def _step_of(name: str) -> tuple[str, int] | None:
    """Return what a name counts by, and the number; None where it has no whole number."""
    for word, pattern in _NAMED:
        found = pattern.findall(name)
        if found:
            return word, int(found[-1])
    found = _WHOLE.findall(name)
    return ("step", int(found[-1])) if found else None


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return any(entry.suffix in SUFFIXES for entry in path.iterdir())
    return path.suffix in SUFFIXES
