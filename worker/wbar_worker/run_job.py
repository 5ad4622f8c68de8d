"""One job on one slot: claim the row, run an attempt in a fresh process, carry what it says to the row, and settle it.

The one conversation that returns is the heartbeat: progress out, lease renewed, a reason to stop back in.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Row, select
from sqlalchemy.exc import DBAPIError

from wbar.transfers import sha256_of
from wbar_store import jobs as job_rows
from wbar_store.blobs import Received
from wbar_store.store import Store
from wbar_store.tables import checkpoints, datasets, jobs
from wbar_worker import processes
from wbar_worker.processes import Child
from wbar_worker.report import write_report
from wbar_worker.settings import WorkerSettings

log = logging.getLogger("wbar.worker")
T = TypeVar("T")

BEAT_SECONDS = 0.5
OUTAGE_SECONDS = 120.0
URGENCY = {None: 0, "pause": 1, "drain": 2, "cancel": 3}
RESULT = ("metrics", "curve", "verdict", "flatness", "chosen", "choice", "selected", "held_out")  # of an Outcome
EVENT_SECONDS = 1.0  # progress events are this far apart; the row itself is written with every beat


class Heart(threading.Thread):
    """Beats for one attempt: also while a snapshot is being stored, so that a slow store never costs the lease."""

    def __init__(self, store: Store, settings: WorkerSettings, row: Row[Any], draining: threading.Event):
        super().__init__(name=f"heart-{row.id}", daemon=True)
        self._store, self._settings, self._row = store, settings, row
        self.child: Child | None = None  # none yet while the job's files are fetched
        self._draining, self._done, self._news = draining, threading.Event(), threading.Event()
        self.progress: dict[str, Any] | None = None
        self.heard_at = time.monotonic()
        self.told: str | None = None
        self._told_at = 0.0

    def run(self) -> None:
        sent, event_at = None, 0.0
        while not self._done.is_set():
            self._news.wait(BEAT_SECONDS)
            self._news.clear()
            progress = self.progress if self.progress is not sent else None
            is_event = progress is not None and time.monotonic() - event_at >= EVENT_SECONDS
            try:
                reason = self._store.jobs.heartbeat(
                    self._row.id, self._row.attempts, self._settings.lease_seconds, progress, is_event
                )
            except Exception:
                # The database is away: the attempt goes on, and the fence protects the row if another has taken over.
                log.exception("no heartbeat for %s", self._row.id)
                self._pass_on("drain" if self._draining.is_set() else None)
                continue
            sent = progress or sent
            event_at = time.monotonic() if is_event else event_at
            self._pass_on("cancel" if reason == "gone" else reason or ("drain" if self._draining.is_set() else None))

    def hear(self, progress: dict[str, Any]) -> None:
        """Take progress from the attempt; a new phase and the first step are passed on at once."""
        old, self.progress = self.progress, progress
        if old is None or old["phase"] != progress["phase"] or (old["step"] == 0) != (progress["step"] == 0):
            self._news.set()

    def _pass_on(self, reason: str | None) -> None:
        if self.child is None:
            return
        now = time.monotonic()
        if reason is not None and URGENCY[reason] > URGENCY[self.told]:
            self.told, self._told_at = reason, now
            self.child.tell(reason)
        # A pause waits for the next training step, as long as the attempt says that it is at work.
        overdue = self.told in ("drain", "cancel") and now - self._told_at > self._settings.drain_seconds
        if overdue or now - self.heard_at > self._settings.stall_seconds:
            log.warning("%s: the training process does not answer and is ended", self._row.id)
            self.child.process.kill()

    def stop(self) -> None:
        self._done.set()
        self._news.set()
        self.join()


def patiently(write: Callable[[], T]) -> T:
    """Write to the store; while it is away, try again: a short outage must not cost an attempt."""
    deadline = time.monotonic() + OUTAGE_SECONDS
    while True:
        try:
            return write()
        except (DBAPIError, OSError):
            if time.monotonic() > deadline:
                raise
            log.warning("the store is away; trying again")
            time.sleep(1.0)


def _network(start: Row[Any], outputs: int) -> dict[str, Any]:
    """The fields of wbar_training.networks.architectures.Network for a checkpoint's row."""
    known = start.architecture
    return {
        "name": known["name"],
        "num_classes": outputs,
        "channels": known["channels"],
        "image_size": known["image_size"],
        "projection": bool(start.projection),
    }


class Runner:
    """Runs jobs for one worker process."""

    def __init__(self, store: Store, settings: WorkerSettings, draining: threading.Event) -> None:
        self.store, self.settings, self.draining = store, settings, draining

    def devices(self, job_id: str) -> int:
        """How many devices the job asks for."""
        with self.store.database.read() as connection:
            recipe = connection.execute(select(jobs.c.recipe).where(jobs.c.id == job_id)).scalar()
        return int((recipe or {}).get("devices", 1))

    def run(self, job_id: str, gpus: list[int], threads: int) -> None:
        """Claim and run the job; returns when this attempt is settled. A message for a job that is not queued does nothing."""
        if self.draining.is_set():
            return  # the row stays queued; the sweeper notifies again
        row = self.store.jobs.claim(job_id, self.settings.lease_seconds)
        if row is None:
            return
        scratch = self.settings.scratch / "jobs" / job_id
        heart = Heart(self.store, self.settings, row, self.draining)
        heart.start()
        try:
            payload = self._payload(row, scratch, gpus, threads)
        except Exception as error:
            heart.stop()
            log.exception("%s could not be prepared", job_id)
            self._lost(row, f"its files could not be fetched ({type(error).__name__}: {str(error)[:200]})")
            return
        child = heart.child = processes.start("attempt.run_attempt", payload)
        heart.heard_at = time.monotonic()
        try:
            ending = self._listen(row, child, heart)
            child.end()
            # The heart goes on beating while the results are stored, which may take longer than a lease.
            if patiently(lambda: self._settle(row, ending, heart)):
                shutil.rmtree(scratch, ignore_errors=True)
        finally:
            heart.stop()
            child.end()

    def _payload(self, row: Row[Any], scratch: Path, gpus: list[int], threads: int) -> dict[str, Any]:
        with self.store.database.read() as connection:
            start = connection.execute(select(checkpoints).where(checkpoints.c.id == row.checkpoint)).one()
            data = connection.execute(select(datasets).where(datasets.c.id == row.dataset)).one()
        scratch.mkdir(parents=True, exist_ok=True)
        checkpoint, dataset = scratch / "start.safetensors", scratch / "dataset.safetensors"
        for sha256, path in ((start.weights, checkpoint), (data.packed, dataset)):
            if not path.exists():  # an earlier attempt on this host fetched it: whole, or not at all
                self.store.blobs.fetch(sha256, path)
        if row.swag or row.flatness:
            self._fetch_snapshots(row, scratch)
        reset = row.recipe.get("head") == "reset"
        outputs = len(row.classes) if reset else start.architecture["num_classes"]
        return {
            "method": row.method,
            "recipe": row.recipe,
            "seed": row.seed,
            "network": _network(start, outputs),
            "checkpoint": str(checkpoint),
            "prefix": start.prefix or "",
            "dataset": str(dataset),
            "classes": row.classes,
            "start_sha256": start.sha256,
            "dataset_sha256": data.sha256,
            "scratch": str(scratch),
            "device": "cuda" if gpus else "cpu",
            "threads": threads,
            "resume": self._state(row, scratch),
            "save_every_seconds": self.settings.save_every_seconds,
            "flatness": row.flatness,
            "swag": row.swag,
            "ingredients": self._ingredients(row, scratch),
            "teachers": self._teachers(row, scratch),
            "loaders": self.settings.loaders,
            "gpus": gpus,
        }

    def _ingredients(self, row: Row[Any], scratch: Path) -> list[dict[str, str]]:
        """The checkpoints of a soup, fetched, in the order that the job names them."""
        found = []
        for ingredient in row.method.get("checkpoints", []):
            with self.store.database.read() as connection:
                one = connection.execute(select(checkpoints).where(checkpoints.c.id == ingredient)).one()
            path = scratch / f"{ingredient}.safetensors"
            if not path.exists():
                self.store.blobs.fetch(one.weights, path)
            found.append({"id": ingredient, "path": str(path), "prefix": one.prefix or "", "sha256": one.sha256})
        return found

    def _teachers(self, row: Row[Any], scratch: Path) -> list[dict[str, Any]]:
        """The networks of a distillation's teacher, fetched: a checkpoint, or a former job's snapshots in order."""
        distillation = row.recipe.get("distillation")
        if not distillation:
            return []
        with self.store.database.read() as connection:
            if distillation["teacher"].startswith("ckpt_"):
                start = connection.execute(select(checkpoints).where(checkpoints.c.id == distillation["teacher"])).one()
                contents, outputs = [start.weights], start.architecture["num_classes"]
            else:
                job = connection.execute(select(jobs).where(jobs.c.id == distillation["teacher"])).one()
                start = connection.execute(select(checkpoints).where(checkpoints.c.id == job.checkpoint)).one()
                contents = [snapshot.sha256 for snapshot in job_rows.snapshot_rows(connection, job.id)]
                reset = job.recipe.get("head") == "reset"
                outputs = len(job.classes) if reset else start.architecture["num_classes"]
        found = []
        for n, sha256 in enumerate(contents):
            path = scratch / f"teacher-{n:04d}.safetensors"
            if not path.exists():
                self.store.blobs.fetch(sha256, path)
            network = _network(start, outputs)
            found.append({"path": str(path), "prefix": start.prefix or "", "network": network, "sha256": sha256})
        return found

    def _fetch_snapshots(self, row: Row[Any], scratch: Path) -> None:
        """What an earlier attempt made on another host, and the end of the job reads again."""
        with self.store.database.read() as connection:
            made = list(job_rows.snapshot_rows(connection, row.id))
        for snapshot in made:
            path = scratch / f"snapshot-{snapshot.n:04d}.safetensors"
            if not path.exists():
                self.store.blobs.fetch(snapshot.sha256, path)

    def _state(self, row: Row[Any], scratch: Path) -> str | None:
        """The furthest resumable state: this host's own, or the last phase end's from the blob store."""
        local = max(scratch.glob("state-*.pt"), default=None)  # the step is in the name, with leading zeros
        if row.state is not None:
            durable = scratch / f"state-{row.state_step:010d}.pt"
            if local is None or durable.name > local.name:
                self.store.blobs.fetch(row.state, durable)
                return str(durable)
        return str(local) if local else None

    def _listen(self, row: Row[Any], child: Child, heart: Heart) -> tuple[str, Any]:
        """Carry messages until the attempt says how it ended, or ends without a word."""
        while True:
            try:
                kind, value = child.pipe.recv()
            except (EOFError, OSError):
                return "crashed", child.obituary()
            heart.heard_at = time.monotonic()
            if kind == "progress":
                heart.hear(value)
            elif kind in ("done", "failed", "stopped", "crashed"):
                return kind, value
            else:
                patiently(partial(self._carry, row, kind, value))

    def _carry(self, row: Row[Any], kind: str, value: Any) -> None:
        job_id, attempt, writer = row.id, row.attempts, self.store.jobs
        if kind == "metrics":
            writer.add_metrics(job_id, attempt, value)
        elif kind == "averaged":
            writer.add_averaged(job_id, attempt, value["n"], value["score"])
        elif kind == "log":
            writer.log(job_id, attempt, value["level"], value["message"])
        elif kind == "snapshot":
            self._store_snapshot(row, value)
        elif kind == "saved" and value["durable"]:
            self._store_state(row, value)
        elif kind == "saved":
            writer.got_further(job_id, attempt)

    def _store_snapshot(self, row: Row[Any], value: dict[str, Any]) -> None:
        path = Path(value["path"])
        with self.store.database.read() as connection:
            known = {known.n: known.sha256 for known in job_rows.snapshot_rows(connection, row.id)}
        if value["n"] in known and known[value["n"]] == sha256_of(path):
            return  # announced again by a resumed attempt
        received = self.store.blobs.put_file(path)
        values = {name: value[name] for name in ("n", "step", "metrics")}
        values |= {"bytes": received.bytes, "sha256": received.sha256}
        with self.store.blobs.keep(received), self.store.database.write() as connection:
            self.store.jobs.add_snapshot(connection, row.id, row.attempts, values)

    def _store_state(self, row: Row[Any], value: dict[str, Any]) -> None:
        path = Path(value["path"])
        if not path.exists():
            return  # a later state has replaced it already; its own message follows
        received = self.store.blobs.put_file(path)
        with self.store.blobs.keep(received), self.store.database.write() as connection:
            replaced = self.store.jobs.save_state(connection, row.id, row.attempts, received.sha256, value["step"])
        if replaced:
            self.store.blobs.collect([replaced])

    def _settle(self, row: Row[Any], ending: tuple[str, Any], heart: Heart) -> bool:
        """Write how the attempt ended; whether its scratch folder has served its purpose."""
        kind, value = ending
        if kind == "done":
            self._succeed(row, value, heart)
            return self.store.jobs.has_ended(row.id)  # not if the fence was stale: a successor may use the folder
        if kind == "failed":
            self.store.jobs.fail(row.id, row.attempts, value)
            self._forget_state(row)
            return self.store.jobs.has_ended(row.id)
        if kind == "stopped" and value != "cancel":
            self.store.jobs.yield_back(row.id, row.attempts, "paused" if value == "pause" else "queued")
            return False
        if heart.told == "cancel":
            # Cancelled, or the fence went stale: then the files may be a successor's by now.
            self._forget_state(row)
            return self.store.jobs.has_ended(row.id)
        if heart.told in ("drain", "pause"):
            self.store.jobs.yield_back(row.id, row.attempts, "queued" if heart.told == "drain" else "paused")
            return False
        self._lost(row, str(value))
        return False

    def _succeed(self, row: Row[Any], value: dict[str, Any], heart: Heart) -> None:
        weights = self.store.blobs.put_file(Path(value["path"]))
        pytorch = self.store.blobs.put_file(Path(value["pytorch"]))
        result = {
            "weights": {"bytes": weights.bytes, "sha256": weights.sha256, "format": "safetensors"},
            **{name: value[name] for name in RESULT},
        }
        report = self._report(row, result, Path(value["path"]).with_name("report.html"))
        progress = {**heart.progress, "fraction": 1.0, "eta_seconds": 0.0} if heart.progress else None
        blobs = self.store.blobs
        with (
            blobs.keep(weights),
            blobs.keep(pytorch),
            blobs.keep(report) if report else nullcontext(),
            self.store.database.write() as connection,
        ):
            page = report.sha256 if report else None
            self.store.jobs.succeed(
                connection, row.id, row.attempts, weights.sha256, pytorch.sha256, page, result, progress
            )
        self._forget_state(row)

    def _report(self, row: Row[Any], result: dict[str, Any], path: Path) -> Received | None:
        """The page; a job that made its weights does not fail for want of it, and says so in its log."""
        with self.store.database.read() as connection:
            points = list(job_rows.metric_points(connection, row.id))
        try:
            write_report(path, row, result, points)
        except Exception as error:
            log.exception("%s: the report could not be drawn", row.id)
            message = f"the report could not be drawn ({type(error).__name__}); weights and numbers are complete"
            self.store.jobs.log(row.id, row.attempts, "error", message)
            return None
        return self.store.blobs.put_file(path)

    def _forget_state(self, row: Row[Any]) -> None:
        """An ended job never resumes: its state need not be kept."""
        released = self.store.jobs.drop_state(row.id)
        if released:
            self.store.blobs.collect([released])

    def _lost(self, row: Row[Any], why: str) -> None:
        if self.store.jobs.lose(row.id, row.attempts, why) == "queued":
            self.store.jobs.notify(row.id)
