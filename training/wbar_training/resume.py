"""The resumable state: everything a job needs to go on with the same bits, in one file, written whole or not at all."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, TypeAdapter
from torch import Tensor

from wbar import __version__
from wbar.choices import NormalizationProbe, RateProbe
from wbar.method import StartKind
from wbar.results import MeetingResult
from wbar.scores import Score
from wbar_training.evaluate import Outputs
from wbar_training.state_files import all_of, path_of, step_of


class OtherState(Exception):
    """Raised for a state that is of no use to this work; the message says why."""


@dataclass
class Results:
    """The evaluations so far; grows by one point with every snapshot."""

    normalization: NormalizationProbe | None = None  # where one was asked for
    head: dict[str, Tensor] | None = None  # the start's classifier, where it was trained by itself first
    start: Score | None = None
    start_recomputed: Score | None = None
    start_losses: Tensor | None = None  # (held-out images,) float64
    start_selection: Outputs | None = None  # the start's on the selection split
    # (images, classes) float64 on the report and the selection split: sums over the ensemble's members
    probabilities: Tensor | None = None
    selection_probabilities: Tensor | None = None
    snapshots: list[Score] = field(default_factory=list)
    snapshot_steps: list[int] = field(default_factory=list)  # the counts of steps after which they were taken
    averaged: list[Score] = field(default_factory=list)  # the curve
    # On the evaluation sets: scores by comparison and set, and the sums over the ensemble's members by set
    on_sets: dict[str, dict[str, Score]] = field(default_factory=dict)
    set_probabilities: dict[str, Tensor] = field(default_factory=dict)
    # On the probe images: probabilities by comparison, and the sum over the ensemble's members
    probe: dict[str, Tensor] = field(default_factory=dict)
    start_train_accuracy: float | None = None  # on augmented training images; a back-off compares with it
    start_kind: StartKind = "underfit"  # the kind that `auto` found
    meetings: list[MeetingResult] = field(default_factory=list)  # of a replica that meets others
    rate_probe: RateProbe | None = None  # where `auto` was to find the rate
    back_offs: int = 0
    best: float | None = None  # of early stopping: the lowest loss of w̄, and how often it was not lower since
    waited: int = 0
    stopped_at: int | None = None
    finished_on_request: bool = False
    discarded_steps: int = 0  # taken before the latest back-off
    discarded_epochs: int = 0

    def add_to_curve(self, score: Score) -> int:
        """Add the score of w̄ so far to the curve; returns its number there, from 1."""
        self.averaged.append(score)
        return len(self.averaged)

    def document(self) -> dict[str, Any]:
        """Return them as a state's file has them: tensors, texts and numbers."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def of(cls, document: dict[str, Any]) -> "Results":
        """Return what `document` has written."""
        return cls(
            **{name: _MODELS[name].validate_python(one) if name in _MODELS else one for name, one in document.items()}
        )


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Outputs):
        return vars(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, dict) else value


def _outputs(stored: Any) -> Any:
    return Outputs(**stored) if isinstance(stored, dict) else stored


# Of the fields that are no tensors, texts or numbers as they are.
_MODELS: dict[str, TypeAdapter[Any]] = {
    "normalization": TypeAdapter(NormalizationProbe | None),
    "start": TypeAdapter(Score | None),
    "start_recomputed": TypeAdapter(Score | None),
    "start_selection": TypeAdapter(Annotated[Any, BeforeValidator(_outputs)]),
    "snapshots": TypeAdapter(list[Score]),
    "averaged": TypeAdapter(list[Score]),
    "on_sets": TypeAdapter(dict[str, dict[str, Score]]),
    "meetings": TypeAdapter(list[MeetingResult]),
    "rate_probe": TypeAdapter(RateProbe | None),
}


@dataclass
class State:
    """The state of a job after `step` optimizer steps.

    No generator is part of it (see `wbar_training.draws`).
    """

    step: int
    model: dict[str, Tensor]
    stepper: dict[str, Any]  # optimizer and loss scale
    average: dict[str, Any]
    anchor: list[Tensor]  # w̄ as the pull sees it: as it was at the last snapshot
    meter: dict[str, Any]
    results: Results
    run: str
    threads: int
    trajectory: dict[str, Any] | None = None


class StateKeeper:
    """Decides when to save, and keeps the latest state, and that of the latest phase end until a later one is written."""

    def __init__(self, scratch: Path, every_seconds: float) -> None:
        self._scratch, self._every = scratch, every_seconds
        self._durable: Path | None = None
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last state is old enough for another within the phase."""
        return time.monotonic() - self._saved_at >= self._every

    def saved(self, step: int) -> bool:
        """Return whether a durable state of just this step was written."""
        return self._durable is not None and step_of(self._durable) == step

    def save(self, state: "State | None", durable: bool) -> Path | None:
        """Write a state; None where this process has none to write (another rank writes it)."""
        self._saved_at = time.monotonic()
        if state is None:
            return None
        path = save(self._scratch, state, keep=self._durable)
        self._durable = path if durable else self._durable
        return path


def save(scratch: Path, state: State, keep: Path | None = None) -> Path:
    """Write the state, synced and renamed into place, and delete the older ones except `keep`."""
    path = path_of(scratch, state.step)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    document = {**vars(state), "results": state.results.document(), "version": __version__}
    with open(temporary, "wb") as file:
        torch.save(document, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    for old in all_of(scratch):
        if step_of(old) < state.step and old != keep:
            old.unlink(missing_ok=True)
    return path


def load(path: Path, run: str) -> State:
    """Return the state in `path`. Raises OtherState if it cannot be read, or belongs to other work or another wbar."""
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged file surfaces as almost any exception; all mean that this state cannot be used.
        raise OtherState(f"{path.name} cannot be read ({type(error).__name__})") from error
    if document.pop("version") != __version__ or document["run"] != run:
        raise OtherState(f"{path.name} was written by another version of wbar or for another job")
    return State(**document | {"results": Results.of(document["results"])})
