"""Predictions on a worker of the ingest queue: a few networks stay loaded, each in an isolated process of its own.

Nothing of a request is kept; a process that was not asked for a while, or that failed, is ended. If the worker is killed,
its children end with it, and the API sees that the answer will not come.
"""

import hashlib
import logging
import multiprocessing
import shutil
import threading
import time
import uuid
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from pydantic import ValidationError

from wbar.predictions import Given, NotAnswered, PredictedNetwork
from wbar_store.predictions import PredictionBox, Taken
from wbar_store.store import Store
from wbar_worker import processes
from wbar_worker.prediction_messages import PREDICT_IMAGES, FromPredicting, Order, PredictWork, Ready
from wbar_worker.processes import Child
from wbar_worker.settings import WorkerSettings

log = logging.getLogger("wbar.worker")

MOST_NETWORKS = 2  # that stay loaded
IDLE_SECONDS = 300.0  # after which one is let go
ANSWER_SECONDS = 30.0  # for loading a network and answering one request
LIFE_SECONDS = 24 * 3600.0  # of processor time for each child and core


@dataclass
class _Held:
    """A place for one network. lock: held by whoever asks it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    child: Child | None = None
    orders: Connection | None = None
    used_at: float = 0.0

    def alive(self) -> bool:
        return self.child is not None and self.child.process.is_alive()

    def end(self) -> None:
        if self.orders is not None:
            self.orders.close()
        if self.child is not None:
            self.child.end()
        self.child = self.orders = None


class Predictor:
    """Answers predictions for one worker process. answer_seconds: for loading a network and answering one request."""

    def __init__(self, store: Store, settings: WorkerSettings, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.store, self.settings, self._answer_seconds = store, settings, answer_seconds
        self._held: dict[str, _Held] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._tidying = threading.Thread(target=self._tidy, name="predictions", daemon=True)

    def start(self) -> None:
        """Begin to let go of networks that are not asked."""
        self._tidying.start()

    def stop(self) -> None:
        """End the children."""
        self._stopped.set()
        with self._lock:
            held, self._held = list(self._held.values()), {}
        for one in held:
            with one.lock:
                one.end()

    def run(self, prediction_id: str) -> None:
        """Take the request and answer it; a message for one that was taken or whose time is over does nothing."""
        box = PredictionBox(self.settings.broker_url)
        try:
            with box.taking(prediction_id) as taken:
                if taken is not None:
                    box.answer(prediction_id, self._answered(taken))
        except ValidationError:
            box.answer(
                prediction_id, NotAnswered(message="the worker is of a version that does not know such a request")
            )
        finally:
            box.close()

    def _answered(self, taken: Taken) -> Given | NotAnswered:
        began = time.monotonic()
        name = hashlib.sha256(taken.network.model_dump_json().encode()).hexdigest()
        try:
            held = self._lend(name)
            try:
                answer = self._ask(held, taken)
            finally:
                held.used_at = time.monotonic()
                held.lock.release()
        except Exception:
            log.exception("a prediction failed")
            return NotAnswered(message="the worker failed; the next request begins afresh")
        if isinstance(answer, NotAnswered):
            return answer
        return answer.model_copy(update={"seconds": time.monotonic() - began})

    def _lend(self, name: str) -> _Held:
        """Return the place of a network, locked; the one that was not asked for the longest makes room."""
        while True:
            with self._lock:
                held = self._held.setdefault(name, _Held(used_at=time.monotonic()))
            held.lock.acquire()
            with self._lock:
                if self._held.get(name) is held:
                    self._let_go_but(MOST_NETWORKS, name)
                    return held
            held.lock.release()  # it was let go while this waited

    def _let_go_but(self, most: int, kept: str) -> None:
        for name in sorted(self._held, key=lambda one: self._held[one].used_at):
            if len(self._held) <= most:
                return
            if name != kept and self._held[name].lock.acquire(blocking=False):
                one = self._held.pop(name)
                one.end()
                one.lock.release()

    def _ask(self, held: _Held, taken: Taken) -> Given | NotAnswered:
        cached = held.alive()
        over = threading.Event()

        def expire() -> None:
            over.set()
            if held.child is not None:
                held.child.process.kill()

        timer = threading.Timer(self._answer_seconds, expire)
        timer.start()
        try:
            if not cached:
                held.end()
                refused = self._load(held, taken.network)
                if refused is not None:
                    held.end()
                    return refused
            assert held.child is not None
            assert held.orders is not None
            held.orders.send_bytes(Order(images=len(taken.images), wanted=taken.wanted).model_dump_json().encode())
            for image in taken.images:
                held.orders.send_bytes(image)
            answer = held.child.receive(FromPredicting)
            assert not isinstance(answer, Ready)
            return answer if isinstance(answer, NotAnswered) else answer.model_copy(update={"cached": cached})
        except (EOFError, OSError):
            why = f"it took longer than {self._answer_seconds:g} s" if over.is_set() else self._why(held)
            held.end()
            return NotAnswered(message=f"the network did not answer: {why}")
        except BaseException:
            held.end()  # what it may still send would be taken for the next answer
            raise
        finally:
            timer.cancel()

    @staticmethod
    def _why(held: _Held) -> str:
        return "its process is gone" if held.child is None else held.child.crashed().why

    def _load(self, held: _Held, network: PredictedNetwork) -> NotAnswered | None:
        """Start the child that holds the network; returns why it could not."""
        folder = self.settings.scratch / "predict" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        path = folder / "weights.safetensors"
        try:
            try:
                self.store.blobs.fetch(network.weights.blob, path)
            except FileNotFoundError:
                return NotAnswered(message="its weights were deleted meanwhile")
            reader, writer = multiprocessing.Pipe(duplex=False)
            threads = max(1, self.settings.cpus // self.settings.ingest_slots)
            work = PredictWork(
                network, path, reader, self.settings.memory_per_ingest, LIFE_SECONDS, self.settings.image_pixels, threads
            )  # fmt: skip
            held.orders = writer
            held.child = processes.start(PREDICT_IMAGES, work)
            reader.close()
            ready = held.child.receive(FromPredicting)
            return ready if isinstance(ready, NotAnswered) else None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _tidy(self) -> None:
        while not self._stopped.wait(IDLE_SECONDS / 10):
            idle_since = time.monotonic() - IDLE_SECONDS
            with self._lock:
                for name, one in list(self._held.items()):
                    if one.used_at < idle_since and one.lock.acquire(blocking=False):
                        self._held.pop(name).end()
                        one.lock.release()
