"""The application is put together here: settings, store, routes, problems and the OpenAPI schema."""

import ctypes
import gc
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from wbar import __version__
from wbar.checkpoints import Checkpoint, CheckpointSource
from wbar.datasets import Dataset, DatasetSource
from wbar.job_request import JobRequest
from wbar.jobs import Job
from wbar.keys import ApiKey, KeyRequest
from wbar.merges import Merge, MergeRequest
from wbar.predictions import PredictRequest
from wbar.results import ImageLosses
from wbar.studies import Study, StudyRequest
from wbar.study_results import StudyReport
from wbar.uploads import Upload, UploadReference
from wbar.webhooks import RotationRequest, Webhook, WebhookEvent, WebhookRequest
from wbar.workers import Worker
from wbar_service import (
    architectures,
    auth,
    connections,
    headers,
    health,
    problems,
    prometheus,
    schema,
    sign_in_links,
    workers,
)
from wbar_service.checkpoints import routes as checkpoint_routes
from wbar_service.dashboard import routes as dashboard_routes
from wbar_service.datasets import routes as dataset_routes
from wbar_service.jobs import files as job_files
from wbar_service.jobs import predicting as job_predicting
from wbar_service.jobs import routes as job_routes
from wbar_service.jobs.stream import EventStreams
from wbar_service.keys import routes as key_routes
from wbar_service.merges import routes as merge_routes
from wbar_service.rate_limits import RateLimits
from wbar_service.settings import ServiceSettings
from wbar_service.studies import routes as study_routes
from wbar_service.traced import TracedRequests
from wbar_service.uploads import protocol
from wbar_service.uploads import routes as upload_routes
from wbar_service.webhooks import routes as webhook_routes
from wbar_store import logs
from wbar_store.process_memory import close_memory
from wbar_store.store import Store
from wbar_store.tracing import Tracing

M_ARENA_MAX = -8  # glibc's, from malloc.h

DESCRIPTION = """Send a trained image network, get back one of the same size that generalizes better.

1. `POST /v1/checkpoints` the file, `POST /v1/datasets` the images; poll both until they are `ready`.
2. `POST /v1/jobs` with their ids; poll `GET /v1/jobs/{id}` or follow `/events`.
3. `GET /v1/jobs/{id}/weights`: the running mean w̄ of the weights the job visited, with recomputed BatchNorm statistics.
"""


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """Return the API on its store; settings: by default those of the environment."""
    settings = settings or ServiceSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.store.close()
        app.state.tracing.close()

    # The offline variant serves the documentation's scripts itself: the pages work where no CDN is reachable.
    app: FastAPI = FastAPIOffline(
        title="wbar", summary="A weight-averaging fine-tuning service", description=DESCRIPTION, version=__version__,
        lifespan=lifespan, separate_input_output_schemas=False, generate_unique_id_function=schema.operation_id,
        redirect_slashes=False,  # a redirect would name the host that the request claims
    )  # fmt: skip
    app.state.settings = settings
    app.state.store = Store.open(settings)
    app.state.keys = auth.RememberedKeys(app.state.store)
    app.state.limits = RateLimits(settings)
    app.state.streams = EventStreams(app.state.store)
    app.state.metrics = prometheus.RequestMetrics()
    app.state.tracing = Tracing("api", settings.otlp_endpoint)
    problems.install(app)
    app.add_middleware(headers.HeadAsGet)
    app.add_middleware(protocol.TusMethod)
    app.add_middleware(headers.SafeHeaders)
    if app.state.tracing.enabled:
        app.add_middleware(TracedRequests, tracing=app.state.tracing)
    app.add_middleware(headers.RequestId)
    # Routes are tried one after the other: those that are asked most often come first.
    for routes in (
        health, job_routes, job_files, job_predicting, checkpoint_routes, dataset_routes, merge_routes, study_routes,
        upload_routes,
        architectures, workers, key_routes,
        sign_in_links, webhook_routes, prometheus,
    ):  # fmt: skip
        app.include_router(routes.router)
    app.include_router(dashboard_routes.router)

    schema.document(
        app, settings.sources, ApiKey, Checkpoint, CheckpointSource, Dataset, DatasetSource, ImageLosses, Job, JobRequest,
        KeyRequest, Merge, MergeRequest, PredictRequest, problems.Problem, RotationRequest, Study, StudyReport, StudyRequest,
        Upload, UploadReference, Webhook, WebhookEvent, WebhookRequest, Worker,
    )  # fmt: skip
    return app


def serve(settings: ServiceSettings) -> None:
    """Run the API until SIGTERM or SIGINT."""
    import uvicorn

    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_ARENA_MAX, 2)  # one arena per thread keeps what each thread once needed
    logs.configure("api")
    close_memory()
    app = create_app(settings)
    gc.collect()
    gc.freeze()  # what was built until here stays: to look through it again holds up every request for 80 ms
    gc.enable()  # it was disabled while the modules were loaded
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        log_config=None,  # its lines go where all others go, as JSON
        access_log=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,
        http=connections.protocol(settings.client_timeout),
        ws="none",
    )
    # uvicorn's own `fd` opens an inherited socket as a Unix socket, for which no TCP_NODELAY is set, and each small answer
    # waits for the client's delayed acknowledgement, 40 ms.
    inherited = None if settings.fd is None else [socket.socket(fileno=settings.fd)]
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):
        server.run(sockets=inherited)
    if not server.started:
        raise SystemExit(1)
