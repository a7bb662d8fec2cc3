"""OpenTelemetry, where the extra `otel` is installed and `[tracing]` is on: a span for each routed call.

Only `app.load_tracing` imports this module; it raises ImportError where the extra is not installed.

The caller's ``traceparent`` (W3C Trace Context) is a member of the request beside ``params``; the node gets that of the
gateway's span. Without tracing it is passed on as it came.
"""

from __future__ import annotations

from typing import Final

import msgspec
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider

SERVICE: Final = "aisopod-gateway"


class Tracing:
    """A `routing.Tracing`. ``provider`` is the SDK's, or a test's."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer(SERVICE)

    def begin(self, method: str, node: str, caller: str, traceparent: bytes) -> tuple[TracedCall, msgspec.Raw]:
        """A span under the caller's, and the ``traceparent`` for the node, in JSON.

        ``traceparent`` is JSON as it came, or empty; one that is none begins a trace of its own.
        """
        try:
            carrier = {"traceparent": msgspec.json.decode(traceparent, type=str)} if traceparent else {}
        except msgspec.DecodeError:
            carrier = {}
        attributes = {"rpc.system": "jsonrpc", "rpc.method": method, "gateway.node": node, "gateway.caller": caller}
        span = self._tracer.start_span(method, extract(carrier), SpanKind.SERVER, attributes)
        onward: dict[str, str] = {}
        inject(onward, trace.set_span_in_context(span))
        return TracedCall(span), msgspec.Raw(msgspec.json.encode(onward.get("traceparent", "")))


class TracedCall:
    """A `routing.Span`."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def finish(self, outcome: str) -> None:
        """The call is over; everything but ``ok`` is an error of the span. Once."""
        self._span.set_attribute("gateway.outcome", outcome)
        if outcome != "ok":
            self._span.set_status(Status(StatusCode.ERROR, outcome))
        self._span.end()


def exporting() -> Tracing:
    """Spans go to an OTLP collector, by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT and its like)."""
    provider = SdkProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
