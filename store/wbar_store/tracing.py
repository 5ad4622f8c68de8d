"""OpenTelemetry traces of a job, from the request that creates it to its end. Without an endpoint nothing of it is imported.

POST /v1/jobs ─┬─ queued
               └─ attempt ─┬─ fetch inputs
                           ├─ loading, high, low, …      one for each phase of each cycle, as the attempt reports them
                           └─ publish

The W3C `traceparent` of the POST is kept in the job's row, from where each attempt takes it. `OTEL_EXPORTER_OTLP_ENDPOINT`
turns tracing on; the SDK reads all of its variables (`OTEL_…`) itself.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from wbar import __version__
from wbar_store import logs

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

log = logging.getLogger("wbar.tracing")

Value = str | int | float | bool
Headers = Mapping[str, str]  # `traceparent`, and `tracestate` where there is one


class Span:
    """A span that is open; its methods do nothing where nothing is traced."""

    def __init__(self, span: "OtelSpan | None" = None) -> None:
        self._span = span

    def name(self, name: str) -> None:
        """Give it a better name, once one is known."""
        if self._span is not None:
            self._span.update_name(name)

    def note(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def failed(self, why: str) -> None:
        """Mark it as failed."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, why))


NOTHING = Span()
CLOSE_SECONDS = 2.0  # for the last spans, where the collector does not answer


class Tracing:
    """The traces of one process. part: of the service, `wbar-<part>` is its `service.name` unless OTEL_SERVICE_NAME is set."""

    def __init__(self, part: str, endpoint: str | None) -> None:
        self._provider: TracerProvider | None = None
        self._exporter: OTLPSpanExporter | None = None
        if endpoint is None:
            return
        try:
            self._provider, self._exporter = _provider(part)
        except ModuleNotFoundError as error:
            log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set and %s is missing: pip install 'wbar[otel]'", error.name)

    @property
    def enabled(self) -> bool:
        """Whether anything is traced."""
        return self._provider is not None

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Mapping[str, Value] | None = None,
        parent: Headers | None = None,
        kind: Literal["internal", "server"] = "internal",
    ) -> Iterator[Span]:
        """Trace the block; the lines that it logs carry the trace's id. parent: default: what is being traced around it."""
        if self._provider is None:
            yield NOTHING
            return
        from opentelemetry.trace import SpanKind, format_trace_id

        opened = self._provider.get_tracer("wbar").start_as_current_span(
            name, _context(parent), SpanKind.SERVER if kind == "server" else SpanKind.INTERNAL, attributes
        )
        with opened as span:
            logs.note(trace=format_trace_id(span.get_span_context().trace_id))
            yield Span(span)

    def record(
        self, name: str, began: float, ended: float, attributes: Mapping[str, Value], parent: Headers | None = None
    ) -> None:
        """Record what is over already. began, ended: seconds since 1970."""
        if self._provider is None:
            return
        tracer = self._provider.get_tracer("wbar")
        span = tracer.start_span(name, _context(parent), attributes=attributes, start_time=_nanoseconds(began))
        span.end(_nanoseconds(max(began, ended)))

    def current(self) -> str | None:
        """Return the `traceparent` of what is being traced; None where nothing is."""
        if self._provider is None:
            return None
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier.get("traceparent")

    def close(self) -> None:
        """Send what is left; what a collector that is away has not taken after CLOSE_SECONDS is lost."""
        if self._provider is None or self._exporter is None:
            return
        end = threading.Timer(CLOSE_SECONDS, self._exporter.shutdown)  # which ends its waiting for another try
        end.start()
        self._provider.shutdown()
        end.cancel()
        end.join()


def of_row(traceparent: str | None) -> Headers | None:
    """Return the parent that a row keeps."""
    return None if traceparent is None else {"traceparent": traceparent}


def _provider(part: str) -> "tuple[TracerProvider, OTLPSpanExporter]":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": f"wbar-{part}", "service.version": __version__})
    # Not the global one: that can be set once, and belongs to whoever embeds us.
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider, exporter


def _context(parent: Headers | None) -> "Context | None":
    if parent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(parent)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
