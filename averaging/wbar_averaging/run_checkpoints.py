"""The checkpoints that a training run left in its folder, in the order of their steps.

A trainer writes `checkpoint-500`, `step_1000.safetensors`, `epoch=3-val_loss=0.45.ckpt`. Where a name says what it counts
(`step=7`, else `epoch=0-batch=100`), that counts; else its last whole number. A decimal fraction is a measurement, and the
`-v1` at an end one of several files of a step.
"""

import re
from pathlib import Path

from wbar_averaging.checkpoint_file import NO_WEIGHTS
from wbar_averaging.pytorch_file import UnreadableCheckpoint

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_COUNTED = re.compile(r"(?:^|[^a-z])(step|iter|iteration|epoch|batch)=(\d+)(?![.,]?\d)", re.IGNORECASE)
_FRACTION = re.compile(r"(?<![A-Za-z\d.])\d+\.\d+")
_VERSION = re.compile(r"-v\d+$")


def last_checkpoints(folder: Path, count: int | None) -> list[Path]:
    """Return the last `count` checkpoints in a run's folder, oldest first; None: all.

    Entries whose names have a number count: folders that hold a checkpoint's files, and files with a checkpoint's ending.
    Raises UnreadableCheckpoint where there are fewer, two of one step, or some that count epochs and some that do not;
    ValueError for a count below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"the last {count} checkpoints are none: at least 1 is needed")
    if any(folder.glob("*.index.json")):
        raise UnreadableCheckpoint(f"{folder}: holds an index, so it is one checkpoint and not a run's folder")
    steps, kinds = dict[tuple[int, ...], Path](), dict[str, Path]()
    for path in sorted(folder.iterdir()):
        step = _step_of(path.stem if path.is_file() else path.name)
        if step is None or path.name.startswith(".") or not _is_checkpoint(path):
            continue
        kind, number = step
        kinds.setdefault(kind, path)
        if number in steps:
            raise UnreadableCheckpoint(
                f"{folder}: {steps[number].name} and {path.name} are both of step {_shown(number)}"
            )
        steps[number] = path
    if "epoch" in kinds and len(kinds) > 1:
        other = next(path for kind, path in kinds.items() if kind != "epoch")
        raise UnreadableCheckpoint(
            f"{folder}: {kinds['epoch'].name} counts epochs and {other.name} something else: name the checkpoints, oldest first"
        )
    found = [steps[number] for number in sorted(steps)]
    if len(found) < (count or 1):
        raise UnreadableCheckpoint(
            f"{folder}: holds {len(found)} checkpoints with a step in their names (a decimal fraction is none), not "
            f"{count or 1}"
        )
    return found[-count:] if count else found


def _step_of(name: str) -> tuple[str, tuple[int, ...]] | None:
    """Return what a name counts by, and its numbers; None where it has no whole number."""
    counted = {word.lower(): int(number) for word, number in _COUNTED.findall(name)}
    whole = next((counted[word] for word in ("step", "iteration", "iter") if word in counted), None)
    if whole is None and counted:
        return "epoch" if "epoch" in counted else "step", tuple(counted[w] for w in ("epoch", "batch") if w in counted)
    if whole is None:
        plain = _FRACTION.sub("", name)
        found = re.findall(r"\d+", _VERSION.sub("", plain)) or re.findall(r"\d+", plain)
        whole = int(found[-1]) if found else None
    return None if whole is None else ("step", (whole,))


def _shown(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return any(entry.suffix in SUFFIXES and not NO_WEIGHTS.fullmatch(entry.name) for entry in path.iterdir())
    return path.suffix in SUFFIXES
