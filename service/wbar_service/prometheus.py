"""`GET /metrics` for Prometheus: this process's requests as they were answered, and the service as the store counts it."""

import hmac
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from sqlalchemy.exc import DBAPIError
from starlette.types import Scope

from wbar.errors import Unauthorized
from wbar.states import TERMINAL
from wbar_service.auth import StoreOf
from wbar_service.problems import responses
from wbar_store.counters import CounterName, CounterRecord
from wbar_store.counts import count
from wbar_store.database import UNAVAILABLE
from wbar_store.notifier import QUEUES
from wbar_store.store import Store
from wbar_store.workers import WorkerRecord

log = logging.getLogger("wbar.service")

router = APIRouter(tags=["health"])
# Every counter of the store: its family, what it counts, its label, and the labels that are shown before they happen.
COUNTERS: dict[CounterName, tuple[str, str, str, tuple[str, ...]]] = {
    "jobs_ended": ("wbar_jobs_ended", "Jobs that ended, deleted ones too.", "status", tuple(sorted(TERMINAL))),
    "lease_expiries": (
        "wbar_job_lease_expiries", "Attempts whose worker fell silent, by what became of the job.", "status",
        ("queued", "paused", "failed"),
    ),
    "sweeps": ("wbar_sweeps", "Looks of all sweepers.", "outcome", ("done", "failed")),
    "notified_again": (
        "wbar_notified_again", "Jobs and uploads that the sweeper notified of again.", "queue", tuple(QUEUES.values()),
    ),
}  # fmt: skip
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RequestMetrics:
    """The requests that this process answered. Routes are named by their template, so that ids make no series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "wbar_http_requests", "Requests that were answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "wbar_http_request_seconds",
            "Seconds until an answer was sent; of a stream, until it ended.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._bytes = Counter("wbar_http_bytes", "Bytes of bodies.", ["route", "direction"], registry=self.registry)

    def answered(self, scope: Scope, status: int, seconds: float, received: int, sent: int) -> None:
        """Count a request. scope: the request's, after it was routed; received, sent: bytes of its bodies."""
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(scope["method"] if route != "none" else "any", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        for direction, size in (("received", received), ("sent", sent)):
            if size:
                self._bytes.labels(route, direction).inc(size)


class ServiceCollector(Collector):
    """The whole service, counted anew for each scrape; every API process gives the same numbers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yield the families; where the database does not answer only that."""
        try:
            counts, live = count(self._store.database), self._store.workers.live()
            counted = self._store.counters.all()
        except (DBAPIError, *UNAVAILABLE) as error:
            log.error("nothing can be counted (%s)", type(error).__name__)
            yield _gauge("wbar_database_up", "Whether the database answers.", 0)
            return
        yield _gauge("wbar_database_up", "Whether the database answers.", 1)
        yield _labelled("wbar_jobs", "Jobs that are kept.", "status", counts.jobs)
        yield _labelled("wbar_uploads", "Checkpoints and datasets that are kept.", "status", counts.uploads)
        yield _gauge("wbar_queue_oldest_job_seconds", "Wait of the oldest queued job.", counts.oldest_job)
        yield _gauge("wbar_queue_oldest_upload_seconds", "Wait of the oldest upload.", counts.oldest_upload)
        yield _gauge("wbar_jobs_expired_leases", "Running jobs whose worker is silent.", counts.expired_leases)
        yield _gauge("wbar_jobs_attempts", "Attempts at the jobs that are kept.", counts.attempts)
        yield _gauge("wbar_training_images_per_second", "Of all running jobs.", counts.images_per_second)
        yield _gauge("wbar_stored_bytes", "Of all blobs.", counts.stored_bytes)
        yield _gauge("wbar_webhook_deliveries_pending", "Messages to webhooks to be sent.", counts.pending_deliveries)
        yield _gauge("wbar_webhook_oldest_delivery_seconds", "Wait of the oldest of them.", counts.oldest_delivery)
        yield from _counters(counted)
        yield from _gpus(live)
        by_queue = {queue: [worker for worker in live if worker.queue == queue] for queue in QUEUES.values()}
        workers = {queue: len(them) for queue, them in by_queue.items()}
        slots = {queue: sum(worker.slots for worker in them) for queue, them in by_queue.items()}
        yield _labelled("wbar_workers", "Live workers.", "queue", workers)
        yield _labelled("wbar_worker_slots", "Their slots.", "queue", slots)
        yield from self._messages()

    def _messages(self) -> Iterator[GaugeMetricFamily]:
        try:
            waiting = {queue: self._store.notifier.waiting(queue) for queue in QUEUES.values()}
        except Exception as error:  # whatever the broker's driver raises, it is not there
            log.error("the broker does not answer (%s)", type(error).__name__)
            yield _gauge("wbar_broker_up", "Whether the broker answers.", 0)
            return
        yield _gauge("wbar_broker_up", "Whether the broker answers.", 1)
        yield _labelled("wbar_queue_messages", "Notifications that no worker has taken.", "queue", waiting)


def _counters(counted: Iterable[CounterRecord]) -> Iterator[Metric]:
    found = {(record.name, record.label): record for record in counted}
    for name in get_args(CounterName):
        family, words, label, known = COUNTERS[name]
        values = dict.fromkeys(known, 0) | {one: record.value for (of, one), record in found.items() if of == name}
        made = CounterMetricFamily(family, words, labels=[label])
        for key, value in values.items():
            made.add_metric([key], value)
        yield made
    if ("sweeps", "done") in found:
        yield _gauge("wbar_sweep_age_seconds", "Since a sweeper last looked.", found["sweeps", "done"].raised_seconds)


def _gpus(live: Iterable[WorkerRecord]) -> Iterator[Metric]:
    # By the driver's name: several workers of a host see the same GPUs.
    gpus = {gpu.uuid: gpu for worker in live for gpu in worker.gpus}
    if gpus:
        used, total = ({gpu.uuid: getattr(gpu, size) for gpu in gpus.values()} for size in ("used", "total"))
        yield _labelled("wbar_gpu_memory_used_bytes", "Of a GPU, whoever uses it.", "gpu", used)
        yield _labelled("wbar_gpu_memory_total_bytes", "Of a GPU.", "gpu", total)


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, words, value=value)


def _labelled(name: str, words: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **responses(401),
    },
)
def get_metrics(request: Request, store: StoreOf) -> Response:
    """Return this process's requests and the service's jobs, queues, workers and bytes, for Prometheus. It names no tenant.

    Open, unless the operator has set a token (`WBAR_METRICS_TOKEN`), which comes as `Authorization: Bearer`.
    """
    token = request.app.state.settings.metrics_token
    if token is not None:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), token.get_secret_value().encode()):
            raise Unauthorized("send the operator's token (WBAR_METRICS_TOKEN) as `Authorization: Bearer <token>`")
    whole = CollectorRegistry()
    whole.register(ServiceCollector(store))
    metrics: RequestMetrics = request.app.state.metrics
    return Response(generate_latest(metrics.registry) + generate_latest(whole), media_type=CONTENT_TYPE_LATEST)
