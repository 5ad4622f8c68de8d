"""The states of jobs and uploads, and the allowed transitions between a job's states, as one table."""

from typing import Literal

JobStatus = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
UploadStatus = Literal["processing", "ready", "rejected"]

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset(
        {"succeeded", "failed", "cancelled", "paused", "queued"}
    ),  # queued: its worker died or drained
    "paused": frozenset({"queued", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

TERMINAL: frozenset[JobStatus] = frozenset(status for status, after in TRANSITIONS.items() if not after)


def sources(target: JobStatus) -> tuple[JobStatus, ...]:
    """Return every state from which `target` may be entered: the condition of a compare-and-set."""
    return tuple(status for status, after in TRANSITIONS.items() if target in after)
