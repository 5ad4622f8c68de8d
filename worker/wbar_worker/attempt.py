"""The child's side of a job: training.run with a reporter that speaks through the pipe. Imported by the forkserver."""

import logging
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from wbar.errors import JobError
from wbar.jobs import MetricsPoint, Progress, Score
from wbar.spec import Network
from wbar_training.loop import run
from wbar_training.meter import Stopped
from wbar_training.plan import Ingredient, Teacher, Work
from wbar_worker.processes import Ears


class PipeReporter:
    """Sends what the loop tells to the worker, and answers heartbeats with what the worker last said."""

    def __init__(self, pipe: Connection, ears: Ears) -> None:
        self._pipe, self._ears = pipe, ears
        self._points: list[dict[str, Any]] = []

    def heartbeat(self, progress: Progress) -> str | None:
        self._flush()
        self._pipe.send(("progress", progress.model_dump()))
        return self._ears.heard

    def metrics(self, points: list[MetricsPoint]) -> None:
        # Kept until the next heartbeat: a transaction per step would take the cores from short steps.
        self._points += [point.model_dump() for point in points]

    def _flush(self) -> None:
        if self._points:
            self._pipe.send(("metrics", self._points))
            self._points = []

    def snapshot(self, n: int, step: int, path: str, score: Score) -> None:
        self._pipe.send(("snapshot", {"n": n, "step": step, "path": path, "metrics": score.model_dump()}))

    def averaged(self, n: int, score: Score) -> None:
        self._pipe.send(("averaged", {"n": n, "score": score.model_dump()}))

    def saved(self, path: str, step: int, durable: bool) -> None:
        self._flush()  # a resumed attempt does not report the steps before this state again
        self._pipe.send(("saved", {"path": path, "step": step, "durable": durable}))

    def log(self, level: str, message: str) -> None:
        self._pipe.send(("log", {"level": level, "message": message}))


def run_attempt(payload: dict[str, Any], pipe: Connection, ears: Ears) -> None:
    """payload: the fields of wbar_training.plan.Work as plain values, and `gpus`, the only devices this process may see."""
    _choose_devices(payload.pop("gpus"))
    work = Work(
        **{
            **payload,
            "network": Network(**payload["network"]),
            **{name: Path(payload[name]) for name in ("checkpoint", "dataset", "scratch")},
            "resume": Path(payload["resume"]) if payload["resume"] else None,
            "teachers": tuple(
                Teacher(**one | {"path": Path(one["path"]), "network": Network(**one["network"])})
                for one in payload["teachers"]
            ),
            "ingredients": tuple(Ingredient(**one | {"path": Path(one["path"])}) for one in payload["ingredients"]),
        }
    )
    try:
        outcome = run(work, PipeReporter(pipe, ears))
    except Stopped as stopped:
        pipe.send(("stopped", stopped.reason))
    except JobError as error:
        pipe.send(("failed", {"code": error.code, "message": error.detail}))
    except Exception as error:
        # Not foreseen: the worker decides whether to try again; the trace belongs into its log, not to the user.
        logging.getLogger("wbar").exception("the attempt failed")
        first_line = (str(error).splitlines() or [""])[0][:300]
        pipe.send(("crashed", f"{type(error).__name__}: {first_line}"))
    else:
        pipe.send(
            (
                "done",
                {
                    "path": str(outcome.weights),
                    "pytorch": str(outcome.pytorch),
                    "metrics": outcome.metrics.model_dump(),
                    "curve": [point.model_dump() for point in outcome.curve],
                    "verdict": outcome.verdict,
                    "flatness": outcome.flatness.model_dump() if outcome.flatness else None,
                    "chosen": outcome.chosen,
                    "choice": outcome.choice.model_dump() if outcome.choice else None,
                    "selected": outcome.selected,
                    "held_out": outcome.held_out.model_dump(),
                },
            )
        )


def _choose_devices(gpus: list[int]) -> None:
    # Before CUDA's first use in this process: a job sees only its own devices.
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = allowed.split(",") if allowed else None
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[gpu] if names else str(gpu) for gpu in gpus)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS asks for to be deterministic


def probe(_payload: dict[str, Any], pipe: Connection, _ears: Ears) -> None:
    """What the worker must know of this machine without importing torch (str: a TorchVersion would import it there)."""
    pipe.send(("probe", {"gpus": torch.cuda.device_count(), "torch": str(torch.__version__)}))
