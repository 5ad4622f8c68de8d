"""What the files of resumable states are called: the name carries the step, so that a worker can choose without torch."""

from pathlib import Path


def path_of(scratch: Path, step: int) -> Path:
    """Where the state after `step` steps lies."""
    return scratch / f"state-{step:010d}.pt"


def step_of(path: Path) -> int:
    """How many steps had been taken when the state was written."""
    return int(path.stem.removeprefix("state-"))


def all_of(scratch: Path) -> list[Path]:
    """Every state in a job's scratch folder, by rising step."""
    return sorted(scratch.glob("state-*.pt"), key=step_of)


def latest(scratch: Path) -> Path | None:
    """The state with the most steps in a job's scratch folder."""
    return max(scratch.glob("state-*.pt"), key=step_of, default=None)
