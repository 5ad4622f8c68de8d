"""The checkpoints that a training run left in its folder, in the order of their steps.

A trainer writes `checkpoint-500`, `step_1000.safetensors`, `epoch=3-val_loss=0.45.ckpt`. The number after the last word for
steps counts, or else those after `epoch` and `batch`, or else the last whole number. A decimal fraction is a measurement (but
for a version's, `v1.5`), and the `-v1` at an end one of several files of a step.
"""

import re
from pathlib import Path

from wbar_averaging.checkpoint_file import NO_WEIGHTS
from wbar_averaging.pytorch_file import UnreadableCheckpoint

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_COUNTED = re.compile(
    r"(?:^|[^a-z])(step|iter|iteration|checkpoint|ckpt|epoch|batch)s?[ =_-]?(\d+)(?![.,]?\d)", re.IGNORECASE
)
_OF_EPOCHS = ("epoch", "batch")
_FRACTION = re.compile(r"(?<![v\d.])\d+\.\d+", re.IGNORECASE)
_VERSION = re.compile(r"-v\d+$")


def last_checkpoints(folder: Path, count: int | None) -> list[Path]:
    """Return the last `count` checkpoints in a run's folder, oldest first; None: all.

    Entries whose names have a number count: folders that hold a checkpoint's files, and files with a checkpoint's ending.
    Raises UnreadableCheckpoint where there are fewer, two of one step, or some that count epochs and some steps;
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
    if "epoch" in kinds and "step" in kinds:
        other = kinds["step"]
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
    """Return what a name counts by, `epoch`, `step` or any `number`, and how many; None where it has no whole number."""
    counted = [(word.lower(), int(number)) for word, number in _COUNTED.findall(name)]
    steps = [number for word, number in counted if word not in _OF_EPOCHS]
    if steps:
        return "step", (steps[-1],)
    if counted:
        by_word = dict(counted)
        return "epoch", tuple(by_word[word] for word in _OF_EPOCHS if word in by_word)
    plain = _FRACTION.sub("", name)
    found = re.findall(r"\d+", _VERSION.sub("", plain)) or re.findall(r"\d+", plain)
    return ("number", (int(found[-1]),)) if found else None


def _shown(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return any(entry.suffix in SUFFIXES and not NO_WEIGHTS.fullmatch(entry.name) for entry in path.iterdir())
    return path.suffix in SUFFIXES
