"""The checkpoints that a training run left in its folder, in the order of their steps.

A trainer writes `checkpoint-500`, `step_1000.safetensors`, `epoch=3.pt`: the last number in a name is the step, or what counts
like it.
"""

import re
from pathlib import Path

from wbar_averaging.pytorch_file import UnreadableCheckpoint

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_STEP = re.compile(r"(\d+)(?!.*\d)")


def last_checkpoints(folder: Path, count: int | None) -> list[Path]:
    """Return the last `count` checkpoints in a run's folder, oldest first; None: all.

    Entries whose names have a number count: folders that hold a checkpoint's files, and files with a checkpoint's ending.
    Raises UnreadableCheckpoint where there are fewer, or two of one step; ValueError for a count below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"the last {count} checkpoints are none: at least 1 is needed")
    if any(folder.glob("*.index.json")):
        raise UnreadableCheckpoint(f"{folder}: holds an index, so it is one checkpoint and not a run's folder")
    steps = dict[int, Path]()
    for path in sorted(folder.iterdir()):
        step = _STEP.search(path.stem if path.is_file() else path.name)
        if step is None or path.name.startswith(".") or not _is_checkpoint(path):
            continue
        number = int(step.group())
        if number in steps:
            raise UnreadableCheckpoint(f"{folder}: {steps[number].name} and {path.name} are both of step {number}")
        steps[number] = path
    found = [steps[number] for number in sorted(steps)]
    if len(found) < (count or 1):
        raise UnreadableCheckpoint(
            f"{folder}: holds {len(found)} checkpoints with a step in their names, not {count or 1}"
        )
    return found[-count:] if count else found


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return any(entry.suffix in SUFFIXES for entry in path.iterdir())
    return path.suffix in SUFFIXES
