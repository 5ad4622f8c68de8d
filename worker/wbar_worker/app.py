"""The Celery application: two queues, a threads pool, early acknowledgement. Recovery belongs to the lease, not to it.

A threads pool, because prefork's daemonic children may not have children of their own; the threads only supervise.
"""

import logging
import os
import queue
import socket
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from celery.signals import task_postrun, worker_ready, worker_shutting_down

from wbar_store.broker import OwnCelery
from wbar_store.ids import kind_of
from wbar_store.notifier import INGEST, PREDICT, QUEUES, RUN_JOB
from wbar_store.store import Store
from wbar_store.tracing import Tracing
from wbar_store.workers import Device, Queue, WorkerRecord
from wbar_worker.children import warm_up
from wbar_worker.gpus import Gpus
from wbar_worker.ingest import Ingester
from wbar_worker.installed import InstalledLibrary, InstalledTimm, Listed
from wbar_worker.merging import Merger
from wbar_worker.predicting import Predictor
from wbar_worker.processes import load_ahead
from wbar_worker.run_job import Runner
from wbar_worker.settings import WorkerSettings

log = logging.getLogger("wbar.worker")

SEEN_SECONDS = 3.0
# From a task's last line until Celery counts its slot as free, with much to spare.
FREE_SECONDS = 0.01


def configured(settings: WorkerSettings) -> OwnCelery:
    """Return the Celery application on the broker that the settings name."""
    app = OwnCelery(settings.broker_url)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # a message that a busy worker has prefetched is a job that an idle one does not get
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_routes={task: {"queue": name} for task, name in QUEUES.items()},
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_transport_options={"socket_connect_timeout": 5, "health_check_interval": 10},
    )
    return app


def serve(settings: WorkerSettings, kind: Queue) -> None:
    """Run a worker of one queue until SIGTERM or SIGINT; running jobs then save their state and are queued again."""
    store, tracing = Store.open(settings), Tracing(kind, settings.otlp_endpoint)
    draining = threading.Event()
    if kind == "ingest" and settings.transformers and InstalledLibrary.is_there("transformers"):
        load_ahead("wbar_worker.transformers_ahead")
    machine = warm_up()
    gpus = machine.gpus if settings.device != "cpu" else 0
    if settings.device == "cuda" and not gpus:
        raise SystemExit("WBAR_DEVICE is cuda and torch sees no GPU: install the driver, or set it to cpu")
    app = configured(settings)
    name = f"{kind}-{os.getpid()}@{socket.gethostname()}"
    timm, listed = _libraries(settings, kind, store)
    predictor = Predictor(store, settings) if kind == "ingest" else None
    if kind == "train":
        slots = settings.slots or max(1, gpus)
        _register_train(app, Runner(store, settings, draining, name, tracing), slots, gpus, settings)
    else:
        slots = settings.ingest_slots
        ingester, merger = Ingester(store, settings, timm), Merger(store, settings)

        @app.task(name=INGEST)  # type: ignore[untyped-decorator]  # Celery has no types
        def ingest(object_id: str) -> None:
            (merger.run if kind_of(object_id) == "merge" else ingester.run)(object_id)

        assert predictor is not None
        app.task(name=PREDICT)(predictor.run)

    device: Device = "cuda" if gpus else "cpu"
    presence = _Presence(store, WorkerRecord(name, kind, device, slots))

    def ready(sender: Any, **_: Any) -> None:
        if sender.hub is not None:
            task_postrun.connect(partial(_ask_broker_soon, sender.hub), weak=False)
        presence.start()
        for library in listed:
            library.start()
        if predictor is not None:
            predictor.start()
        log.info("%s is ready: %d slot(s) on %s, torch %s", name, slots, device, machine.torch)

    def stopping(**_: Any) -> None:
        draining.set()

    worker_ready.connect(ready, weak=False)
    worker_shutting_down.connect(stopping, weak=False)
    try:
        app.worker_main(
            ["--quiet", "worker", "--pool=threads", f"--concurrency={slots}", f"--queues={kind}", f"--hostname={name}",
             "--without-gossip", "--without-mingle", "--loglevel=WARNING"]
        )  # fmt: skip
    finally:
        presence.stop()
        if predictor is not None:
            predictor.stop()
        for library in listed:
            library.stop()
        store.close()
        tracing.close()


def _libraries(
    settings: WorkerSettings, kind: Queue, store: Store
) -> tuple[InstalledTimm | None, list[InstalledTimm | InstalledLibrary]]:
    """Return timm, which reading uploads asks, and all installed libraries whose networks an ingest worker lists."""
    if kind != "ingest":
        return None, []
    timm = InstalledTimm(store, settings.tables) if settings.tables and InstalledTimm.is_there() else None
    wanted: dict[Listed, bool] = {"transformers": settings.transformers, "smp": settings.smp}
    listed = [InstalledLibrary(store, one) for one in wanted if wanted[one] and InstalledLibrary.is_there(one)]
    return timm, [*([timm] if timm else []), *listed]


def _ask_broker_soon(hub: Any, **_: Any) -> None:
    """Have Celery's event loop ask the broker for a message once the task that ends here has freed its slot.

    The loop does not hear of threads that end: by itself it looks once a second, and a slot would be idle for half of one.
    """
    hub.call_soon(hub.call_later, FREE_SECONDS, lambda: None)


def _register_train(app: OwnCelery, runner: Runner, slots: int, gpus: int, settings: WorkerSettings) -> None:
    free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for slot in range(slots):
        free.put(slot % gpus if gpus else None)
    taking = (
        threading.Lock()
    )  # a job that needs several waits alone: two that hold some and wait for more would never end
    threads = settings.threads or max(1, settings.cpus // slots)

    @app.task(name=RUN_JOB)  # type: ignore[untyped-decorator]  # Celery has no types
    def run_job(job_id: str) -> None:
        # Another worker may take the chosen one first: then the next one is tried, until none of the tenant's waits.
        unreadable = set[str]()
        while (chosen := runner.choose(job_id, unreadable)) is not None:
            try:
                if run(chosen):
                    runner.pass_on(chosen)
                    return
            except ValueError as error:  # a row of another version, or a damaged one: it must not hold up the others
                log.error("%s cannot be read and is passed over (%s)", chosen, type(error).__name__)
                unreadable.add(chosen)
        runner.find_nothing(job_id)

    def run(job_id: str) -> bool:
        needed = max(1, min(runner.devices(job_id), gpus, slots)) if gpus else 1
        taken, doubles = list[int | None](), list[int | None]()
        with taking if needed > 1 else nullcontext():
            while len(taken) < needed:  # with more slots than GPUs, one GPU may come twice
                device = free.get()
                (doubles if device in taken else taken).append(device)
        for device in doubles:
            free.put(device)
        try:
            return runner.run(job_id, sorted({gpu for gpu in taken if gpu is not None}), threads)
        finally:
            for device in taken:
                free.put(device)


class _Presence(threading.Thread):
    """Tells the store that this worker lives, for `/readyz` and the meaning of `precision: auto`, and how full its GPUs are."""

    def __init__(self, store: Store, worker: WorkerRecord) -> None:
        super().__init__(name="presence", daemon=True)
        self._store, self._worker, self._gone = store, worker, threading.Event()
        self._gpus = Gpus()

    def run(self) -> None:
        while True:
            try:
                self._store.workers.seen(replace(self._worker, gpus=self._gpus.memory()))
            except Exception as error:
                log.error("the store is not there (%s)", type(error).__name__)
            if self._gone.wait(SEEN_SECONDS):
                return

    def stop(self) -> None:
        self._gone.set()
        if self.ident is None:
            return
        self.join(5)
        try:
            self._store.workers.gone(self._worker.name)
        except Exception as error:
            log.error("could not sign off (%s)", type(error).__name__)
