"""The states and the only allowed transitions, as one table. Nothing else in wbar decides what may follow what."""

from typing import Literal, get_args

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

STATUSES: tuple[JobStatus, ...] = get_args(JobStatus)
TERMINAL: frozenset[JobStatus] = frozenset(status for status, after in TRANSITIONS.items() if not after)


def sources(target: JobStatus) -> tuple[JobStatus, ...]:
    """Every state from which `target` may be entered (what a compare-and-set has to ask for)."""
    return tuple(status for status, after in TRANSITIONS.items() if target in after)
