"""The names of the files of resumable states: a name carries the step, so that a worker can choose without torch."""

from pathlib import Path


def path_of(scratch: Path, step: int) -> Path:
    """Return the path of the state after `step` steps."""
    return scratch / f"state-{step:010d}.pt"


def step_of(path: Path) -> int:
    """Return how many steps had been taken when the state was written."""
    return int(path.stem.removeprefix("state-"))


def all_of(scratch: Path) -> list[Path]:
    """Return every state in a job's scratch folder, by rising step."""
    return sorted(scratch.glob("state-*.pt"), key=step_of)


def latest(scratch: Path) -> Path | None:
    """Return the state with the most steps in a job's scratch folder."""
    return max(scratch.glob("state-*.pt"), key=step_of, default=None)
